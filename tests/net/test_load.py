"""Floods against a real daemon: random calls, very many at once, readers that do not read. It answers, leaks nothing and stays small.

``NESTBED_CALLS=20000`` makes the flood of random calls shorter: a fifth of what it is.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc import StatusCode, aio

from nestbed.client import Client
from nestbed.errors import NotFound
from nestbed.testing.machine import Machine
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import lan_pb2, node_pb2

CALLS = int(os.environ.get("NESTBED_CALLS", "100000"))
SEED = int(os.environ.get("NESTBED_SEED", "1"))
WORKERS = 24
AT_ONCE = 3000
CALL_SECONDS = 30.0
CUT_SECONDS = 0.05
"""Streams and waits that go on are cut off."""
GROWTH_KIB_MAX = 12 * 1024
THREADS_MAX = 6 + min(32, (os.cpu_count() or 1) + 4)
"""The main thread, gRPC's, and those of asyncio's pool, which fills whenever that many pause containers at the same moment."""
READERS = 40
STALLED_KIB_MAX = 1024
"""What a reader that does not read may cost: a batch of log entries under way, and what gRPC holds of it."""

DEFECTS = {StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.DATA_LOSS, StatusCode.UNAVAILABLE}
METHODS: list[MethodDescriptor] = [
    method
    for file in (api.DESCRIPTOR, lan_pb2.DESCRIPTOR, node_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
]
DONE = {"CreateContainer", "StartContainer", "KillContainer", "PauseContainer", "DeleteContainer", "CreateLan", "DeleteLan", "GetLogs"}
"""What must have succeeded now and then among random calls, else they tried nothing."""
LONG = {"WaitContainer", "StopContainer", "Audit"}
WORDS = (
    *("", "a", "b", "c", "d", "e", "lan0", "lan1", "eth0", "lo", "*", "[", "..", "/", "/tmp", "/proc/1/root", "a/b", "-x"),
    *("10.5.0.0/24", "10.5.0.7/24", "10.5.0.1", "0.0.0.0/0", "fd00::/64", "fd00::7/64", "::1", "02:00:00:00:00:01", "ff:ff:ff:ff:ff:ff"),
    *("default", "true", "false", "sh", "-c", "echo x", "exit 3", "cat", "sleep", "1000", "nobody", "0:0", "4294967296", "ALL"),
    *(
        "net.ipv4.ip_forward",
        "kernel.core_pattern",
        "1",
        "NET_ADMIN",
        "x" * 300,
        "x" * 10_000,
        "\0",
        "\n",
        "\x1b[2J",
        "\u202e",
        "é",
        "\U0010ffff",
    ),
)
BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-1, 12),
}
FLOATS = (0.0, 0.5, 1.0, -1.0, 1e-9, 1e300, float("inf"), float("nan"))


class Generator:
    """Messages in which any field may hold anything; now and then one that makes sense."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)

    def method(self) -> MethodDescriptor:
        return self.random.choice(METHODS)

    def request(self, kind: Descriptor) -> bytes:
        if self.random.random() < 0.05:
            return self.random.randbytes(self.random.randrange(40))
        message = message_factory.GetMessageClass(kind)()
        if isinstance(message, api.CreateContainerRequest) and self.random.random() < 0.3:
            message.spec.CopyFrom(self._sensible())
        elif isinstance(message, lan_pb2.CreateLanRequest) and self.random.random() < 0.3:
            message.MergeFrom(lan_pb2.CreateLanRequest(name=self.random.choice(("lan0", "lan1")), subnet="10.5.0.0/24"))
        elif isinstance(message, lan_pb2.ConnectLanRequest) and self.random.random() < 0.3:
            message.nic.lan = self.random.choice(("lan0", "lan1"))
        else:
            self._fill(message, depth=0)
        if self.random.random() < 0.5:
            self._name(message)
        return message.SerializeToString()

    def _name(self, message: Message) -> None:
        """Name things that there may be."""
        for name, known in (("container", "abcde"), ("lan", ("lan0", "lan1"))):
            field = message.DESCRIPTOR.fields_by_name.get(name)
            if field is not None and field.message_type is None:
                setattr(message, name, self.random.choice(known))
        start = message.DESCRIPTOR.fields_by_name.get("start")
        if start is not None and start.message_type is not None:
            self._name(message.start)

    def _sensible(self) -> api.ContainerSpec:
        args = self.random.choice((["true"], ["sleep", "1000"], ["cat"], ["sh", "-c", "echo x; exit 3"], ["nothing-like-that"]))
        nics = [api.NicSpec(lan=self.random.choice(("lan0", "lan1", "a")))] if self.random.random() < 0.3 else []
        process = api.ProcessSpec(args=args, stdin=self.random.random() < 0.3, tty=self.random.random() < 0.2)
        return api.ContainerSpec(name=self.random.choice("abcde"), kind=api.CONTAINER_KIND_PROCESS, process=process, nics=nics)

    def _fill(self, message: Message, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if self.random.random() < (0.25 if depth else 0.1) or depth > 3:
                continue
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                self._fill_map(getattr(message, field.name), field)
            elif field.message_type is not None:
                holders = [getattr(message, field.name)] if not field.is_repeated else self._added(getattr(message, field.name))
                for holder in holders:
                    holder.SetInParent()
                    self._fill(holder, depth + 1)
            elif field.is_repeated:
                getattr(message, field.name).extend(self._scalar(field) for _ in range(self.random.randrange(4)))
            else:
                setattr(message, field.name, self._scalar(field))

    def _added(self, repeated: Any) -> list[Message]:
        return [repeated.add() for _ in range(self.random.randrange(3))]

    def _fill_map(self, holder: Any, field: FieldDescriptor) -> None:
        value = field.message_type.fields_by_name["value"]
        for _ in range(self.random.randrange(3)):
            holder[self._text()] = self._scalar(value)

    def _scalar(self, field: FieldDescriptor) -> Any:
        if field.cpp_type in BITS:
            least, most = BITS[field.cpp_type]
            return self.random.choice((0, 1, 2, 9, least, most, self.random.randint(least, most)))
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return self.random.random() < 0.5
        if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return self.random.choice(FLOATS)
        return self.random.randbytes(9) if field.type == FieldDescriptor.TYPE_BYTES else self._text()

    def _text(self) -> str:
        if self.random.random() < 0.9:
            return self.random.choice(WORDS)
        return "".join(chr(self.random.randrange(0x20, 0x3000)) for _ in range(self.random.randrange(1, 12)))


class Process:
    """A process as /proc tells of it."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}")

    @property
    def rss_kib(self) -> int:
        lines = (self._path / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    @property
    def descriptors(self) -> int:
        return len(list((self._path / "fd").iterdir()))

    @property
    def threads(self) -> int:
        return len(list((self._path / "task").iterdir()))


def check_not_cancelled() -> None:
    """Raise CancelledError if this very task is to end."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def call(channel: aio.Channel, method: MethodDescriptor, requests: Sequence[bytes]) -> StatusCode:
    """Call with serialized requests, and read what comes back; how it ended."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    is_long = method.client_streaming or method.server_streaming or method.name in LONG
    timeout = CUT_SECONDS if is_long else CALL_SECONDS

    async def stream() -> AsyncIterator[bytes]:
        for request in requests:
            yield request

    try:
        if method.client_streaming and method.server_streaming:
            answers = channel.stream_stream(path)(stream(), timeout=timeout)
        elif method.server_streaming:
            answers = channel.unary_stream(path)(requests[0], timeout=timeout)
        elif method.client_streaming:
            await channel.stream_unary(path)(stream(), timeout=timeout)
            return StatusCode.OK
        else:
            await channel.unary_unary(path)(requests[0], timeout=timeout)
            return StatusCode.OK
        async for _ in answers:
            pass
    except asyncio.CancelledError:  # so gRPC tells that the node answered CANCELLED
        check_not_cancelled()
        return StatusCode.CANCELLED
    except aio.AioRpcError as error:
        if error.code() is StatusCode.INTERNAL and not error.trailing_metadata():
            # Not the node's: gRPC's own word, at this end, for writing to a call that has been answered already.
            return StatusCode.CANCELLED
        return error.code()
    return StatusCode.OK


async def flood(channel: aio.Channel, calls: int, seed: str) -> collections.Counter[tuple[str, StatusCode]]:
    """So many random calls, some at a time."""
    codes: collections.Counter[tuple[str, StatusCode]] = collections.Counter()

    async def work(number: int) -> None:
        generator = Generator(f"{seed}/{number}")
        for _ in range(calls // WORKERS):
            method = generator.method()
            requests = [generator.request(method.input_type) for _ in range(generator.random.randrange(1, 4))]
            codes[method.name, await call(channel, method, requests)] += 1

    await asyncio.gather(*(work(number) for number in range(WORKERS)))
    return codes


async def settled(client: Client) -> None:
    """Remove everything, and see that nothing is left."""
    for container in await client.list_containers():
        try:
            await client.delete_container(container.id, force=True)
        except NotFound:  # it removed itself
            continue
    for lan in await client.list_lans():
        await client.delete_lan(lan.id)
    assert list((await client.audit()).leftovers) == []


def operators(machine: Machine) -> str:
    """The operator's socket: who comes through it cannot touch the files of the node."""
    return f"unix:{machine.run_dir}/nestbed.sock"


def errors(machine: Machine) -> list[dict[str, Any]]:
    """What the daemon logged as a defect."""
    return [entry for entry in machine.daemon.log if entry.get("level") == "error"]


def keeper_pid(machine: Machine) -> int:
    return int(json.loads((machine.run_dir / "keeper.json").read_bytes())["pid"])


@pytest.mark.slow
@pytest.mark.timeout(120 + CALLS // 100)
async def test_random_calls(machine) -> None:
    machine.daemon.start()
    processes = {"nestbedd": Process(machine.daemon.pid), "keeper": Process(keeper_pid(machine))}
    codes: collections.Counter[tuple[str, StatusCode]] = collections.Counter()
    async with Client.connect(machine.address) as admin, aio.insecure_channel(operators(machine)) as channel:
        codes += await flood(channel, CALLS // 4, f"{SEED}/first")
        await settled(admin)
        before = {name: (one.rss_kib, one.descriptors, one.threads) for name, one in processes.items()}
        codes += await flood(channel, CALLS - CALLS // 4, f"{SEED}/then")
        await settled(admin)
        assert {entry: count for entry, count in codes.items() if entry[1] in DEFECTS} == {}, errors(machine)
        assert {method for method, code in codes if code is StatusCode.OK} >= DONE, "there was too little sense in the calls"
        for name, one in processes.items():
            rss_kib, descriptors, threads = before[name]
            assert one.rss_kib - rss_kib < GROWTH_KIB_MAX, name
            assert one.descriptors <= descriptors, name
            assert one.threads <= max(threads, THREADS_MAX), name
    assert errors(machine) == []


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_very_many_calls_at_once(machine, daemon) -> None:
    process = Process(daemon.pid)
    spec = api.ContainerSpec(name="web", kind=api.CONTAINER_KIND_PROCESS, process=api.ProcessSpec(args=["sleep", "1000"]))
    async with Client.connect(machine.address) as admin, aio.insecure_channel(machine.address) as channel:
        await admin.create_container(spec)
        requests = {
            "GetContainer": api.GetContainerRequest(container="web"),
            "ListContainers": api.ListContainersRequest(),
            "GetInfo": node_pb2.GetInfoRequest(),
            "StartContainer": api.StartContainerRequest(container="web"),
            "GetStats": api.GetStatsRequest(),
            "GetLogs": api.GetLogsRequest(container="web"),
            "UpdateContainer": api.UpdateContainerRequest(container="web", restart=api.RestartPolicy()),
            "CreateLan": lan_pb2.CreateLanRequest(name="lan0"),
        }
        methods = [method for method in METHODS if method.name in requests]

        async def ask(number: int) -> StatusCode:
            method = methods[number % len(methods)]
            path = f"/{method.containing_service.full_name}/{method.name}"
            make: Callable[..., Any] = channel.unary_stream if method.server_streaming else channel.unary_unary
            answer = make(path)(requests[method.name].SerializeToString(), timeout=CALL_SECONDS)
            if not method.server_streaming:
                return await answer.code()
            async for _ in answer:
                pass
            return await answer.code()

        descriptors = process.descriptors
        codes = collections.Counter(await asyncio.gather(*(ask(number) for number in range(AT_ONCE))))
        refused_for_a_reason = {StatusCode.FAILED_PRECONDITION, StatusCode.ALREADY_EXISTS}  # it runs already, there is such a LAN
        assert set(codes) <= {StatusCode.OK, StatusCode.RESOURCE_EXHAUSTED} | refused_for_a_reason, codes
        assert codes[StatusCode.OK] > len(methods)
        async with asyncio.timeout(2):
            assert (await admin.get_container("web")).state == api.CONTAINER_STATE_RUNNING
        await settled(admin)
        assert process.descriptors <= descriptors + 4


@pytest.mark.slow
async def test_readers_that_do_not_read(machine, daemon) -> None:
    """Each holds up itself, or the program it is attached to, and costs the daemon next to nothing."""
    process, keeper = Process(daemon.pid), Process(keeper_pid(machine))
    flooding = api.ProcessSpec(args=["sh", "-c", "exec yes 0123456789012345678901234567890123456789"])
    async with Client.connect(machine.address) as admin, aio.insecure_channel(machine.address) as channel:
        for name in ("logged", "attached"):
            await admin.create_container(api.ContainerSpec(name=name, kind=api.CONTAINER_KIND_PROCESS, process=flooding))
        await admin.start_container("logged")
        before = process.rss_kib, keeper.rss_kib
        service = "/nestbed.v1.ContainerService"
        follow = api.GetLogsRequest(container="logged", follow=True).SerializeToString()
        streams: list[Any] = []
        for _ in range(READERS):
            streams.append(channel.unary_stream(f"{service}/GetLogs")(follow))
            streams.append(channel.unary_stream("/nestbed.v1.NodeService/WatchEvents")(b""))
        start = api.AttachRequest(start=api.AttachStart(container="attached"))
        for _ in range(4):
            attach = channel.stream_stream(f"{service}/Attach")()
            await attach.write(start.SerializeToString())
            assert await attach.read() is not aio.EOF
            streams.append(attach)
        await admin.start_container("attached")
        bundle = machine.state_dir / "containers" / (await admin.get_container("logged")).id
        stalled: list[int] = []
        for rotated in ("log.1", "log.2"):
            async with asyncio.timeout(60):
                while not (bundle / rotated).exists():
                    # Something happens meanwhile, of which those who watch are told.
                    await admin.update_container("logged", resources=api.Resources(pids=100))
            stalled.append(process.rss_kib)
        assert stalled[0] - before[0] < READERS * STALLED_KIB_MAX
        assert stalled[1] - stalled[0] < GROWTH_KIB_MAX / 4
        assert keeper.rss_kib - before[1] < GROWTH_KIB_MAX / 4
        for stream in streams:
            stream.cancel()
        await admin.kill_container("attached")
        async with asyncio.timeout(10):
            assert (await admin.wait_container("attached")).signal == 9
        await settled(admin)
