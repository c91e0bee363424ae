"""Namespaces: setns(2), unshare(2), and what clone3(2) takes."""

from __future__ import annotations

import ctypes
import os

from nestbed.linux.libc import LIBC, checked

CLONE_FILES = 0x400
CLONE_PIDFD = 0x1000
CLONE_PARENT = 0x8000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_CLEAR_SIGHAND = 0x100000000
CLONE_INTO_CGROUP = 0x200000000


class CloneArgs(ctypes.Structure):
    """``struct clone_args``."""

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


def setns(fd: int, flags: int) -> None:
    """setns(2): join the namespace of ``fd``, or with a pidfd those named by ``flags``."""
    checked("setns", LIBC.setns(fd, flags))


def unshare(flags: int) -> None:
    """unshare(2)."""
    checked("unshare", LIBC.unshare(flags))


def inode(path: str) -> int:
    """The number that identifies the namespace behind a ``/proc/PID/ns/NAME`` link."""
    return os.stat(path).st_ino
