"""Namespaces: clone3(2), setns(2), unshare(2)."""

from __future__ import annotations

import ctypes
import os

from nestbed.linux.libc import LIBC, call, checked

CLONE_PIDFD = 0x1000
CLONE_PARENT = 0x8000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

_CLONE3 = 435


class _CloneArgs(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


def clone3(flags: int, *, exit_signal: int, cgroup_fd: int = -1) -> tuple[int, int]:
    """clone3(2) as fork does it: ``(pid, pidfd)`` in the parent, ``(0, -1)`` in the child.

    With ``cgroup_fd`` the child begins in that v2 cgroup. Only for a process with one thread; the child must call nothing but
    system calls and then exec or :func:`os._exit`, for no handler of fork runs in it.
    """
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=exit_signal)
    if cgroup_fd >= 0:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup_fd
    pid = call("clone3", _CLONE3, ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args)))
    return (pid, pidfd.value) if pid else (0, -1)


def setns(fd: int, flags: int) -> None:
    """setns(2): join the namespace of ``fd``, or with a pidfd those named by ``flags``."""
    checked("setns", LIBC.setns(fd, flags))


def unshare(flags: int) -> None:
    """unshare(2)."""
    checked("unshare", LIBC.unshare(flags))


def inode(path: str) -> int:
    """The number that identifies the namespace behind a ``/proc/PID/ns/NAME`` link."""
    return os.stat(path).st_ino
