"""Talking to the agent in a guest: programs, files and interfaces while it runs, over the agent's second port.

One connection per machine, made when it is first needed, and again after it was lost: a new HELLO ends what an older one began.
What the agent sends is bounded by the credit it was given; a channel nobody reads holds up its own program, nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from nestbed.errors import Deadline, HostLacks, InvalidArgument, NestbedError, NotFound, Unavailable, WrongState, shown
from nestbed.model import ExecSpec, ExitStatus
from nestbed.qemu import frames
from nestbed.qemu.frames import CREDIT_BYTES, Frame, Parser, Type
from nestbed.runtime import Output

T = TypeVar("T")

_HELLO_SECONDS = 20.0
_ANSWER_SECONDS = 20.0
_READ_BYTES = 1 << 16


class Guest:
    """The agent of one machine, as nestbedd reaches it."""

    def __init__(self, container_id: str, directory: Path) -> None:
        """``directory`` holds ``agent.sock``."""
        self._id = container_id
        self._directory = directory
        self._lock = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._channels: dict[int, Execution | asyncio.Future[Frame]] = {}
        self._next = 1

    async def run(self, program: ExecSpec) -> Execution:
        """Start a program.

        Raises:
            NotFound, InvalidArgument, HostLacks: the guest could not. Unavailable, Deadline: the agent does not answer.
        """
        await self._connect()
        channel = self._new_channel()
        execution = Execution(channel, program, self._send, lambda: self._channels.pop(channel, None))
        self._channels[channel] = execution
        try:
            self._send(frames.run(channel, program))
            failure = await self._within(execution.started)
        except BaseException:
            await execution.aclose()
            raise
        if failure is not None:
            self._channels.pop(channel, None)
            raise refused(failure.number(), failure.payload[4:].decode(errors="replace"), self._id, program)
        return execution

    async def ask(self, make: Callable[[int], bytes]) -> None:
        """Have the agent do something: ``make`` gives the frame for a channel.

        Raises:
            HostLacks: it could not. Unavailable, Deadline: it does not answer.
        """
        await self._connect()
        channel = self._new_channel()
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._channels[channel] = answer
        try:
            self._send(make(channel))
            told = await self._within(answer)
        finally:
            self._channels.pop(channel, None)
        if told.type == Type.FAILED:
            raise refused(told.number(), told.payload[4:].decode(errors="replace"), self._id, None)

    async def ready(self) -> None:
        """Wait until the agent answers.

        Raises:
            Unavailable, Deadline: it does not.
        """
        await self._connect()

    async def aclose(self) -> None:
        """Let go. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    # ---- the connection

    def _new_channel(self) -> int:
        while self._next in self._channels:
            self._next = self._next % 0xFFFFFFF + 1
        channel, self._next = self._next, self._next % 0xFFFFFFF + 1
        return channel

    def _send(self, data: bytes) -> None:
        if self._writer is not None:
            self._writer.write(data)

    async def drain(self) -> None:
        """Wait until the machine took what was sent."""
        if self._writer is not None:
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()

    async def _within(self, answer: asyncio.Future[T]) -> T:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await asyncio.shield(answer)
        except TimeoutError as error:
            raise _silent(self._id) from error

    async def _connect(self) -> None:
        async with self._lock:
            if self._task is not None and not self._task.done():
                return
            reader, writer = await self._open()
            try:
                async with asyncio.timeout(_HELLO_SECONDS):
                    rest = await self._greet(reader, writer)
            except TimeoutError as error:
                writer.close()
                raise _silent(self._id) from error
            except BaseException:
                writer.close()
                raise
            self._writer = writer
            self._task = asyncio.create_task(self._receive(reader, writer, rest))

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.setblocking(False)
        try:
            connect(made, self._directory, "agent.sock")
            return await asyncio.open_unix_connection(sock=made)
        except TimeoutError as error:
            made.close()
            raise _silent(self._id) from error
        except OSError as error:
            made.close()
            raise Unavailable(
                f"the virtual machine of container {self._id} cannot be reached: {os.strerror(error.errno or 0).lower()}",
                reason="GUEST_UNREACHABLE",
                remedy="see its console log, and try again",
                container=self._id,
            ) from error

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Say HELLO until the answer comes, whatever an earlier connection left; what was read beyond it."""
        nonce = secrets.token_bytes(frames.NONCE_BYTES)
        hello = frames.frame(Type.HELLO, 0, nonce)
        writer.write(frames.RESYNC + hello)
        seen = b""
        while hello not in seen:
            data = await reader.read(_READ_BYTES)
            if not data:
                raise Unavailable(
                    f"the virtual machine of container {self._id} ended",
                    reason="GUEST_UNREACHABLE",
                    remedy="see how it ended, and start it",
                    container=self._id,
                )
            seen = seen[-len(hello) :] + data
        return seen[seen.index(hello) + len(hello) :]

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
        parser = Parser()
        try:
            while True:
                for told in parser.feed(data):
                    self._told(told)
                data = await reader.read(_READ_BYTES)
                if not data:
                    return
        except ConnectionError:
            return
        finally:
            self._writer = None
            writer.close()
            channels, self._channels = self._channels, {}
            for channel in channels.values():
                if isinstance(channel, Execution):
                    channel.lost()
                elif not channel.done():
                    channel.set_result(Frame(Type.FAILED, 0, errno.ECONNRESET.to_bytes(4, "little") + b"connection"))

    def _told(self, told: Frame) -> None:
        channel = self._channels.get(told.channel)
        if isinstance(channel, Execution):
            channel.told(told)
        elif channel is not None and told.type in (Type.DONE, Type.FAILED) and not channel.done():
            channel.set_result(told)


class Execution:
    """A program in a guest; fulfils :class:`nestbed.runtime.Execution`."""

    def __init__(self, channel: int, program: ExecSpec, send: Callable[[bytes], None], forget: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[Frame | None] = loop.create_future()
        """Done when it runs, with what was told instead if it does not."""
        self._channel = channel
        self._tty = program.tty
        self._send = send
        self._forget = forget
        self._pieces: list[Output] = []
        self._held_bytes = 0
        self._news = asyncio.Event()
        self._exit: asyncio.Future[ExitStatus] = loop.create_future()
        self._credit = 0
        self._has_input = program.stdin or program.tty
        self._turn = asyncio.Lock()

    def told(self, told: Frame) -> None:
        """What the agent says of it."""
        if told.type == Type.STARTED and not self.started.done():
            self.started.set_result(None)
        elif told.type == Type.FAILED and not self.started.done():
            self.started.set_result(told)
        elif told.type in (Type.OUTPUT, Type.ERRORS):
            self._take(Output(1 if told.type == Type.OUTPUT else 2, told.payload))
        elif told.type == Type.CREDIT:
            self._credit += told.number()
        elif told.type == Type.ENDED:
            self._ended(status_of(told.number(), told.number(1)))
        self._news.set()

    def _take(self, piece: Output) -> None:
        if self._held_bytes + len(piece.data) <= CREDIT_BYTES:  # else more than the agent was granted
            self._held_bytes += len(piece.data)
            self._pieces.append(piece)

    def lost(self) -> None:
        """The machine is gone, and with it the program."""
        if not self.started.done():
            self.started.set_result(Frame(Type.FAILED, 0, errno.ECONNRESET.to_bytes(4, "little") + b"connection"))
        self._ended(ExitStatus(signal=signal.SIGKILL, reason="signaled", message="the virtual machine ended", at=time.time()))

    def _ended(self, status: ExitStatus) -> None:
        if not self._exit.done():
            self._exit.set_result(status)
        self._forget()
        self._news.set()

    async def output(self) -> AsyncIterator[Output]:
        """See the contract."""
        while True:
            while self._pieces:
                piece = self._pieces.pop(0)
                self._held_bytes -= len(piece.data)
                self._send(frames.number(Type.CREDIT, self._channel, len(piece.data)))
                yield piece
            if self._exit.done():
                return
            self._news.clear()
            await self._news.wait()

    async def write(self, data: bytes) -> None:
        """See the contract."""
        async with self._turn:
            while data:
                if self._exit.done() or not self._has_input:
                    raise WrongState("the program takes no input", reason="STDIN_CLOSED", remedy="start it with -i")
                if not self._credit:
                    self._news.clear()
                    await self._news.wait()
                    continue
                piece = data[: min(self._credit, frames.FRAME_BYTES_MAX)]
                self._credit -= len(piece)
                self._send(frames.frame(Type.INPUT, self._channel, piece))
                data = data[len(piece) :]

    async def close_stdin(self) -> None:
        """See the contract."""
        async with self._turn:
            self._has_input = self._has_input and self._tty
            self._send(frames.frame(Type.END_OF_INPUT, self._channel))

    def resize(self, rows: int, columns: int) -> None:
        """See the contract."""
        self._send(frames.size(Type.RESIZE, self._channel, rows, columns))

    async def wait(self) -> ExitStatus:
        """See the contract."""
        return await asyncio.shield(self._exit)

    def signal(self, number: int) -> None:
        """See the contract."""
        if not self._exit.done():
            self._send(frames.number(Type.SIGNAL, self._channel, number))

    async def aclose(self) -> None:
        """See the contract."""
        if not self._exit.done():
            self._send(frames.frame(Type.CLOSE, self._channel))
            self._ended(ExitStatus(signal=signal.SIGKILL, reason="signaled", at=time.time()))


def status_of(number: int, code: int) -> ExitStatus:
    """How a program ended, of the two numbers of ENDED."""
    if 0 < number < signal.NSIG:
        return ExitStatus(signal=number, reason="signaled", at=time.time())
    return ExitStatus(code=code & 0xFF, at=time.time())


def connect(made: socket.socket, directory: Path, name: str) -> None:
    """Connect to a socket by way of its directory: the whole path may be longer than an address takes.

    Raises:
        TimeoutError: those who called before wait still to be answered. OSError: nobody listens.
    """
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        made.connect(f"/proc/self/fd/{fd}/{name}")
    except BlockingIOError as error:  # unix(7), EAGAIN: the queue is full
        raise TimeoutError(f"{name} does not accept") from error
    finally:
        os.close(fd)


def refused(number: int, step: str, container_id: str, program: ExecSpec | None) -> NestbedError:
    """The error for the caller of what the guest could not do."""
    known = {"step": step, "container": container_id}
    name = shown(program.args[0]) if program is not None else ""
    if step == "execve" and number in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(
            f"there is no program {name} in the container",
            reason="PROGRAM_NOT_FOUND",
            remedy="check its name, the container's PATH, and that its file system has it",
            program=name,
            **known,
        )
    if step == "execve" and number in (errno.EACCES, errno.ENOEXEC, errno.EISDIR, errno.ELIBBAD):
        return InvalidArgument(
            f"{name} is no program that can be executed",
            reason="NOT_EXECUTABLE",
            remedy="check its mode, its format, and the interpreter in its first line",
            program=name,
            **known,
        )
    if step == "user":
        return NotFound("there is no such user in the container", reason="USER_NOT_FOUND", remedy="check the name", **known)
    if step == "cwd":
        return NotFound("there is no such directory in the container", reason="DIRECTORY_NOT_FOUND", remedy="check the path", **known)
    if number == errno.ECONNRESET:
        return Unavailable(f"the virtual machine of container {container_id} ended", reason="GUEST_UNREACHABLE", remedy="start it", **known)
    what = errno.errorcode.get(number, str(number))
    return HostLacks(
        f"the virtual machine of container {container_id} cannot be set up: {step}: {os.strerror(number)} ({what})",
        reason="GUEST_SETUP_FAILED",
        remedy="see its console log",
        errno=what,
        **known,
    )


def _silent(container_id: str) -> Deadline:
    return Deadline(
        f"the virtual machine of container {container_id} does not answer",
        reason="GUEST_SILENT",
        remedy="see its console log; stop it with --time 0 if it hangs",
        container=container_id,
    )
