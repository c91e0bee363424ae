"""One LAN on one underlay: the sockets that receive its datagrams and send them.

The wire format is that of QEMU's ``-netdev socket,mcast=`` and ``-netdev dgram``: one bare Ethernet frame for each UDP datagram.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from nestbed.lan.reasons import Reason
from nestbed.lan.relay.wanted import RelayedLan
from nestbed.linux import ifreq

IP_UDP_BYTES = 28
"""RFC 791 and 768: the headers before the frame."""
RECEIVE_BUFFER_BYTES = 8 * 1024 * 1024
"""The kernel doubles it, and counts 2304 bytes for a full frame: room for about 7,000."""
SEND_BUFFER_BYTES = 4 * 1024 * 1024

_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT, _IP_MULTICAST_ALL = 10, 0, 49
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE, _SO_MEMINFO = 33, 32, 55
_MEMINFO_WORDS, _MEMINFO_DROPS = 9, 8

_REASONS: Mapping[int, Reason] = {
    errno.EMSGSIZE: Reason.OVERSIZE,
    errno.EAGAIN: Reason.NO_MEMORY,
    errno.ENOBUFS: Reason.NO_MEMORY,
    errno.ENOMEM: Reason.NO_MEMORY,
}


def reason_of(error: OSError) -> Reason:
    """Why a frame that could not be sent or handed on is lost."""
    return _REASONS.get(error.errno or 0, Reason.UNDERLAY_DOWN)


@dataclass(frozen=True, slots=True)
class Shape:
    """What of an interface the sockets depend on: if it changes they are made again. All zero: there is none."""

    index: int = 0
    flags: int = 0
    address: str = ""
    mtu: int = 0

    @classmethod
    def of(cls, name: str) -> Shape:
        """The interface as it is now."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                flags = ifreq.flags(sock, name) & (ifreq.IFF_UP | ifreq.IFF_MULTICAST)
                return cls(socket.if_nametoindex(name), flags, ifreq.address(sock, name), ifreq.mtu(sock, name))
            except OSError:
                return cls()

    def fault(self, *, needs_multicast: bool) -> str:
        """Why it cannot carry a LAN now; empty if it can."""
        if not self.index:
            return "does not exist"
        if not self.flags & ifreq.IFF_UP:
            return "is down"
        if not self.address:
            return "has no IPv4 address"
        if needs_multicast and not self.flags & ifreq.IFF_MULTICAST:
            return "carries no multicast"
        return ""


class Sockets:
    """The open sockets of one LAN on one underlay. ``close`` ends them; they are never mended."""

    def __init__(self, lan: RelayedLan, shape: Shape) -> None:
        """Join and connect.

        Raises:
            OSError: the kernel refuses.
        """
        self.shape = shape
        self.fits_bytes = shape.mtu - IP_UDP_BYTES
        """The longest frame whose datagram is not fragmented."""
        with contextlib.ExitStack() as stack:
            if lan.peers:
                self.receiver = self.sender = stack.enter_context(_unicast(lan, shape))
                self.local = None
            else:
                self.receiver = stack.enter_context(_receiver(lan, shape))
                self.sender = stack.enter_context(_sender(lan, shape, ttl=lan.ttl, loop=False))
                self.local = stack.enter_context(_sender(lan, shape, ttl=0, loop=True))
            self._own = stack.pop_all()
        self.sources = {sock.getsockname() for sock in (self.sender, self.local) if sock is not None}
        """Where datagrams of our own come from."""

    def sockets(self) -> list[socket.socket]:
        """All of them, each once."""
        return list({id(sock): sock for sock in (self.receiver, self.sender, self.local) if sock is not None}.values())

    def overflowed(self) -> int:
        """How many datagrams did not fit into the receive buffer so far."""
        words = self.receiver.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * _MEMINFO_WORDS)
        return int(struct.unpack_from("=I", words, 4 * _MEMINFO_DROPS)[0])

    def close(self) -> None:
        """Leave the group. Idempotent."""
        self._own.close()


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)  # no DF: what does not fit is fragmented
    return sock


def _receiver(lan: RelayedLan, shape: Shape) -> socket.socket:
    sock = _socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # stock members on this machine bind to the same
    sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)  # only what arrives by this interface
    sock.bind((lan.group, lan.port))
    membership = struct.pack("=4s4si", socket.inet_aton(lan.group), bytes(4), shape.index)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    return sock


def _sender(lan: RelayedLan, shape: Shape, *, ttl: int, loop: bool) -> socket.socket:
    sock = _socket()
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", bytes(4), bytes(4), shape.index))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, int(loop))
    sock.bind((shape.address, 0))
    sock.connect((lan.group, lan.port))
    return sock


def _unicast(lan: RelayedLan, shape: Shape) -> socket.socket:
    sock = _socket()
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, max(lan.ttl, 1))
    sock.bind((shape.address, lan.port))
    return sock
