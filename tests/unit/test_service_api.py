"""The API from end to end: client, gate, gRPC, node, on a fake runtime and a fake LAN plane."""

import asyncio
import contextlib
import io
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from nestbed import errors
from nestbed.client import Client
from nestbed.errors import NestbedError
from nestbed.model import Kind
from nestbed.node.node import Node
from nestbed.node.rundir import RunDirectory
from nestbed.service.admission import Admission
from nestbed.service.authorize import LEAST_ROLES, Caller, Role
from nestbed.service.server import ADMIN_SOCKET, OPERATOR_SOCKET, Listen, Server, Tls, serving
from nestbed.testing.fake import FakeKernel, FakePlane, FakeRuntime
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import lan_pb2, node_pb2


@dataclass
class Site:
    """A node that serves: ``folder`` is its run directory."""

    node: Node
    kernel: FakeKernel
    folder: Path


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    kernel = FakeKernel()
    with RunDirectory.claim(tmp_path / "run", tmp_path / "state") as claim:
        node = Node(
            name="here",
            run_dir=claim.run_dir,
            state_dir=claim.state_dir,
            runtimes={Kind.PROCESS: FakeRuntime(kernel)},
            plane=FakePlane(kernel),
            node_id=claim.node_id,
        )
        await node.open()
        try:
            yield Site(node, kernel, claim.run_dir)
        finally:
            await node.aclose()
            await kernel.aclose()


@pytest.fixture
async def served(site: Site) -> AsyncIterator[Site]:
    async with serving(site.node, site.folder):
        yield site


@pytest.fixture
async def admin(served: Site) -> AsyncIterator[Client]:
    async with Client.connect(f"unix://{served.folder / ADMIN_SOCKET}") as client:
        yield client


@pytest.fixture
async def operator(served: Site) -> AsyncIterator[Client]:
    async with Client.connect(f"unix://{served.folder / OPERATOR_SOCKET}") as client:
        yield client


@contextlib.asynccontextmanager
async def bare(site: Site, *, role: Role = Role.ADMIN, admission: Admission | None = None) -> AsyncIterator[aio.Channel]:
    """A server without a gate, whose every caller has ``role``, and a channel to it."""
    server = Server(site.node, lambda connection: Caller(role, "somebody"), has_reflection=True, admission=admission)
    target = f"unix:{site.folder / 'bare.sock'}"
    server.grpc.add_insecure_port(target)
    await server.grpc.start()
    try:
        async with aio.insecure_channel(target) as channel:
            yield channel
    finally:
        await server.stop(0)


def program(*args: str, **fields: Any) -> api.ContainerSpec:
    process = api.ProcessSpec(args=args, stdin=fields.pop("stdin", False), fs_mode=fields.pop("fs_mode", api.FS_MODE_UNSPECIFIED))
    return api.ContainerSpec(kind=api.CONTAINER_KIND_PROCESS, process=process, **fields)


# ---------------------------------------------------------------- what it does


async def test_a_container_lives_its_life(admin: Client) -> None:
    lan = await admin.create_lan("lan0", subnet="10.5.0.0/24", labels={"a": "b"})
    made = await admin.create_container(program("sh", "-c", "echo hello; exit 3", name="one", nics=[api.NicSpec(lan="lan0")]))
    assert made.state == api.CONTAINER_STATE_CREATED
    assert (made.nics[0].lan, made.nics[0].addresses) == ("lan0", ["10.5.0.1/24"])
    assert (await admin.get_lan(lan.id)).members[0].container == "one"
    assert (await admin.start_container("one")).start_time.seconds
    assert (await admin.wait_container("one")).shell_code == 3
    assert [entry.data async for entry in admin.logs(made.id)] == [b"hello\n"]
    assert (await admin.get_container(made.id[:6])).state == api.CONTAINER_STATE_STOPPED
    await admin.delete_container("one")
    await admin.delete_lan("lan0")
    assert (await admin.list_containers(), await admin.list_lans()) == ([], [])
    assert list((await admin.audit()).leftovers) == []


