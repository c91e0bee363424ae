"""Stock members on this machine: sockets of other programs that are bound to a LAN's port."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator


def local_members(own_inodes: Collection[int]) -> set[tuple[str, int]]:
    """Address and port of every UDP socket of this network namespace that is not among ours (proc_net_udp(5))."""
    with open("/proc/net/udp", "rb") as file:
        next(file)
        return {local for local, inode in _entries(file) if inode not in own_inodes}


def _entries(lines: Iterator[bytes]) -> Iterator[tuple[tuple[str, int], int]]:
    for line in lines:
        fields = line.split(None, 10)
        address, _, port = fields[1].partition(b":")
        yield (socket.inet_ntoa(struct.pack("=I", int(address, 16))), int(port, 16)), int(fields[9])
