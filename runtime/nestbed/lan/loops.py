"""What the fast path noted of loops, and which of it is news."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from nestbed.lan.fastpath import Refusal

_QUIET_SECONDS = 5.0
"""A loop that is told of is told of again only once it has been quiet for so long."""


@dataclass(slots=True)
class _Told:
    """What has been told of a loop."""

    frames: int
    at: float


class Loops:
    """What was seen at the last look."""

    def __init__(self) -> None:
        self._told: dict[tuple[int, str], _Told] = {}
        self._echoes: dict[tuple[int, int], int] = {}

    def news(self, refusals: Iterable[Refusal]) -> list[Refusal]:
        """Of the stations whose frames were refused, those of whose loop it is time to tell."""
        return [refusal for refusal in refusals if self._is_news(refusal)]

    def _is_news(self, refusal: Refusal) -> bool:
        key, now = (refusal.lan_key, refusal.mac), time.monotonic()
        told = self._told.get(key)
        if told is not None and told.frames == refusal.frames:
            return False
        self._told[key] = _Told(refusal.frames, now)
        return told is None or now - told.at > _QUIET_SECONDS

    def grown(self, echoes: Mapping[tuple[int, int], int]) -> Collection[tuple[int, int]]:
        """The LANs and underlays of which more was heard than at the last look, of what this node had sent on another underlay."""
        found = {key for key, count in echoes.items() if self._echoes.get(key) != count}
        self._echoes = dict(echoes)
        return found