async def test_a_running_container_is_stopped_killed_paused_and_changed(admin: Client) -> None:
    for name in ("one", "two"):
        await admin.create_container(program("sleep", "600", name=name))
        await admin.start_container(name)
    assert (await admin.pause_container("one")).state == api.CONTAINER_STATE_PAUSED
    assert (await admin.resume_container("one")).state == api.CONTAINER_STATE_RUNNING
    changed = await admin.update_container("one", resources=api.Resources(pids=7), name="uno")
    assert (changed.name, changed.spec.resources.pids) == ("uno", 7)
    assert (await admin.stop_container("uno", grace_seconds=5)).exit.signal == 15
    await admin.kill_container("two")
    assert (await admin.wait_container("two")).signal == 9
    with pytest.raises(errors.WrongState):
        await admin.kill_container("two")


async def test_lists_select_and_page(admin: Client) -> None:
    for number in range(5):
        await admin.create_container(program("true", name=f"c{number}", labels={"parity": "odd" if number % 2 else "even"}))
        await admin.create_lan(f"l{number}")
    assert [each.name for each in await admin.list_containers()] == ["c0", "c1", "c2", "c3", "c4"]
    assert [each.name for each in await admin.list_containers(names=["c[12]"])] == ["c1", "c2"]
    assert [each.name for each in await admin.list_containers(labels={"parity": "odd"})] == ["c1", "c3"]
    assert await admin.list_containers(states=[api.CONTAINER_STATE_RUNNING]) == []
    assert [each.name for each in await admin.list_lans(names=["l3"])] == ["l3"]


async def test_nics_come_and_go(admin: Client) -> None:
    await admin.create_lan("lan0", subnet="10.5.0.0/24")
    await admin.create_container(program("true", name="one"))
    nic = await admin.connect_lan("one", api.NicSpec(lan="lan0", name="eth7"))
    assert (nic.name, nic.addresses) == ("eth7", ["10.5.0.1/24"])
    await admin.disconnect_lan("one", "lan0", nic="eth7")
    assert list((await admin.get_container("one")).nics) == []


async def test_the_same_request_id_makes_one_container(admin: Client) -> None:
    first = await admin.create_container(program("true"), request_id="r1")
    assert (await admin.create_container(program("true"), request_id="r1")).id == first.id


async def test_the_node_tells_what_it_is_and_who_asks(admin: Client, operator: Client) -> None:
    info = await admin.info()
    assert (info.name, info.role, list(info.kinds)) == ("here", "admin", ["process"])
    assert (await operator.info()).role == "operator"


async def test_events_are_streamed(admin: Client) -> None:
    await admin.create_lan("lan0")
    events = admin.events(history=True, types=["lan.*"])
    assert (await anext(events)).event.type == "lan.created"
    await admin.delete_lan("lan0")
    assert (await anext(events)).event.type == "lan.deleted"
    await events.aclose()  # type: ignore[attr-defined]


async def test_statistics_come_once_or_again_and_again(admin: Client) -> None:
    await admin.create_container(program("sleep", "600", name="one"))
    await admin.start_container("one")
    assert [[each.name for each in response.stats] async for response in admin.stats()] == [["one"]]
    repeated = admin.stats(["one"], interval_seconds=0.1)
    assert [(await anext(repeated)).stats[0].name for _ in range(2)] == ["one", "one"]
    await repeated.aclose()  # type: ignore[attr-defined]
    with pytest.raises(errors.InvalidArgument, match="interval"):
        await anext(admin.stats(interval_seconds=0.01))


