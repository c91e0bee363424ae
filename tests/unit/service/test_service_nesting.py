"""Nodes inside virtual machines, as a client of the outermost node sees them: paths, lists of everything, roles, faults."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nestbed import errors
from nestbed.client import Client
from nestbed.errors import NestbedError
from nestbed.lanmodel import Underlay
from nestbed.model import Kind
from nestbed.nesting import naming
from nestbed.service.server import ADMIN_SOCKET, OPERATOR_SOCKET, Listen, Tls, serving
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import lan_pb2, node_pb2
from nestbed.v1.traffic_pb2 import Impairment

SLEEP = ("sleep", "1000")


@dataclass
class Nest:
    """A tree of nodes, outermost first: each but the first is inside the machine ``vm1`` or ``vm2`` of the one before it."""

    sites: list[Any] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    doors: list[contextlib.AsyncExitStack] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)

    async def door(self, client: Client, kind: str) -> node_pb2.Event:
        """Wait for an event of the outermost node."""
        async for response in client.events(types=(kind,), history=True):
            return response.event
        raise AssertionError(kind)


async def dig(nest: Nest, stack: contextlib.AsyncExitStack, new_site: Any, folder: Path, name: str) -> None:
    """One more node: inside a machine of the innermost one."""
    outer, client = nest.sites[-1], nest.clients[-1]
    machine = await client.create_container(
        api.ContainerSpec(kind=api.CONTAINER_KIND_QEMU, name=name, qemu=api.QemuSpec(node=True), process=api.ProcessSpec(args=SLEEP))
    )
    credentials = outer.node.state_dir / "containers" / machine.id / "node"
    tls = Tls(credentials / "node.pem", credentials / "node.key", credentials / "ca.pem")
    inner = await stack.enter_async_context(new_site(folder, Kind.PROCESS, Kind.QEMU))
    door = await stack.enter_async_context(contextlib.AsyncExitStack())
    addresses = await door.enter_async_context(serving(inner.node, inner.folder, listen=[Listen("127.0.0.1", 0)], tls=tls))
    outer.kernel.containers[machine.id].node_address = addresses[-1].removeprefix("tcp://")
    inner.plane.found = (Underlay("underlay", exists=True, is_up=True, has_multicast=True, address="198.18.0.2", mtu=9216),)
    nest.doors.append(door)
    nest.sites.append(inner)
    nest.machines.append(machine.id)
    nest.clients.append(await stack.enter_async_context(Client.connect(f"unix://{inner.folder / ADMIN_SOCKET}")))
    await client.start_container(machine.id)


@pytest.fixture
async def nest(new_site: Any, tmp_path: Path) -> AsyncIterator[Nest]:
    """Two nodes: ``vm1`` is inside the outermost one."""
    async with contextlib.AsyncExitStack() as stack:
        nest = Nest()
        nest.sites.append(await stack.enter_async_context(new_site(tmp_path / "0", Kind.PROCESS, Kind.QEMU)))
        await stack.enter_async_context(serving(nest.sites[0].node, nest.sites[0].folder))
        nest.clients.append(await stack.enter_async_context(Client.connect(f"unix://{nest.sites[0].folder / ADMIN_SOCKET}")))
        await dig(nest, stack, new_site, tmp_path / "1", "vm1")
        yield nest


@pytest.fixture
async def deep(nest: Nest, new_site: Any, tmp_path: Path) -> AsyncIterator[Nest]:
    """Three nodes: ``vm2`` is inside ``vm1``."""
    async with contextlib.AsyncExitStack() as stack:
        await dig(nest, stack, new_site, tmp_path / "2", "vm2")
        yield nest


def spec(name: str, *args: str) -> api.ContainerSpec:
    return api.ContainerSpec(kind=api.CONTAINER_KIND_PROCESS, name=name, process=api.ProcessSpec(args=args or SLEEP))


# ---------------------------------------------------------------- calls for one node


async def test_a_path_leads_to_a_container_inside(nest: Nest) -> None:
    outside, inside = nest.clients
    made = await outside.create_container(spec("vm1/web"), start=True)
    assert (made.name, made.spec.name) == ("vm1/web", "vm1/web")
    assert made.id == f"{nest.machines[0]}/{(await inside.get_container('web')).id}"
    for ref in ("vm1/web", made.id, made.id[:-6], f"{nest.machines[0][:6]}/web"):
        assert (await outside.get_container(ref)).name == "vm1/web", ref
    assert (await outside.stop_container("vm1/web", grace_seconds=0)).state == api.CONTAINER_STATE_STOPPED
    await outside.delete_container(made.id)
    assert await inside.list_containers() == []


async def test_a_path_without_a_name_has_one_made_up(nest: Nest) -> None:
    made = await nest.clients[0].create_container(spec("vm1/"))
    assert made.name.startswith("vm1/process-")


async def test_every_depth_is_reached_from_the_outermost_node(deep: Nest) -> None:
    made = await deep.clients[0].create_container(spec("vm1/vm2/web"), start=True)
    assert made.name == "vm1/vm2/web"
    assert made.id.count("/") == 2
    assert [container.name for container in await deep.clients[0].list_containers()] == ["vm1", "vm1/vm2", "vm1/vm2/web"]
    assert [container.name for container in await deep.clients[1].list_containers()] == ["vm2", "vm2/web"]
    async with deep.clients[0].exec(api.ExecStart(container=made.id, args=["echo", "deep"])) as session:
        assert [data async for _, data in session.output()] == [b"deep\n"]
    nodes = await deep.clients[0].nodes()
    assert [(node.name, node.depth, node.state) for node in nodes] == [
        ("here", 0, node_pb2.NODE_STATE_READY),
        ("vm1", 1, node_pb2.NODE_STATE_READY),
        ("vm1/vm2", 2, node_pb2.NODE_STATE_READY),
    ]
    assert (await deep.clients[0].info(node="vm1/vm2")).containers == 1


async def test_streams_go_through_both_ways(nest: Nest) -> None:
    outside = nest.clients[0]
    await outside.create_container(spec("vm1/web"), start=True)
    async with outside.exec(api.ExecStart(container="vm1/web", args=["cat"], stdin=True)) as session:
        await session.write(b"there and back")
        await session.close_stdin()
        assert b"".join([data async for _, data in session.output()]) == b"there and back"
    assert session.exit is not None
    assert session.exit.code == 0


async def test_attach_and_logs_and_wait(nest: Nest) -> None:
    outside = nest.clients[0]
    await outside.create_container(spec("vm1/web", "echo", "hello"))
    async with outside.attach(api.AttachStart(container="vm1/web", run=True)) as session:
        assert [data async for _, data in session.output()] == [b"hello\n"]
    assert (await outside.wait_container("vm1/web")).code == 0
    assert [entry.data async for entry in outside.logs("vm1/web")] == [b"hello\n"]


async def test_lans_inside_have_paths_as_well(nest: Nest) -> None:
    outside = nest.clients[0]
    made = await outside.create_lan("vm1/lan0", subnet="10.5.0.0/24")
    assert made.name == "vm1/lan0"
    await nest.clients[1].create_container(spec("web"))
    await outside.connect_lan("vm1/web", api.NicSpec(lan="lan0"))
    (member,) = (await outside.get_lan("vm1/lan0")).members
    assert member.container == "vm1/web"
    assert [lan.name for lan in await outside.list_lans()] == ["vm1/lan0"]
    await outside.disconnect_lan("vm1/web", "lan0")
    await outside.delete_lan("vm1/lan0")


async def test_the_tree_tells_nodes_from_elements(nest: Nest) -> None:
    outside = nest.clients[0]
    process = api.ProcessSpec(args=SLEEP)
    for name, is_node in (("el", False), ("both", True)):
        made = api.ContainerSpec(kind=api.CONTAINER_KIND_QEMU, name=name, qemu=api.QemuSpec(node=is_node), process=process)
        made.labels["nestbed.element"] = name
        await outside.create_container(made)
    await outside.create_container(api.ContainerSpec(kind=api.CONTAINER_KIND_QEMU, name="plain", qemu=api.QemuSpec(), process=process))
    found = [(node.name, node.node, node.element) for node in await outside.nodes()]
    assert found == [("here", True, False), ("vm1", True, False), ("both", True, True), ("el", False, True)]


# ---------------------------------------------------------------- errors and roles


async def test_errors_keep_their_kind_and_name_the_path(nest: Nest) -> None:
    outside = nest.clients[0]
    with pytest.raises(errors.NotFound) as missing:
        await outside.get_container("vm1/web")
    assert missing.value.message == "there is no container vm1/web"
    assert (missing.value.reason, missing.value.metadata["node"]) == ("CONTAINER_NOT_FOUND", "vm1")
    await outside.create_container(spec("vm1/web"), start=True)
    with pytest.raises(errors.AlreadyExists) as taken:
        await outside.create_container(spec("vm1/web"))
    assert "container vm1/web" in taken.value.message
    assert taken.value.remedy.endswith("nbctl rm vm1/web")
    with pytest.raises(errors.WrongState) as running:
        await outside.delete_container("vm1/web")
    assert running.value.remedy.endswith("nbctl rm -f vm1/web")


async def test_what_is_no_node_has_nothing_inside(nest: Nest) -> None:
    outside = nest.clients[0]
    await outside.create_container(spec("web"))
    with pytest.raises(errors.WrongState) as caught:
        await outside.get_container("web/inner")
    assert caught.value.reason == "NOT_A_NODE"
    with pytest.raises(errors.NotFound):
        await outside.get_container("nobody/inner")
    with pytest.raises(errors.InvalidArgument) as several:
        await outside.impairments("vm1/lan0", container="vm9/web")
    assert several.value.reason == "SEVERAL_NODES"


async def test_a_role_is_passed_on_and_never_raised(nest: Nest) -> None:
    async with Client.connect(f"unix://{nest.sites[0].folder / OPERATOR_SOCKET}") as operator:
        assert (await operator.info(node="vm1")).role == "operator"
        made = await operator.create_container(spec("vm1/web"))
        assert made.spec.process.fs_mode == api.FS_MODE_OVERLAY
        with pytest.raises(errors.PermissionDenied) as caught:
            await operator.create_container(
                api.ContainerSpec(
                    kind=api.CONTAINER_KIND_PROCESS, name="vm1/x", process=api.ProcessSpec(args=SLEEP, fs_mode=api.FS_MODE_HOST)
                )
            )
        assert caught.value.reason == "NEEDS_ADMIN"
        with pytest.raises(errors.PermissionDenied):  # root of a node's machine is that node's administrator
            await operator.create_container(
                api.ContainerSpec(kind=api.CONTAINER_KIND_QEMU, qemu=api.QemuSpec(node=True), process=api.ProcessSpec(args=SLEEP))
            )
    assert (await nest.clients[0].info(node="vm1")).role == "admin"


async def test_only_the_node_outside_is_let_in(nest: Nest, tmp_path: Path) -> None:
    credentials = nest.sites[0].node.state_dir / "containers" / nest.machines[0] / "node"
    address = f"tcp://{nest.sites[0].kernel.containers[nest.machines[0]].node_address}"
    pems = {"tls_ca": credentials / "ca.pem", "tls_cert": credentials / "node.pem", "tls_key": credentials / "node.key"}
    async with Client.connect(address, call_seconds=5, **pems) as client:  # the node's own certificate is a server's, and gives no role
        with pytest.raises(NestbedError):
            await client.info()
    for path in (nest.sites[0].node.state_dir / "authority").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


# ---------------------------------------------------------------- LANs over all depths


def on_lan(name: str, *addresses: str) -> api.ContainerSpec:
    made = spec(name)
    made.nics.add(lan="lan0", addresses=addresses)
    return made


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again, at most for some seconds."""
    async with asyncio.timeout(5):
        while not await is_so():
            continue


