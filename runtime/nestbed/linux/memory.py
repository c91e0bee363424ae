"""This process's memory as its clones see it: madvise(2)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from nestbed.linux.libc import LIBC, checked

_MADV_DONTFORK = 10
_SPECIAL = (b"[stack]", b"[vdso]", b"[vsyscall]", b"[vvar")


def keep_from_children(inherited: Iterable[int]) -> None:
    """Leave every mapping out of later clones but the stack, what the kernel adds, and those around the addresses ``inherited``, with
    all of the files these are of.

    What is mapped afterwards is inherited until this is called again. A clone must then run nothing but what it inherits.
    """
    addresses = tuple(inherited)
    mappings = [_mapping(line) for line in _maps()]
    kept = [one for one in mappings if any(one[0] <= address < one[1] for address in addresses)]
    files = {name for _, _, name in kept if name.startswith(b"/")}
    for one in mappings:
        begin, end, name = one
        if one not in kept and name not in files and not name.startswith(_SPECIAL):
            checked("madvise", LIBC.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTFORK))


def _maps() -> list[bytes]:
    with open("/proc/self/maps", "rb") as file:
        return file.read().splitlines()


def _mapping(line: bytes) -> tuple[int, int, bytes]:
    """Begin, end and file of a line of proc(5), maps."""
    span, _, _, _, _, *name = line.split(None, 5)
    begin, end = span.split(b"-")
    return int(begin, 16), int(end, 16), name[0] if name else b""