async def test_files_are_copied_in_and_out(admin: Client) -> None:
    await admin.create_container(program("true", name="one"))
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        info = tarfile.TarInfo("new")
        info.size = 500_000
        tar.addfile(info, io.BytesIO(b"x" * info.size))

    async def chunks() -> AsyncIterator[bytes]:
        yield archive.getvalue()

    await admin.copy_to("one", "/tmp", chunks())
    copied = b"".join([chunk async for chunk in admin.copy_from("one", "/tmp/new")])
    with tarfile.open(fileobj=io.BytesIO(copied)) as tar:
        assert tar.getmember("new").size == 500_000
    with pytest.raises(errors.NotFound):
        await admin.copy_to("one", "/absent", chunks())
    with pytest.raises(errors.NotFound):
        [chunk async for chunk in admin.copy_from("one", "/absent")]


# ---------------------------------------------------------------- terminals


async def running(admin: Client, *args: str, **fields: Any) -> str:
    made = await admin.create_container(program(*args, **fields))
    await admin.start_container(made.id)
    return made.id


async def test_exec_carries_input_output_and_status(admin: Client) -> None:
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


async def test_exec_that_cannot_start_says_why(admin: Client) -> None:
    container = await running(admin, "sleep", "600")
    with pytest.raises(errors.NotFound) as caught:
        async with admin.exec(api.ExecStart(container=container, args=["absent"])):
            pass
    assert caught.value.reason == "PROGRAM_NOT_FOUND"


async def test_signals_reach_the_program_of_exec(admin: Client) -> None:
    container = await running(admin, "sleep", "600")
    async with admin.exec(api.ExecStart(container=container, args=["sleep", "600"])) as session:
        await session.signal(2)
        assert [piece async for piece in session.output()] == []
    assert session.exit is not None
    assert session.exit.signal == 2


async def test_a_program_is_killed_when_its_caller_goes_and_a_container_is_not(admin: Client, served: Site) -> None:
    container = await running(admin, "cat", stdin=True)
    async with admin.attach(api.AttachStart(container=container)):
        pass
    async with admin.exec(api.ExecStart(container=container, args=["cat"], stdin=True)):
        [execution] = served.kernel.containers[container]._executions
    assert (await asyncio.wait_for(execution.wait(), 5)).signal == 9
    assert (await admin.get_container(container)).state == api.CONTAINER_STATE_RUNNING


async def test_attach_with_run_misses_nothing_even_of_a_container_that_removes_itself(admin: Client) -> None:
    made = await admin.create_container(program("sh", "-c", "echo hello; exit 5", auto_remove=True))
    async with admin.attach(api.AttachStart(container=made.id, run=True)) as session:
        assert [piece async for piece in session.output()] == [(1, b"hello\n")]
    assert session.exit is not None
    assert session.exit.code == 5


async def test_attach_passes_input_and_signals(admin: Client) -> None:
    made = await admin.create_container(program("cat", stdin=True))
    async with admin.attach(api.AttachStart(container=made.id, run=True, stdin=True)) as session:
        await session.write(b"hello")
        output = session.output()
        assert await anext(output) == (1, b"hello")
        await session.signal(15)
        assert [piece async for piece in output] == []
    assert session.exit is not None
    assert session.exit.signal == 15


async def test_attach_with_run_says_why_it_cannot_start(admin: Client) -> None:
    made = await admin.create_container(program("absent"))
    with pytest.raises(errors.NotFound) as caught:
        async with admin.attach(api.AttachStart(container=made.id, run=True)):
            pass
    assert caught.value.reason == "PROGRAM_NOT_FOUND"


async def test_attach_before_the_start_waits_for_it(admin: Client) -> None:
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
async def test_a_stream_that_makes_no_sense_is_refused(admin: Client, requests: list[api.ExecRequest], reason: str) -> None:
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


# ---------------------------------------------------------------- errors, roles


