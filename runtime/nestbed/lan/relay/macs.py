"""Where the stations of a LAN are, and which of them go round in a loop. The rules are those of ``bpf/lan_places.h``. Pure.

A station may move. But what is in two places at once comes round in a loop, and of it only what came first is taken; so is what moves too
often: it is pinned, as long as both are heard.
"""

from __future__ import annotations

from dataclasses import dataclass

LOCAL = ""
"""The origin of what is on this machine; others are the address a datagram came from."""

AT_ONCE_SECONDS = 0.05
MOVES_MAX, WINDOW_SECONDS, PIN_SECONDS = 5, 1.0, 5.0
"""A station that moved more often within the window is pinned for so long."""

AGE_SECONDS = 150.0
STATIONS_MAX = 8192


class Place:
    """Where a station is: what it was ``heard`` from last, at the ``origin``."""

    __slots__ = ("heard", "moves", "origin", "pinned_until", "told_at", "window")

    def __init__(self, origin: str, now: float) -> None:
        self.origin = origin
        self.heard = now
        self.window = now
        self.moves = 0
        self.pinned_until = 0.0
        self.told_at = -PIN_SECONDS


@dataclass(frozen=True, slots=True)
class Loop:
    """A MAC that is taken from ``origin`` and refused from ``other``. Without a MAC: the underlay ``other`` was set aside, which reaches
    the same machines as the underlay ``origin``.
    """

    mac: str
    origin: str
    other: str


class MacTable:
    """The stations of one LAN. What was not heard of for AGE_SECONDS, or twice that, is forgotten.

    Whoever forwards looks at ``places`` first: a frame from where its station is passes, and is noted in ``heard``. Else :meth:`admits`
    decides, which may replace ``places``.
    """

    def __init__(self, now: float) -> None:
        self.places: dict[bytes, Place] = {}
        self.loops: list[Loop] = []
        """Those found since somebody emptied the list; one that goes on is found again every few seconds."""
        self._older: dict[bytes, Place] = {}
        self._turned_at = now

    def admits(self, mac: bytes, origin: str, now: float) -> bool:
        """Whether a frame from this source, which came from ``origin``, may pass; learns where the station is."""
        place = self.places.get(mac)
        if place is None:
            if len(self.places) >= STATIONS_MAX:
                self._turn(now)
            place = self._older.get(mac)
            if place is None:
                place = Place(origin, now)
            self.places[mac] = place
        if place.origin == origin or _may_move(place, origin, now):
            place.heard = now
            return True
        if now - place.told_at >= PIN_SECONDS:
            place.told_at = now
            self.loops.append(Loop(mac.hex(":"), place.origin, origin))
        return False

    def owner(self, mac: bytes) -> str | None:
        """Where the station is; None if it is not known."""
        place = self.places.get(mac) or self._older.get(mac)
        return None if place is None else place.origin

    def age(self, now: float) -> None:
        """Forget what is old; call it about every second."""
        if now - self._turned_at >= AGE_SECONDS:
            self._turn(now)

    def _turn(self, now: float) -> None:
        self._older, self.places, self._turned_at = self.places, {}, now


def _may_move(place: Place, origin: str, now: float) -> bool:
    if now - place.window > WINDOW_SECONDS:
        place.window, place.moves = now, 0
    if now >= place.pinned_until:
        place.moves += 1
        if place.moves > MOVES_MAX:
            place.pinned_until = now + PIN_SECONDS
    if now < place.pinned_until and now - place.heard < PIN_SECONDS:
        place.moves = 0
        return False
    if now - place.heard < AT_ONCE_SECONDS:
        return False
    place.pinned_until, place.origin = 0.0, origin
    return True
