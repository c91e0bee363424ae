"""The verb cp: files into and out of a container, by docker's rules."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import posixpath
import stat
import sys
import tarfile
from typing import IO, TYPE_CHECKING, NamedTuple

from nbctl import stream
from nbctl.commands import Command
from nbctl.failure import OK, Failure, Usage
from nbctl.unpack import Unpacker
from nestbed.errors import NestbedError, NotFound, translated

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncIterator, Callable

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.client import Client

LINKS_MAX = 40
"""As the kernel has it (path_resolution(7))."""


class Place(NamedTuple):
    """One end of a copy; ``container`` is empty for a path here. ``path`` is as it was written, absolute inside a container."""

    container: str
    path: str

    @property
    def is_archive(self) -> bool:
        """Whether it is a tar archive on a standard stream."""
        return not self.container and self.path == "-"

    @property
    def wants_folder(self) -> bool:
        """Whether it is written as a folder: with a slash, or a dot after it, at the end."""
        return self.path.endswith(("/", "/.")) or self.path == "."

    @property
    def wants_content(self) -> bool:
        """Whether what is in the folder is meant, not the folder."""
        return self.path.endswith("/.") or self.path == "."


def place(text: str) -> Place:
    """``CONTAINER:PATH``, or a path here: one that begins with ``/`` or ``.``, or has no colon."""
    container, colon, path = text.partition(":")
    if not text:
        raise Usage("a path is empty", remedy="write CONTAINER:PATH, a path here, or - for a tar archive")
    if not colon or text[0] in "/.":
        return Place("", text)
    if not container or not path:
        raise Usage(f"'{text}' is not CONTAINER:PATH", remedy="write a container's name, a colon and a path; a local path begins with ./")
    return Place(container, path if path.startswith("/") else f"/{path}")


def _options(parser: Parser) -> None:
    parser.add_argument("source", metavar="SRC", type=place, help="CONTAINER:PATH, a path here, or - for a tar archive on standard input")
    parser.add_argument(
        "destination", metavar="DST", type=place, help="CONTAINER:PATH, a path here, or - for a tar archive on standard output"
    )


async def _cp(context: Context, args: Namespace) -> int:
    source, destination = args.source, args.destination
    if bool(source.container) == bool(destination.container):
        raise Usage("one of SRC and DST must be inside a container, and only one", remedy="write CONTAINER:PATH for it")
    if source.container:
        await (_archive_out if destination.is_archive else _out)(context.client, source, destination)
    else:
        await (_archive_in if source.is_archive else _in)(context.client, source, destination)
    return OK


# ---------------------------------------------------------------- inside


async def _look(client: Client, container: str, path: str) -> tarfile.TarInfo | None:
    """What is at ``path`` inside, by the head of its archive; None if nothing is."""
    head = b""
    try:
        async with contextlib.aclosing(client.copy_from(container, path)) as chunks:
            async for chunk in chunks:
                head += chunk
                with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=io.BytesIO(head), mode="r:") as archive:
                    return archive.next()
    except NotFound as error:
        if error.reason == "CONTAINER_NOT_FOUND":
            raise
    return None


async def _follow(client: Client, container: str, path: str) -> tuple[str, tarfile.TarInfo | None]:
    """``path`` inside with links at its end followed, and what is there, if anything is."""
    path = _clean(path)
    for _ in range(LINKS_MAX):
        found = await _look(client, container, path)
        if found is None or not found.issym():
            return path, found
        path = _clean(posixpath.join(posixpath.dirname(path), found.linkname))
    raise Failure(f"{path} in {container} is a link to itself", remedy="name another path")


def _clean(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")


# ---------------------------------------------------------------- out of a container


async def _archive_out(client: Client, source: Place, _: Place) -> None:
    if sys.stdout.isatty():
        raise Usage("a tar archive would go to the terminal", remedy="redirect standard output, or name a path here")
    sys.stdout.flush()
    path = (await _follow(client, source.container, source.path))[0] if source.wants_folder else _clean(source.path)
    async with contextlib.aclosing(client.copy_from(source.container, path)) as chunks:
        async for chunk in chunks:
            await stream.write(1, chunk)


async def _out(client: Client, source: Place, destination: Place) -> None:
    path = (await _follow(client, source.container, source.path))[0] if source.wants_folder else _clean(source.path)
    async with contextlib.aclosing(client.copy_from(source.container, path)) as chunks:
        await _consumed(chunks, lambda file: _unpack(file, source, destination))


def _unpack(file: IO[bytes], source: Place, destination: Place) -> None:
    """Unpack an archive of ``source`` where ``destination`` says; runs in a thread."""
    try:
        with translated(f"copying to {destination.path}", path=destination.path), tarfile.open(fileobj=file, mode="r|") as archive:
            members = iter(archive)
            top = next(members, None)
            if top is None:
                raise Failure("the archive that the node sent is empty", remedy="see the log of nestbedd")
            if source.wants_folder and not top.isdir():
                raise Failure(f"{source.path} in {source.container} is no folder", remedy="leave out the slash at its end")
            with Unpacker(*_landing(source, destination, is_folder=top.isdir())) as unpacker:
                unpacker.put(top, archive.extractfile(top) if top.isreg() else None)
                for member in members:
                    unpacker.put(member, archive.extractfile(member) if member.isreg() else None)
    except tarfile.TarError as error:
        raise Failure(f"the archive that the node sent cannot be read: {error}", remedy="try again; see the log of nestbedd") from error


def _landing(source: Place, destination: Place, *, is_folder: bool) -> tuple[str, str]:
    """The folder to unpack in, and the name there."""
    path = destination.path
    if os.path.isdir(path):
        name = posixpath.basename(_clean(source.path))
        return path, "." if source.wants_content or not name else name
    if os.path.lexists(path):
        path = os.path.realpath(path)
    _check_no_folder(path, destination, exists=os.path.lexists(path), is_folder=is_folder)
    parent, name = os.path.split(os.path.abspath(path))
    return parent, name


def _check_no_folder(path: str, destination: Place, *, exists: bool, is_folder: bool) -> None:
    """Refuse what cannot go to a destination that is no folder."""
    if exists and (is_folder or destination.wants_folder):
        raise Failure(f"{path} exists and is no folder", remedy="choose another destination")
    if not exists and destination.wants_folder and not is_folder:
        raise Failure(f"there is no folder {path}", remedy="make it first, or leave out the slash at its end")


async def _consumed(chunks: AsyncIterator[bytes], consume: Callable[[IO[bytes]], None]) -> None:
    """Let ``consume`` read ``chunks`` as a file, in a thread: tarfile knows only files."""
    reading, writing = os.pipe()

    def work() -> None:
        with open(reading, "rb") as file:
            consume(file)

    consumer = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        with contextlib.suppress(BrokenPipeError):  # the consumer has ended, and says why
            async for chunk in chunks:
                await stream.write(writing, chunk)
    except BaseException:
        os.close(writing)
        await asyncio.gather(consumer, return_exceptions=True)
        raise
    os.close(writing)
    await consumer


# ---------------------------------------------------------------- into a container


async def _archive_in(client: Client, _: Place, destination: Place) -> None:
    path, found = await _follow(client, destination.container, destination.path)
    if found is None or not found.isdir():
        raise Failure(f"there is no folder {path} in {destination.container}", remedy="make it first with `nbctl exec`")
    await client.copy_to(destination.container, path, stream.read(0))


async def _in(client: Client, source: Place, destination: Place) -> None:
    with translated(f"reading {source.path}", path=source.path):
        found = os.stat(source.path) if source.wants_folder else os.lstat(source.path)
    is_folder = stat.S_ISDIR(found.st_mode)
    if source.wants_folder and not is_folder:
        raise Failure(f"{source.path} is no folder", remedy="leave out the slash at its end")
    path, there = await _follow(client, destination.container, destination.path)
    if there is not None and there.isdir():
        name = "" if source.wants_content else _last_component(source.path)
    else:
        _check_no_folder(path, destination, exists=there is not None, is_folder=is_folder)
        path, name = posixpath.split(path)
    async with _produced(lambda file: _pack(file, source.path, name)) as chunks:
        await client.copy_to(destination.container, path, chunks)


def _last_component(path: str) -> str:
    return os.path.basename(os.path.abspath(path))


def _pack(file: IO[bytes], path: str, name: str) -> None:
    """Write an archive of ``path`` in which it is called ``name``, or of what is in it; runs in a thread."""
    with tarfile.open(fileobj=file, mode="w|") as archive:
        pairs = [(path, name)] if name else [(os.path.join(path, entry), entry) for entry in sorted(os.listdir(path))]
        for local, shown in pairs:
            archive.add(local, arcname=shown, filter=_owned_by_root)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


@contextlib.asynccontextmanager
async def _produced(produce: Callable[[IO[bytes]], None]) -> AsyncIterator[AsyncIterator[bytes]]:
    """What ``produce`` writes to a file, in a thread, as pieces.

    Raises:
        NestbedError: it failed; before whatever went wrong in the block because of that.
    """
    reading, writing = os.pipe()

    def work() -> None:
        with translated("reading the files to copy"), open(writing, "wb") as file:
            produce(file)

    producer = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        yield stream.read(reading)
    except NestbedError:
        os.close(reading)
        with contextlib.suppress(NestbedError):
            await producer
        raise
    except BaseException:
        os.close(reading)
        await asyncio.gather(producer, return_exceptions=True)
        raise
    await producer
    os.close(reading)


COMMANDS = {
    "cp": Command(
        _options,
        _cp,
        """\
  nbctl cp page.html web:/srv/
  nbctl cp web:/var/log ./web-log
  nbctl cp web:/etc/. etc-of-web
  nbctl cp web:/etc - | tar tf -""",
        """\
A folder goes into a destination that is a folder, and becomes one that does not exist. With /. at the end of SRC what is in the
folder is copied. Files that are unpacked here belong to you; inside a container they belong to root.""",
    )
}
