"""ethtool(8) by SIOCETHTOOL: what a device does for the protocols above it."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGRO = 0x17, 0x1F, 0x2C
_SIOCETHTOOL = 0x8946


def switch(name: str, command: int, *, on: bool) -> None:
    """One of the ETHTOOL_S commands above, for a device of this process's network namespace (ENODEV: there is none).

    Without checksumming (STXCSUM) there is no segmentation either: the kernel then does both before the device sees a frame.
    """
    value = ctypes.create_string_buffer(struct.pack("=II", command, on), 8)
    request = struct.pack("16sQ16x", name.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        fcntl.ioctl(sock.fileno(), _SIOCETHTOOL, request)
