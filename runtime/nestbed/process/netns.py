"""Network namespaces for containers, made by the keeper without a process of their own and held by descriptors."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from nestbed.linux.namespace import CLONE_NEWNET, setns, unshare

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_DEFAULTS = (
    *(
        (f"ipv4/conf/{conf}/{name}", value)
        for conf in ("all", "default")
        for name, value in (("forwarding", "0"), ("rp_filter", "0"), ("accept_redirects", "1"), ("send_redirects", "1"))
    ),
    ("ipv4/conf/all/arp_ignore", "1"),
    ("ipv4/conf/all/arp_announce", "2"),
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv4/ping_group_range", "0 2147483647"),
    ("ipv6/conf/default/dad_transmits", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
)
"""A new namespace takes over IPv4 settings of the machine's first one; containers must not show on which machine they are."""

SPARES = 2


class NetworkNamespaces:
    """Makes network namespaces, a few ahead of need: making one costs about a millisecond that nobody has to wait for."""

    def __init__(self) -> None:
        self._own_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._spares: list[int] = []

    def take(self) -> int:
        """A fresh namespace with loopback up: its descriptor, owned by the caller."""
        return self._spares.pop() if self._spares else self._make()

    def restock(self) -> bool:
        """Make one spare. False when there are enough."""
        if len(self._spares) >= SPARES:
            return False
        self._spares.append(self._make())
        return True

    def netlink(self, netns_fd: int) -> int:
        """A new rtnetlink socket inside the namespace."""
        setns(netns_fd, CLONE_NEWNET)
        try:
            return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE).detach()
        finally:
            setns(self._own_fd, CLONE_NEWNET)

    def _make(self) -> int:
        unshare(CLONE_NEWNET)
        try:
            for path, value in _DEFAULTS:
                try:
                    fd = os.open(f"/proc/sys/net/{path}", os.O_WRONLY | os.O_CLOEXEC)
                except FileNotFoundError:  # a kernel without IPv6
                    continue
                os.write(fd, value.encode())
                os.close(fd)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
            return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            setns(self._own_fd, CLONE_NEWNET)