async def is_equal(asked: Awaitable[object], wanted: object) -> bool:
    return await asked == wanted


async def members_of(client: Client, lan: str = "lan0") -> list[str]:
    return [member.container for member in (await client.get_lan(lan)).members]


async def until_in_hosts(site: Any, client: Client, name: str, line: str) -> None:
    """Wait until the hosts file of a container has the line."""
    container = site.kernel.containers[site.node.container(name).spec.id]

    async def is_there() -> bool:
        await client.info(with_abilities=False)
        return line in container.hosts

    await until(is_there)


async def test_a_lan_reaches_inside_with_addresses_of_the_outermost_node(deep: Nest) -> None:
    outside, middle, inside = deep.clients
    lan = await outside.create_lan("lan0", subnet="10.5.0.0/24", mtu=1400)
    assert (await outside.create_container(on_lan("db"), start=True)).nics[0].addresses == ["10.5.0.1/24"]
    deepest = await outside.create_container(on_lan("vm1/vm2/web"), start=True)
    assert deepest.nics[0].addresses == ["10.5.0.2/24"]
    assert (await outside.create_container(on_lan("vm1/mid"), start=True)).nics[0].addresses == ["10.5.0.3/24"]
    for client in (middle, inside):
        there = await client.get_lan("lan0")
        assert (there.id, there.subnet, there.mtu, there.outside) == (lan.id, "10.5.0.0/24", 1400, True)
        assert there.group == (await outside.get_lan("lan0")).group != ""
    members = (await outside.get_lan("lan0")).members
    assert [(member.container, list(member.nic.addresses)) for member in members] == [
        ("db", ["10.5.0.1/24"]),
        ("vm1/vm2/web", ["10.5.0.2/24"]),
        ("vm1/mid", ["10.5.0.3/24"]),
    ]
    assert [one.name for one in await outside.list_lans()] == ["lan0"]
    for site, client, name in zip(deep.sites, deep.clients, ("db", "mid", "web"), strict=True):
        for line in ("10.5.0.1\tdb", "10.5.0.2\tweb", "10.5.0.3\tmid"):
            await until_in_hosts(site, client, name, line)


