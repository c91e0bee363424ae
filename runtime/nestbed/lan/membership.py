"""Being a member of a multicast group on an underlay: IGMP, by a socket that receives nothing.

nestbedd holds one for each relayed LAN, and so does the relay process: whichever of them dies, the switches of the underlay go on sending
this machine what is meant for the group.
"""

from __future__ import annotations

import errno
import socket
import struct


class Membership:
    """One LAN's memberships; a socket of its own, because one may join at most 20 groups (``igmp_max_memberships``)."""

    def __init__(self, group_address: str) -> None:
        """The address of the group. No I/O but for making the socket."""
        self._group = socket.inet_aton(group_address)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._joined: set[int] = set()

    def join(self, indexes: set[int]) -> None:
        """Be a member on these interfaces, by index, and on no others. One that has just gone is passed over."""
        for index in self._joined - indexes:
            self._change(socket.IP_DROP_MEMBERSHIP, index)
        for index in indexes - self._joined:
            self._change(socket.IP_ADD_MEMBERSHIP, index)
        self._joined = set(indexes)

    def close(self) -> None:
        """Leave everywhere. Idempotent."""
        self._socket.close()

    def _change(self, option: int, index: int) -> None:
        try:
            self._socket.setsockopt(socket.IPPROTO_IP, option, struct.pack("=4s4si", self._group, bytes(4), index))
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EADDRNOTAVAIL, errno.EADDRINUSE):
                raise
