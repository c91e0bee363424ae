"""The API from end to end: client, gate, gRPC, node."""

import asyncio
import contextlib
import io
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from nestbed import errors
from nestbed.client import Client
from nestbed.errors import NestbedError
from nestbed.service.authorize import LEAST_ROLES, Role
from nestbed.service.server import ADMIN_SOCKET, OPERATOR_SOCKET, serving
from nestbed.v1 import agent_pb2, experiment_pb2, lan_pb2, node_pb2
from nestbed.v1 import container_pb2 as api

Program = Callable[..., api.ContainerSpec]
Running = Callable[..., Awaitable[str]]


# ---------------------------------------------------------------- what it does


async def test_a_container_lives_its_life(admin: Client, program: Program) -> None:
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


async def test_a_running_container_is_stopped_killed_paused_and_changed(admin: Client, program: Program) -> None:
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


async def test_lists_select_and_page(admin: Client, program: Program) -> None:
    for number in range(5):
        await admin.create_container(program("true", name=f"c{number}", labels={"parity": "odd" if number % 2 else "even"}))
        await admin.create_lan(f"l{number}")
    assert [each.name for each in await admin.list_containers()] == ["c0", "c1", "c2", "c3", "c4"]
    assert [each.name for each in await admin.list_containers(names=["c[12]"])] == ["c1", "c2"]
    assert [each.name for each in await admin.list_containers(labels={"parity": "odd"})] == ["c1", "c3"]
    assert await admin.list_containers(states=[api.CONTAINER_STATE_RUNNING]) == []
    assert [each.name for each in await admin.list_lans(names=["l3"])] == ["l3"]


async def test_nics_come_and_go(admin: Client, program: Program) -> None:
    await admin.create_lan("lan0", subnet="10.5.0.0/24")
    await admin.create_container(program("true", name="one"))
    nic = await admin.connect_lan("one", api.NicSpec(lan="lan0", name="eth7"))
    assert (nic.name, nic.addresses) == ("eth7", ["10.5.0.1/24"])
    await admin.disconnect_lan("one", "lan0", nic="eth7")
    assert list((await admin.get_container("one")).nics) == []


async def test_the_same_request_id_makes_one_container(admin: Client, program: Program) -> None:
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


async def test_statistics_come_once_or_again_and_again(admin: Client, program: Program) -> None:
    await admin.create_container(program("sleep", "600", name="one"))
    await admin.start_container("one")
    assert [[each.name for each in response.stats] async for response in admin.stats()] == [["one"]]
    repeated = admin.stats(["one"], interval_seconds=0.1)
    assert [(await anext(repeated)).stats[0].name for _ in range(2)] == ["one", "one"]
    await repeated.aclose()  # type: ignore[attr-defined]
    with pytest.raises(errors.InvalidArgument, match="interval"):
        await anext(admin.stats(interval_seconds=0.01))


async def test_files_are_copied_in_and_out(admin: Client, program: Program) -> None:
    await admin.create_container(program("true", name="one"))
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        info = tarfile.TarInfo("new")
        info.size = 500_000
        tar.addfile(info, io.BytesIO(b"x" * info.size))

    async def chunks() -> AsyncIterator[bytes]:
        yield archive.getvalue()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1_000_000)

    await admin.copy_to("one", "/tmp", chunks())
    copied = b"".join([chunk async for chunk in admin.copy_from("one", "/tmp/new")])
    with tarfile.open(fileobj=io.BytesIO(copied)) as tar:
        assert tar.getmember("new").size == 500_000
    with pytest.raises(errors.NotFound):
        await admin.copy_to("absent", "/tmp", endless())
    with pytest.raises(errors.NotFound):
        await admin.copy_to("one", "/absent", chunks())
    with pytest.raises(errors.NotFound):
        [chunk async for chunk in admin.copy_from("one", "/absent")]


# ---------------------------------------------------------------- errors, roles


@pytest.mark.parametrize("kind", NestbedError.__subclasses__(), ids=lambda kind: kind.__name__)
async def test_every_error_arrives_as_it_was_raised(admin: Client, served: Any, kind: type[NestbedError], program: Program) -> None:
    served.kernel.fail_next("create", kind("no, for this: é", reason="THIS", remedy="do that", container="x"))
    with pytest.raises(NestbedError) as caught:
        await admin.create_container(program("true"))
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.reason, caught.value.remedy) == ("no, for this: é", "THIS", "do that")
    assert caught.value.metadata == {"container": "x"}


