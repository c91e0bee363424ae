"""One LAN as the relay carries it: frames from its tap become datagrams, and datagrams frames.

What the kernel's fast path carries already (``RelayedLan.is_fast``) comes here only as a copy for stock members on this machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial

from nestbed.lan.reasons import Reason
from nestbed.lan.relay import frames
from nestbed.lan.relay.ear import open_ear, source_of
from nestbed.lan.relay.engine import Engine
from nestbed.lan.relay.macs import LOCAL, Loop, MacTable
from nestbed.lan.relay.tally import DROPS_AT, RECEIVED_AT, SENT_AT
from nestbed.lan.relay.underlay import Shape, Sockets, reason_of
from nestbed.lan.relay.wanted import RelayedLan
from nestbed.linux import tun

BATCH_FRAMES = 32
"""Served before it is another's turn: about 0.3 ms."""
SET_ASIDE_SECONDS = 60.0

_NO_STATION = bytes(6)
_WRITE_REASONS = {
    errno.ENOBUFS: Reason.NO_MEMORY,
    errno.ENOMEM: Reason.NO_MEMORY,
    errno.EAGAIN: Reason.NO_MEMORY,
    errno.EINVAL: Reason.RUNT,
}


class Segment:
    """One LAN: its tap, its sockets on each underlay, its stations. Faults of underlays are no errors: :meth:`refresh` mends."""

    def __init__(self, wanted: RelayedLan, engine: Engine, cells: memoryview, on_stranger: Callable[[], object]) -> None:
        """Open the tap; :meth:`refresh` does the rest. ``on_stranger`` is called for a datagram from an unknown socket of this machine.

        Raises:
            OSError: there is no such tap, or it is in use.
        """
        self.wanted = wanted
        self.faults: dict[str, str] = {}
        """Why an underlay does not carry the LAN now, as the end of a sentence."""
        self.has_members = False
        """Whether there are stock members on this machine."""
        now = time.monotonic()
        self.macs = MacTable(now)
        self._engine = engine
        self._cells = cells
        self._on_stranger = on_stranger
        self._read_bytes = wanted.mtu + frames.HEADER_BYTES + frames.TAGS_MAX * frames.TAG_BYTES + 1
        self._fits_bytes = 0
        self._paths: dict[str, Sockets] = {}
        self._aside: dict[str, float] = {}
        self._sources: set[tuple[str, int]] = set()
        self._addresses: set[str] = set()
        self._welcome: dict[str, set[tuple[str, int]]] = {name: set() for name in wanted.underlays}
        self._overflows: dict[str, int] = {}
        self._by_peer: dict[str, Sockets] = {}
        self._ears: dict[str, socket.socket] = {}
        self._only_send: Callable[[bytes], int] | None = None
        self._sent: list[bytes] = []
        self._received: list[bytes] = []
        """Of the batch under way, to be counted."""
        self._tap = tun.open_tap(wanted.tap)
        engine.watch(self._tap, self._from_tap)

    # ---- what is told to others

    def inodes(self) -> set[int]:
        """Of its sockets."""
        return {os.fstat(sock.fileno()).st_ino for path in self._paths.values() for sock in path.sockets()}

    @property
    def is_broken(self) -> bool:
        """Whether the tap is gone, so that it has to be made again."""
        return self._tap < 0

    # ---- changes

    def refresh(self) -> None:
        """Make the sockets what the underlays demand now. Cheap if nothing changed."""
        now, before = time.monotonic(), set(self._paths.values())
        for name in self.wanted.underlays:
            shape = Shape.of(name)
            fault = shape.fault(needs_multicast=not self.wanted.peers)
            if self._aside.get(name, 0.0) > now:
                fault = "is set aside: it reaches the same machines as another underlay of the LAN"
            path = self._paths.get(name)
            if path is not None and (fault or path.shape != shape):
                self._close(name)
                path = None
            if path is None and not fault:
                fault = self._open(name, shape)
            self.faults[name] = fault
        self._sources = {source for path in self._paths.values() for source in path.sources}
        self._addresses = {path.shape.address for path in self._paths.values()}
        self._by_peer = self._routes()
        paths = list(self._paths.values())
        self._only_send = paths[0].sender.send if len(paths) == 1 and not self.wanted.peers else None
        # As the fast path has it: a frame goes by it on all underlays or on none.
        self._fits_bytes = min((path.fits_bytes for path in self._paths.values()), default=0)
        self.serve_members(self.has_members)
        if before != set(self._paths.values()):
            self._prick_up_ears()

    def serve_members(self, has_members: bool) -> None:  # noqa: FBT001 - the state that it takes over
        """Have stock members on this machine hear what is sent, or not."""
        self.has_members = has_members and not self.wanted.peers
        for number, path in enumerate(self._paths.values()):
            if path.local is not None:
                path.sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, int(self.has_members and number == 0))

    def tick(self) -> None:
        """What is to be done about every second."""
        self.macs.age(time.monotonic())
        for welcome in self._welcome.values():
            welcome.clear()
        for name, path in self._paths.items():
            dropped = path.overflowed()
            self._drop(RECEIVED_AT, Reason.NO_MEMORY, (dropped - self._overflows.get(name, 0)) & 0xFFFFFFFF)
            self._overflows[name] = dropped
        if any(until <= time.monotonic() for until in self._aside.values()):
            self._aside.clear()
            self.refresh()

    def note_lost(self, count: int) -> None:
        """So many frames to other machines did not fit into the tap's queue."""
        self._drop(SENT_AT, Reason.NO_MEMORY, count)

    def close(self) -> None:
        """Leave the groups and let the tap go; it stays, without a carrier. The cells are released."""
        for name in list(self._paths):
            self._close(name)
        self._prick_up_ears()
        self._let_go()
        self._cells.release()

    def _open(self, name: str, shape: Shape) -> str:
        try:
            path = Sockets(self.wanted, shape)
        except OSError as error:
            return f"refuses the LAN: {error.strerror}"
        self._paths[name] = path
        self._overflows[name] = 0
        # In the order of preference, whatever came first.
        self._paths = {name: self._paths[name] for name in self.wanted.underlays if name in self._paths}
        self._engine.watch(path.receiver.fileno(), partial(self._from_underlay, name, path.receiver))
        return ""

    def _close(self, name: str) -> None:
        path = self._paths.pop(name)
        self._engine.forget(path.receiver.fileno())
        path.close()

    def _let_go(self) -> None:
        if self._tap >= 0:
            self._engine.forget(self._tap)
            os.close(self._tap)
            self._tap = -1

    def _prick_up_ears(self) -> None:
        """Listen for our own on other underlays, where the fast path does not."""
        for sock in self._ears.values():
            self._engine.forget(sock.fileno())
            sock.close()
        self._ears.clear()
        if len(self._paths) < 2 or self.wanted.peers or self.wanted.is_fast:
            return
        for name in self._paths:
            others = [path.shape.address for other, path in self._paths.items() if other != name]
            try:
                sock = self._ears[name] = open_ear(name, self.wanted.group, others)
            except OSError:  # it is going away at this moment
                continue
            self._engine.watch(sock.fileno(), partial(self._hear, name, sock))

    def _hear(self, name: str, ear: socket.socket) -> None:
        try:
            source = source_of(ear.recv(64))
        except OSError:
            return
        other = next((other for other, path in self._paths.items() if path.shape.address == source), None)
        if other is not None:
            self._set_aside(name, other)

    def _routes(self) -> dict[str, Sockets]:
        """By which underlay each peer is reached."""
        by_address = {path.shape.address: path for path in self._paths.values()}
        found: dict[str, Sockets] = {}
        for peer in self.wanted.peers if by_address else ():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                try:
                    sock.connect((peer, self.wanted.port))
                    source = sock.getsockname()[0]
                except OSError:
                    source = ""
            found[peer] = by_address.get(source) or next(iter(by_address.values()))
        return found

    # ---- frames to other machines

    def _from_tap(self) -> None:
        self._read_tap()
        frames.count(self._cells, SENT_AT, self._sent)
        self._sent.clear()

    def _read_tap(self) -> None:
        tap, length, places, is_fast = self._tap, self._read_bytes, self.macs.places, self.wanted.is_fast
        now, sent, send = time.monotonic(), self._sent.append, self._only_send
        for _ in range(BATCH_FRAMES):
            try:
                frame = os.read(tap, length)
            except BlockingIOError:
                return
            except OSError:  # EBADFD, EIO: the tap was removed
                self._let_go()
                return
            if is_fast and len(frame) <= self._fits_bytes:
                # The fast path has carried it, this way or that, and looked at where it comes from.
                self._send_here(frame)
                continue
            mac = frame[6:12]
            place = places.get(mac)
            if place is not None and place.origin == LOCAL:
                place.heard = now
            elif self._admits(frame, mac, LOCAL, SENT_AT):
                places = self.macs.places
            else:
                continue
            if send is None:
                reason = self._send_to_peers(frame) if self.wanted.peers else self._send_to_group(frame, self._paths.values())
            else:
                reason = self._send_alone(send, frame)
            if reason is None:
                sent(frame)
            else:
                self._drop(SENT_AT, reason)

    @staticmethod
    def _send_alone(send: Callable[[bytes], int], frame: bytes) -> Reason | None:
        try:
            send(frame)
        except OSError as error:
            return reason_of(error)
        return None

    def _send_here(self, frame: bytes) -> None:
        """To the stock members of this machine alone."""
        for path in self._paths.values() if self.has_members else ():
            if path.local is not None:
                with contextlib.suppress(OSError):
                    path.local.send(frame)
                return

    @staticmethod
    def _send_to_group(frame: bytes, paths: Iterable[Sockets]) -> Reason | None:
        """Why it was not sent at all; None if it was."""
        is_sent, reason = False, Reason.UNDERLAY_DOWN
        for path in paths:
            try:
                path.sender.send(frame)
                is_sent = True
            except OSError as error:
                reason = reason_of(error)
        return None if is_sent else reason

    def _send_to_peers(self, frame: bytes) -> Reason | None:
        """As :meth:`_send_to_group`."""
        targets = self._by_peer
        owner = None if frame[0] & 1 else self.macs.owner(frame[:6])
        if owner == LOCAL:
            targets = {}
        if owner is not None and owner in targets:
            targets = {owner: targets[owner]}
        is_sent, reason, port = False, Reason.UNDERLAY_DOWN, self.wanted.port
        for peer, path in targets.items():
            try:
                path.sender.sendto(frame, (peer, port))
                is_sent = True
            except OSError as error:
                reason = reason_of(error)
        return None if is_sent else reason

    # ---- frames from other machines

    def _from_underlay(self, name: str, receiver: socket.socket) -> None:
        self._receive(name, receiver)
        frames.count(self._cells, RECEIVED_AT, self._received)
        self._received.clear()

    def _receive(self, name: str, receiver: socket.socket) -> None:
        receive, places, welcome, read_bytes = receiver.recvfrom, self.macs.places, self._welcome[name], self._read_bytes
        now, mtu, passes_on = time.monotonic(), self.wanted.mtu, len(self._paths) > 1 and not self.wanted.peers
        for _ in range(BATCH_FRAMES):
            try:
                frame, source = receive(read_bytes)
            except OSError:  # no datagram waits; or the interface is gone, and refresh sees to that
                return
            if source not in welcome and not self._welcomes(name, source):
                continue
            if len(frame) > mtu + frames.HEADER_BYTES and len(frame) > mtu + frames.header_bytes(frame):
                self._drop(RECEIVED_AT, Reason.GIANT)
                continue
            mac, address = frame[6:12], source[0]
            place = places.get(mac)
            if place is not None and place.origin == address:
                place.heard = now
            elif self._admits(frame, mac, address, RECEIVED_AT):
                places = self.macs.places
            else:
                continue
            self._deliver(frame)
            if passes_on:
                # A LAN with several underlays joins them.
                self._send_to_group(frame, [path for other, path in self._paths.items() if other != name])

    def _deliver(self, frame: bytes) -> None:
        try:
            os.write(self._tap, frame)
        except OSError as error:
            self._drop(RECEIVED_AT, _WRITE_REASONS.get(error.errno or 0, Reason.NO_LAN))
        else:
            self._received.append(frame)

    def _welcomes(self, name: str, source: tuple[str, int]) -> bool:
        """Whether datagrams from this source are for the LAN; if not, one is counted. What is welcome is looked at again every second."""
        address = source[0]
        if source in self._sources:
            self._drop(RECEIVED_AT, Reason.OWN)
            return False
        if address in self._addresses:
            self._on_stranger()
        elif self.wanted.peers and address not in self.wanted.peers:
            self._drop(RECEIVED_AT, Reason.STRANGER)
            return False
        elif len(self._paths) > 1 and not self.wanted.is_fast:  # else the fast path sees more of it
            other = next((known for known, welcome in self._welcome.items() if known != name and source in welcome), None)
            if other is not None and self._set_aside(name, other):
                return False
        self._welcome[name].add(source)
        return True

    def _admits(self, frame: bytes, mac: bytes, origin: str, base: int) -> bool:
        """Whether a frame passes whose source is not known to be there; if not it is counted."""
        if len(frame) < frames.HEADER_BYTES:
            self._drop(base, Reason.RUNT)
        elif mac[0] & 1 or mac == _NO_STATION:
            self._drop(base, Reason.MALFORMED)
        elif not self.macs.admits(mac, origin, time.monotonic()):
            self._drop(base, Reason.LOOP)
        else:
            return True
        return False

    def _set_aside(self, name: str, other: str) -> bool:
        """Two underlays reach one machine, which gets everything twice: do without the less preferred one for a while."""
        if name not in self._paths or other not in self._paths:
            return False
        aside, kept = sorted((name, other), key=self.wanted.underlays.index, reverse=True)
        self.macs.loops.append(Loop("", kept, aside))
        self._aside[aside] = time.monotonic() + SET_ASIDE_SECONDS
        self.refresh()
        return aside == name

    def _drop(self, base: int, reason: Reason, count: int = 1) -> None:
        self._cells[base + DROPS_AT + reason] += count
