"""Standard streams of a program as nestbedd holds them: output read on demand, input written as it is taken.

Nothing is read before somebody asks for it, so a reader that does not read holds up the program, as a pipe does, and memory stays flat.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import AsyncIterator

from nestbed.errors import WrongState
from nestbed.runtime import Output

CHUNK_BYTES = 64 * 1024


class Reader:
    """The read ends of a program's output; ``sources`` are descriptors by stream number, owned. For one reader at a time."""

    def __init__(self, sources: dict[int, int]) -> None:
        self._sources = {fd: stream for stream, fd in sources.items()}
        for fd in self._sources:
            os.set_blocking(fd, False)
        self._waiting: asyncio.Future[None] | None = None
        self._watched: list[int] = []
        self._is_finished = False

    async def chunks(self) -> AsyncIterator[Output]:
        """Output as it comes, until every writer is gone, or until what was there when the program ended has been given out."""
        while self._sources:
            if not self._is_finished:
                await self._readable()
            was_finished, found = self._is_finished, False
            for fd in list(self._sources):
                data = self._read(fd)
                if data:
                    found = True
                    yield Output(self._sources[fd], data)
            if was_finished and not found:
                self.close()

    def _read(self, fd: int) -> bytes:
        """What is there now; closes a source that has ended."""
        if fd not in self._sources:
            return b""
        try:
            data = os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            return b""
        except OSError:  # a terminal whose program is gone reads EIO
            data = b""
        if not data:
            del self._sources[fd]
            os.close(fd)
        return data

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        self._watched = list(self._sources)
        for fd in self._watched:
            loop.add_reader(fd, self._wake)
        try:
            await self._waiting
        finally:
            self._waiting = None
            self._unwatch()

    def _unwatch(self) -> None:
        # Before any of them is closed: its number may be another's a moment later.
        for fd in self._watched:
            asyncio.get_running_loop().remove_reader(fd)
        self._watched = []

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def finish(self) -> None:
        """The program ended: whoever else still holds its streams is not waited for."""
        self._is_finished = True
        self._wake()

    def close(self) -> None:
        """Close everything; a reader ends. Idempotent."""
        self._unwatch()
        self._wake()
        for fd in self._sources:
            os.close(fd)
        self._sources.clear()


class Writer:
    """Standard input: a pipe's write end or a terminal's master, owned."""

    def __init__(self, fd: int, *, tty: bool) -> None:
        self._fd = fd
        self._tty = tty
        self._turn = asyncio.Lock()
        self._waiting: asyncio.Future[None] | None = None
        os.set_blocking(fd, False)

    async def write(self, data: bytes) -> None:
        """Pass ``data`` on, all of it.

        Raises:
            WrongState: nobody reads it any more (reason STDIN_CLOSED).
        """
        view = memoryview(data)
        async with self._turn:
            while view:
                if self._fd < 0:
                    raise stdin_closed()
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    await self._writable()
                except OSError as error:
                    raise stdin_closed() from error

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        loop.add_writer(self._fd, self._wake)
        try:
            await self._waiting
        finally:
            self._waiting = None
            self._unwatch()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _unwatch(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_writer(self._fd)

    async def end(self) -> None:
        """Give an end of file: close a pipe, send a terminal its EOF character. Idempotent."""
        if self._fd < 0:
            return
        if self._tty:
            try:
                await self.write(bytes(termios.tcgetattr(self._fd)[6][termios.VEOF]))
            except (WrongState, termios.error):
                return
        else:
            self.close()

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; nothing for a pipe."""
        if self._tty and self._fd >= 0:
            set_size(self._fd, rows, columns)

    def close(self) -> None:
        """Close it. Idempotent; a write that waits fails."""
        self._unwatch()
        self._wake()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def set_size(fd: int, rows: int, columns: int) -> None:
    """TIOCSWINSZ (tty_ioctl(4)); a terminal whose program is gone is left alone."""
    try:
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", min(max(rows, 0), 0xFFFF), min(max(columns, 0), 0xFFFF), 0, 0))
    except OSError:
        return


def stdin_closed() -> WrongState:
    """Nothing takes input."""
    return WrongState("the program takes no input", reason="STDIN_CLOSED", remedy="start it with -i")
