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

    async def attach(self, fds: list[int]) -> int:
        """Let the keeper write output to these write ends too (out, err; they stay the caller's); which keeper it is."""
        ...

    async def is_interrupted(self, keeper: int) -> bool:
        """After output from that keeper ended: whether it was the keeper that ended, not the program. Waits for the next keeper then."""
        ...

    def detach(self, console: ProcessConsole) -> None:
        """The console is closed."""
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
    """See the contract. The death of a keeper interrupts it, no more; what came until the next keeper was there stands in the log alone."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._reader = Reader({})
        self._keeper = 0
        self._renewed: tuple[Reader, int] | None = None
        self._is_closed = False

    async def open(self) -> None:
        """Have the keeper send output here."""
        self._reader, self._keeper = await self._attached()

    async def renew(self) -> None:
        """There is a new keeper: go on with it once what the old one sent has been given out."""
        renewed = await self._attached()
        if self._is_closed:
            renewed[0].close()
        else:
            self._renewed = renewed

    async def _attached(self) -> tuple[Reader, int]:
        reads: dict[int, int] = {}
        writes: list[int] = []
        try:
            for stream in (1, 2):
                reads[stream], write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                writes.append(write)
            keeper = await self._terminal.attach(writes)
        except BaseException:
            close_all(list(reads.values()))
            raise
        finally:
            close_all(writes)
        return Reader(reads), keeper

    async def output(self) -> AsyncIterator[Output]:
        """See the contract."""
        while True:
            async for chunk in self._reader.chunks():
                yield chunk
            if self._is_closed or not await self._terminal.is_interrupted(self._keeper) or self._renewed is None:
                return
            (self._reader, self._keeper), self._renewed = self._renewed, None

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
        self._terminal.detach(self)
        self._reader.close()
        if self._renewed is not None:
            self._renewed[0].close()
