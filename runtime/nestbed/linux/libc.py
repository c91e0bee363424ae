"""The door to system calls that the standard library lacks: one ctypes binding, errors as OSError.

Calls hold the interpreter lock (``PyDLL``): they are short.
Numbers from 424 up are the same on every architecture; the older ones go through libc's wrappers.
"""

from __future__ import annotations

import ctypes
import os

LIBC = ctypes.PyDLL(None, use_errno=True)
_syscall = LIBC.syscall
_syscall.restype = ctypes.c_long

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000


def failed(name: str, path: str | bytes | None = None) -> OSError:
    """The OSError of the call that just failed; ``name`` is the system call's."""
    number = ctypes.get_errno()
    return OSError(number, f"{name}: {os.strerror(number)}", path)


def call(name: str, number: int, *args: object) -> int:
    """System call ``number`` (>= 424) with C-typed ``args``; its result.

    Raises:
        OSError: the result was -1.
    """
    result: int = _syscall(ctypes.c_long(number), *args)
    if result == -1:
        raise failed(name)
    return result


def checked(name: str, result: int, path: str | bytes | None = None) -> int:
    """``result`` of a libc wrapper, or its OSError when -1."""
    if result == -1:
        raise failed(name, path)
    return result


def encoded(path: str | bytes) -> bytes:
    """A path as the kernel takes it."""
    return path if isinstance(path, bytes) else os.fsencode(path)
