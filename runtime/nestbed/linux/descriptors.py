"""The table of descriptors of this process."""

from __future__ import annotations

import fcntl
import os

CLOSE_RANGE_UNSHARE = 2

_LOW = 128
"""Numbers below are for what is soon closed again."""


def keep(fd: int) -> int:
    """``fd``, which is to stay open for long, under a number that leaves the low ones free; the old number is closed.

    A clone that takes only the low descriptors along (close_range(2) with CLOSE_RANGE_UNSHARE) takes the longer the more of them there are.
    """
    if fd >= _LOW:
        return fd
    kept = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOW)
    os.close(fd)
    return kept
