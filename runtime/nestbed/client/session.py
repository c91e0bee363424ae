"""The terminal end of ``Exec`` and ``Attach``: output to read, input to write, an exit status at the end."""

from __future__ import annotations

from asyncio import InvalidStateError, Lock
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from grpc.aio import AioRpcError

from nestbed.client.status import from_call
from nestbed.errors import NestbedError, Unavailable
from nestbed.v1 import container_pb2 as api

CHUNK_BYTES = 32 * 1024
"""Standard input is sent in messages of at most so many bytes."""


class Session:
    """One exec or attach. ``async with`` opens it: entering returns when the program runs (or raises why it does not).

    Leaving before the end kills an exec'd program and leaves an attached container alone. One task reads, any others may write.
    """

    def __init__(self, call: Any, request: Callable[..., Any], start: object, diagnose: Callable[[], NestbedError]) -> None:
        self._call = call
        self._request = request
        self._start = start
        self._diagnose = diagnose
        self._sending = Lock()
        self.exit: api.ExitStatus | None = None
        """How the program ended; None until the output was read to its end."""

    async def __aenter__(self) -> Self:
        """Start or attach.

        Raises:
            NestbedError: as the node says.
        """
        try:
            with suppress(AioRpcError, InvalidStateError):  # the call has ended; reading tells why
                await self._call.write(self._request(start=self._start))
            first = await self._read()
        except BaseException:
            self._call.cancel()
            raise
        if first is None or first.WhichOneof("output") != "started":
            self._call.cancel()
            raise _protocol_error()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._call.cancel()

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Pairs of stream (1 standard output or the terminal, 2 standard error) and bytes until the program ended; sets ``exit``.

        Raises:
            NestbedError: as the node says; Unavailable if it went away before the end.
        """
        while (response := await self._read()) is not None:
            match response.WhichOneof("output"):
                case "stdout":
                    yield 1, response.stdout
                case "stderr":
                    yield 2, response.stderr
                case "exit":
                    self.exit = response.exit
                    async with self._sending:
                        await self._call.done_writing()
        if self.exit is None:
            raise _protocol_error()

    async def write(self, data: bytes) -> None:
        """Pass ``data`` to standard input; waits while the program does not read. Ignored once the program ended."""
        for begin in range(0, len(data), CHUNK_BYTES):
            await self._send(stdin=data[begin : begin + CHUNK_BYTES])

    async def close_stdin(self) -> None:
        """Give the program an end of file. Ignored once the program ended."""
        await self._send(stdin_eof=True)

    async def resize(self, rows: int, columns: int) -> None:
        """The terminal has a new size. Ignored once the program ended."""
        await self._send(resize=api.TerminalSize(rows=rows, columns=columns))

    async def signal(self, number: int) -> None:
        """Send a signal to the program. Ignored once the program ended."""
        await self._send(signal=number)

    async def _send(self, **field: object) -> None:
        """Send when it is this one's turn: gRPC takes one message at a time."""
        async with self._sending:
            if self.exit is not None or self._call.done():
                return
            with suppress(AioRpcError, InvalidStateError):  # the call has ended; the reader is told why
                await self._call.write(self._request(**field))

    async def _read(self) -> Any:
        """The next response, or None at the end."""
        try:
            async for response in self._call:
                return response
        except AioRpcError as error:
            raise await from_call(self._call, error, self._diagnose) from error
        return None


def _protocol_error() -> Unavailable:
    return Unavailable("the node ended the session without an exit status", reason="CONNECTION_LOST", remedy="see the log of nestbedd")
