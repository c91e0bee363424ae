"""Network namespaces for containers, made by the keeper without a process of their own and held by descriptors."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterable

from nestbed.linux import mount
from nestbed.linux.descriptors import keep
from nestbed.linux.namespace import CLONE_NEWNET, setns, unshare

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_INHERITED = (("forwarding", b"0"), ("rp_filter", b"0"), ("accept_redirects", b"1"), ("send_redirects", b"1"))
"""A new namespace takes over IPv4 settings of the machine's first one; containers must not show on which machine they are."""
_DEFAULTS = (
    ("ipv4/conf/all", (*_INHERITED, ("arp_ignore", b"1"), ("arp_announce", b"2"))),
    ("ipv4/conf/default", _INHERITED),
    ("ipv4", (("ip_unprivileged_port_start", b"0"), ("ping_group_range", b"0 2147483647"))),
    ("ipv6/conf/default", (("dad_transmits", b"0"), ("router_solicitations", b"0"), ("router_solicitation_delay", b"0"))),
)
"""Directories below /proc/sys/net and what to write there."""

_PROC_USES = 32
"""For how many namespaces a procfs is used. In each one the kernel looks up a name like ``sys/net/ipv4`` among those of all namespaces that
were looked up there before: on the machine's own /proc that took 3 ms for the thousandth."""

SPARES = 2


class NetworkNamespaces:
    """Makes network namespaces, a few ahead of need: making one costs about a millisecond that nobody has to wait for."""

    def __init__(self) -> None:
        self._own_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._spares: list[int] = []
        self._proc_fd = -1
        self._proc_uses = 0

    def take(self) -> int:
        """A fresh namespace with loopback up: its descriptor, owned by the caller."""
        return self._spares.pop() if self._spares else self._make()

    def own(self) -> int:
        """The keeper's own, which is the node's: a descriptor, owned by the caller."""
        return keep(os.dup(self._own_fd))

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

    def _proc(self) -> int:
        """A procfs that few namespaces were looked up in."""
        if self._proc_uses % _PROC_USES == 0:
            if self._proc_fd >= 0:
                os.close(self._proc_fd)
            self._proc_fd = mount.fsmount("proc", (), mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC)
        self._proc_uses += 1
        return self._proc_fd

    def _make(self) -> int:
        proc_fd = self._proc()
        unshare(CLONE_NEWNET)
        try:
            for directory, values in _DEFAULTS:
                _write_all(proc_fd, directory, values)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
            return keep(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        finally:
            setns(self._own_fd, CLONE_NEWNET)


def _write_all(proc_fd: int, directory: str, values: Iterable[tuple[str, bytes]]) -> None:
    try:
        directory_fd = os.open(f"sys/net/{directory}", os.O_PATH | os.O_CLOEXEC, dir_fd=proc_fd)
    except FileNotFoundError:  # a kernel without IPv6
        return
    try:
        for name, value in values:
            fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory_fd)
            os.write(fd, value)
            os.close(fd)
    finally:
        os.close(directory_fd)
