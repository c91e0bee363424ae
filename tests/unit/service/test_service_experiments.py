"""Experiments through the API, on nodes of which nothing is real."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nestbed.client import Client
from nestbed.errors import Busy, InvalidArgument, NestbedError, NotFound, PermissionDenied, ResourceExhausted, Unsupported
from nestbed.experiment import plan
from nestbed.model import Kind
from nestbed.node.node import Node
from nestbed.node.rundir import RunDirectory
from nestbed.service.server import ADMIN_SOCKET, serving
from nestbed.testing.fake import FakeKernel, FakeRuntime
from nestbed.testing.fake_plane import FakePlane
from nestbed.v1 import container_pb2
from nestbed.v1 import experiment_pb2 as api

STREET = """\
experiment: street
lans: {left: {}, right: {}}
elements:
  server: {nics: [right], command: "echo open; sleep 1000", ready: {log: open}}
  router: {nics: [left, right]}
  'bot[1-3]': {nics: [left], command: sleep 1000, after: server}
"""
VTOPO = ("v.yaml", STREET)

READY, FAILED, ABSENT = api.ELEMENT_STATE_READY, api.ELEMENT_STATE_FAILED, api.ELEMENT_STATE_ABSENT


async def up(client: Client, text: str = STREET, ptopo: str = "", **options: Any) -> tuple[api.Experiment, list[tuple[str, int]]]:
    steps: list[tuple[str, int]] = []
    found = api.Experiment()
    async for response in client.up(("v.yaml", text), ("p.yaml", ptopo) if ptopo else None, **options):
        steps += [(step.element, step.state) for step in response.progress]
        if response.HasField("experiment"):
            found = response.experiment
    return found, steps


async def down(client: Client, name: str = "street", **options: Any) -> api.Experiment:
    found = api.Experiment()
    async for response in client.down(name, **options):
        found = response.experiment
    return found


async def states(client: Client, name: str = "street") -> dict[str, int]:
    return {element.name: element.state for element in (await client.get_experiment(name)).elements}


async def names(client: Client) -> set[str]:
    return {container.name for container in await client.list_containers()} | {lan.name for lan in await client.list_lans()}


async def test_up_makes_everything_and_down_leaves_nothing(admin: Client) -> None:
    found, steps = await up(admin)
    assert (found.state, found.element_count, found.lan_count) == (api.EXPERIMENT_STATE_UP, 5, 2)
    assert steps.index(("server", READY)) < steps.index(("bot1", api.ELEMENT_STATE_RUNNING))
    assert await states(admin) == dict.fromkeys(("server", "router", "bot1", "bot2", "bot3"), READY)
    bot = await admin.get_container("street.bot2")
    assert bot.spec.hostname == "bot2"
    assert bot.nics[0].addresses == ["10.0.0.3/24"]
    assert [(route.destination, route.via) for route in bot.spec.routes] == [("10.0.1.0/24", "10.0.0.1")]
    assert "10.0.1.1\tserver server-right\n" in bot.spec.hosts
    assert bot.spec.labels["nestbed.experiment"] == "street"
    assert [one.name for one in await admin.list_experiments()] == ["street"]
    assert (await down(admin)).state == api.EXPERIMENT_STATE_DOWN
    assert await names(admin) == set()
    assert await admin.list_experiments() == []
    with pytest.raises(NotFound):
        await admin.get_experiment("street")


async def test_up_again_changes_nothing_and_makes_what_was_lost(admin: Client) -> None:
    await up(admin)
    before = {container.name: container.id for container in await admin.list_containers()}
    assert await admin.diff_experiment(VTOPO) == []
    await up(admin)
    assert {container.name: container.id for container in await admin.list_containers()} == before
    await admin.delete_container("street.bot1", force=True)
    await admin.kill_container("street.router")
    await admin.wait_container("street.router")
    assert (await states(admin))["bot1"] == ABSENT
    assert (await states(admin))["router"] == FAILED
    kinds = {change.name: change.kind for change in await admin.diff_experiment(VTOPO)}
    assert kinds == {"bot1": api.CHANGE_KIND_MAKE, "router": api.CHANGE_KIND_START}
    assert (await up(admin))[0].state == api.EXPERIMENT_STATE_UP
    assert set((await states(admin)).values()) == {READY}
    assert (await admin.get_container("street.bot2")).id == before["street.bot2"]


async def test_a_changed_file_replaces_what_it_changed(admin: Client) -> None:
    await up(admin)
    server = (await admin.get_container("street.server")).id
    changed = STREET.replace("sleep 1000, after", "sleep 2000, after").replace("bot[1-3]", "bot[1-3]")
    kinds = {change.name: change.kind for change in await admin.diff_experiment(("v.yaml", changed))}
    assert kinds == dict.fromkeys(("bot1", "bot2", "bot3"), api.CHANGE_KIND_REPLACE)
    await up(admin, changed)
    assert (await admin.get_container("street.server")).id == server
    assert (await admin.get_container("street.bot1")).spec.process.args[-1] == "sleep 2000"
    fewer = changed.replace("'bot[1-3]'", "bot1").replace("left: {}", "left: {mtu: 1400}")
    await up(admin, fewer)
    assert await names(admin) == {"street.server", "street.router", "street.bot1", "street.left", "street.right"}
    assert (await admin.get_lan("street.left")).mtu == 1400


async def test_a_failure_leaves_nothing_and_says_what_failed(admin: Client, served: Any) -> None:
    served.kernel.fail_next("create", ResourceExhausted("there is no room", remedy="make some"))
    found, steps = await up(admin)
    assert found.state == api.EXPERIMENT_STATE_DOWN
    assert len(found.problems) == 1
    assert "there is no room\nremedy: make some" in found.problems[0]
    assert FAILED in dict(steps).values() or (any(state == FAILED for _, state in steps))
    assert await names(admin) == set()
    assert await admin.list_experiments() == []


async def test_with_keep_what_works_stays_and_the_output_of_what_failed_is_shown(admin: Client) -> None:
    broken = STREET.replace("echo open; sleep 1000", "echo no; exit 3")
    found, _ = await up(admin, broken, keep=True)
    assert found.state == api.EXPERIMENT_STATE_FAILED
    assert found.problems[0] == "server ended with status 3\n  | no"
    assert sorted(found.problems[1:]) == [f"bot{number} was not started: server is not ready" for number in (1, 2, 3)]
    assert await states(admin) == {
        "server": FAILED,
        "router": api.ELEMENT_STATE_RUNNING,
        **dict.fromkeys(("bot1", "bot2", "bot3"), api.ELEMENT_STATE_CREATED),
    }
    assert (await admin.wait_experiment("street")).state == api.EXPERIMENT_STATE_FAILED
    assert (await up(admin))[0].state == api.EXPERIMENT_STATE_UP


async def test_a_program_that_ends_badly_at_once_fails_the_experiment(admin: Client) -> None:
    text = "experiment: x\nelements: {a: {command: 'echo oh; exit 1'}, b: {command: sleep 9, ready: {log: never, timeout: 50ms}}}\n"
    found, _ = await up(admin, text, keep=True)
    assert sorted(problem.split("\n")[0] for problem in found.problems) == ["a ended with status 1", "b was not ready within 0.05 s"]


async def test_an_experiment_is_brought_up_once_at_a_time(admin: Client) -> None:
    slow = STREET.replace("echo open; sleep 1000", "sleep 1000; echo open")
    first = admin.up(("v.yaml", slow))
    while not any(step.element == "server" and step.state == api.ELEMENT_STATE_RUNNING for step in (await anext(first)).progress):
        pass
    with pytest.raises(Busy, match="experiment street is rising"):
        await up(admin)
    assert (await admin.list_experiments())[0].state == api.EXPERIMENT_STATE_RISING
    assert (await down(admin)).state == api.EXPERIMENT_STATE_DOWN
    assert await names(admin) == set()
    assert [response.experiment.state async for response in first if response.HasField("experiment")] == [api.EXPERIMENT_STATE_RISING]


@pytest.mark.parametrize(
    ("text", "ptopo", "error", "message"),
    [
        (STREET.replace("nics: [right]", "nics: [rihgt]"), "", InvalidArgument, "v.yaml:4:19: element server is on LAN rihgt"),
        (STREET.replace("server: {", "server: {kind: qemu, "), "", Unsupported, "element server is of kind qemu"),
        (STREET.replace("server: {", "server: {kind: machine, "), "", Unsupported, "element server is of kind machine"),
        (STREET, "nodes: {a: {}, b: {}}\nplacement: {strategy: balanced}", InvalidArgument, "the nodes a and b of the ptopo are the same"),
        (STREET, "nodes: {a: {address: 'unix:///nowhere/x.sock'}}", NestbedError, ""),
        (STREET, "nodes: {a: {}, b: {vm: {on: a}}}", Unsupported, "node b is to be a virtual machine on a, which makes none"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_made(
    admin: Client, text: str, ptopo: str, error: type[NestbedError], message: str
) -> None:
    with pytest.raises(error) as caught:
        await up(admin, text, ptopo)
    assert message in caught.value.message
    assert await names(admin) == set()
    assert await admin.list_experiments() == []


async def test_operators_use_the_node_they_ask_and_no_other(operator: Client, admin: Client) -> None:
    assert (await up(operator))[0].state == api.EXPERIMENT_STATE_UP
    with pytest.raises(PermissionDenied, match="only an administrator may have this node call others"):
        await up(operator, STREET, "nodes: {a: {address: 'unix:///run/x.sock'}}")
    privileged = STREET.replace("router: {", "router: {fs: host, ").replace("experiment: street", "experiment: other")
    found, _ = await up(operator, privileged)
    assert found.state == api.EXPERIMENT_STATE_DOWN
    assert "router" in found.problems[0]
    await down(operator)


async def drain(responses: AsyncIterator[api.UpResponse]) -> None:
    async for _ in responses:
        pass


class Place:
    """A node at a place of its own, which can die and come back."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.kernel = FakeKernel()
        self.stack = contextlib.AsyncExitStack()

    @property
    def address(self) -> str:
        return f"unix://{self.base / 'run' / ADMIN_SOCKET}"

    async def start(self) -> None:
        claim = self.stack.enter_context(RunDirectory.claim(self.base / "run", self.base / "state"))
        node = Node(
            name=self.base.name,
            run_dir=claim.run_dir,
            state_dir=claim.state_dir,
            runtimes={Kind.PROCESS: FakeRuntime(self.kernel)},
            plane=FakePlane(self.kernel),
            node_id=claim.node_id,
        )
        await node.open()
        self.stack.push_async_callback(node.aclose)
        await self.stack.enter_async_context(serving(node, claim.run_dir))

    async def stop(self) -> None:
        await self.stack.aclose()


