"""nestbedd's end of the channel to the keeper: reach the one that runs, or start one; requests, answers, events.

``nestbed.process.protocol`` is the specification. A descriptor that arrives belongs to whoever gets the reply or event; one that nobody
can get (the caller is gone) is closed here. Nothing here waits for anything but the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nestbed.errors import Unavailable, translated
from nestbed.linux.pidfd import open_process, pidfd_getfd
from nestbed.process.protocol import MESSAGE_BYTES_MAX, receive

START_SECONDS = 20.0
LOG_BYTES_MAX = 1 << 20

EventHandler = Callable[[dict[str, Any], list[int]], None]
"""Gets an event and its descriptors, which it owns from then on."""


class KeeperError(Exception):
    """The keeper refused or failed: ``step`` and ``number`` (errno) as in the protocol."""

    def __init__(self, step: str, number: int, text: str) -> None:
        super().__init__(f"{step}: {text}")
        self.step = step
        self.number = number
        self.text = text


@dataclass(slots=True)
class Reply:
    """A result and its descriptors, the caller's."""

    result: dict[str, Any]
    fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Close the descriptors that have not been taken out of ``fds``."""
        close_all(self.fds)


def close_all(fds: list[int]) -> None:
    """Close the descriptors and forget them."""
    while fds:
        os.close(fds.pop())


class KeeperClient:
    """The channel. One per runtime; all methods in the event loop's thread."""

    def __init__(self, *, run_dir: Path, bundles_dir: Path, on_event: EventHandler, on_gone: Callable[[], None]) -> None:
        """``on_gone`` is called once each time an open channel breaks: open it again."""
        self._run_dir = run_dir
        self._bundles_dir = bundles_dir
        self._on_event = on_event
        self._on_gone = on_gone
        self._socket: socket.socket | None = None
        self._pid = 0
        self._pidfd = -1
        self._sequence = itertools.count(1)
        self._buffer = bytearray(MESSAGE_BYTES_MAX)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._ready: asyncio.Future[dict[str, Any]] | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a keeper to talk to."""
        return self._socket is not None

    @property
    def pid(self) -> int:
        """The keeper's process."""
        return self._pid

    async def open(self) -> bool:
        """Connect to the keeper of this run directory, or start one if there is none; whether it was started.

        Raises:
            Unavailable: it does not start.
        """
        if self._reach():
            return False
        await self._start()
        return True

    async def aclose(self) -> None:
        """Let go of the keeper, which goes on. Idempotent."""
        self._disconnect(Unavailable("nestbedd is stopping", reason="STOPPING", remedy="try again once it runs"))

    async def call(self, operation: str, *, fds: Sequence[int] = (), **arguments: object) -> Reply:
        """Ask the keeper. ``fds`` stay the caller's; duplicates travel.

        Raises:
            KeeperError: what the keeper answered.
            Unavailable: there is no keeper, or it went away before it answered.
        """
        if self._socket is None:
            raise _gone()
        sequence = next(self._sequence)
        data = json.dumps({"op": operation, "seq": sequence, **arguments}).encode()
        if len(data) > MESSAGE_BYTES_MAX:
            raise KeeperError("message", errno.E2BIG, "the request is too long")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[sequence] = future
        try:
            self._send(data, fds)
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().close()
            raise
        finally:
            self._waiting.pop(sequence, None)

    # ---- finding and starting

    def _reach(self) -> bool:
        try:
            record = json.loads((self._run_dir / "keeper.json").read_bytes())
            pidfd = open_process(int(record["pid"]), int(record["start_time"]))
        except (OSError, ValueError, KeyError, TypeError):
            return False
        near, far = _channel()
        try:
            with far, socket.socket(fileno=pidfd_getfd(pidfd, int(record["rendezvous"]))) as rendezvous:
                socket.send_fds(rendezvous, [b"\0"], [far.fileno()])
        except OSError:
            near.close()
            os.close(pidfd)
            return False
        self._use(near, int(record["pid"]), pidfd)
        return True

    async def _start(self) -> None:
        near, far = _channel()
        with far, translated("starting the keeper", run_dir=self._run_dir):
            try:
                pid = self._spawn(far)
                pidfd = os.pidfd_open(pid)
            except BaseException:
                near.close()
                raise
        self._ready = asyncio.get_running_loop().create_future()
        self._use(near, pid, pidfd)
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._ready
        except TimeoutError as error:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._disconnect(_gone(), is_dead=True)
            raise Unavailable(
                f"the keeper is not ready after {START_SECONDS:.0f} s",
                reason="KEEPER_NOT_READY",
                remedy="see keeper.log in the run directory",
                seconds=START_SECONDS,
            ) from error
        finally:
            self._ready = None

    def _spawn(self, far: socket.socket) -> int:
        """Start ``python -m nestbed.process.keeper`` with its descriptors as 3, 4 and 5, and nothing else of ours."""
        fds: list[int] = []
        try:
            for path, flags in ((self._bundles_dir, os.O_PATH | os.O_DIRECTORY), (self._run_dir, os.O_RDONLY | os.O_DIRECTORY)):
                fds.append(_high(os.open(path, flags | os.O_CLOEXEC)))
            fds.append(_high(os.dup(far.fileno())))
            fds.append(_high(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)))
            fds.append(_high(open_log(self._run_dir / "keeper.log")))
            targets = {fds[3]: (0, 1), fds[4]: (2,), fds[0]: (3,), fds[1]: (4,), fds[2]: (5,)}
            actions = [(os.POSIX_SPAWN_DUP2, fd, number) for fd, numbers in targets.items() for number in numbers]
            words = [sys.executable, "-I", "-m", "nestbed.process.keeper", "--bundles-fd=3", "--run-fd=4", "--channel-fd=5"]
            env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
            return os.posix_spawn(sys.executable, words, env, file_actions=actions, setsigmask=(), setsid=True)
        finally:
            close_all(fds)

    def _use(self, channel: socket.socket, pid: int, pidfd: int) -> None:
        self._socket, self._pid, self._pidfd = channel, pid, pidfd
        asyncio.get_running_loop().add_reader(channel.fileno(), self._receive)

    # ---- messages

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        assert self._socket is not None
        if self._unsent:
            self._unsent.append((data, [os.dup(fd) for fd in fds]))
            return
        try:
            socket.send_fds(self._socket, [data], fds)
        except BlockingIOError:
            self._unsent.append((data, [os.dup(fd) for fd in fds]))
            asyncio.get_running_loop().add_writer(self._socket.fileno(), self._flush)
        except OSError:
            self._broken()

    def _flush(self) -> None:
        assert self._socket is not None
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                socket.send_fds(self._socket, [data], fds)
            except BlockingIOError:
                return
            except OSError:
                self._broken()
                return
            self._unsent.popleft()
            close_all(fds)
        asyncio.get_running_loop().remove_writer(self._socket.fileno())

    def _receive(self) -> None:
        """Take every message that is there."""
        while self._socket is not None:
            try:
                data, fds, flags = receive(self._socket, self._buffer)
            except BlockingIOError:
                return
            except OSError:
                data, fds, flags = b"", [], 0
            if not data:
                self._broken()
                return
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                close_all(fds)
                self._broken()
                return
            self._dispatch(json.loads(data), fds)

    def _dispatch(self, message: dict[str, Any], fds: list[int]) -> None:
        if "event" in message:
            if message["event"] == "ready":
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(message)
            else:
                self._on_event(message, fds)
            return
        future = self._waiting.pop(message["seq"], None)
        if future is None or future.done():
            close_all(fds)
        elif "error" in message:
            close_all(fds)
            error = message["error"]
            future.set_exception(KeeperError(error["step"], error["errno"], error["message"]))
        else:
            future.set_result(Reply(message["result"], fds))

    # ---- the end

    def _broken(self) -> None:
        is_starting = self._ready is not None
        self._disconnect(_gone(), is_dead=True)
        if not is_starting:
            self._on_gone()

    def _disconnect(self, reason: Unavailable, *, is_dead: bool = False) -> None:
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket.fileno())
        loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._socket = None
        self._forget_process(is_dead=is_dead)
        while self._unsent:
            close_all(self._unsent.popleft()[1])
        waiting, self._waiting = self._waiting, {}
        for future in (*waiting.values(), *((self._ready,) if self._ready else ())):
            if not future.done():
                future.set_exception(reason)

    def _forget_process(self, *, is_dead: bool) -> None:
        """Close the pidfd; a keeper that was our child is reaped once it is dead."""
        pidfd, self._pidfd = self._pidfd, -1
        if not is_dead or _reaped(pidfd):
            os.close(pidfd)
            return
        loop = asyncio.get_running_loop()

        def reap() -> None:
            loop.remove_reader(pidfd)
            _reaped(pidfd)
            os.close(pidfd)

        loop.add_reader(pidfd, reap)


def open_log(path: Path) -> int:
    """Open the log of keepers to be added to; one that has grown long is put aside, in the place of the one before.

    A keeper writes there only what it dies of, so looking when one is started bounds it.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_MAX:
            path.rename(f"{path}.1")
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _channel() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setblocking(False)
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_BYTES_MAX)
    return near, far


def _high(fd: int) -> int:
    """Move a descriptor out of the way of the numbers the keeper gets."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)
    finally:
        os.close(fd)


def _reaped(pidfd: int) -> bool:
    """Whether nothing is left to reap: it is reaped now, or was never our child."""
    try:
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:
        return True


def _gone() -> Unavailable:
    return Unavailable("the keeper is away", reason="KEEPER_GONE", remedy="try again in a moment")
