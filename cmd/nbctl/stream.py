"""Bytes between nbctl's own standard streams and a program: as they are, at once, and never faster than the other end reads."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
import stat
import sys
import time
from typing import TYPE_CHECKING

from nbctl import terminal
from nbctl.failure import report
from nbctl.signals import Insistence
from nestbed.errors import NestbedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

    from nbctl.signals import Signals
    from nestbed.client import Session

READ_BYTES = 32 * 1024
DETACH_KEYS = b"\x10\x11"
"""Ctrl-P Ctrl-Q, as docker has it."""


async def read(fd: int) -> AsyncGenerator[bytes, None]:
    """What comes in on ``fd`` until its end; without threads, so that nothing is left waiting in ``read`` when nbctl ends."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        loop.add_reader(fd, ready.set)
    except PermissionError:  # epoll_ctl(2): a regular file never makes one wait
        polled = False
    else:
        polled = True
    try:
        while True:
            if polled:
                await ready.wait()
                ready.clear()
                if not poll.poll(0):  # the loop told of what has been read meanwhile
                    continue
            data = _read(fd)
            if data is None:
                continue
            if not data:
                return
            yield data
    finally:
        if polled:
            loop.remove_reader(fd)


def _read(fd: int) -> bytes | None:
    """A piece, nothing at the end, or None if there is nothing yet after all."""
    try:
        return os.read(fd, READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:  # EIO (termios(3)): the terminal is gone, or another process group has it
        return b""


async def write(fd: int, data: bytes) -> None:
    """Write all of ``data``, letting the loop run while the reader is slow.

    Raises:
        BrokenPipeError: nobody reads it any more.
    """
    view = memoryview(data)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while view:
        if not poll.poll(0):
            await _writable(fd)
        # What says it is writable takes PIPE_BUF bytes without waiting (pipe(7)).
        with contextlib.suppress(BlockingIOError):
            view = view[os.write(fd, view[: select.PIPE_BUF]) :]


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(fd)


@contextlib.contextmanager
def while_read() -> Iterator[None]:
    """A block that ends as soon as the reader of standard output goes away, even if nothing is written: for what waits for news.

    Raises:
        BrokenPipeError: that happened.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    gone = False

    def end() -> None:
        nonlocal gone
        gone = True
        loop.remove_reader(1)
        task.cancel()

    if not stat.S_ISFIFO(os.fstat(1).st_mode):
        yield
        return
    # The writing end of a pipe becomes "readable" by POLLERR alone, when its last reader has gone (poll(2)).
    loop.add_reader(1, end)
    try:
        yield
    except asyncio.CancelledError:
        if gone:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
        raise
    finally:
        loop.remove_reader(1)


class DetachKeys:
    """Finds the detach keys in what is typed, however it is cut into pieces."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What may be passed on now, and whether the keys were found; what might be their beginning is held back."""
        data = self._held + data
        before, found, _ = data.partition(DETACH_KEYS)
        self._held = b""
        if not found and data.endswith(DETACH_KEYS[:1]):
            self._held = DETACH_KEYS[:1]
            before = before[:-1]
        return before, bool(found)


class Conversation:
    """nbctl's standard streams joined to a session.

    ``interactive`` passes standard input on. ``raw`` makes the terminal there the program's: keys go as they are, so does its size, and
    if ``detachable`` Ctrl-P Ctrl-Q ends the conversation. Without ``raw`` the signals nbctl gets are given to ``send_signal``.
    """

    def __init__(
        self,
        session: Session,
        signals: Signals,
        *,
        interactive: bool,
        raw: bool,
        detachable: bool,
        send_signal: Callable[[int], Awaitable[object]],
    ) -> None:
        self._session = session
        self._signals = signals
        self._interactive = interactive
        self._raw = raw
        self._keys = DetachKeys() if raw and detachable else None
        self._send_signal = send_signal
        self._insistence = Insistence()
        self._side_tasks: set[asyncio.Task[None]] = set()

    async def hold(self) -> bool:
        """Pass everything on until the program ended (True) or the user detached (False).

        Raises:
            BrokenPipeError: nobody reads nbctl's output any more.
            NestbedError: as the node says.
        """
        with self._surroundings():
            tasks = {asyncio.ensure_future(self._output())}
            if self._interactive:
                tasks.add(asyncio.ensure_future(self._input()))
            try:
                while True:
                    done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    ends = [task.result() for task in done]
                    if any(ends):
                        return self._session.exit is not None
            finally:
                left = [*tasks, *self._side_tasks]
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        if self._raw:
            with terminal.Mode(0, raw=True), terminal.resized(self._resize):
                yield
        else:
            with self._signals.passed_to(self._pass_signal):
                yield

    def _resize(self) -> None:
        self._aside(self._session.resize(*terminal.size(0)))

    def _pass_signal(self, number: int) -> None:
        if number == signal.SIGINT:
            missing = self._insistence.press(time.monotonic())
            if missing == 1 and sys.stderr.isatty():
                report("the program has not ended yet", "press Ctrl-C once more to kill it")
            number = number if missing else signal.SIGKILL
        self._aside(self._send_signal(number))

    def _aside(self, call: Awaitable[object]) -> None:
        async def run() -> None:
            with contextlib.suppress(NestbedError):  # whoever reads the output is told why
                await call

        task = asyncio.ensure_future(run())
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)

    async def _output(self) -> bool:
        async for stream, data in self._session.output():
            await write(stream, data)
        return True

    async def _input(self) -> bool:
        """Pass input on to its end; whether the user detached."""
        async with contextlib.aclosing(read(0)) as pieces:
            async for data in pieces:
                passed, detached = self._keys.feed(data) if self._keys else (data, False)
                if passed:
                    await self._session.write(passed)
                if detached:
                    return True
        await self._session.close_stdin()
        return False
