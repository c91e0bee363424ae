"""What the kernel could not give the relay: frames dropped because a tap's queue was full."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_TX_DROPPED = 11
"""Of the sixteen numbers of a line of /proc/net/dev, eight received and eight sent."""


class TapDrops:
    """What was dropped at taps, from one look to the next."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}

    def look(self, taps: Iterable[str]) -> Mapping[str, int]:
        """How many frames were dropped at each since the last look; what was dropped before the first does not count."""
        now = _dropped({tap.encode(): tap for tap in taps})
        grown = {tap: count - self._before[tap] for tap, count in now.items() if count > self._before.get(tap, count)}
        self._before = now
        return grown


def _dropped(taps: Mapping[bytes, str]) -> dict[str, int]:
    found = {}
    with open("/proc/net/dev", "rb") as file:
        for line in file:
            name, colon, numbers = line.partition(b":")
            tap = taps.get(name.strip())
            if colon and tap is not None:
                found[tap] = int(numbers.split()[_TX_DROPPED])
    return found
