"""Programs that fakes run: a few commands of a shell, enough for tests to say the same to a fake and to a real runtime.

Known are ``true false echo exit cat sleep kill trap``, by themselves or, joined by ``;``, as the script of ``sh -c``: ``echo TEXT`` with an
optional ``>&2``, ``kill -SIGNAL $$``, ``trap '' SIGNAL`` (ignore it). ``cat`` copies standard input until its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from nestbed.errors import InvalidArgument, NestbedError, NotFound
from nestbed.model import ExitStatus

COMMANDS = frozenset({"true", "false", "echo", "exit", "cat", "sleep", "kill", "trap", "sh"})
NOT_PROGRAMS = frozenset({"/etc/passwd", "/etc"})
_HARMLESS = (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)

Write = Callable[[int, bytes], Awaitable[None]]


def check_program(args: Sequence[str]) -> None:
    """Whether a fake can run ``args``.

    Raises:
        InvalidArgument: a file that is no program (reason NOT_EXECUTABLE). NotFound: nothing of that name (reason PROGRAM_NOT_FOUND).
    """
    if args[0] in NOT_PROGRAMS:
        raise InvalidArgument(f"{args[0]} is no program", reason="NOT_EXECUTABLE", remedy="give a program", program=args[0])
    if args[0].rpartition("/")[2] not in COMMANDS:
        raise NotFound(f"there is no program {args[0]}", reason="PROGRAM_NOT_FOUND", remedy="check its path", program=args[0])


@dataclass
class FakeProcess:
    """A program that runs. ``write`` takes its output; ``ended`` is done with the exit status when it ended."""

    args: Sequence[str]
    pid: int
    write: Write
    has_stdin: bool
    now: Callable[[], float]
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    stdin: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    is_stdin_open: bool = True
    ignored: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.gate.set()
        self.ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._run())

    def signal(self, number: int) -> None:
        """Do what the signal does by default, unless it is ignored; nothing to a program that ended."""
        if self.ended.done() or (number != signal.SIGKILL and (number in self.ignored or number in _HARMLESS)):
            return
        self._end(ExitStatus(signal=number, reason="signaled", at=self.now()))
        self._task.cancel()

    async def close(self) -> None:
        """Kill it and wait until nothing of it is left."""
        self.signal(signal.SIGKILL)
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def _end(self, status: ExitStatus) -> None:
        if not self.ended.done():
            self.ended.set_result(status)

    async def _run(self) -> None:
        code = 0
        try:
            for command in _commands(self.args):
                await self.gate.wait()
                if command[0] == "exit":
                    code = int(command[1]) if len(command) > 1 else code
                    break
                code = await self._command(command)
        except NestbedError:
            code = 127
        self._end(ExitStatus(code=code, at=self.now()))

    async def _command(self, command: Sequence[str]) -> int:
        name, *rest = command
        if name == "echo":
            stream = 2 if rest[-1:] == [">&2"] else 1
            await self._say(stream, " ".join(rest if stream == 1 else rest[:-1]).encode() + b"\n")
        elif name == "cat":
            await self._cat()
        elif name == "sleep":
            await asyncio.sleep(float(rest[0]))
        elif name == "trap":
            self.ignored.add(_signal_number(rest[1]))
        elif name == "kill":
            self.signal(_signal_number(rest[0].lstrip("-")))
            await asyncio.sleep(0)
        return int(name == "false")

    async def _cat(self) -> None:
        while self.has_stdin and (data := await self.stdin.get()):
            await self._say(1, data)

    async def _say(self, stream: int, data: bytes) -> None:
        await self.gate.wait()
        await self.write(stream, data)


def _commands(args: Sequence[str]) -> list[list[str]]:
    if args[0].rpartition("/")[2] != "sh":
        return [[args[0].rpartition("/")[2], *args[1:]]]
    commands = [words for part in args[2].split(";") if (words := shlex.split(part))]
    for words in commands:
        check_program(words)
    return commands


def _signal_number(name: str) -> int:
    return int(name) if name.isdigit() else signal.Signals[f"SIG{name.removeprefix('SIG')}"].value