@pytest.fixture
async def places(tmp_path: Path) -> AsyncIterator[list[Place]]:
    places = [Place(tmp_path / name) for name in ("one", "two")]
    for place in places:
        place.base.mkdir()
        await place.start()
    yield places
    for place in places:
        await place.stop()
        await place.kernel.aclose()


async def test_elements_go_to_the_nodes_of_the_ptopo(places: list[Place]) -> None:
    text = "experiment: two\nlans: {a: {}, b: {}}\nelements: {'x[1-2]': {nics: [a]}, 'y[1-2]': {nics: [b]}}\n"
    ptopo = f"nodes: {{one: {{}}, two: {{address: '{places[1].address}'}}}}\nplacement: {{fixed: {{'x[1-2]': one, 'y[1-2]': two}}}}\n"
    async with Client.connect(places[0].address) as one, Client.connect(places[1].address) as two:
        assert (await up(one, text, ptopo))[0].state == api.EXPERIMENT_STATE_UP
        assert await names(one) == {"two.x1", "two.x2", "two.a"}
        assert await names(two) == {"two.y1", "two.y2", "two.b"}
        await places[1].stop()
        found = await states(one, "two")
        assert found == {"x1": READY, "x2": READY, "y1": api.ELEMENT_STATE_LOST, "y2": api.ELEMENT_STATE_LOST}
        failed = await down(one, "two")
        assert failed.state == api.EXPERIMENT_STATE_FAILED
        assert "node two: " in failed.problems[0]
        await places[1].start()
    async with Client.connect(places[0].address) as one, Client.connect(places[1].address) as two:
        assert (await up(one, text, ptopo))[0].state == api.EXPERIMENT_STATE_UP
        alone = "nodes: {one: {}}\n"
        assert (await up(one, text, alone))[0].state == api.EXPERIMENT_STATE_UP
        assert await names(one) == {"two.x1", "two.x2", "two.a", "two.y1", "two.y2", "two.b"}
        assert await names(two) == set()
        await down(one, "two")