@pytest.mark.parametrize("kind", NestbedError.__subclasses__(), ids=lambda kind: kind.__name__)
async def test_every_error_arrives_as_it_was_raised(admin: Client, served: Site, kind: type[NestbedError]) -> None:
    served.kernel.fail_next("create", kind("no, for this: é", reason="THIS", remedy="do that", container="x"))
    with pytest.raises(NestbedError) as caught:
        await admin.create_container(program("true"))
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.reason, caught.value.remedy) == ("no, for this: é", "THIS", "do that")
    assert caught.value.metadata == {"container": "x"}


async def test_a_defect_is_internal_and_the_next_call_works(admin: Client, served: Site, caplog: pytest.LogCaptureFixture) -> None:
    served.kernel.fail_next("create", ZeroDivisionError("secret"))  # type: ignore[arg-type]
    with pytest.raises(NestbedError) as caught:
        await admin.create_container(program("true"))
    assert caught.value.reason == "INTERNAL"
    assert "secret" not in str(caught.value)
    assert "secret" in caplog.text
    await admin.create_container(program("true"))


async def test_an_operator_makes_no_container_on_the_nodes_files(operator: Client, admin: Client) -> None:
    made = await operator.create_container(program("true"))
    assert made.spec.process.fs_mode == api.FS_MODE_OVERLAY
    with pytest.raises(errors.PermissionDenied) as caught:
        await operator.create_container(program("true", fs_mode=api.FS_MODE_HOST))
    assert caught.value.reason == "NEEDS_ADMIN"
    container = await running(admin, "sleep", "600")
    with pytest.raises(errors.PermissionDenied):
        async with operator.exec(api.ExecStart(container=container, args=["true"])):
            pass


def methods() -> list[MethodDescriptor]:
    files = (api.DESCRIPTOR, lan_pb2.DESCRIPTOR, node_pb2.DESCRIPTOR)
    return [method for file in files for service in file.services_by_name.values() for method in service.methods]


def full_name(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def status_of(channel: aio.Channel, method: MethodDescriptor, *requests: bytes, seconds: float = 5.0) -> StatusCode:
    """How a call with these bytes as requests ends."""
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    given: Any = iter(requests) if method.client_streaming else requests[0]
    call = getattr(channel, shape)(full_name(method))(given, timeout=seconds)
    with contextlib.suppress(aio.AioRpcError):
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    code: StatusCode = await call.code()
    return code


@pytest.mark.parametrize("role", [Role.NOBODY, Role.VIEWER, Role.OPERATOR])
async def test_what_a_role_may_not_do_is_denied(site: Site, role: Role) -> None:
    forbidden = [method for method in methods() if LEAST_ROLES[full_name(method)] > role]
    async with bare(site, role=role) as channel:
        for method in forbidden:
            assert await status_of(channel, method, b"") is StatusCode.PERMISSION_DENIED, method.name
    assert bool(forbidden) == (role is not Role.OPERATOR)


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
async def test_bytes_that_are_no_request_are_refused(site: Site, method: MethodDescriptor) -> None:
    async with bare(site) as channel:
        if any(field.number == 1 for field in method.input_type.fields):
            assert await status_of(channel, method, b"\x0a\xff\xff\xff") is StatusCode.INVALID_ARGUMENT
        assert await status_of(channel, method, b"\xff" * 50) is StatusCode.INVALID_ARGUMENT


async def test_a_method_that_does_not_exist_is_unimplemented(site: Site) -> None:
    async with bare(site) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await channel.unary_unary("/nestbed.v1.NodeService/Explode")(b"")
    assert caught.value.code() is StatusCode.UNIMPLEMENTED


# ---------------------------------------------------------------- load


@pytest.mark.slow
@pytest.mark.parametrize("queued", [8192, 100])
async def test_of_3000_calls_at_once_each_is_answered(site: Site, queued: int) -> None:
    request = node_pb2.GetInfoRequest().SerializeToString()
    async with bare(site, admission=Admission(running=8, queued=queued)) as channel:
        ask = channel.unary_unary("/nestbed.v1.NodeService/GetInfo")
        results = await asyncio.gather(*(ask(request) for _ in range(3000)), return_exceptions=True)
    failed = [result.code() for result in results if isinstance(result, aio.AioRpcError)]
    assert len([result for result in results if isinstance(result, bytes)]) + len(failed) == 3000
    assert set(failed) <= {StatusCode.RESOURCE_EXHAUSTED}
    if queued > 3000:
        assert failed == []


async def test_streams_and_waits_starve_nobody(site: Site) -> None:
    async with bare(site, admission=Admission(running=1, long_per_caller=20)) as channel:
        watches = [channel.unary_stream("/nestbed.v1.NodeService/WatchEvents")(b"") for _ in range(20)]
        reads = [asyncio.create_task(watch.read()) for watch in watches]
        await channel.unary_unary("/nestbed.v1.NodeService/GetInfo")(b"")
        with pytest.raises(aio.AioRpcError) as caught:
            await channel.unary_stream("/nestbed.v1.NodeService/WatchEvents")(b"").read()
        assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*reads, return_exceptions=True)


