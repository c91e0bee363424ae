"""Programs of the node that do work for images, on what others made or as root for a while: bounded, and never left behind.

Each is in namespaces of its own and dies with the daemon: ``setpriv`` has the kernel kill ``unshare`` with us, ``unshare`` has it kill the
first process of the new PID namespace, and with that all of them die.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from nestbed.errors import Deadline, HostLacks

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}
NOBODY = 0x6FFFFFFF
"""The user that reads what others made: none that a node has, and no machine's."""
_BOUND = ("setpriv", "--pdeathsig", "KILL", "--", "unshare", "--fork", "--pid", "--kill-child=KILL", "--mount", "--ipc")
_POWERLESS = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
    *("--", "prlimit", "--as=2147483648", "--cpu=300", "--fsize=0", "--core=0", "--nofile=64", "--nproc=64", "--"),
)
_ONLY_WRITABLE = ("sh", "-c", 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && cd "$0" && exec "$@"')
"""Then a path, then the program: what goes wrong as root changes nothing of the node (mount(8))."""
NOT_FOUND = 127
"""The exit code of setpriv, unshare and prlimit when there is no such program (setpriv(1))."""
_LINE_BYTES = 1 << 20
_LINES_MAX = 200


class Running:
    """A program under way. Leaving the block of :func:`running` ends it with all it started."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def lines(self) -> AsyncIterator[str]:
        """What it says, line by line, until its end."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            yield line.decode(errors="replace").rstrip()

    async def wait(self) -> int:
        """Its exit code."""
        return await self._process.wait()


@contextlib.asynccontextmanager
async def running(
    words: Sequence[str], *, seconds: float, stdin: int | None = None, directory: Path | None = None, env: Mapping[str, str] | None = None
) -> AsyncIterator[Running]:
    """A program that is ended with the block, or after ``seconds``.

    With a ``directory`` it is root's, and of the node's root file system can write there alone. Without one it is nobody's: no rights, no
    network, it can write nothing; it reads what ``stdin`` is.

    Raises:
        Deadline: it took too long (reason PROGRAM_SLOW). HostLacks: it is missing.
    """
    inside = ("--net", "--", *_POWERLESS) if directory is None else ("--mount-proc", "--", *_ONLY_WRITABLE, str(directory))
    try:
        process = await asyncio.create_subprocess_exec(
            *(*_BOUND, *inside, *words),
            cwd="/",
            env={**ENVIRONMENT, **({"TMPDIR": str(directory)} if directory else {}), **(env or {})},
            stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=_LINE_BYTES,
        )
    except OSError as error:
        raise missing(words[0], error.strerror or "") from error
    try:
        async with asyncio.timeout(seconds):
            yield Running(process)
    except TimeoutError as error:
        raise Deadline(
            f"{words[0]} did not end within {seconds:.0f} s",
            reason="PROGRAM_SLOW",
            remedy="see what holds the node up, and try again",
            program=words[0],
            seconds=seconds,
        ) from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        # What it started holds its output until the kernel has ended the last of it.
        if process.stdout is not None:
            await process.stdout.read()
        await process.wait()


async def said(words: Sequence[str], *, seconds: float, stdin: int | None = None, directory: Path | None = None) -> tuple[int, str]:
    """Run a program to its end: its exit code, and what it said first.

    Raises:
        as :func:`running`.
    """
    async with running(words, seconds=seconds, stdin=stdin, directory=directory) as program:
        lines: list[str] = []
        async for line in program.lines():
            if len(lines) < _LINES_MAX:
                lines.append(line)
        return await program.wait(), "\n".join(lines)


def missing(program: str, why: str) -> HostLacks:
    """The error for a program that this node does not have."""
    return HostLacks(
        f"{program} cannot be run: {why or 'it is not installed'}",
        reason="PROGRAM_MISSING",
        remedy="apt-get install qemu-utils mmdebstrap e2fsprogs xorriso util-linux",
        program=program,
    )