async def test_a_daemon_that_comes_back_goes_on_with_what_was_under_way(places: list[Place]) -> None:
    place = places[0]
    slow = STREET.replace("ready: {log: open}", "ready: {log: never, timeout: 1m}")
    async with Client.connect(place.address) as client:
        responses = client.up(("v.yaml", slow))
        while not any(step.element == "server" and step.state == api.ELEMENT_STATE_RUNNING for step in (await anext(responses)).progress):
            pass
        await place.stop()
        with pytest.raises(NestbedError):
            await drain(responses)
    await place.start()
    async with Client.connect(place.address) as client:
        assert (await client.list_experiments())[0].state == api.EXPERIMENT_STATE_RISING
        assert (await down(client)).state == api.EXPERIMENT_STATE_DOWN
        assert await names(client) == set()


async def test_making_a_large_experiment_costs_the_engine_little(places: list[Place]) -> None:
    """On fakes everything is the engine and gRPC. The bound is many times what it takes, to bear with a busy machine."""
    rows = "".join(f"  h{lan}x[1-9]: {{nics: [l{lan}]}}\n" for lan in range(1, 21))
    text = f"experiment: big\nlans: {{core: {{}}, 'l[1-20]': {{}}}}\nelements:\n  r[1-20]:\n    nics: [core, 'l{{n}}']\n{rows}"
    plan.make((text, "v"))
    async with Client.connect(places[0].address) as client, asyncio.timeout(30):
        found, _ = await up(client, text)
        assert (found.state, found.element_count) == (api.EXPERIMENT_STATE_UP, 200)
        assert (await down(client, "big")).state == api.EXPERIMENT_STATE_DOWN