async def test_a_defect_is_internal_and_the_next_call_works(
    admin: Client, served: Any, caplog: pytest.LogCaptureFixture, program: Program
) -> None:
    served.kernel.fail_next("create", ZeroDivisionError("secret"))  # type: ignore[arg-type]
    with pytest.raises(NestbedError) as caught:
        await admin.create_container(program("true"))
    assert caught.value.reason == "INTERNAL"
    assert "secret" not in str(caught.value)
    assert "secret" in caplog.text
    await admin.create_container(program("true"))


async def test_an_operator_makes_no_container_on_the_nodes_files(
    operator: Client, admin: Client, program: Program, running: Running
) -> None:
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
    files = (agent_pb2.DESCRIPTOR, api.DESCRIPTOR, experiment_pb2.DESCRIPTOR, lan_pb2.DESCRIPTOR, node_pb2.DESCRIPTOR)
    return [method for file in files for service in file.services_by_name.values() for method in service.methods]


def full_name(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def status_of(channel: aio.Channel, method: MethodDescriptor, request: bytes | None = None) -> StatusCode:
    """How a call with these bytes as its first request ends; without, a stream of requests stays empty."""
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    start = getattr(channel, shape)(full_name(method))
    call = start(timeout=5.0) if method.client_streaming else start(request or b"", timeout=5.0)
    if method.client_streaming and request is not None:
        await call.write(request)
    with contextlib.suppress(aio.AioRpcError):
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    code: StatusCode = await call.code()
    return code


@pytest.mark.parametrize("role", [Role.NOBODY, Role.VIEWER, Role.OPERATOR])
async def test_what_a_role_may_not_do_is_denied(site: Any, role: Role) -> None:
    forbidden = [method for method in methods() if LEAST_ROLES[full_name(method)] > role]
    async with site.bare(role=role) as channel:
        for method in forbidden:
            assert await status_of(channel, method) is StatusCode.PERMISSION_DENIED, method.name
    assert forbidden if role is not Role.OPERATOR else [method.name for method in forbidden] == ["ExtendLan"]


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
async def test_bytes_that_are_no_request_are_refused(site: Any, method: MethodDescriptor) -> None:
    async with site.bare() as channel:
        if any(field.number == 1 for field in method.input_type.fields):
            assert await status_of(channel, method, b"\x0a\xff\xff\xff") is StatusCode.INVALID_ARGUMENT
        assert await status_of(channel, method, b"\xff" * 50) is StatusCode.INVALID_ARGUMENT


async def test_a_method_that_does_not_exist_is_unimplemented(site: Any) -> None:
    async with site.bare() as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await channel.unary_unary("/nestbed.v1.NodeService/Explode")(b"")
    assert caught.value.code() is StatusCode.UNIMPLEMENTED


# ---------------------------------------------------------------- coming and going


async def test_a_stop_ends_streams_and_waits_and_takes_the_sockets_away(site: Any, running: Running) -> None:
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


async def test_a_daemon_that_comes_back_is_found_again(site: Any) -> None:
    async with Client.connect(f"unix://{site.folder / ADMIN_SOCKET}") as client:
        for _ in range(2):
            async with serving(site.node, site.folder), asyncio.timeout(10):
                while True:
                    with contextlib.suppress(errors.Unavailable):
                        assert (await client.info()).name == "here"
                        break


async def test_a_call_that_takes_too_long_ends_with_a_deadline(admin: Client, served: Any, running: Running) -> None:
    container = await running(admin, "sleep", "600")
    async with Client.connect(f"unix://{served.folder / ADMIN_SOCKET}", call_seconds=0.05) as hasty:
        await hasty.info()
        with pytest.raises(errors.Deadline):
            await hasty._call(hasty._containers.WaitContainer, api.WaitContainerRequest(container=container))


async def test_a_long_path_serves(site: Any) -> None:
    deep = site.folder / ("d" * 120)
    deep.mkdir()
    async with serving(site.node, deep), Client.connect(f"unix://{deep / OPERATOR_SOCKET}") as client:
        assert (await client.info()).role == "operator"


# ---------------------------------------------------------------- health, reflection


async def test_health_and_reflection(served: Any) -> None:
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
