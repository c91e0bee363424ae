"""inotify(7): word of changes to files and directories."""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

from nestbed.linux.libc import LIBC, checked, encoded

IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE_SELF = 0x400
IN_Q_OVERFLOW = 0x4000
IN_ONLYDIR = 0x1000000

_EVENT = struct.Struct("=iIII")
_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Change:
    """``watch`` is -1 when the kernel's queue overflowed (IN_Q_OVERFLOW): anything may have happened."""

    watch: int
    mask: int
    name: str


def inotify_init() -> int:
    """inotify_init1(2): a descriptor, close-on-exec and non-blocking."""
    return checked("inotify_init1", LIBC.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """inotify_add_watch(2): the watch's number, the same for every path of one inode; replaces an older mask."""
    return checked("inotify_add_watch", LIBC.inotify_add_watch(fd, encoded(path), ctypes.c_uint32(mask)), path)


def inotify_rm_watch(fd: int, watch: int) -> None:
    """inotify_rm_watch(2)."""
    checked("inotify_rm_watch", LIBC.inotify_rm_watch(fd, watch))


def read_changes(fd: int) -> list[Change]:
    """The changes that wait to be read; none if there are none."""
    try:
        data = os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return []
    changes, offset = [], 0
    while offset < len(data):
        watch, mask, _, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size
        name = data[offset : offset + length].rstrip(b"\0")
        changes.append(Change(watch, mask, os.fsdecode(name)))
        offset += length
    return changes
