"""The verb capture: frames of a LAN or a NIC as a pcapng file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, cast

from nbctl import signals, stream, text, values
from nbctl.commands import Command
from nbctl.failure import OK, Failure, Usage, report
from nestbed.errors import NotFound, translated

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncGenerator, Iterator

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.lan_pb2 import CaptureRequest

SNAP_BYTES_MAX = 262144


def _options(parser: Parser) -> None:
    parser.add_argument("target", metavar="LAN|CONTAINER[:NIC]", help="what to capture; a name of both needs a : behind the container's")
    parser.add_argument("-w", "--write", metavar="FILE", required=True, help="file to write, or - for standard output")
    parser.add_argument(
        "-f", "--filter", metavar="FILTER", default="", help="only these frames: an expression as of tcpdump, pcap-filter(7)"
    )
    parser.add_argument(
        "-s", "--snaplen", metavar="BYTES", type=values.whole(1, SNAP_BYTES_MAX), default=0, help="bytes of each frame to keep (all)"
    )
    parser.add_argument("-c", "--count", metavar="N", type=values.whole(1), default=0, help="end after so many frames")
    parser.add_argument("--size", metavar="SIZE", type=values.size, default=0, help="end before the file gets larger, such as 100m")
    parser.add_argument("--duration", metavar="TIME", type=values.duration, default=0.0, help="end after this time, such as 10s")


async def _capture(context: Context, args: Namespace) -> int:
    if args.write == "-" and sys.stdout.isatty():
        raise Usage("a capture is nothing for a terminal", remedy="write -w FILE, or pipe it: nbctl capture ... -w - | wireshark -k -i -")
    request = await _request(context, args)
    with _stopped_by_signal(context) as stop:
        async with contextlib.aclosing(context.client.capture(request)) as pieces:
            first = await anext(pieces, b"")  # before the file is touched: whether it can be captured at all
            with _opened(args.write) as fd, stream.while_read() if fd == 1 else contextlib.nullcontext():
                await _copy(fd, args.write, first, pieces, stop)
    return OK


@contextlib.contextmanager
def _stopped_by_signal(context: Context) -> Iterator[asyncio.Event]:
    """An event that the first Ctrl-C (or another signal to end) sets; a second one ends nbctl at once."""
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def receive(number: int) -> None:
        if number in signals.ENDING:
            if stop.is_set():
                task.cancel()
            stop.set()

    with context.signals.passed_to(receive):
        yield stop


async def _copy(fd: int, path: str, first: bytes, pieces: AsyncGenerator[bytes, None], stop: asyncio.Event) -> None:
    """Write the pieces until they end or are to: always whole ones, so that the file is one that programs read."""
    written = 0
    stopping = asyncio.ensure_future(stop.wait())
    try:
        piece: bytes | None = first
        while piece is not None:
            await _write(fd, path, piece)
            written += len(piece)
            piece = await _next(pieces, stopping)
    finally:
        stopping.cancel()
        if fd != 1 and written:
            report(f"{text.size(written)} in {path}")


async def _next(pieces: AsyncGenerator[bytes, None], stopping: asyncio.Task[Any]) -> bytes | None:
    """The next piece; None at the end, or if ``stopping`` is done before it comes."""
    coming: asyncio.Task[Any] = asyncio.ensure_future(anext(pieces, None))
    try:
        await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return cast("bytes | None", coming.result()) if coming.done() else None
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


async def _write(fd: int, path: str, data: bytes) -> None:
    try:
        if fd == 1:
            await stream.write(fd, data)
        else:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        why = os.strerror(error.errno or 0).lower()
        raise Failure(f"writing {path}: {why}", remedy="write to a file that has room; the capture has ended") from error


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    if path == "-":
        yield 1
        return
    with translated(f"opening {path}", path=path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


async def _request(context: Context, args: Namespace) -> CaptureRequest:
    """What to capture, and where: a name without a colon is a LAN's or a container's.

    Raises:
        Usage: it is the name of both. NotFound: of neither.
    """
    client = context.client
    from google.protobuf.duration_pb2 import Duration  # noqa: PLC0415 - loaded with the client

    from nestbed.v1.lan_pb2 import CaptureRequest  # noqa: PLC0415 - loaded with the client

    name, colon, nic = args.target.partition(":")
    lan = "" if colon else await _lan(context, name)
    duration = Duration()
    duration.FromNanoseconds(round(args.duration * 1e9))
    if lan:
        with contextlib.suppress(NotFound):
            container = await client.get_container(name)
            if container.name == name:
                raise Usage(f"there are a LAN and a container {name}", remedy=f"write {name}: for the container, {lan} for the LAN")
    return CaptureRequest(
        lan=lan,
        container="" if lan else name,
        nic=nic,
        filter=args.filter,
        snap_bytes=args.snaplen,
        count=args.count,
        size_bytes=args.size,
        duration=duration if args.duration else None,
    )


async def _lan(context: Context, name: str) -> str:
    try:
        return (await context.client.get_lan(name)).id
    except NotFound:
        return ""


COMMANDS = {
    "capture": Command(
        _options,
        _capture,
        """\
  nbctl capture lan0 -w lan0.pcapng
  nbctl capture lan0 -w - | wireshark -k -i -
  nbctl capture web:eth0 -w web.pcapng -f 'tcp port 80' -c 1000
  nbctl -H tcp://node2:7411 capture lan0 -w - --duration 10s | tshark -r -""",
        """\
Writes a pcapng file as frames pass, with the kernel's time stamps. Frames that the node could not keep up with
are counted in its statistics blocks; none is missing silently. Ctrl-C ends it, and the file is whole.""",
    ),
}