# ---------------------------------------------------------------- coming and going


async def test_a_stop_ends_streams_and_waits_and_takes_the_sockets_away(site: Site) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(serving(site.node, site.folder))
        client = await stack.enter_async_context(Client.connect(f"unix://{site.folder / ADMIN_SOCKET}"))
        container = await running(client, "sleep", "600")
        waiting = [asyncio.ensure_future(client.wait_container(container)), asyncio.ensure_future(anext(client.events()))]
        await client.info()
        stop = stack.pop_all()
    async with asyncio.timeout(5):
        await stop.aclose()
    for ended in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(ended, errors.Unavailable | asyncio.CancelledError), ended
    assert not list(site.folder.glob("*.sock"))
    assert site.node.container(container).status.state == "running"


async def test_a_client_without_a_node_says_so(tmp_path: Path) -> None:
    async with Client.connect(f"unix://{tmp_path}/absent.sock") as client:
        with pytest.raises(errors.Unavailable) as caught:
            await client.info()
    assert caught.value.reason == "NO_NODE"
    assert "nestbedd" in caught.value.remedy


async def test_a_daemon_that_comes_back_is_found_again(site: Site) -> None:
    async with Client.connect(f"unix://{site.folder / ADMIN_SOCKET}") as client:
        for _ in range(2):
            async with serving(site.node, site.folder), asyncio.timeout(10):
                while True:
                    with contextlib.suppress(errors.Unavailable):
                        assert (await client.info()).name == "here"
                        break


async def test_a_call_that_takes_too_long_ends_with_a_deadline(admin: Client, served: Site) -> None:
    container = await running(admin, "sleep", "600")
    async with Client.connect(f"unix://{served.folder / ADMIN_SOCKET}", call_seconds=0.05) as hasty:
        await hasty.info()
        with pytest.raises(errors.Deadline):
            await hasty._call(hasty._containers.WaitContainer, api.WaitContainerRequest(container=container))


async def test_a_long_path_serves(site: Site) -> None:
    deep = site.folder / ("d" * 120)
    deep.mkdir()
    async with serving(site.node, deep), Client.connect(f"unix://{deep / OPERATOR_SOCKET}") as client:
        assert (await client.info()).role == "operator"


# ---------------------------------------------------------------- health, reflection


