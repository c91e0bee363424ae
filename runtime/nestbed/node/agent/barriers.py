"""Who waits at which barrier, and who may go on. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby

from nestbed.node.agent.values import Arrival

COUNT_MAX = 100_000
TIMEOUT_SECONDS, TIMEOUT_SECONDS_MAX = 60.0, 24 * 3600.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def arrival(fields: Mapping[str, str], at: float) -> Arrival | None:
    """The arrival that a report tells of: its fields are ``barrier``, ``count``, and perhaps ``timeout`` and ``id``; None if they are not.

    Without ``id`` it is called like the barrier.
    """
    name, count, seconds = fields.get("barrier", ""), fields.get("count", ""), fields.get("timeout", str(TIMEOUT_SECONDS))
    arrival_id = fields.get("id", name)
    if not (_NAME.fullmatch(name) and _NAME.fullmatch(arrival_id)):
        return None
    if not (count.isascii() and count.isdecimal() and len(count) < 7 and 1 <= int(count) <= COUNT_MAX):
        return None
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", seconds, re.ASCII) or not 0 < float(seconds) <= TIMEOUT_SECONDS_MAX:
        return None
    return Arrival(arrival_id, name, int(count), at, at + float(seconds))


def is_name(text: str) -> bool:
    """Whether a barrier or an arrival can be called so."""
    return _NAME.fullmatch(text) is not None


def complete(waiting: Iterable[tuple[str, Arrival]]) -> list[tuple[str, Arrival]]:
    """Of those who wait (each with whose arrival it is) the ones who may go on: as many came to their barrier as were to come.

    If they do not agree on how many that is, the largest number counts. Of more, those who came first go.
    """
    free = []
    for _, group in groupby(sorted(waiting, key=_order), key=lambda one: one[1].barrier):
        together = list(group)
        while together and len(together) >= (count := max(one.count for _, one in together)):
            free += together[:count]
            del together[:count]
    return free


def _order(one: tuple[str, Arrival]) -> tuple[str, float, str, str]:
    owner, arrived = one
    return arrived.barrier, arrived.at, owner, arrived.id
