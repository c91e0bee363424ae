"""The node with a fake runtime: what its callers see."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nestbed.errors import (
    AlreadyExists,
    HostLacks,
    InvalidArgument,
    NestbedError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unsupported,
    WrongState,
)
from nestbed.lanmodel import LanRequest, NicSpec
from nestbed.model import Change, ExecSpec, FsMode, Kind, Mount, Resources, RestartMode, RestartPolicy, Route, State
from nestbed.node.node import Node
from nestbed.runtime import Console


async def said(console: Console) -> bytes:
    return b"".join([output.data async for output in console.output()])


# ---------------------------------------------------------------- create


async def test_created_container_is_complete(bench, node) -> None:
    await node.create_lan(LanRequest("lan0", "10.5.0.0/24"))
    view = await node.create_container(bench.request(name="web", nics=(NicSpec("lan0"),), gateway="10.5.0.1"), admin=True)
    assert view.status.state is State.CREATED
    assert view.spec.hostname == "web"
    assert view.spec.nics[0].addresses == ("10.5.0.2/24",)
    assert len(view.spec.id) == 12
    for ref in ("web", view.spec.id, view.spec.id[:7]):
        assert node.container(ref) == view
    assert [member.container for member in node.lan("lan0").members] == ["web"]


async def test_a_container_can_be_created_and_started_at_once(bench, node) -> None:
    view = await node.create_container(bench.request(name="web"), start=True, admin=True)
    assert view.status.state is State.RUNNING
    again = await node.create_container(bench.request(name="other"), request_id="r1", start=True, admin=True)
    assert (await node.create_container(bench.request(name="other"), request_id="r1", start=True, admin=True)) == again


async def test_what_is_created_to_be_started_and_cannot_be_is_removed(bench, node) -> None:
    bench.kernel.fail_next("start", HostLacks("no luck"))
    with pytest.raises(HostLacks):
        await node.create_container(bench.request(name="web"), start=True, admin=True)
    assert node.containers() == []
    assert (await node.audit())[0] == []


async def test_name_is_made_up(bench, node) -> None:
    names = {(await node.create_container(bench.request(), admin=True)).spec.name for _ in range(3)}
    assert len(names) == 3


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"name": "a/b"}, InvalidArgument, "BAD_NAME"),
        ({"name": "x" * 10_000}, InvalidArgument, "BAD_NAME"),
        ({"name": "taken"}, AlreadyExists, "NAME_TAKEN"),
        ({"nics": (NicSpec("lan0"), NicSpec("nolan"))}, NotFound, "LAN_NOT_FOUND"),
        ({"nics": (NicSpec("lan0", addresses=("10.9.0.1/24",)),)}, InvalidArgument, "ADDRESS_OUTSIDE_SUBNET"),
        ({"nics": (NicSpec("lan0", addresses=("10.5.0.1",)),)}, AlreadyExists, "ADDRESS_TAKEN"),
        ({"nics": (NicSpec("lan0", mac="junk"),)}, InvalidArgument, "BAD_MAC"),
        ({"nics": (NicSpec("lan0"),), "gateway": "192.0.2.1"}, InvalidArgument, "UNREACHABLE_NEXT_HOP"),
        ({"nics": (NicSpec("lan0"),), "routes": (Route("default", "192.0.2.1"),)}, InvalidArgument, "UNREACHABLE_NEXT_HOP"),
        ({"mounts": (Mount("/nonexistent/x", "/x"),)}, NotFound, "NOT_FOUND"),
        ({"cap_add": ("no such",)}, InvalidArgument, "UNKNOWN_CAPABILITY"),
        ({"kind": Kind.QEMU}, Unsupported, "NO_RUNTIME"),
    ],
)
async def test_refused_before_anything_is_made(bench, changes: dict[str, Any], error: type[NestbedError], reason: str) -> None:
    node = bench.node
    await node.create_lan(LanRequest("lan0", "10.5.0.0/24"))
    await node.create_container(bench.request(name="taken", nics=(NicSpec("lan0"),)), admin=True)
    before = bench.bundles()
    with pytest.raises(error) as caught:
        await node.create_container(bench.request(**changes), admin=True)
    assert caught.value.reason == reason
    assert caught.value.remedy
    assert bench.bundles() == before
    assert len(node.containers()) == 1
    assert len(node.lan("lan0").members) == 1
    assert (await node.audit())[0] == []


@pytest.mark.parametrize("method", ["create", "plug"])
async def test_failed_create_leaves_nothing(bench, method: str) -> None:
    node = bench.node
    await node.create_lan(LanRequest("lan0", "10.5.0.0/24"))
    bench.kernel.fail_next(method, HostLacks("no luck"))
    with pytest.raises(HostLacks):
        await node.create_container(bench.request(name="web", nics=(NicSpec("lan0"),), auto_remove=True), admin=True)
    assert bench.bundles() == []
    assert node.containers() == []
    assert (await node.audit())[0] == []
    await node.create_container(bench.request(name="web", nics=(NicSpec("lan0", addresses=("10.5.0.1",)),)), admin=True)


async def test_request_id_makes_create_idempotent(bench) -> None:
    node = bench.node
    wanted = bench.request(name="web")
    views = await asyncio.gather(*(node.create_container(wanted, request_id="r1", admin=True) for _ in range(3)))
    assert len({view.spec.id for view in views}) == 1
    with pytest.raises(AlreadyExists) as caught:
        await node.create_container(bench.request(name="other"), request_id="r1", admin=True)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    node = await bench.restart()
    assert (await node.create_container(wanted, request_id="r1", admin=True)).spec.id == views[0].spec.id
    lan = await node.create_lan(LanRequest("lan0"), request_id="r2")
    node = await bench.restart()
    assert (await node.create_lan(LanRequest("lan0"), request_id="r2")).lan == lan.lan


async def test_request_id_of_a_failed_create_may_be_used_again(bench) -> None:
    bench.kernel.fail_next("create", HostLacks("no luck"))
    results = await asyncio.gather(
        *(bench.node.create_container(bench.request(name="web"), request_id="r1", admin=True) for _ in range(2)), return_exceptions=True
    )
    assert isinstance(results[0], HostLacks)
    assert not isinstance(results[1], BaseException)


async def test_create_is_carried_through_when_the_caller_goes(bench, node) -> None:
    creating = asyncio.ensure_future(node.create_container(bench.request(name="web"), admin=True))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    creating.cancel()
    await asyncio.gather(creating, return_exceptions=True)
    await bench.until("container.created")
    assert node.container("web").status.state is State.CREATED


async def test_privileged_containers_are_for_admin(bench, node) -> None:
    with pytest.raises(PermissionDenied):
        await node.create_container(bench.request(fs=FsMode.HOST), admin=False)
    await node.create_container(bench.request(), admin=False)
    name = await bench.run(name="web", fs=FsMode.HOST)
    with pytest.raises(PermissionDenied):
        await node.exec(name, ExecSpec(("true",)), admin=False)
    with pytest.raises(PermissionDenied):
        await node.attach(name, run=False, stdin=True, admin=False)
    with pytest.raises(PermissionDenied):
        await node.update(name, Change(name="x"), admin=False)
    with pytest.raises(PermissionDenied):
        await node.extract(name, "/tmp", tar(), admin=False)
    with pytest.raises(PermissionDenied):
        await anext(node.archive(name, "/etc/passwd", admin=False))
    await (await node.attach(name, run=False, stdin=False, admin=False)).aclose()


async def tar() -> AsyncIterator[bytes]:
    yield b""


# ---------------------------------------------------------------- life


async def test_life(bench, node) -> None:
    name = await bench.run("sh", "-c", "echo hello; sleep 1000", name="web")
    assert node.container("web").status.state is State.RUNNING
    with pytest.raises(WrongState) as caught:
        await node.start("web")
    assert caught.value.reason == "ALREADY_RUNNING"
    assert (await node.pause("web")).status.state is State.PAUSED
    assert (await node.resume("web")).status.state is State.RUNNING
    assert (await node.stop("web", 10.0)).status.state is State.STOPPED
    assert (await node.stop("web", 10.0)).status.state is State.STOPPED
    assert (await node.wait("web")).signal == signal.SIGTERM
    await node.delete("web", force=False)
    with pytest.raises(NotFound):
        node.container(name)
    kinds = [event async for event in first(node, 6)]
    assert kinds == [
        "container.created",
        "container.started",
        "container.paused",
        "container.resumed",
        "container.exited",
        "container.deleted",
    ]


async def first(node: Node, count: int) -> AsyncIterator[str]:
    async for event, dropped in node.watch(history=True):
        assert dropped == 0
        yield event.type
        count -= 1
        if not count:
            return


async def test_running_container_is_not_deleted_without_force(bench) -> None:
    node = bench.node
    await bench.run(name="web")
    with pytest.raises(WrongState) as caught:
        await node.delete("web", force=False)
    assert caught.value.reason == "CONTAINER_RUNNING"
    assert "-f" in caught.value.remedy
    await node.delete("web", force=True)
    assert bench.bundles() == []
    assert (await node.audit()) == ([], 0)


async def test_stop_can_be_overtaken(bench, node) -> None:
    await bench.run("sh", "-c", "trap '' TERM; sleep 1000", name="web")
    slow = asyncio.ensure_future(node.stop("web", 3600.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert node.container("web").status.state is State.STOPPING
    await node.kill("web", signal.SIGCONT)
    assert not slow.done()
    await node.kill("web", signal.SIGKILL)
    assert (await slow).status.state is State.STOPPED
    assert (await node.wait("web")).signal == signal.SIGKILL


async def test_stop_is_overtaken_by_forced_delete(bench) -> None:
    node = bench.node
    await bench.run("sh", "-c", "trap '' TERM; sleep 1000", name="web")
    slow = asyncio.ensure_future(node.stop("web", 3600.0))
    await asyncio.sleep(0)
    await node.delete("web", force=True)
    await slow
    assert bench.bundles() == []


async def test_failed_start_is_told_and_kept(bench, node) -> None:
    await node.create_container(bench.request("/nonexistent", name="web"), admin=True)
    with pytest.raises(NotFound) as caught:
        await node.start("web")
    assert caught.value.reason == "PROGRAM_NOT_FOUND"
    status = node.container("web").status
    assert status.state is State.CREATED
    assert status.exit is not None
    assert status.exit.reason == "start-failed"


async def test_auto_remove(bench) -> None:
    node = bench.node
    name = await bench.run("sh", "-c", "exit 3", name="web", auto_remove=True)
    await bench.until("container.deleted")
    assert bench.bundles() == []
    assert (await node.wait(name)).code == 3
    assert (await node.wait("web")).code == 3
    view = await node.create_container(bench.request("/nonexistent", name="web", auto_remove=True), admin=True)
    with pytest.raises(NotFound):
        await node.start(view.spec.id)
    async for event, _ in node.watch(types=("container.deleted",), history=True):
        if event.id == view.spec.id:
            break
    assert (await node.wait(view.spec.id)).reason == "start-failed"


async def test_attach_with_run_misses_nothing(bench, node) -> None:
    await node.create_container(bench.request("echo", "hello", name="web"), admin=True)
    console = await node.attach("web", run=True, stdin=False, admin=True)
    assert await said(console) == b"hello\n"
    await console.aclose()
    assert (await node.wait("web")).code == 0
    with pytest.raises(WrongState):
        await node.attach("web", run=False, stdin=False, admin=True)


async def test_attach_to_what_cannot_start_lets_go(bench, node) -> None:
    await node.create_container(bench.request("/nonexistent", name="web"), admin=True)
    with pytest.raises(NotFound):
        await node.attach("web", run=True, stdin=False, admin=True)


async def test_exec(bench, node) -> None:
    await bench.run(name="web")
    execution = await node.exec("web", ExecSpec(("echo", "hi")), admin=True)
    assert await said(execution) == b"hi\n"
    assert (await execution.wait()).code == 0
    await execution.aclose()
    with pytest.raises(InvalidArgument):
        await node.exec("web", ExecSpec(()), admin=True)


async def test_copy_in_and_out(bench, node) -> None:
    await bench.run(name="web")
    data = b"".join([chunk async for chunk in node.archive("web", "/etc/passwd", admin=True)])
    assert b"root:x:0" in data

    async def chunks() -> AsyncIterator[bytes]:
        yield data

    await node.extract("web", "/tmp", chunks(), admin=True)
    assert [chunk async for chunk in node.archive("web", "/tmp/passwd", admin=True)]
    with pytest.raises(InvalidArgument):
        await anext(node.archive("web", "relative", admin=True))


async def test_update(bench) -> None:
    node = bench.node
    await node.create_lan(LanRequest("lan0", "10.5.0.0/24"))
    await bench.run(name="web", resources=Resources(cpus=1.0, pids=10), nics=(NicSpec("lan0"),))
    mac = node.container("web").spec.nics[0].mac
    view = await node.update("web", Change(Resources(memory_bytes=1 << 20, pids=0), RestartPolicy(RestartMode.ALWAYS), "www"), admin=True)
    assert view.spec.resources == Resources(cpus=1.0, memory_bytes=1 << 20)
    assert view.spec.restart.mode is RestartMode.ALWAYS
    assert view.spec.nics[0].mac == mac
    assert node.lan("lan0").members[0].container == "www"
    with pytest.raises(NotFound):
        node.container("web")
    node = await bench.restart()
    assert node.container("www").spec == view.spec


async def test_update_is_all_or_nothing(bench) -> None:
    node = bench.node
    await bench.run(name="web")
    await bench.run(name="taken")
    bench.kernel.fail_next("update", ResourceExhausted("too much"))
    with pytest.raises(ResourceExhausted):
        await node.update("web", Change(Resources(pids=5), name="www"), admin=True)
    with pytest.raises(AlreadyExists):
        await node.update("web", Change(Resources(pids=5), name="taken"), admin=True)
    assert node.container("web").spec.resources == Resources()
    node = await bench.restart()
    assert node.container("web").spec.resources == Resources()


async def test_selection(bench, node) -> None:
    for name, labels in (("web1", (("role", "web"),)), ("web2", (("role", "web"),)), ("irc", ())):
        await node.create_container(bench.request(name=name, labels=labels), admin=True)
    await node.start("web2")
    assert [view.spec.name for view in node.containers()] == ["web1", "web2", "irc"]
    assert [view.spec.name for view in node.containers(names=("web*",))] == ["web1", "web2"]
    assert [view.spec.name for view in node.containers(labels=(("role", "web"),), states=(State.RUNNING,))] == ["web2"]
    assert [view.spec.name for view, _ in await node.stats(())] == ["web2"]
    assert [view.spec.name for view, _ in await node.stats(("irc", "web*"))] == ["irc", "web1", "web2"]
    with pytest.raises(NotFound):
        await node.stats(("nobody",))


async def test_ambiguous_beginning_is_refused(bench, node) -> None:
    ids: dict[str, int] = {}
    while max(ids.values(), default=0) < 2:
        view = await node.create_container(bench.request(), admin=True)
        ids[view.spec.id[0]] = ids.get(view.spec.id[0], 0) + 1
    with pytest.raises(InvalidArgument) as caught:
        node.container(max(ids, key=lambda beginning: ids[beginning]))
    assert caught.value.reason == "AMBIGUOUS"


async def test_info(bench, node) -> None:
    await bench.run()
    info = await node.info()
    assert (info.name, info.containers, info.containers_running, info.kinds) == ("node1", 1, 1, (Kind.PROCESS,))
    assert info.run_dir == str(bench.run_dir)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=20), st.text(max_size=20), st.integers(), st.floats())
def test_whatever_a_client_sends_is_a_nestbed_error(tmp_path_factory, new_bench, ref, text, whole, real) -> None:
    async def send() -> None:
        bench = new_bench(tmp_path_factory.mktemp("node"))
        node = await bench.open()
        await node.create_lan(LanRequest("lan0", "10.5.0.0/24"))
        await bench.run(name="web")
        for target in (ref, "web"):
            for call in calls(bench, target, text, whole, real):
                await outcome(call)
        await node.aclose()
        await bench.kernel.aclose()

    asyncio.run(send())


def calls(bench, ref: str, text: str, whole: int, real: float) -> list[Callable[[], Awaitable[object]]]:
    node: Node = bench.node

    async def logs() -> object:
        return [batch async for batch in node.logs(ref, since=real, tail=whole)]

    async def archive() -> object:
        return [chunk async for chunk in node.archive(ref, text, admin=True)]

    async def containers() -> object:
        return node.containers(names=(ref, text), labels=((ref, text),)), node.lans(names=(text,)), node.lan(text)

    return [
        logs,
        archive,
        containers,
        lambda: node.stop(ref, real),
        lambda: node.kill(ref, whole),
        lambda: node.start(ref),
        lambda: node.exec(ref, ExecSpec((text,), rows=whole), admin=True),
        lambda: node.update(
            ref, Change(Resources(real, whole, whole, whole), RestartPolicy(RestartMode.ON_FAILURE, whole), text), admin=True
        ),
        lambda: node.connect(ref, NicSpec(text, text, text, (text,))),
        lambda: node.connect(ref, NicSpec("lan0", "", text, (text,))),
        lambda: node.disconnect(ref, text, ref),
        lambda: node.create_lan(LanRequest(text, text, text, whole, ((text, ref),)), request_id=text),
        lambda: node.create_container(bench.request(text, name=text, nics=(NicSpec("lan0"),), gateway=text), request_id=ref, admin=True),
        lambda: node.stats((ref, text)),
        lambda: node.delete_lan(text),
        lambda: node.delete(ref, force=True),
    ]


async def outcome(call: Callable[[], Awaitable[object]]) -> NestbedError | None:
    try:
        await call()
    except NestbedError as error:
        return error
    return None
