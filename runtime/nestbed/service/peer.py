"""Who is at the other end of a unix socket, and may it come near: asked of the kernel, not of the peer (unix(7), SO_PEERCRED).

Refused are processes in another PID namespace than ours, processes in a container's cgroup, and processes that have ended: a socket
handed on by one that is gone could be in any hands, and its PID could be another's by now.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from dataclasses import dataclass

from nestbed.errors import PermissionDenied
from nestbed.linux import namespace

SO_PEERPIDFD = 77  # Linux 6.5
_UCRED = struct.Struct("=iII")
_OWNED_PREFIX = "nestbed-"


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that made the connection, as it was then."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Home:
    """Where the daemon itself is: a peer must be in the same PID namespace, and in no container the daemon is not in itself."""

    pid_namespace: int
    containers: frozenset[str]

    @classmethod
    def own(cls) -> Home:
        """Of this process."""
        return cls(namespace.inode("/proc/self/ns/pid"), _containers("self"))


def credentials(connection: socket.socket) -> Peer:
    """SO_PEERCRED: pid, uid and gid of the process that connected; pid 0 if our PID namespace cannot see it."""
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def admit(connection: socket.socket, home: Home) -> Peer:
    """The peer, if it may come near.

    Raises:
        PermissionDenied: it may not; the reason is PEER_GONE, PEER_NAMESPACE or PEER_CONTAINED.
    """
    peer = credentials(connection)
    if peer.pid <= 0:
        raise _refused(peer, "PEER_NAMESPACE", "is in a PID namespace outside the node's")
    try:
        pidfd = _process(connection, peer.pid)
    except OSError as error:
        raise _refused(peer, "PEER_GONE", "has ended") from error
    try:
        pid_namespace = namespace.inode(f"/proc/{peer.pid}/ns/pid")
        containers = _containers(str(peer.pid))
        if _has_ended(pidfd):  # asked last: what was read above was read of it and no other
            raise _refused(peer, "PEER_GONE", "has ended")
    except OSError as error:
        raise _refused(peer, "PEER_GONE", "has ended") from error
    finally:
        os.close(pidfd)
    if pid_namespace != home.pid_namespace:
        raise _refused(peer, "PEER_NAMESPACE", "is in a PID namespace of its own")
    if containers - home.containers:
        raise _refused(peer, "PEER_CONTAINED", "is in a container")
    return peer


def _process(connection: socket.socket, pid: int) -> int:
    """A pidfd of the process that connected. Kernels before 6.5 give one of whoever has the PID now: the best there is."""
    try:
        return connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return os.pidfd_open(pid)


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def containers_in(text: str) -> frozenset[str]:
    """The components of the paths in ``/proc/PID/cgroup`` (cgroups(7)) that are some node's."""
    paths = (line.split(":", 2)[-1] for line in text.splitlines())
    return frozenset(part for path in paths for part in path.split("/") if part.startswith(_OWNED_PREFIX))


def _containers(pid: str) -> frozenset[str]:
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
        return containers_in(file.read())


def _refused(peer: Peer, reason: str, what: str) -> PermissionDenied:
    return PermissionDenied(
        f"process {peer.pid} of user {peer.uid} {what}", reason=reason, remedy="call from the node itself", pid=peer.pid, uid=peer.uid
    )
