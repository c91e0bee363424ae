"""What netdevice(7) tells of an interface by ioctl: one function per request. OSError with ENODEV if there is no such interface."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import socket
import struct

IFF_UP = 0x1
IFF_RUNNING = 0x40
IFF_MULTICAST = 0x1000
ARPHRD_ETHER = 1

_SIOCGIFFLAGS = 0x8913
_SIOCGIFADDR = 0x8915
_SIOCGIFMTU = 0x8921
_SIOCGIFHWADDR = 0x8927
_SIOCGIFINDEX = 0x8933
_SIOCGIWNAME = 0x8B01
_NAME_BYTES = 16
_IFREQ_BYTES = 40


def flags(sock: socket.socket, name: str) -> int:
    """The interface's IFF_* flags."""
    (value,) = struct.unpack_from("=H", _ask(sock, _SIOCGIFFLAGS, name), _NAME_BYTES)
    return int(value)


def mtu(sock: socket.socket, name: str) -> int:
    """The largest packet it takes, in bytes."""
    (value,) = struct.unpack_from("=i", _ask(sock, _SIOCGIFMTU, name), _NAME_BYTES)
    return int(value)


def address(sock: socket.socket, name: str) -> str:
    """Its first IPv4 address; empty if it has none."""
    try:
        answer = _ask(sock, _SIOCGIFADDR, name)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return ""
        raise
    return str(ipaddress.IPv4Address(answer[_NAME_BYTES + 4 : _NAME_BYTES + 8]))  # behind family and port of sockaddr_in


def index(sock: socket.socket, name: str) -> int:
    """Its index."""
    (value,) = struct.unpack_from("=i", _ask(sock, _SIOCGIFINDEX, name), _NAME_BYTES)
    return int(value)


def mac(sock: socket.socket, name: str) -> str:
    """Its hardware address, as that of an Ethernet device."""
    answer = _ask(sock, _SIOCGIFHWADDR, name)
    return answer[_NAME_BYTES + 2 : _NAME_BYTES + 8].hex(":")  # behind the family of a sockaddr


def hardware_type(sock: socket.socket, name: str) -> int:
    """What kind of device it is: ARPHRD_ETHER, or another one."""
    (value,) = struct.unpack_from("=H", _ask(sock, _SIOCGIFHWADDR, name), _NAME_BYTES)
    return int(value)


def is_wireless(sock: socket.socket, name: str) -> bool:
    """Whether the wireless extensions know it."""
    try:
        _ask(sock, _SIOCGIWNAME, name)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY):
            raise
        return False
    return True


def _ask(sock: socket.socket, request: int, name: str) -> bytes:
    encoded = name.encode()
    if len(encoded) >= _NAME_BYTES:
        raise OSError(errno.ENODEV, "no interface has so long a name", name)
    return fcntl.ioctl(sock, request, encoded.ljust(_IFREQ_BYTES, b"\0"))
