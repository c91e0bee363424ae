"""A further program in a container, as nestbedd holds it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator

from nestbed.linux.pidfd import exit_information
from nestbed.model import ExitStatus
from nestbed.process.streams import Reader, Writer, stdin_closed
from nestbed.runtime import Output

_UNSEEN_SECONDS, _UNSEEN_TRIES = 0.02, 50


class ProcessExecution:
    """A further program; fulfils :class:`nestbed.runtime.Execution`. Made before it is started, so that no news of it is missed."""

    def __init__(self, exec_id: str) -> None:
        self.id = exec_id
        self._reader = Reader({})
        self._writer: Writer | None = None
        self._pidfd = -1
        self._exit: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._is_watched = False
        self._tries = 0
        self._retry: asyncio.TimerHandle | None = None

    def started(self, pidfd: int, reader: Reader, writer: Writer | None) -> None:
        """It runs; everything given is owned."""
        self._pidfd, self._reader, self._writer = pidfd, reader, writer
        if self._exit.done():
            self._reader.finish()

    def ended(self, status: ExitStatus) -> None:
        """It ended. Idempotent."""
        if not self._exit.done():
            self._unwatch()
            self._exit.set_result(status)
            self._reader.finish()

    def keeper_gone(self) -> None:
        """Nobody will tell how it ends: follow the process itself."""
        if self._pidfd >= 0 and not self._exit.done() and not self._is_watched:
            self._is_watched = True
            asyncio.get_running_loop().add_reader(self._pidfd, self._ended_unseen)

    def _ended_unseen(self) -> None:
        self._unwatch()
        wait_status = exit_information(self._pidfd)
        if wait_status is None and self._tries < _UNSEEN_TRIES:
            # The kernel knows once whoever inherited the process has reaped it, and tells nobody when that is.
            self._tries += 1
            self._retry = asyncio.get_running_loop().call_later(_UNSEEN_SECONDS, self._ended_unseen)
            return
        at = time.time()
        if wait_status is None:
            self.ended(ExitStatus(reason="unknown", message="it ended while no keeper was there to see how", at=at))
        elif os.WIFEXITED(wait_status):
            self.ended(ExitStatus(code=os.WEXITSTATUS(wait_status), at=at))
        else:
            self.ended(ExitStatus(signal=os.WTERMSIG(wait_status), reason="signaled", at=at))

    def _unwatch(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._is_watched:
            self._is_watched = False
            asyncio.get_running_loop().remove_reader(self._pidfd)

    async def output(self) -> AsyncIterator[Output]:
        """See the contract."""
        async for chunk in self._reader.chunks():
            yield chunk

    async def write(self, data: bytes) -> None:
        """See the contract."""
        if self._writer is None:
            raise stdin_closed()
        await self._writer.write(data)

    async def close_stdin(self) -> None:
        """See the contract."""
        if self._writer is not None:
            await self._writer.end()

    def resize(self, rows: int, columns: int) -> None:
        """See the contract."""
        if self._writer is not None:
            self._writer.resize(rows, columns)

    async def wait(self) -> ExitStatus:
        """See the contract."""
        return await asyncio.shield(self._exit)

    def signal(self, number: int) -> None:
        """See the contract."""
        if self._pidfd >= 0 and not self._exit.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def aclose(self) -> None:
        """See the contract."""
        self.signal(signal.SIGKILL)
        self._unwatch()
        self._reader.close()
        if self._writer is not None:
            self._writer.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
