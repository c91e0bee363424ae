"""Numbers of system calls on this machine's architecture, by name: from the kernel's ``unistd.h`` of x86-64 and of arm64."""

from __future__ import annotations

import os

_OLD = {
    "capset": (126, 91),
    "chdir": (80, 49),
    "close": (3, 57),
    "dup3": (292, 24),
    "execve": (59, 221),
    "execveat": (322, 281),
    "exit_group": (231, 94),
    "faccessat": (269, 48),
    "fchdir": (81, 50),
    "fchmodat": (268, 53),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "fcntl": (72, 25),
    "getcwd": (79, 17),
    "ioctl": (16, 29),
    "keyctl": (250, 219),
    "mkdirat": (258, 34),
    "mount": (165, 40),
    "openat": (257, 56),
    "pivot_root": (155, 41),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "read": (0, 63),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "sendmsg": (46, 211),
    "sethostname": (170, 161),
    "setgroups": (116, 159),
    "setns": (308, 268),
    "setresgid": (119, 149),
    "setresuid": (117, 147),
    "setsid": (112, 157),
    "statx": (332, 291),
    "umask": (95, 166),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "write": (1, 64),
}
_COMMON = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}
_COLUMN = {"x86_64": 0, "aarch64": 1}[os.uname().machine]

NUMBERS = {name: numbers[_COLUMN] for name, numbers in _OLD.items()} | _COMMON
