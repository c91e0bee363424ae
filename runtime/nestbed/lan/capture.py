"""Captures from nestbedd's side: a process for each (``nestbed.lan.capturer``), its output passed on, its end seen to.

The reader sets the pace: what it does not take stays in the pipe, then in the kernel's ring, and what does not fit there is dropped and
counted in the file. The process ends with its reader, whether that closes, is cancelled, or is killed together with nestbedd.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import struct
import sys

from nestbed.errors import HostLacks, InvalidArgument, NestbedError, NotFound, ResourceExhausted, Unavailable, translated
from nestbed.lanmodel import CaptureRequest
from nestbed.linux import pcap
from nestbed.model import Ability

CAPTURES_MAX = 32
START_SECONDS = 10.0
"""In which a process has to have begun: a filter with host names may ask a name server."""
LEG_MARK = 0x6E626C67
"""The mark of frames that come back to their port from being impaired (``bpf/port.bpf.c``): they passed it before."""
_HEADER = struct.Struct("<cI")
_READ_BYTES = 256 * 1024


class Captures:
    """The captures of one plane. In the event loop's thread."""

    def __init__(self) -> None:
        self._running: set[Capture] = set()

    async def start(self, link: str, name: str, request: CaptureRequest) -> Capture:
        """Begin a capture; see ``LanPlane.capture``.

        Raises:
            InvalidArgument: BAD_FILTER. NotFound: LINK_GONE. HostLacks: NO_CAPTURE. ResourceExhausted: TOO_MANY_CAPTURES.
        """
        if len(self._running) >= CAPTURES_MAX:
            raise ResourceExhausted(
                f"{CAPTURES_MAX} captures are under way, and the node makes no more",
                reason="TOO_MANY_CAPTURES",
                remedy="end some of them",
                maximum=CAPTURES_MAX,
            )
        order = {"link": link, "name": name, "without_mark": LEG_MARK, **dataclasses.asdict(request)}
        capture = Capture(self._running)
        self._running.add(capture)
        try:
            await capture.begin(order)
        except BaseException:
            await capture.aclose()
            raise
        return capture

    async def aclose(self) -> None:
        """End all."""
        for capture in tuple(self._running):
            await capture.aclose()


class Capture:
    """One capture: an iterator over the pieces of the file, each of whole blocks. Close it; closing ends the process."""

    def __init__(self, siblings: set[Capture]) -> None:
        self._siblings = siblings
        self._pidfd = -1
        self._reader = asyncio.StreamReader(limit=_READ_BYTES)
        self._transport: asyncio.ReadTransport | None = None
        self._first: bytes | None = None
        self._is_at_end = False

    async def begin(self, order: dict[str, object]) -> None:
        """Start the process, and wait until it captures."""
        name = order["name"]
        with translated(f"starting the capture of {name}", name=name):
            near, far = os.pipe2(os.O_CLOEXEC)
            try:
                pid = _spawn(json.dumps(order), far)
                self._pidfd = os.pidfd_open(pid)
            except BaseException:
                os.close(near)
                raise
            finally:
                os.close(far)
        loop = asyncio.get_running_loop()
        file = os.fdopen(near, "rb", 0)
        protocol = asyncio.StreamReaderProtocol(self._reader)
        self._transport, _ = await loop.connect_read_pipe(lambda: protocol, file)
        try:
            async with asyncio.timeout(START_SECONDS):
                self._first = await self._piece()
        except TimeoutError as error:
            raise InvalidArgument(
                f"the filter of the capture of {name} takes longer than {START_SECONDS:.0f} s to prepare",
                reason="BAD_FILTER",
                remedy="give a simpler filter, with addresses instead of names",
                name=name,
            ) from error

    def __aiter__(self) -> Capture:
        return self

    async def __anext__(self) -> bytes:
        piece, self._first = self._first, None
        if piece is None:
            piece = await self._piece()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """End the process, if it still runs. Idempotent."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        if self._pidfd < 0:
            return
        pidfd, self._pidfd = self._pidfd, -1
        self._siblings.discard(self)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        loop = asyncio.get_running_loop()
        dead = loop.create_future()

        def reap() -> None:
            loop.remove_reader(pidfd)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
            if not dead.done():
                dead.set_result(None)

        loop.add_reader(pidfd, reap)  # in any case, even if nobody waits for it
        await dead

    async def _piece(self) -> bytes | None:
        """The next piece; None at the end.

        Raises:
            NestbedError: nothing is captured, or the process died.
        """
        if self._is_at_end:
            return None
        try:
            letter, size = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
            data = await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise Unavailable(
                "the process of the capture has died", reason="CAPTURE_DIED", remedy="see the daemon's log, and capture again"
            ) from error
        if letter == b"D":
            return data
        self._is_at_end = True
        if letter == b"E":
            raise _refusal(**json.loads(data))
        return None


def _spawn(order: str, far: int) -> int:
    """Start the process with ``far`` as its standard output and nothing else of ours but standard error."""
    words = [sys.executable, "-I", "-m", "nestbed.lan.capturer", order]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, far, 1)]
        return os.posix_spawn(sys.executable, words, env, file_actions=actions, setsigmask=(), setsid=True)
    finally:
        os.close(null)


def _refusal(reason: str, message: str) -> NestbedError:
    if reason == "BAD_FILTER":
        return InvalidArgument(
            f"the filter is none: {message}", reason=reason, remedy="write it as for tcpdump, see pcap-filter(7)", cause=message
        )
    if reason == "LINK_GONE":
        return NotFound(f"there is nothing to capture from: {message}", reason=reason, remedy="see `nbctl lan ls`", cause=message)
    return HostLacks(f"the node cannot capture: {message}", reason=reason, remedy="see `nbctl info`", cause=message)


def ability() -> Ability:
    """Whether this machine can capture."""
    try:
        return Ability("capture", available=True, detail=pcap.version())
    except pcap.PcapError as error:
        return Ability("capture", available=False, detail=str(error), consequence="`nbctl capture` is refused; install libpcap0.8")
