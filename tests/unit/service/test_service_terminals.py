"""Exec and Attach from end to end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from grpc import StatusCode, aio

from nestbed import errors
from nestbed.client import Client, Session
from nestbed.v1 import container_pb2 as api

Program = Callable[..., api.ContainerSpec]
Running = Callable[..., Awaitable[str]]


async def test_exec_carries_input_output_and_status(admin: Client, running: Running) -> None:
    container = await running(admin, "sleep", "600")
    async with admin.exec(api.ExecStart(container=container, args=["cat"], stdin=True)) as session:
        await session.write(b"x" * 100_000)
        await session.resize(10, 20)
        await session.close_stdin()
        output = [piece async for piece in session.output()]
    assert b"".join(data for _, data in output) == b"x" * 100_000
    assert session.exit is not None
    assert session.exit.code == 0
    async with admin.exec(api.ExecStart(container=container, args=["sh", "-c", "echo bad >&2; exit 4"])) as session:
        assert [piece async for piece in session.output()] == [(2, b"bad\n")]
    assert session.exit.code == 4


async def test_a_program_may_end_while_its_caller_still_writes(admin: Client, running: Running) -> None:
    container = await running(admin, "sleep", "600")

    async def write(session: Session) -> None:
        while session.exit is None:
            await session.write(bytes(1000))

    for _ in range(20):
        async with admin.exec(api.ExecStart(container=container, args=["true"], stdin=True)) as session, asyncio.timeout(5):
            writing = asyncio.create_task(write(session))
            assert [piece async for piece in session.output()] == []
            await writing
        assert session.exit is not None
        assert session.exit.code == 0


async def test_exec_that_cannot_start_says_why(admin: Client, running: Running) -> None:
    container = await running(admin, "sleep", "600")
    with pytest.raises(errors.NotFound) as caught:
        async with admin.exec(api.ExecStart(container=container, args=["absent"])):
            pass
    assert caught.value.reason == "PROGRAM_NOT_FOUND"


async def test_signals_reach_the_program_of_exec(admin: Client, running: Running) -> None:
    container = await running(admin, "sleep", "600")
    async with admin.exec(api.ExecStart(container=container, args=["sleep", "600"])) as session:
        await session.signal(2)
        assert [piece async for piece in session.output()] == []
    assert session.exit is not None
    assert session.exit.signal == 2


async def test_a_program_is_killed_when_its_caller_goes_and_a_container_is_not(admin: Client, served: Any, running: Running) -> None:
    container = await running(admin, "cat", stdin=True)
    async with admin.attach(api.AttachStart(container=container)):
        pass
    async with admin.exec(api.ExecStart(container=container, args=["cat"], stdin=True)):
        [execution] = served.kernel.containers[container]._executions
    assert (await asyncio.wait_for(execution.wait(), 5)).signal == 9
    assert (await admin.get_container(container)).state == api.CONTAINER_STATE_RUNNING


async def test_attach_with_run_misses_nothing_even_of_a_container_that_removes_itself(admin: Client, program: Program) -> None:
    made = await admin.create_container(program("sh", "-c", "echo hello; exit 5", auto_remove=True))
    async with admin.attach(api.AttachStart(container=made.id, run=True)) as session:
        assert [piece async for piece in session.output()] == [(1, b"hello\n")]
    assert session.exit is not None
    assert session.exit.code == 5


async def test_attach_passes_input_and_signals(admin: Client, program: Program) -> None:
    made = await admin.create_container(program("cat", stdin=True))
    async with admin.attach(api.AttachStart(container=made.id, run=True, stdin=True)) as session:
        await session.write(b"hello")
        output = session.output()
        assert await anext(output) == (1, b"hello")
        await session.signal(15)
        assert [piece async for piece in output] == []
    assert session.exit is not None
    assert session.exit.signal == 15


async def test_attach_with_run_says_why_it_cannot_start(admin: Client, program: Program) -> None:
    made = await admin.create_container(program("absent"))
    with pytest.raises(errors.NotFound) as caught:
        async with admin.attach(api.AttachStart(container=made.id, run=True)):
            pass
    assert caught.value.reason == "PROGRAM_NOT_FOUND"


async def test_attach_before_the_start_waits_for_it(admin: Client, program: Program) -> None:
    made = await admin.create_container(program("echo", "hello"))
    async with admin.attach(api.AttachStart(container=made.id)) as session:
        await admin.start_container(made.id)
        assert [piece async for piece in session.output()] == [(1, b"hello\n")]
    assert session.exit is not None
    assert session.exit.code == 0


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([], "START_EXPECTED"),
        ([api.ExecRequest(stdin=b"x")], "START_EXPECTED"),
        ([api.ExecRequest(start=api.ExecStart(container="one", args=["cat"])), api.ExecRequest(stdin=b"x")], "BAD_STREAM"),
        ([api.ExecRequest(start=api.ExecStart(container="one", args=["cat"], stdin=True)), api.ExecRequest()], "BAD_STREAM"),
        ([api.ExecRequest(start=api.ExecStart(container="one", args=["sleep", "9"])), api.ExecRequest(signal=99)], "BAD_SIGNAL"),
        (
            [
                api.ExecRequest(start=api.ExecStart(container="one", args=["sleep", "9"])),
                api.ExecRequest(resize=api.TerminalSize(rows=70000)),
            ],
            "BAD_SIZE",
        ),
    ],
)
async def test_a_stream_that_makes_no_sense_is_refused(
    admin: Client, requests: list[api.ExecRequest], reason: str, running: Running
) -> None:
    await running(admin, "sleep", "600", name="one")

    async def source() -> AsyncIterator[api.ExecRequest]:
        for request in requests:
            yield request

    call = admin._containers.Exec(source())
    with pytest.raises(aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT
    assert reason.encode() in dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