async def test_addresses_inside_clash_with_nobodys(nest: Nest) -> None:
    outside, inside = nest.clients
    await outside.create_lan("lan0", subnet="10.5.0.0/24")
    await outside.create_container(on_lan("vm1/web", "10.5.0.1/24"))
    assert (await outside.create_container(on_lan("db"))).nics[0].addresses == ["10.5.0.2/24"]
    with pytest.raises(errors.AlreadyExists):
        await outside.create_container(on_lan("vm1/other", "10.5.0.2/24"))
    with pytest.raises(errors.WrongState) as refused:  # asked inside: nobody there knows what is taken
        await inside.create_container(on_lan("x"))
    assert refused.value.reason == "ADDRESSES_FROM_OUTSIDE"
    with pytest.raises(errors.WrongState):
        await outside.delete_lan("lan0")
    await outside.delete_container("vm1/web")
    await until(lambda: is_equal(members_of(outside), ["db"]))
    assert (await outside.create_container(on_lan("vm1/new"))).nics[0].addresses == ["10.5.0.1/24"]


async def test_a_refused_container_inside_keeps_no_address(nest: Nest) -> None:
    outside = nest.clients[0]
    await outside.create_lan("lan0", subnet="10.5.0.0/24")
    bad = on_lan("vm1/web")
    bad.process.mounts.add(source="/nowhere", destination="/x")
    with pytest.raises(errors.NotFound):
        await outside.create_container(bad)
    assert list((await outside.get_lan("lan0")).members) == []
    assert (await outside.create_container(on_lan("vm1/web"))).nics[0].addresses == ["10.5.0.1/24"]


