"""rtnetlink(7): what changes in this network namespace while it is listened to."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

from nestbed.linux.rtnl import attributes, messages, string

RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE = 1, 3, 5, 7

_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR = 16, 17, 20, 21
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_IFLA_IFNAME = 3
_RECEIVE_BYTES = 256 * 1024


@dataclass(slots=True)
class Changes:
    """What changed: devices by name, devices with another address by index, and whether neighbours or routes did."""

    links: set[str] = field(default_factory=set)
    addressed: set[int] = field(default_factory=set)
    has_routing: bool = False


class News:
    """A non-blocking socket that hears of devices, IPv4 addresses, neighbours and routes; wait for ``fileno`` to be readable."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        for group in (RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE):
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def read(self) -> Changes | None:
        """What changed since the last call; None if some of it was missed (look for yourself then)."""
        changes = Changes()
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return changes
            except OSError:  # ENOBUFS: more news than the buffer holds
                return None
            for kind, _, _, payload in messages(data):
                if kind in (_RTM_NEWLINK, _RTM_DELLINK):
                    changes.links.add(string(attributes(payload[16:]).get(_IFLA_IFNAME)))
                elif kind in (_RTM_NEWADDR, _RTM_DELADDR):
                    changes.addressed.add(struct.unpack_from("=I", payload, 4)[0])
                else:
                    changes.has_routing = True
