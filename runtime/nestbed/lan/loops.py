"""What the BPF programs noted of loops, and which of it is news."""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass

from nestbed.lan.fastpath import Refusal
from nestbed.lan.programs import Closing

_QUIET_SECONDS, _PORT_QUIET_SECONDS = 5.0, 15.0
"""A loop that is told of is told of again only once it has been quiet for so long: between machines, and within this one, where a port is
closed for 5 s before it can be heard again.
"""


@dataclass(slots=True)
class _Told:
    """What has been told of a loop."""

    count: int
    at: float


class _Watch:
    """Which counts grew since the last look, after they had not for a time."""

    def __init__(self, quiet_seconds: float) -> None:
        self._quiet_seconds = quiet_seconds
        self._told: dict[Hashable, _Told] = {}

    def is_news(self, key: Hashable, count: int) -> bool:
        now, told = time.monotonic(), self._told.get(key)
        if told is not None and told.count == count:
            return False
        self._told[key] = _Told(count, now)
        return told is None or now - told.at > self._quiet_seconds


class Loops:
    """What was seen at the last look."""

    def __init__(self) -> None:
        self._stations, self._ports = _Watch(_QUIET_SECONDS), _Watch(_PORT_QUIET_SECONDS)
        self._echoes: dict[tuple[int, int], int] = {}

    def news(self, refusals: Iterable[Refusal]) -> list[Refusal]:
        """Of the stations whose frames were refused, those of whose loop it is time to tell."""
        return [each for each in refusals if self._stations.is_news((each.lan_key, each.mac), each.frames)]

    def port_news(self, closings: Mapping[int, Closing]) -> dict[int, Closing]:
        """Of the ports that are closed, by index, those of whose loop it is time to tell."""
        return {index: each for index, each in closings.items() if self._ports.is_news(index, each.count)}

    def grown(self, echoes: Mapping[tuple[int, int], int]) -> Collection[tuple[int, int]]:
        """The LANs and underlays of which more was heard than at the last look, of what this node had sent on another underlay."""
        found = {key for key, count in echoes.items() if self._echoes.get(key) != count}
        self._echoes = dict(echoes)
        return found
