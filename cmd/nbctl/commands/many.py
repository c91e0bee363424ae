"""A program in many containers at once: ``exec -l``."""

from __future__ import annotations

import os
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

from nbctl import select, text
from nbctl.failure import FAILED, OK, Failure, Usage, report
from nestbed.errors import NotFound

if TYPE_CHECKING:
    from argparse import Namespace

    from nbctl.context import Context
    from nestbed.v1.container_pb2 import Container, ExecStart

_EXPERIMENT = "nestbed.experiment"


class _Lines:
    """Output of one program, line by line, each headed by where it runs."""

    def __init__(self, name: str, width: int) -> None:
        self._head = f"{text.pad(name, width)} | ".encode()
        self._rests = {1: b"", 2: b""}
        self._streams = {1: sys.stdout.buffer, 2: sys.stderr.buffer}

    def add(self, stream: int, data: bytes) -> None:
        *lines, self._rests[stream] = (self._rests[stream] + data).split(b"\n")
        self._write(stream, b"".join(self._head + line + b"\n" for line in lines))

    def end(self) -> None:
        for stream, rest in self._rests.items():
            if rest:
                self._write(stream, self._head + rest + b"\n")

    def _write(self, stream: int, data: bytes) -> None:
        self._streams[stream].write(data)
        self._streams[stream].flush()


async def exec_in_all(context: Context, args: Namespace) -> int:
    """Run the program in all containers that have the labels and run; lines of output are headed by the container's name. They are those
    of the node, or, if the labels name an experiment that it has brought up, those of all its nodes.

    Returns FAILED if one of the programs ended other than with 0.
    """
    from nbctl import specs  # noqa: PLC0415 - gRPC's messages cost more than reading a command line
    from nestbed.v1.container_pb2 import ExecStart  # noqa: PLC0415 - as specs

    if args.container or args.interactive or args.tty:
        raise Usage("with -l no container, -i or -t is given", remedy="write nbctl exec -l KEY=VALUE -- CMD")
    labels = dict(args.labels)
    start = ExecStart(args=args.program, env=specs.environment(args, os.environ), cwd=args.workdir, user=args.user)
    if _EXPERIMENT in labels:
        try:
            return await _in_elements(context, labels, start)
        except NotFound as error:
            if error.reason != "EXPERIMENT_NOT_FOUND":
                raise
    return await _in_containers(context, labels, start)


async def _in_elements(context: Context, labels: dict[str, str], start: ExecStart) -> int:
    experiment = await context.client.get_experiment(labels[_EXPERIMENT])
    width = max(text.cells(element.name) for element in experiment.elements)
    lines: dict[str, _Lines] = {}
    code = OK
    async with aclosing(context.client.exec_in_elements(experiment.name, start, labels=labels)) as pieces:
        async for piece in pieces:
            own = lines.setdefault(piece.element, _Lines(piece.element, width))
            match piece.WhichOneof("output"):
                case "stdout":
                    own.add(1, piece.stdout)
                case "stderr":
                    own.add(2, piece.stderr)
                case "exit":
                    own.end()
                    code = code if piece.exit.shell_code == 0 else FAILED
                    _tell(piece.element, width, piece.exit.shell_code)
                case _:
                    own.end()
                    code = FAILED
                    report(f"{piece.element}: {piece.failure}", "")
    return code


def _tell(name: str, width: int, status: int) -> None:
    if status:
        sys.stderr.write(f"{text.pad(name, width)} | ended with status {status}\n")


async def _in_containers(context: Context, labels: dict[str, str], start: ExecStart) -> int:
    from nestbed.v1.container_pb2 import CONTAINER_STATE_RUNNING  # noqa: PLC0415 - loaded with the client

    found = await context.client.list_containers(labels=labels, states=[CONTAINER_STATE_RUNNING])
    if not found:
        raise Failure("no container that runs has these labels", remedy="see `nbctl ps -o json`")
    width = max(text.cells(container.name) for container in found)
    failed: list[str] = []

    async def one(target: select.Target) -> int:
        return await _exec(context, start, by_id[target.ref], width)

    def done(target: select.Target, status: int) -> None:
        if status:
            failed.append(target.shown)
            _tell(target.shown, width, status)

    by_id = {container.id: container for container in found}
    code = await select.each([select.Target(container.name, container.id) for container in found], one, done)
    return FAILED if failed else (code or OK)


async def _exec(context: Context, start: ExecStart, container: Container, width: int) -> int:
    lines, own = _Lines(container.name, width), type(start)()
    own.CopyFrom(start)
    own.container = container.id
    async with context.client.exec(own) as session:
        async for stream, data in session.output():
            lines.add(stream, data)
        ended = session.exit
    lines.end()
    return 255 if ended is None else ended.shell_code
