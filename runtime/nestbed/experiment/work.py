"""Bringing one experiment up and down: from what nodes have to what the plan says. Every step may be the last one before the daemon is
killed; the next daemon begins again by asking the nodes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from nestbed.errors import NestbedError, NotFound
from nestbed.experiment import machines, readiness, requests
from nestbed.experiment.fleet import Fleet, Holdings, compare
from nestbed.experiment.plan import Plan, PlannedElement, PlannedLan
from nestbed.experiment.progress import Progress
from nestbed.experiment.readiness import NotReady
from nestbed.experiment.requests import Digests
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import experiment_pb2

T = TypeVar("T")
Key = tuple[str, str]

AT_ONCE = 32
"""Calls under way at once to each node."""

_CREATED = experiment_pb2.ELEMENT_STATE_CREATED
_RUNNING = experiment_pb2.ELEMENT_STATE_RUNNING
_READY = experiment_pb2.ELEMENT_STATE_READY
_FAILED = experiment_pb2.ELEMENT_STATE_FAILED
_ABSENT = experiment_pb2.ELEMENT_STATE_ABSENT


class Rise:
    """One way up. ``problems`` tells what failed, ``failed`` which elements and why."""

    def __init__(self, plan: Plan, digests: Digests, fleet: Fleet, progress: Progress, *, run_id: str, keep: bool) -> None:
        self._plan, self._digests, self._fleet, self._progress = plan, digests, fleet, progress
        self._run_id, self._keep = run_id, keep
        self._gates = {name: asyncio.Semaphore(AT_ONCE) for name in fleet.clients}
        self._ready: dict[str, asyncio.Event] = {name: asyncio.Event() for name in plan.elements}
        self.failed: dict[str, str] = {}
        self.problems: list[str] = []

    async def run(self) -> None:
        """Make what is missing, remove what is too much, start what does not run, wait until all is ready.

        Raises:
            NestbedError: a node cannot be asked.
        """
        holdings = await self._fleet.holdings(self._plan.name)
        if await machines.raise_all(self._plan, self._digests, self._fleet, holdings, self._run_id):
            holdings = await self._fleet.holdings(self._plan.name)
        for node, error in holdings.unreachable.items():
            if any(element.node == node for element in self._plan.elements.values()):
                raise error
        changes = compare(self._plan, self._digests, holdings)
        await self._clear(changes, holdings)
        made = {(change.node, change.name) for change in changes if change.noun == "lan" and change.kind in _MAKING}
        if not await self._all(self._make_lan(self._plan.lans[name], node) for node, name in made):
            return
        new = {change.name for change in changes if change.noun == "element" and change.kind in _MAKING}
        idle = new | {change.name for change in changes if change.noun == "element" and change.kind == experiment_pb2.CHANGE_KIND_START}
        if not await self._all(self._create(self._plan.elements[name]) for name in self._plan.elements if name in new):
            return
        if await self._all(self._start(element, is_new=element.name in idle) for element in self._plan.elements.values()):
            await self._look_again()

    async def _clear(self, changes: Iterable[experiment_pb2.Change], holdings: Holdings) -> None:
        gone = [change for change in changes if change.kind in (experiment_pb2.CHANGE_KIND_REMOVE, experiment_pb2.CHANGE_KIND_REPLACE)]
        lans = {(change.node, change.name) for change in gone if change.noun == "lan"}
        elements = {(change.node, change.name) for change in gone if change.noun == "element"}
        nodes = {(change.node, change.name) for change in gone if change.noun == "node"}
        await remove(self._fleet, self._gates, holdings, (elements, nodes, lans), self._progress)

    async def _all(self, works: Iterable[Coroutine[Any, Any, None]]) -> bool:
        """Do all at once; whether to go on. What fails is a problem; without ``keep`` the rest is then given up."""
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            while pending := [task for task in tasks if not task.done()]:
                await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
                if self.problems and not self._keep:
                    return False
            for task in tasks:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self._keep or not self.problems

    async def _make_lan(self, planned: PlannedLan, node: str) -> None:
        client = self._fleet.clients[node]
        wanted = requests.lan_request(self._plan, planned)
        wanted["labels"] |= {requests.DIGEST: self._digests.lans[planned.name]}
        try:
            async with self._gates[node]:
                lan = await client.create_lan(**wanted, request_id=self._request_id("lan", planned.name))
                shaped = requests.lan_impairment(planned)
                if shaped is not None:
                    await client.set_impairment(lan.id, shaped)
        except NestbedError as error:
            self._give_up(f"LAN {planned.name} on {node}: {error.message}", error.remedy)

    async def _create(self, planned: PlannedElement) -> None:
        spec = requests.container_spec(self._plan, planned)
        spec.labels[requests.DIGEST] = self._digests.elements[planned.name]
        try:
            async with self._gates[planned.node]:
                await self._fleet.clients[planned.node].create_container(spec, request_id=self._request_id("element", planned.name))
        except NestbedError as error:
            self._fail(planned.name, error.message, remedy=error.remedy)
        else:
            self._progress.step(planned.name, _CREATED)

    async def _start(self, planned: PlannedElement, *, is_new: bool) -> None:
        """Start an element when those before it are ready, and wait until it is."""
        if planned.name in self.failed:
            return
        for other in planned.element.after:
            await self._ready[other].wait()
            if other in self.failed:
                self._fail(planned.name, f"was not started: {other} is not ready")
                return
        client = self._fleet.clients[planned.node]
        try:
            if is_new:
                async with self._gates[planned.node]:
                    await client.start_container(planned.node_name)
                self._progress.step(planned.name, _RUNNING)
            if readiness.has_conditions(planned):
                await readiness.wait_ready(client, planned)
        except NestbedError as error:
            self._fail(planned.name, error.message, remedy=error.remedy)
        except NotReady as error:
            self._fail(planned.name, error.why, error.output)
        else:
            self._progress.step(planned.name, _READY)
            self._ready[planned.name].set()

    async def _look_again(self) -> None:
        """Whatever ended meanwhile and not well is a problem, even if nobody waited for it."""
        holdings = await self._fleet.holdings(self._plan.name)
        for planned in self._plan.elements.values():
            container = holdings.containers.get((planned.node, planned.name))
            if container is None or planned.name in self.failed:
                continue
            if container.state == api.CONTAINER_STATE_STOPPED and not (container.exit.HasField("code") and container.exit.code == 0):
                output = await readiness.tail(self._fleet.clients[planned.node], planned)
                self._fail(planned.name, readiness.how_it_ended(container), output)

    def _fail(self, element: str, why: str, output: str = "", *, remedy: str = "") -> None:
        self.failed[element] = why
        self._ready[element].set()
        self._progress.step(element, _FAILED, why)
        self._give_up(f"{element} {why}" if output or not remedy else f"{element}: {why}", remedy, output)

    def _give_up(self, message: str, remedy: str = "", output: str = "") -> None:
        lines = [message, *([f"remedy: {remedy}"] if remedy else []), *(f"  | {line}" for line in output.splitlines())]
        self.problems.append("\n".join(lines))

    def _request_id(self, noun: str, name: str) -> str:
        return hashlib.sha256(f"{self._run_id}/{noun}/{name}".encode()).hexdigest()[:40]


_MAKING = (experiment_pb2.CHANGE_KIND_MAKE, experiment_pb2.CHANGE_KIND_REPLACE)


async def fall(name: str, fleet: Fleet, progress: Progress, *, force: bool) -> list[str]:
    """Remove everything that the nodes have of an experiment; what could not be removed, a line each.

    With ``force`` nodes that cannot be reached are left alone.
    """
    holdings = await fleet.holdings(name)
    going = {name for _, name in holdings.machines}
    problems = [f"node {node}: {error.message}" for node, error in holdings.unreachable.items() if not force and node not in going]
    gates = {node: asyncio.Semaphore(AT_ONCE) for node in fleet.clients}
    try:
        await remove(fleet, gates, holdings, (holdings.containers, holdings.machines, holdings.lans), progress)
    except NestbedError as error:
        problems.append(error.message)
    return problems


async def remove(
    fleet: Fleet,
    gates: dict[str, asyncio.Semaphore],
    holdings: Holdings,
    gone: tuple[Iterable[Key], Iterable[Key], Iterable[Key]],
    progress: Progress,
) -> None:
    """Remove elements, then nodes that are virtual machines, then LANs. Tries all, whatever fails.

    Raises:
        NestbedError: the first failure.
    """
    elements, nodes, lans = gone
    lost = {name for _, name in nodes}

    async def element(key: Key) -> None:
        if key[0] in lost:  # it goes with its machine
            progress.step(key[1], _ABSENT)
            return
        client = fleet.clients[key[0]]
        await _gone(gates[key[0]], lambda: client.delete_container(holdings.containers[key].id, force=True))
        progress.step(key[1], _ABSENT)

    async def node(key: Key) -> None:
        client = fleet.clients[key[0]]
        await _gone(gates[key[0]], lambda: client.delete_container(holdings.machines[key].id, force=True))

    async def lan(key: Key) -> None:
        client = fleet.clients[key[0]]
        await _gone(gates[key[0]], lambda: client.delete_lan(holdings.lans[key].id))

    for works in ([element(key) for key in elements], [node(key) for key in nodes], [lan(key) for key in lans]):
        results = await asyncio.gather(*works, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


async def _gone(gate: asyncio.Semaphore, delete: Callable[[], Awaitable[None]]) -> None:
    async with gate:
        try:
            await delete()
        except NotFound:
            return