async def test_connecting_and_disconnecting_inside(nest: Nest) -> None:
    outside = nest.clients[0]
    await outside.create_lan("lan0", subnet="10.5.0.0/24")
    await outside.create_container(spec("vm1/web"))
    assert (await outside.connect_lan("vm1/web", api.NicSpec(lan="lan0"))).addresses == ["10.5.0.1/24"]
    await until(lambda: is_equal(members_of(outside), ["vm1/web"]))
    await outside.disconnect_lan("vm1/web", "lan0")
    await until(lambda: is_equal(members_of(outside), []))
    await outside.delete_lan("lan0")
    await until(lambda: is_equal(nest.clients[1].list_lans(), []))


async def test_a_lan_s_impairment_is_in_force_inside(nest: Nest) -> None:
    outside = nest.clients[0]
    await outside.create_lan("lan0", subnet="10.5.0.0/24")
    await outside.create_container(on_lan("vm1/web"))
    await outside.set_impairment("lan0", Impairment(delay_us=2000))

    async def is_delayed() -> bool:
        return (await nest.clients[1].get_lan("lan0")).impairment.delay_us == 2000

    await until(is_delayed)


async def test_members_inside_are_on_record(nest: Nest) -> None:
    """What was handed out is known before the node inside answers again."""
    outside = nest.clients[0]
    await outside.create_lan("lan0", subnet="10.5.0.0/24")
    await outside.create_container(on_lan("vm1/web"))
    record = nest.sites[0].node.state_dir / "containers" / nest.machines[0] / "elsewhere.json"
    (entry,) = json.loads(record.read_bytes())["entries"]
    assert (entry["name"], entry["nics"][0]["addresses"]) == ("web", ["10.5.0.1/24"])


