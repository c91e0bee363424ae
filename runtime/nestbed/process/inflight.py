"""What was read from a program and does not stand in its log yet, in memory that outlives the keeper.

A keeper that is killed between reading from a pipe and writing to the log would take that piece along. So it reads into a shared mapping
of a file in the run directory, and notes there whose the piece is and where in the log it goes; its successor writes it, once.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple

_NAME = "keeper.inflight"
_HEADER = struct.Struct("=12sIIQQ")
"""Container, stream, length (0: not known yet), inode of the log (0: not known yet), its size before."""
_HEADER_AT, _DATA_AT = 8, 64
_BLANK = b"\xff"
"""Fills the mapping when nothing is in flight; so what was read ends where it begins. In text it does not occur."""


class Piece(NamedTuple):
    """``data`` of ``stream`` of a container. ``inode`` 0: nothing of it is in the log; else the log may have it from ``size`` on."""

    id: str
    stream: int
    inode: int
    size: int
    data: bytes


class Inflight:
    """The mapping. One piece at a time is in flight."""

    def __init__(self, run_fd: int, bytes_max: int) -> None:
        """Map the file in the directory ``run_fd``, with what an earlier keeper left; ``bytes_max`` is the size of a piece."""
        fd = os.open(_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=run_fd)
        try:
            is_new = os.fstat(fd).st_size != _DATA_AT + bytes_max
            os.ftruncate(fd, _DATA_AT + bytes_max)
            # A hole that the disk has no room for would be a SIGBUS.
            os.posix_fallocate(fd, 0, _DATA_AT + bytes_max)
            self._memory = mmap.mmap(fd, _DATA_AT + bytes_max)
        finally:
            os.close(fd)
        self._data = memoryview(self._memory)[_DATA_AT:]
        if is_new:
            self._memory[0] = 0
            self._data[:] = _BLANK * bytes_max

    def read(self, fd: int, id: str, stream: int) -> bytes:
        """Read once from ``fd``. What is read is in flight until :meth:`done`; call it also at the end of file.

        Raises:
            OSError: of readv(2); nothing is in flight.
        """
        _HEADER.pack_into(self._memory, _HEADER_AT, id.encode(), stream, 0, 0, 0)
        self._memory[0] = 1
        try:
            length = os.readv(fd, [self._data])
        except OSError:
            self._memory[0] = 0
            raise
        self._note(length, 0, 0)
        return bytes(self._data[:length])

    def goes_to(self, inode: int, size: int) -> None:
        """The piece in flight is about to be appended to the file ``inode``, which has ``size`` bytes."""
        self._note(self._length(), inode, size)

    def done(self) -> None:
        """The piece stands in the log, or is lost for good."""
        self._memory[0] = 0
        length = self._length()
        self._data[:length] = _BLANK * length

    def left(self) -> Piece | None:
        """What is in flight; asked by a new keeper it is what the earlier one left."""
        if not self._memory[0]:
            return None
        id, stream, length, inode, size = _HEADER.unpack_from(self._memory, _HEADER_AT)
        data = bytes(self._data[:length]) if length else bytes(self._data).rstrip(_BLANK)
        return Piece(id.decode(), stream, inode, size, data) if data else None

    def clear(self) -> None:
        """Forget whatever an earlier keeper left."""
        self._memory[0] = 0
        self._data[:] = _BLANK * len(self._data)

    def _length(self) -> int:
        return int(_HEADER.unpack_from(self._memory, _HEADER_AT)[2])

    def _note(self, length: int, inode: int, size: int) -> None:
        id, stream, *_ = _HEADER.unpack_from(self._memory, _HEADER_AT)
        _HEADER.pack_into(self._memory, _HEADER_AT, id, stream, length, inode, size)
