"""Exec and Attach: a console on one side, a stream of requests and responses on the other.

Two tasks per call: this one writes output, the other feeds input. Nothing is stored between them and the console, which is bounded
itself: a client that does not read holds up the program, a program that does not read holds up the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

from nestbed.errors import InvalidArgument, NotFound, WrongState
from nestbed.model import ExitStatus, State
from nestbed.node.node import Node
from nestbed.runtime import Console
from nestbed.service import convert, present
from nestbed.service.authorize import caller
from nestbed.service.streams import closing
from nestbed.service.uploads import started
from nestbed.v1 import container_pb2 as api

OUTPUT_RESPONSE_BYTES = 256 * 1024

LINGER_SECONDS = 2.0
"""How long a client may take to end its side once it has the exit status: gRPC fails what it writes to a call that has ended."""


async def execute(node: Node, requests: AsyncIterator[api.ExecRequest], context: Any) -> None:
    """Serve one Exec: the program is killed if the client goes away before its end."""
    start = await started(requests)
    async with AsyncExitStack() as stack:
        execution = await node.exec(start.container, convert.exec_spec(start), admin=caller().is_admin)
        stack.push_async_callback(execution.aclose)

        async def signal(number: int) -> None:
            execution.signal(number)

        await _converse(
            execution, requests, context, api.ExecResponse, signal, execution.wait, has_begun=asyncio.Event(), has_stdin=start.stdin
        )


async def attach(node: Node, requests: AsyncIterator[api.AttachRequest], context: Any) -> None:
    """Serve one Attach: the container goes on if the client goes away."""
    start = await started(requests)
    rows, columns = convert.size(start.size)
    view = node.container(start.container)
    identifier = view.spec.id
    async with AsyncExitStack() as stack:
        console = await node.attach(identifier, run=start.run, stdin=start.stdin, admin=caller().is_admin)
        stack.push_async_callback(console.aclose)
        if rows and columns:
            console.resize(rows, columns)
        has_begun = asyncio.Event()
        if start.run or view.status.state is not State.CREATED:
            has_begun.set()

        async def signal(number: int) -> None:
            with suppress(WrongState, NotFound):  # it has ended meanwhile
                await node.kill(identifier, number)

        async def wait() -> ExitStatus:
            await has_begun.wait()
            return await node.wait(identifier)

        await _converse(console, requests, context, api.AttachResponse, signal, wait, has_begun=has_begun, has_stdin=start.stdin)


async def _converse(
    console: Console,
    requests: AsyncIterator[Any],
    context: Any,
    response: Callable[..., Any],
    signal: Callable[[int], Awaitable[None]],
    wait: Callable[[], Coroutine[Any, Any, ExitStatus]],
    *,
    has_begun: asyncio.Event,
    has_stdin: bool,
) -> None:
    """Carry everything between console and client, then the exit status, which is awaited from the beginning: a container may be
    removed as soon as it has ended. ``has_begun`` is set here when the program showed a sign of life.
    """
    await context.write(response(started=True))
    has_ended = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        ended = tasks.create_task(wait())
        feeding = tasks.create_task(_feed(console, requests, signal, has_ended, has_stdin=has_stdin))
        async with closing(console.output()) as output:
            async for piece in output:
                has_begun.set()
                for begin in range(0, len(piece.data), OUTPUT_RESPONSE_BYTES):
                    data = piece.data[begin : begin + OUTPUT_RESPONSE_BYTES]
                    await context.write(response(stdout=data) if piece.stream == 1 else response(stderr=data))
        has_begun.set()
        await context.write(response(exit=present.exit_status(await ended)))
        has_ended.set()
        await asyncio.wait([feeding], timeout=LINGER_SECONDS)
        feeding.cancel()


async def _feed(
    console: Console,
    requests: AsyncIterator[Any],
    signal: Callable[[int], Awaitable[None]],
    has_ended: asyncio.Event,
    *,
    has_stdin: bool,
) -> None:
    """Pass on what the client sends, until it sends no more. That is no end of input: a client that vanished looks the same. What
    it sends after the program's end is for nobody.
    """
    async for request in requests:
        if has_ended.is_set():
            continue
        match request.WhichOneof("input"):
            case "stdin" if has_stdin:
                with suppress(WrongState):  # the program closed its input, as `head` does: what comes after is nobody's
                    await console.write(request.stdin)
            case "stdin_eof" if has_stdin:
                await console.close_stdin()
            case "resize":
                console.resize(*convert.size(request.resize))
            case "signal":
                await signal(convert.signal(request.signal))
            case other:
                raise InvalidArgument(
                    f"{other or 'an empty message'} was not expected here",
                    reason="BAD_STREAM",
                    remedy="send `start` once and first, and standard input only if `start.stdin` is set",
                    field=other or "",
                )