# ---------------------------------------------------------------- everything


async def test_lists_go_through_all_nodes_page_by_page(nest: Nest) -> None:
    outside, inside = nest.clients
    for number in range(5):
        await inside.create_container(spec(f"web{number}"))
    await outside.create_container(spec("db"))
    names = [container.name for container in await outside.list_containers()]
    assert names == ["vm1", "db", *(f"vm1/web{number}" for number in range(5))]
    request = api.ListContainersRequest(page_size=2)
    pages = []
    while True:
        page = await outside._call(outside._containers.ListContainers, request)
        pages.append([container.name for container in page.containers])
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert [name for page in pages for name in page] == names
    assert max(map(len, pages)) == 2
    for glob, expected in {"vm1/web[01]": ["vm1/web0", "vm1/web1"], "*": ["vm1", "db"], "vm*/web4": ["vm1/web4"], "x/*": []}.items():
        assert [container.name for container in await outside.list_containers(names=[glob])] == expected, glob


async def test_stats_and_audit_are_of_all_nodes(nest: Nest) -> None:
    outside = nest.clients[0]
    await outside.create_container(spec("vm1/web"), start=True)
    async for response in outside.stats():
        assert sorted(each.name for each in response.stats) == ["vm1", "vm1/web"]
    async for response in outside.stats(["vm1/web"]):
        assert [each.name for each in response.stats] == ["vm1/web"]
    with pytest.raises(errors.NotFound):
        async for _ in outside.stats(["vm1/nobody"]):
            pass
    found = await outside.audit()
    assert list(found.leftovers) == []
    assert list(found.unreachable) == []


async def test_events_of_nodes_inside_are_told_outside(deep: Nest) -> None:
    outside = deep.clients[0]
    assert (await outside.info(node="vm1/vm2")).name
    seen: list[node_pb2.Event] = []

    async def watch() -> None:
        async for response in outside.events(types=("container.created",), history=True):
            seen.append(response.event)
            if response.event.name == "vm1/vm2/web":
                return

    watching = asyncio.create_task(watch())
    made = await outside.create_container(spec("vm1/vm2/web"))
    await asyncio.wait_for(watching, 5)
    assert seen[-1].id == made.id
    assert seen[-1].attributes["kind"] == "process"


