"""Attached to a container's first program: :class:`nestbed.runtime.Console` for process containers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Protocol

from nestbed.process.keeper_client import close_all
from nestbed.process.streams import Reader
from nestbed.runtime import Output


class Terminal(Protocol):
    """What a console needs of its container."""

    async def attach(self, fds: list[int]) -> None:
        """Let the keeper write output to these write ends too (out, err; they stay the caller's)."""
        ...

    async def attach_again(self) -> bool:
        """After the output ended: False if the program did, True once a new keeper is there because the old one died."""
        ...

    async def write_stdin(self, data: bytes) -> None:
        """Pass data to standard input."""
        ...

    async def close_stdin(self) -> None:
        """Give the program an end of file."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size, now or for the next start."""
        ...


class ProcessConsole:
    """See the contract. A keeper that dies interrupts it, no more: it goes on with the next one, from what is still in the pipes."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._reader = Reader({})
        self._is_closed = False

    async def open(self) -> None:
        """Have the keeper send output here."""
        reads: dict[int, int] = {}
        writes: list[int] = []
        try:
            for stream in (1, 2):
                read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                reads[stream] = read
                writes.append(write)
            await self._terminal.attach(writes)
        except BaseException:
            close_all(list(reads.values()))
            raise
        finally:
            close_all(writes)
        self._reader = Reader(reads)

    async def output(self) -> AsyncIterator[Output]:
        """See the contract."""
        while True:
            async for chunk in self._reader.chunks():
                yield chunk
            if self._is_closed or not await self._terminal.attach_again():
                return
            await self.open()
            if self._is_closed:
                self._reader.close()

    async def write(self, data: bytes) -> None:
        """See the contract."""
        await self._terminal.write_stdin(data)

    async def close_stdin(self) -> None:
        """See the contract."""
        await self._terminal.close_stdin()

    def resize(self, rows: int, columns: int) -> None:
        """See the contract."""
        self._terminal.resize(rows, columns)

    async def aclose(self) -> None:
        """See the contract."""
        self._is_closed = True
        self._reader.close()
