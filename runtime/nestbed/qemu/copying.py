"""Files in and out of a guest, by its tar(1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from nestbed.errors import InvalidArgument, NotFound, WrongState, shown
from nestbed.model import ExecSpec
from nestbed.qemu.guest import Execution

Run = Callable[[ExecSpec], Awaitable[Execution]]
_ABSENT = 44
"""The exit code of our scripts for a path that is not there."""
_ARCHIVE = f'test -e "$1" -o -L "$1" || exit {_ABSENT}; cd "$(dirname -- "$1")" && exec tar -cf - -- "$(basename -- "$1")"'
_EXTRACT = f'test -d "$1" || exit {_ABSENT}; exec tar -xf - -C "$1"'
_NOTE_CHARS = 200


async def archive(run: Run, path: str) -> AsyncIterator[bytes]:
    """A tar stream of ``path``; see ``FileAccess.archive``."""
    _check(path)
    execution = await run(ExecSpec(("sh", "-c", _ARCHIVE, "sh", path)))
    return _stream(execution, path)


async def _stream(execution: Execution, path: str) -> AsyncIterator[bytes]:
    said = b""
    try:
        async for piece in execution.output():
            if piece.stream == 1:
                yield piece.data
            else:
                said = (said + piece.data)[-_NOTE_CHARS:]
        _judge((await execution.wait()).shell_code, path, said)
    finally:
        await execution.aclose()


async def extract(run: Run, path: str, chunks: AsyncIterator[bytes]) -> None:
    """Unpack a tar stream in the directory ``path``; see ``FileAccess.extract``."""
    _check(path)
    execution = await run(ExecSpec(("sh", "-c", _EXTRACT, "sh", path), stdin=True))
    said = b""

    async def feed() -> None:
        try:
            async for chunk in chunks:
                await execution.write(chunk)
            await execution.close_stdin()
        except WrongState:  # it ended before it read all: its exit code tells why
            return
        except BaseException:
            await execution.aclose()  # it must not take half of it for all
            raise

    feeding = asyncio.create_task(feed())
    try:
        async for piece in execution.output():
            said = (said + piece.data)[-_NOTE_CHARS:]
        ended = await execution.wait()
        if feeding.done():
            feeding.result()
        _judge(ended.shell_code, path, said)
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        await execution.aclose()


def _check(path: str) -> None:
    if "\0" in path or not path.startswith("/"):
        raise InvalidArgument(f"{shown(path)} is no absolute path", reason="BAD_PATH", remedy="begin it with /", path=shown(path))


def _judge(code: int, path: str, said: bytes) -> None:
    if code == _ABSENT:
        raise NotFound(f"there is no {shown(path)} in the container", reason="PATH_NOT_FOUND", remedy="check the path", path=shown(path))
    if code:
        why = shown(said.decode(errors="replace").strip().partition("\n")[0])
        raise InvalidArgument(
            f"tar in the container failed at {shown(path)}: {why}",
            reason="NOT_A_TAR_STREAM",
            remedy="check the path and the archive",
            path=shown(path),
            cause=why,
        )
