"""The noun image: ls, build, import, inspect, rm."""

from __future__ import annotations

import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from nbctl import output, stream, text
from nbctl.commands import Command, selected
from nbctl.failure import OK, Failure, Usage
from nestbed.errors import translated

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.image_pb2 import Image

HEADINGS = ("NAME", "ORIGIN", "FORMAT", "BOOT", "DISK", "STORED", "AGE")
FORMATS = ("qcow2", "raw")


def _word(enum: str, number: int) -> str:
    """A value as people read it: ``qcow2`` for DISK_FORMAT_QCOW2."""
    from nestbed.v1 import image_pb2  # noqa: PLC0415 - loaded with the client

    kind: Any = getattr(image_pb2, enum)
    return str(kind.Name(number)).rpartition("_")[2].lower() if number else "-"


def _table(images: Iterable[Image]) -> list[str]:
    now = time.time()
    rows: list[Sequence[str]] = [
        (
            image.name,
            _word("ImageOrigin", image.origin),
            _word("DiskFormat", image.format),
            _word("BootWay", image.boot),
            text.size(image.disk_bytes) if image.disk_bytes else "-",
            text.size(image.stored_bytes) if image.stored_bytes else "-",
            text.age(now - image.create_time.seconds) if image.create_time.seconds else "-",
        )
        for image in images
    ]
    return text.table(HEADINGS, rows, width=output.width())


class _Named(NamedTuple):
    """An image as ``nbctl.select`` knows things: its name is its id."""

    id: str
    name: str


def _names_options(parser: Parser) -> None:
    parser.add_argument("names", nargs="*", metavar="IMAGE", help="name, or glob such as 'test-*'")
    parser.set_defaults(labels=[])


def _listing(context: Context) -> Callable[[Mapping[str, str]], Coroutine[Any, Any, list[_Named]]]:
    async def listing(_: Mapping[str, str]) -> list[_Named]:
        return [_Named(image.name, image.name) for image in await context.client.list_images()]

    return listing


def _ls_options(_: Parser) -> None:
    pass


async def _ls(context: Context, _: Namespace) -> int:
    found = await context.client.list_images()
    output.show(context.output, found, lambda: _table(found))
    return OK


async def _inspect(context: Context, args: Namespace) -> int:
    return await selected.inspect(context, args, _listing(context), context.client.get_image, _table)


def _rm_options(parser: Parser) -> None:
    _names_options(parser)
    parser.add_argument("-f", "--force", action="store_true", help="a glob that matches nothing is no error")


async def _rm(context: Context, args: Namespace) -> int:
    return await selected.act(context, args, _listing(context), context.client.delete_image, none_is_fine=args.force)


class _Progress:
    """One line of standard error that tells how far it is; on something other than a terminal, each step a line of its own."""

    def __init__(self) -> None:
        self._is_live = sys.stderr.isatty()
        self._told = 0.0

    def step(self, what: str) -> None:
        line = text.escape(what)
        sys.stderr.write(f"\r\x1b[K{text.cut(line, (output.width() or 80) - 1)}" if self._is_live else f"{line}\n")
        sys.stderr.flush()

    def sent(self, done: int, total: int) -> None:
        """Bytes that are on their way; only a terminal is told, ten times a second."""
        if self._is_live and time.monotonic() - self._told > 0.1:
            self._told = time.monotonic()
            self.step(f"sent {text.size(done)}" + (f" of {text.size(total)}, {100 * done // total} %" if total else ""))

    def end(self) -> None:
        if self._is_live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _build_options(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="such as debian-12")
    parser.add_argument("--name", metavar="NAME", default="", help="of the image (the recipe's)")
    parser.add_argument("--fresh", action="store_true", help="fetch packages, even if hack/setup left what the recipe makes on the node")


async def _build(context: Context, args: Namespace) -> int:
    progress, found = _Progress(), None
    try:
        async for response in context.client.build_image(args.recipe, args.name, fresh=args.fresh):
            if response.HasField("image"):
                found = response.image
            else:
                progress.step(response.step)
    finally:
        progress.end()
    if found is None:
        raise Failure("the node stopped before the image was built", remedy="build it again when nestbedd is back")
    return _show(context, found)


def _import_options(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="the disk image; - is standard input")
    parser.add_argument("--format", choices=FORMATS, required=True, help="of the file; it is never guessed")
    parser.add_argument("--name", metavar="NAME", required=True, help="of the image, unique on the node")


async def _import(context: Context, args: Namespace) -> int:
    from nestbed.v1 import image_pb2  # noqa: PLC0415 - loaded with the client

    fd = 0 if args.file == "-" else _opened(args.file)
    total = os.fstat(fd).st_size if stat.S_ISREG(os.fstat(fd).st_mode) else 0
    progress = _Progress()
    try:
        disk_format = image_pb2.DiskFormat.Value(f"DISK_FORMAT_{args.format.upper()}")
        found = await context.client.import_image(args.name, disk_format, _counted(stream.read(fd), total, progress))
    finally:
        progress.end()
        if fd:
            os.close(fd)
    return _show(context, found)


def _opened(path: str) -> int:
    with translated(f"reading {path}", path=path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise Usage(f"{path} is a folder", remedy="name the file of a disk image")
    return fd


async def _counted(chunks: AsyncIterator[bytes], total: int, progress: _Progress) -> AsyncIterator[bytes]:
    done = 0
    async for chunk in chunks:
        yield chunk
        done += len(chunk)
        progress.sent(done, total)
    progress.sent(done, total)


def _show(context: Context, image: Image) -> int:
    output.show(context.output, [image], lambda: [image.name], single=True)
    return OK


COMMANDS = {
    "image ls": Command(_ls_options, _ls, "  nbctl image ls\n  nbctl image ls -o json"),
    "image build": Command(
        _build_options,
        _build,
        "  nbctl image build debian-12\n  nbctl image build debian-12 --fresh --name debian-today",
        "Takes a minute or two. Ending nbctl ends the build.",
    ),
    "image import": Command(
        _import_options,
        _import,
        "  nbctl image import debian-12-genericcloud-amd64.qcow2 --format qcow2 --name stock",
        "The disk of a distribution that has cloud-init, as they publish them for clouds. What names another file as backing or data is\n"
        "refused: `qemu-img convert -O qcow2` makes one file of it.",
    ),
    "image inspect": Command(
        _names_options,
        _inspect,
        "  nbctl image inspect debian-12",
        "Prints JSON unless told otherwise: the message of the API for one name, a list for several or a glob.",
    ),
    "image rm": Command(
        _rm_options,
        _rm,
        "  nbctl image rm stock\n  nbctl image rm -f 'test-*'",
        "Machines that were made from an image keep what they need of it.",
    ),
}