async def test_health_and_reflection(served: Site) -> None:
    listed, codes = {}, {}
    for name in (ADMIN_SOCKET, OPERATOR_SOCKET):
        async with aio.insecure_channel(f"unix:{served.folder / name}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "nestbed.v1.NodeService"):
                status = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert status.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(aio.AioRpcError) as caught:
                await health.Check(health_pb2.HealthCheckRequest(service="absent"))
            assert caught.value.code() is StatusCode.NOT_FOUND
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            with contextlib.suppress(aio.AioRpcError):
                listed[name] = [service.name for service in (await call.read()).list_services_response.service]
            codes[name] = await call.code() if name not in listed else StatusCode.OK
    assert codes == {ADMIN_SOCKET: StatusCode.UNIMPLEMENTED, OPERATOR_SOCKET: StatusCode.OK}
    assert "nestbed.v1.ContainerService" in listed[OPERATOR_SOCKET]


# ---------------------------------------------------------------- TCP


def certificate(folder: Path, name: str, subject: str, extension: str = "") -> Path:
    """A certificate by the authority in ``folder``, made as docs/operations.md says; its key stands beside it."""

    def openssl(*argv: str) -> None:
        subprocess.run(["openssl", *argv], cwd=folder, check=True, capture_output=True, timeout=10)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"]
    if name == "ca":
        openssl("req", "-x509", *key, "-subj", f"/CN={subject}", "-out", "ca.pem")
    else:
        (folder / "extension").write_text(extension)
        openssl("req", *key, "-subj", f"/CN={subject}", "-out", "request")
        openssl(
            "x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extension",
            "-out", f"{name}.pem",
        )  # fmt: skip
    return folder / f"{name}.pem"


async def test_tcp_takes_the_role_from_the_certificate(site: Site, tmp_path: Path) -> None:
    authority = certificate(tmp_path, "ca", "nestbed CA")
    node = certificate(tmp_path, "node", "node1", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    tls = Tls(cert=node, key=node.with_suffix(".key"), client_ca=authority)
    async with serving(site.node, site.folder, listen=[Listen("127.0.0.1", 0)], tls=tls) as addresses:

        def connect(name: str, subject: str, extension: str = "") -> Client:
            cert = certificate(tmp_path, name, subject, extension)
            return Client.connect(addresses[-1], tls_ca=authority, tls_cert=cert, tls_key=cert.with_suffix(".key"))

        async with connect("admin", "admin") as client:
            assert (await client.info()).role == "admin"
        async with connect("bob", "bob", "subjectAltName=email:bob@viewer") as client:
            assert (await client.info()).role == "viewer"
            with pytest.raises(errors.PermissionDenied) as caught:
                await client.create_lan("lan0")
            assert caught.value.metadata["caller"] == "certificate bob@viewer"
        async with connect("eve", "eve") as client:
            with pytest.raises(errors.PermissionDenied):
                await client.info()
        with pytest.raises(errors.AlreadyExists) as taken:
            async with serving(site.node, tmp_path, listen=[Listen("127.0.0.1", int(addresses[-1].rpartition(":")[2]))], tls=tls):
                pass
        assert taken.value.reason == "PORT_IN_USE"
        assert not [name for name in os.listdir(tmp_path) if name.endswith(".sock")]
        plain = grpc.ssl_channel_credentials(authority.read_bytes())
        async with aio.secure_channel(addresses[-1].removeprefix("tcp://"), plain) as channel:
            with pytest.raises(aio.AioRpcError):
                await channel.unary_unary("/nestbed.v1.NodeService/GetInfo")(b"")


async def test_tcp_without_tls_is_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        async with serving(site.node, site.folder, listen=[Listen("127.0.0.1", 0)]):
            pass
    assert caught.value.reason == "TLS_REQUIRED"
    for make in _wrong_tls():
        with pytest.raises(NestbedError):
            async with serving(site.node, site.folder, listen=[Listen("127.0.0.1", 0)], tls=make(tmp_path)):
                pass
    assert not list(site.folder.glob("*.sock"))


def _wrong_tls() -> list[Callable[[Path], Tls]]:
    def absent(folder: Path) -> Tls:
        return Tls(folder / "a", folder / "b", folder / "c")

    def garbage(folder: Path) -> Tls:
        (folder / "a").write_text("no PEM")
        return Tls(folder / "a", folder / "a", folder / "a")

    return [absent, garbage]
