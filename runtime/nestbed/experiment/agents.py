"""The agents of all nodes of an experiment as one: views by element, and the barriers at which elements meet wherever they are.

Who waits is known by the nodes, and is asked of them anew whenever something happened; here stands only who was let go and may not have
been told yet, so that those who met at a barrier pass it all, even if this daemon is killed between two of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from nestbed.client import Client
from nestbed.errors import NestbedError, NotFound, shown, translated
from nestbed.experiment import requests
from nestbed.experiment.fleet import Fleet
from nestbed.experiment.plan import Plan, PlannedElement
from nestbed.log import fields
from nestbed.node.agent.barriers import complete
from nestbed.node.agent.values import Arrival
from nestbed.node.names import matcher
from nestbed.v1 import agent_pb2 as api
from nestbed.v1 import container_pb2

RETRY_SECONDS = 2.0
_NEWS = ("agent.arrived", "agent.passed", "agent.timed-out")
_logger = logging.getLogger(__name__)


def select(plan: Plan, names: Sequence[str]) -> list[PlannedElement]:
    """The elements with these names or globs; none is all.

    Raises:
        NotFound: a name that means none. InvalidArgument: too many or too long ones.
    """
    for name in names:
        matches = matcher([name])
        if not any(matches(element) for element in plan.elements):
            raise NotFound(
                f"experiment {plan.name} has no element {shown(name)}",
                reason="ELEMENT_NOT_FOUND",
                remedy=f"see `nbctl status {plan.name}` for those it has",
                experiment=plan.name,
                element=shown(name),
            )
    matches = matcher(names)
    return [planned for planned in plan.elements.values() if matches(planned.name)]


async def views(plan: Plan, fleet: Fleet, names: Sequence[str]) -> list[api.Agent]:
    """What is known of the elements, in the experiment's order, under their own names. Nodes that cannot be reached are left out."""
    wanted = select(plan, names)
    found = await _all(plan, fleet)
    agents = []
    for planned in wanted:
        agent = found.get((planned.node, planned.name))
        if agent is not None:
            agent.name, agent.node = planned.name, planned.node
            agents.append(agent)
    return agents


async def tell(plan: Plan, fleet: Fleet, name: str, text: str) -> None:
    """Add a line to the orders of the elements with this name or glob.

    Raises:
        NotFound: a name that means none. NestbedError: the first failure; the others were told.
    """
    told = (fleet.clients[planned.node].tell(planned.node_name, text) for planned in select(plan, [name]))
    for result in await asyncio.gather(*told, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def traffic(plan: Plan, fleet: Fleet, names: Sequence[str]) -> list[container_pb2.ContainerStats]:
    """What the elements use now, in the experiment's order, under their own names. Nodes that cannot be reached are left out."""
    wanted = select(plan, names)
    found: dict[tuple[str, str], container_pb2.ContainerStats] = {}

    async def ask(node: str, client: Client) -> None:
        asked = [planned.node_name for planned in wanted if planned.node == node]
        if not asked:
            return
        with contextlib.suppress(NestbedError):
            async for response in client.stats(asked):
                found.update({(node, each.name): each for each in response.stats})

    await asyncio.gather(*(ask(node, client) for node, client in fleet.clients.items()))
    measured = []
    for planned in wanted:
        each = found.get((planned.node, planned.node_name))
        if each is not None:
            each.name = planned.name
            measured.append(each)
    return measured


async def _all(plan: Plan, fleet: Fleet) -> dict[tuple[str, str], api.Agent]:
    """By node and element."""
    found: dict[tuple[str, str], api.Agent] = {}

    async def ask(node: str, client: Client) -> None:
        with contextlib.suppress(NestbedError):
            for agent in await client.list_agents(labels={requests.EXPERIMENT: plan.name}):
                found[node, agent.element] = agent

    await asyncio.gather(*(ask(node, client) for node, client in fleet.clients.items()))
    return found


class Barriers:
    """Lets the elements of one experiment go on who met at a barrier, for as long as ``run`` runs."""

    def __init__(self, plan: Plan, fleet: Fleet, folder: Path) -> None:
        """``folder`` is the experiment's own."""
        self._plan = plan
        self._fleet = fleet
        self._path = folder / "barriers.json"
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Until it is cancelled. Nodes that cannot be reached are tried again."""
        async with asyncio.TaskGroup() as group:
            for client in self._fleet.clients.values():
                group.create_task(self._watch(client))
            await self._release(self._unfinished())
            while True:
                await self._news.wait()
                self._news.clear()
                await self._release(await self._met())

    async def _watch(self, client: Client) -> None:
        while True:
            self._news.set()  # whatever happened before it was watched
            with contextlib.suppress(NestbedError):
                async for _ in client.events(types=_NEWS):
                    self._news.set()
            await asyncio.sleep(RETRY_SECONDS)

    async def _met(self) -> dict[tuple[str, str], list[str]]:
        """Who may go on: arrivals by node and container. (Of nodes that are reached through the same one each tells of all.)"""
        agents = await _all(self._plan, self._fleet)
        nodes = {agent.id: node for (node, _), agent in agents.items()}
        waiting = {(agent.id, each.id): (agent.id, _arrival(each)) for agent in agents.values() for each in agent.arrivals}
        met: dict[tuple[str, str], list[str]] = {}
        for container, arrival in complete(waiting.values()):
            met.setdefault((nodes[container], container), []).append(arrival.id)
        return met

    async def _release(self, met: Mapping[tuple[str, str], Sequence[str]]) -> None:
        if not met:
            return
        with translated(f"writing {self._path}", path=self._path):
            new = self._path.with_suffix(".new")
            new.write_text(json.dumps([[node, container, list(arrivals)] for (node, container), arrivals in met.items()]))
            new.rename(self._path)
        calls = [
            self._fleet.clients[node].release(container, arrivals)
            for (node, container), arrivals in met.items()
            if node in self._fleet.clients
        ]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, NestbedError):
                _logger.warning("not told at a barrier", extra=fields(experiment=self._plan.name, cause=result.message))
            elif isinstance(result, BaseException):
                raise result
        self._path.unlink(missing_ok=True)

    def _unfinished(self) -> dict[tuple[str, str], list[str]]:
        try:
            return {(node, container): arrivals for node, container, arrivals in json.loads(self._path.read_bytes())}
        except (OSError, ValueError):
            return {}


def _arrival(found: api.Arrival) -> Arrival:
    return Arrival(found.id, found.barrier, found.count, found.time.ToNanoseconds() / 1e9, found.deadline.ToNanoseconds() / 1e9)
