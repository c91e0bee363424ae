"""A program in many containers at once: ``exec -l``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from nbctl import select, text
from nbctl.failure import FAILED, OK, Failure, Usage

if TYPE_CHECKING:
    from argparse import Namespace

    from nbctl.context import Context
    from nestbed.v1.container_pb2 import Container


async def exec_in_all(context: Context, args: Namespace) -> int:
    """Run the program in all containers of the node that have the labels and run; lines of output are headed by the container's name.

    Returns FAILED if one of the programs ended other than with 0.
    """
    from nestbed.v1.container_pb2 import CONTAINER_STATE_RUNNING  # noqa: PLC0415 - loaded with the client

    if args.container or args.interactive or args.tty:
        raise Usage("with -l no container, -i or -t is given", remedy="write nbctl exec -l KEY=VALUE -- CMD")
    found = await context.client.list_containers(labels=dict(args.labels), states=[CONTAINER_STATE_RUNNING])
    if not found:
        raise Failure("no container that runs has these labels", remedy="see `nbctl ps -o json`")
    width = max(text.cells(container.name) for container in found)
    failed: list[str] = []

    async def one(target: select.Target) -> int:
        return await _exec(context, args, by_id[target.ref], width)

    def done(target: select.Target, status: int) -> None:
        if status:
            failed.append(target.shown)
            sys.stderr.write(f"{text.pad(target.shown, width)} | ended with status {status}\n")

    by_id = {container.id: container for container in found}
    code = await select.each([select.Target(container.name, container.id) for container in found], one, done)
    return FAILED if failed else (code or OK)


async def _exec(context: Context, args: Namespace, container: Container, width: int) -> int:
    from nbctl import specs  # noqa: PLC0415 - gRPC's messages cost more than reading a command line
    from nestbed.v1.container_pb2 import ExecStart  # noqa: PLC0415 - as specs

    head = f"{text.pad(container.name, width)} | ".encode()
    start = ExecStart(container=container.id, args=args.program, env=specs.environment(args, os.environ), cwd=args.workdir, user=args.user)
    rests = {1: b"", 2: b""}
    streams = {1: sys.stdout.buffer, 2: sys.stderr.buffer}
    async with context.client.exec(start) as session:
        async for stream, data in session.output():
            *lines, rests[stream] = (rests[stream] + data).split(b"\n")
            streams[stream].write(b"".join(head + line + b"\n" for line in lines))
            streams[stream].flush()
        ended = session.exit
    for stream, rest in rests.items():
        if rest:
            streams[stream].write(head + rest + b"\n")
            streams[stream].flush()
    return 255 if ended is None else ended.shell_code