async def test_cables_of_elements_and_lans(admin: Client) -> None:
    await up(admin)

    async def set_links(*links: str, up: bool = False) -> list[str]:
        return [f"{link.element}:{link.nic}@{link.lan} {link.is_down}" for link in await admin.set_links("street", links, up=up)]

    assert await set_links("router:right") == ["router:eth1@right True"]
    assert await set_links("router:eth1", "bot2") == ["router:eth1@right True", "bot2:eth0@left True"]
    down = {element.name: list(element.nics_down) for element in (await admin.get_experiment("street")).elements if element.nics_down}
    assert down == {"router": ["eth1"], "bot2": ["eth0"]}
    assert len(await set_links("left", up=True)) == 4
    assert await set_links(":right", "router:", up=True) == [
        "server:eth0@right False",
        "router:eth1@right False",
        "router:eth0@left False",
        "router:eth1@right False",
    ]
    await set_links("left")
    await up(admin)
    assert all("eth0" in element.nics_down for element in (await admin.get_experiment("street")).elements if element.name != "server")
    for wrong in ("lefd", "bot1:right", "nobody:left", ":bot1"):
        with pytest.raises(NotFound):
            await set_links(wrong)
    with pytest.raises(InvalidArgument):
        await set_links()
    await down_all(admin)


async def down_all(client: Client) -> None:
    for one in await client.list_experiments():
        await down(client, one.name)


async def test_a_program_in_all_elements(admin: Client) -> None:
    await up(admin)

    async def run(*args: str, **labels: str) -> dict[str, list[object]]:
        told: dict[str, list[object]] = {}
        wanted = {f"nestbed.{key}": value for key, value in labels.items()}
        async for piece in admin.exec_in_elements("street", container_pb2.ExecStart(args=args), labels=wanted):
            value = getattr(piece, piece.WhichOneof("output") or "")
            told.setdefault(piece.element, []).append(value.code if piece.HasField("exit") else value)
        return told

    assert await run("echo", "hi") == {key: [b"hi\n", 0] for key in ("server", "router", "bot1", "bot2", "bot3")}
    assert await run("sh", "-c", "exit 3", element="bot1") == {"bot1": [3]}
    assert "no-such-program" in str((await run("no-such-program", element="bot1"))["bot1"])
    with pytest.raises(NotFound, match="no element of street"):
        await run("echo", element="nobody")
    with pytest.raises(InvalidArgument):
        _ = [piece async for piece in admin.exec_in_elements("street", container_pb2.ExecStart(args=["cat"], stdin=True))]
    await down_all(admin)
