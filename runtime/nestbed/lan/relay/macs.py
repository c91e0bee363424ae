"""Where the stations of a LAN are, and which of them go round in a loop. The rules are those of the kernel's fast path. Pure."""

from __future__ import annotations

from dataclasses import dataclass

LOCAL = ""
"""The origin of what is on this machine; others are the address a datagram came from."""

MOVES_MAX, WINDOW_SECONDS, PIN_SECONDS = 20, 1.0, 5.0
"""A MAC that moved more often within the window is pinned to where it is for so long."""

AGE_SECONDS = 150.0
STATIONS_MAX = 8192


@dataclass(slots=True)
class _Restless:
    """A station that moved lately."""

    since: float
    moves: int = 0
    pinned_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Loop:
    """A MAC that was pinned to ``origin`` while its frames came from ``other``, too. Without a MAC: the underlay ``other`` was set aside,
    which reaches the same machines as the underlay ``origin``.
    """

    mac: str
    origin: str
    other: str


class MacTable:
    """The stations of one LAN. What was not heard of for AGE_SECONDS, or twice that, is forgotten.

    Whoever forwards looks at ``origins`` first, and asks :meth:`admits` only if that does not say what it expects.
    """

    def __init__(self, now: float) -> None:
        self.origins: dict[bytes, str] = {}
        self.loops: list[Loop] = []
        """Those found since somebody emptied the list."""
        self._older: dict[bytes, str] = {}
        self._restless: dict[bytes, _Restless] = {}
        self._turned_at = now

    def admits(self, mac: bytes, origin: str, now: float) -> bool:
        """Whether a frame from this source, which came from ``origin``, may pass; learns where the station is."""
        known = self.origins.get(mac)
        if known is None:
            known = self._older.get(mac)
        if known is None or known == origin:
            if len(self.origins) >= STATIONS_MAX:
                self._turn(now)
            self.origins[mac] = origin
            return True
        return self._moves(mac, known, origin, now)

    def owner(self, mac: bytes) -> str | None:
        """Where the station is; None if it is not known."""
        known = self.origins.get(mac)
        return self._older.get(mac) if known is None else known

    def age(self, now: float) -> None:
        """Forget what is old; call it about every second."""
        if now - self._turned_at >= AGE_SECONDS:
            self._turn(now)
        for mac in [mac for mac, restless in self._restless.items() if now > max(restless.since + WINDOW_SECONDS, restless.pinned_until)]:
            del self._restless[mac]

    def _moves(self, mac: bytes, known: str, origin: str, now: float) -> bool:
        restless = self._restless.get(mac)
        if restless is None:
            if len(self._restless) >= STATIONS_MAX:
                self._restless.clear()
            restless = self._restless[mac] = _Restless(now)
        if now < restless.pinned_until:
            self.origins[mac] = known
            return False
        if now - restless.since >= WINDOW_SECONDS:
            restless.since, restless.moves = now, 0
        restless.moves += 1
        if restless.moves > MOVES_MAX:
            restless.pinned_until = now + PIN_SECONDS
            self.origins[mac] = known
            self.loops.append(Loop(mac.hex(":"), known, origin))
            return False
        self.origins[mac] = origin
        return True

    def _turn(self, now: float) -> None:
        self._older, self.origins, self._turned_at = self.origins, {}, now
