"""openat2(2): path look-up that cannot leave where it is told to stay; and reading what is small."""

from __future__ import annotations

import ctypes
import errno
import os

from nestbed.linux.libc import call, encoded

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_OPENAT2 = 437
_TRIES = 128
_SMALL_BYTES = 1 << 14


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(dirfd: int, path: str | bytes, flags: int, *, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
    """openat2(2); the descriptor is close-on-exec. By default ``dirfd`` is treated as the root directory (RESOLVE_IN_ROOT).

    EAGAIN (a ``..`` was passed while anything on the machine was mounted or renamed) is tried again, often but not for ever.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_TRIES):
        try:
            return _openat2(dirfd, encoded(path), how)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    return _openat2(dirfd, encoded(path), how)


def _openat2(dirfd: int, path: bytes, how: _OpenHow) -> int:
    return call("openat2", _OPENAT2, ctypes.c_int(dirfd), ctypes.c_char_p(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))


def contents(path: str, *, dir_fd: int | None = None) -> bytes:
    """All of a small file, read with as few system calls as there can be."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        text = os.read(fd, _SMALL_BYTES)
        while len(text) >= _SMALL_BYTES and (more := os.read(fd, len(text))):
            text += more
        return text
    finally:
        os.close(fd)
