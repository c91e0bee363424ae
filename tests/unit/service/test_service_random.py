"""Random calls with random contents: whatever comes, a node answers in its own words, and never with INTERNAL."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc import StatusCode, aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nestbed.model import Kind
from nestbed.nesting.branches import Branches
from nestbed.nesting.forward import Forward
from nestbed.node.node import Node
from nestbed.node.rundir import RunDirectory
from nestbed.service.authorize import Caller, Role
from nestbed.service.server import Server, experiments_of
from nestbed.testing.fake import FakeKernel, FakeRuntime
from nestbed.testing.fake_plane import FakePlane
from nestbed.v1 import agent_pb2, container_pb2, experiment_pb2, lan_pb2, node_pb2

CALL_SECONDS = 0.05
"""Streams and waits that go on are cut off."""

METHODS: list[MethodDescriptor] = [
    method
    for file in (agent_pb2.DESCRIPTOR, container_pb2.DESCRIPTOR, experiment_pb2.DESCRIPTOR, lan_pb2.DESCRIPTOR, node_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
]

WORDS = st.sampled_from(
    # Some that fit somewhere, some that fit nowhere.
    [
        "",
        "a",
        "b",
        "c1",
        "lan0",
        "a/b",
        "eth0",
        "*",
        "..",
        "/",
        "/tmp",
        "10.5.0.0/24",
        "10.5.0.7/24",
        "10.5.0.1",
        "fd00::/64",
        "02:00:00:00:00:01",
        "default",
        "true",
        "sh",
        "-c",
        "echo x",
        "cat",
        "NET_ADMIN",
        "net.ipv4.ip_forward",
        "1",
        "x" * 300,
        "\0",
        "\n",
        "\u202e",
        "é",
    ]
)
STRINGS = WORDS | st.text(max_size=12)
INTEGERS = st.integers(0, 10)


def _scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    bits = {
        FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
        FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
        FieldDescriptor.TYPE_ENUM: (-1, 12),
    }
    if field.type in bits:
        least, most = bits[field.type]
        return INTEGERS | st.integers(least, most)
    return {
        FieldDescriptor.TYPE_STRING: STRINGS,
        FieldDescriptor.TYPE_BYTES: st.binary(max_size=50),
        FieldDescriptor.TYPE_BOOL: st.booleans(),
        FieldDescriptor.TYPE_DOUBLE: st.floats() | st.floats(0, 4),
    }[field.type]


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.dictionaries(STRINGS, STRINGS, max_size=2)
    one = messages(field.message_type) if field.message_type is not None else _scalars(field)
    return st.lists(one, max_size=3) if field.is_repeated else one


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor) -> Message:
    """Any message of a type, with well-known types as deep as they go."""
    chosen = {}
    for field in descriptor.fields:
        is_excluded = field.containing_oneof is not None and any(other.name in chosen for other in field.containing_oneof.fields)
        if not is_excluded and draw(st.integers(0, 9)) < 7:
            chosen[field.name] = draw(_values(field))
    return message_factory.GetMessageClass(descriptor)(**chosen)


@st.composite
def calls(draw: st.DrawFn) -> tuple[MethodDescriptor, list[bytes]]:
    """A method and what is sent to it: one message, or several on a stream, now and then no message at all."""
    method = draw(st.sampled_from(METHODS))
    count = draw(st.integers(0, 4)) if method.client_streaming else 1
    well_formed = messages(method.input_type).map(lambda message: message.SerializeToString())
    return method, [draw(well_formed | well_formed | well_formed | st.binary(max_size=30)) for _ in range(count)]


async def _answer(channel: aio.Channel, method: MethodDescriptor, requests: list[bytes]) -> tuple[StatusCode, str]:
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    given_requests: Any = iter(requests) if method.client_streaming else requests[0]
    call = getattr(channel, shape)(f"/{method.containing_service.full_name}/{method.name}")(given_requests, timeout=CALL_SECONDS)
    try:
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except asyncio.CancelledError:  # gRPC's client does this, too, in the same case
        return StatusCode.CANCELLED, ""
    except aio.AioRpcError as error:
        if error.details() == "Internal error from Core":  # gRPC's client, when it writes to a call that has just ended
            return StatusCode.CANCELLED, ""
        return error.code(), str(error.details())
    return StatusCode.OK, ""


async def _play(folder: Path, wanted: list[tuple[MethodDescriptor, list[bytes]]]) -> None:
    kernel = FakeKernel()
    with RunDirectory.claim(folder / "run", folder / "state") as claim:
        node = Node(
            name="here",
            run_dir=claim.run_dir,
            state_dir=claim.state_dir,
            runtimes={Kind.PROCESS: FakeRuntime(kernel)},
            plane=FakePlane(kernel),
            node_id=claim.node_id,
        )
        await node.open()
        forward = Forward(Branches(node))
        server = Server(node, forward, lambda _: Caller(Role.ADMIN, "fuzzer"), experiments_of(node, folder), has_reflection=False)
        target = f"unix:{folder / 'sock'}"
        server.grpc.add_insecure_port(target)
        await server.grpc.start()
        try:
            async with aio.insecure_channel(target) as channel:
                for begin in range(0, len(wanted), 16):
                    batch = wanted[begin : begin + 16]
                    answers = await asyncio.gather(*(_answer(channel, method, requests) for method, requests in batch))
                    for (method, requests), (code, details) in zip(batch, answers, strict=True):
                        assert code not in (StatusCode.INTERNAL, StatusCode.UNKNOWN), (method.full_name, requests, details)
        finally:
            await server.stop(0)
            await node.aclose()
            await kernel.aclose()


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    yield caplog
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(wanted=st.lists(calls(), min_size=40, max_size=60))
def test_random_calls_never_meet_a_defect(quiet: pytest.LogCaptureFixture, wanted: list[tuple[MethodDescriptor, list[bytes]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(_play(Path(name), wanted))