# ---------------------------------------------------------------- faults


async def test_a_silent_node_is_told_and_holds_nobody_up(nest: Nest) -> None:
    outside = nest.clients[0]
    await outside.create_container(spec("vm1/web"), start=True)
    await nest.doors[0].aclose()
    await nest.door(outside, "node.silent")
    faults: list[node_pb2.NodeFault] = []
    assert [container.name for container in await outside.list_containers(unreachable=faults)] == ["vm1"]
    assert [(fault.node, fault.state) for fault in faults] == [("vm1", node_pb2.NODE_STATE_SILENT)]
    assert [fault.node for fault in (await outside.audit()).unreachable] == ["vm1"]
    with pytest.raises(errors.Unavailable) as caught:
        await outside.get_container("vm1/web")
    assert caught.value.reason == "NODE_SILENT"


async def test_what_was_on_a_node_that_died_is_told_as_lost(nest: Nest) -> None:
    outside = nest.clients[0]
    made = await outside.create_container(spec("vm1/web"), start=True)
    await outside.stop_container("vm1", grace_seconds=0)
    lost = await nest.door(outside, "container.lost")
    assert (lost.id, lost.name) == (made.id, "vm1/web")
    assert "vm1 ended" in lost.attributes["cause"]
    with pytest.raises(errors.WrongState) as caught:
        await outside.get_container("vm1/web")
    assert caught.value.reason == "NODE_STOPPED"
    assert [node.state for node in await outside.nodes()] == [node_pb2.NODE_STATE_READY, node_pb2.NODE_STATE_STOPPED]
    await outside.delete_container("vm1")
    assert [node.name for node in await outside.nodes()] == ["here"]


# ---------------------------------------------------------------- names, by themselves


@pytest.mark.parametrize(
    ("message", "head"),
    [
        (api.GetContainerRequest(container="web"), ""),
        (api.GetContainerRequest(container="vm1/vm2/web"), "vm1"),
        (api.CreateContainerRequest(spec=api.ContainerSpec(name="vm1/")), "vm1"),
        (api.ExecRequest(start=api.ExecStart(container="vm1/web")), "vm1"),
        (api.GetContainerRequest(container="/web"), ""),
        (node_pb2.GetInfoRequest(node="vm1"), "vm1"),
        (lan_pb2.SetImpairmentRequest(lan="lan0", container="vm1/web"), "vm1"),
    ],
)
def test_the_first_part_of_a_path_says_whom_a_request_is_for(message: Any, head: str) -> None:
    assert naming.head_of(message) == head


def test_every_request_that_names_a_container_may_name_one_inside() -> None:
    """A field called ``container`` that nobody marked would stay on the node that is asked."""
    plain = [
        f"{message.full_name}.{one.name}"
        for file in (api.DESCRIPTOR, lan_pb2.DESCRIPTOR)
        for message in file.message_types_by_name.values()
        for one in message.fields
        if one.name in ("container", "container_id") and one.type == one.TYPE_STRING and not one.GetOptions().ListFields()
    ]
    assert plain == []


def test_names_in_errors_become_paths_only_where_they_are_names() -> None:
    told = errors.NotFound("there is a container a of kind a", reason="R", remedy="see `nbctl rm -f a`, a lot", container="a")
    seen = naming.outside(told, "vm1")
    assert seen.message == "there is a container vm1/a of kind a"
    assert seen.remedy == "see `nbctl rm -f vm1/a`, a lot"
    assert naming.outside(seen, "vm0").metadata == {"container": "vm0/vm1/a", "node": "vm0/vm1"}


def test_shares() -> None:
    assert naming.own_share(["vm1/a"]) is None
    assert naming.share_of(["web"], "vm1", "0a1b2c3d4e5f") is None
    assert naming.share_of(["vm1/a", "0a1b/b", "vm2/c"], "vm1", "0a1b2c3d4e5f") == ["a", "b"]
