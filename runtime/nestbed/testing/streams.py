"""The streams of fake programs: consoles and executions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from nestbed.errors import WrongState
from nestbed.model import ExitStatus
from nestbed.runtime import Output
from nestbed.testing.programs import FakeProcess

PIECES_MAX = 16
"""A sink that holds so many pieces of output holds up the program."""


class FakeSink:
    """A bounded queue of output, from a program to one reader."""

    def __init__(self) -> None:
        self._pieces: deque[Output] = deque()
        self._changed = asyncio.Event()
        self._is_ended = False
        self.is_closed = False

    async def put(self, piece: Output) -> None:
        """Wait for room, then add; thrown away if the reader has let go."""
        while len(self._pieces) >= PIECES_MAX and not self.is_closed:
            await self._wait()
        if not self.is_closed:
            self._pieces.append(piece)
            self._changed.set()

    def end(self) -> None:
        """Nothing follows."""
        self._is_ended = True
        self._changed.set()

    def close(self) -> None:
        """The reader lets go."""
        self.is_closed = True
        self._pieces.clear()
        self._changed.set()

    async def read(self) -> AsyncIterator[Output]:
        """The pieces, until the end."""
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._changed.set()
                yield piece
            if self._is_ended or self.is_closed:
                return
            await self._wait()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class FakeConsole:
    """Console of a fake program; ``process`` gives the program that runs, if one does."""

    def __init__(self, sink: FakeSink, process: Callable[[], FakeProcess | None]) -> None:
        self._sink = sink
        self._process = process

    def output(self) -> AsyncIterator[Output]:
        return self._sink.read()

    async def write(self, data: bytes) -> None:
        process = self._process()
        if process is None or not process.has_stdin or not process.is_stdin_open or process.ended.done():
            raise WrongState("the program has no standard input", reason="NO_STDIN", remedy="start it with standard input")
        if data:
            process.stdin.put_nowait(data)

    async def close_stdin(self) -> None:
        process = self._process()
        if process is not None and process.is_stdin_open:
            process.is_stdin_open = False
            process.stdin.put_nowait(b"")

    def resize(self, rows: int, columns: int) -> None:
        del rows, columns

    async def aclose(self) -> None:
        self._sink.close()


class FakeExecution(FakeConsole):
    """A fake program started by ``exec``."""

    def __init__(self, sink: FakeSink, process: FakeProcess) -> None:
        super().__init__(sink, lambda: process)
        self._program = process

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self._program.ended)

    def signal(self, number: int) -> None:
        self._program.signal(number)

    async def aclose(self) -> None:
        await super().aclose()
        await self._program.close()
