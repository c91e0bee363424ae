"""What attacks use inside a container. The text of this module goes in front of theirs, so it uses nothing but the standard library."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import socket
from collections.abc import Callable

NUMBERS = {
    "x86_64": {"clone": 56, "mount": 165, "umount2": 166, "pivot_root": 155, "unshare": 272, "setns": 308, "keyctl": 250, "add_key": 248,
               "request_key": 249, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "kexec_load": 246, "init_module": 175,
               "finit_module": 313, "open_by_handle_at": 304, "reboot": 169, "swapon": 167, "syslog": 103, "ptrace": 101, "ioctl": 16,
               "setdomainname": 171, "renameat2": 316, "quotactl": 179, "acct": 163},
    "aarch64": {"clone": 220, "mount": 40, "umount2": 39, "pivot_root": 41, "unshare": 97, "setns": 268, "keyctl": 219, "add_key": 217,
                "request_key": 218, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "kexec_load": 104, "init_module": 105,
                "finit_module": 273, "open_by_handle_at": 265, "reboot": 142, "swapon": 224, "syslog": 116, "ptrace": 117, "ioctl": 29,
                "setdomainname": 162, "renameat2": 276, "quotactl": 60, "acct": 89},
}[platform.machine()] | {
    "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "pidfd_open": 434, "clone3": 435,
    "openat2": 437, "pidfd_getfd": 438, "mount_setattr": 442, "listmount": 458,
}  # fmt: skip
"""System calls by name; from 424 up numbers are the same on every architecture."""

_LIBC = ctypes.CDLL(None, use_errno=True)


def syscall(name: str, *args: object) -> str:
    """Make a system call: "" if it succeeded, else the name of its error. Numbers are passed as unsigned 64-bit words."""
    words = [ctypes.c_uint64(arg) if isinstance(arg, int) else arg for arg in args]
    done = _LIBC.syscall(ctypes.c_long(NUMBERS[name]), *words)
    if done == 0 and name == "clone":
        os._exit(0)  # the child of a clone that should have been refused
    return errno.errorcode[ctypes.get_errno()] if done < 0 else ""


def attempt(act: Callable[[], object]) -> str:
    """Do it: "" if that succeeded, else the name of the error."""
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def link_of(path: str) -> str:
    """Where a symbolic or magic link points, or "" if that is not told."""
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return ""


def connect(path: str, kind: int = socket.SOCK_STREAM) -> str:
    """Connect to a unix socket: "" if that succeeded, else the name of the error."""
    with socket.socket(socket.AF_UNIX, kind) as end:
        return attempt(lambda: end.connect(path))


def read_at(path: str) -> str:
    """The beginning of a file, or the name of the error."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            return file.read(4096).decode("utf-8", "replace")
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def write_at(path: str) -> str:
    """Open a file or FIFO for writing, change nothing: "" if that succeeded, else the name of the error."""
    return attempt(lambda: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK)))
