"""rtnetlink(7): what changes in this network namespace while it is listened to."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from nestbed.linux.netlink import RTM_DELADDR, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK, messages
from nestbed.linux.rtnl import link_of

RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE = 1, 3, 5, 7

_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_RECEIVE_BYTES = 256 * 1024

_DELETIONS_ONLY = struct.pack(
    "=HBBIHBBIHBBIHBBI",
    *(0x28, 0, 0, 4),  # ldh: nlmsg_type, at offset 4 and taken for big-endian
    *(0x15, 0, 1, int.from_bytes(RTM_DELLINK.to_bytes(2, sys.byteorder), "big")),  # jeq
    *(0x06, 0, 0, 0xFFFFFFFF),  # ret: all of it
    *(0x06, 0, 0, 0),  # ret: nothing
)
"""A filter of four instructions (``struct sock_filter``): each device that comes makes some ten messages that nobody needs."""
_SO_ATTACH_FILTER = 26


@dataclass(slots=True)
class Changes:
    """What changed: devices by name, devices with another address by index, and whether neighbours or routes did."""

    links: set[str] = field(default_factory=set)
    addressed: set[int] = field(default_factory=set)
    has_routing: bool = False


class _Listener:
    """A non-blocking socket that hears groups of messages; wait for ``fileno`` to be readable."""

    def __init__(self, groups: Iterable[int], program: bytes = b"") -> None:
        """With a ``program`` (classic BPF) only messages that it lets pass."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        if program:
            memory = ctypes.create_string_buffer(program, len(program))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(memory)))
        self._socket.bind((0, 0))
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def _received(self) -> list[tuple[int, memoryview]] | None:
        """Type and body of each message that came since the last call; None if some were missed."""
        found: list[tuple[int, memoryview]] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS: more news than the buffer holds
                return None
            found += ((kind, payload) for kind, _, _, payload in messages(data))


class News(_Listener):
    """Hears of devices, IPv4 addresses, neighbours and routes."""

    def __init__(self) -> None:
        super().__init__((RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE))

    def read(self) -> Changes | None:
        """What changed since the last call; None if some of it was missed (look for yourself then)."""
        received = self._received()
        if received is None:
            return None
        changes = Changes()
        for kind, payload in received:
            if kind in (RTM_NEWLINK, RTM_DELLINK):
                changes.links.add(link_of(payload).name)
            elif kind in (RTM_NEWADDR, RTM_DELADDR):
                changes.addressed.add(struct.unpack_from("=I", payload, 4)[0])
            else:
                changes.has_routing = True
        return changes


class LinkDeletions(_Listener):
    """Tells which devices of this network namespace went away."""

    def __init__(self) -> None:
        super().__init__((RTNLGRP_LINK,), _DELETIONS_ONLY)

    def read(self) -> set[str] | None:
        """The names of the devices deleted since the last call; None if some were missed (look for yourself then)."""
        received = self._received()
        if received is None:
            return None
        # A port that leaves its bridge is told like one that is gone, by a message of the bridge's own family.
        return {link_of(payload).name for kind, payload in received if kind == RTM_DELLINK and payload[0] != socket.AF_BRIDGE}
