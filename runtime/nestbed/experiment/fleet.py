"""The nodes of an experiment: reaching them, and asking what they have of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from nestbed.client import Client
from nestbed.errors import HostLacks, InvalidArgument, NestbedError, PermissionDenied, Unavailable, Unsupported
from nestbed.experiment import requests
from nestbed.experiment.plan import Plan
from nestbed.experiment.ptopo import LOCAL
from nestbed.experiment.requests import Digests
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import experiment_pb2, lan_pb2, node_pb2

Connect: TypeAlias = Callable[[str, bool], Client]
"""Makes a client of the node at an address (LOCAL: the own one), acting as administrator or not."""


def connector(*, admin: str, operator: str, tls: tuple[Path, Path, Path] | None) -> Connect:
    """How to connect: to this node itself at one of two addresses, by role; to others with its ``tls`` files (CA, certificate, key)."""
    ca, cert, key = tls or (None, None, None)

    def connect(address: str, is_admin: bool) -> Client:  # noqa: FBT001 - a Connect
        own = admin if is_admin else operator
        return Client.connect(own if address == LOCAL else address, tls_ca=ca, tls_cert=cert, tls_key=key)

    return connect


@dataclass(slots=True)
class Holdings:
    """What nodes have of an experiment, by node and name; ``unreachable`` says which could not be asked, and why."""

    containers: dict[tuple[str, str], api.Container] = field(default_factory=dict)
    machines: dict[tuple[str, str], api.Container] = field(default_factory=dict)
    """Virtual machines that are nodes, by the node that runs them and their name as a node."""
    lans: dict[tuple[str, str], lan_pb2.Lan] = field(default_factory=dict)
    unreachable: dict[str, NestbedError] = field(default_factory=dict)


class Fleet:
    """Clients of some nodes, by name, for the length of an ``async with``."""

    def __init__(self, addresses: Mapping[str, str], connect: Connect, *, admin: bool) -> None:
        self._addresses = addresses
        self._connect = connect
        self._admin = admin
        self._stack = AsyncExitStack()
        self.clients: dict[str, Client] = {}

    async def __aenter__(self) -> Self:
        async with self._stack as stack:
            for name, address in self._addresses.items():
                self.clients[name] = await stack.enter_async_context(self._connect(address, self._admin))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def check(self, plan: Plan) -> None:
        """Whether the nodes can be reached and offer what the plan needs.

        Raises:
            Unsupported: an element is of a kind that its node does not offer, or that experiments do not make.
            HostLacks: a node has no underlay for a LAN that lies on several. InvalidArgument: two nodes are the same.
            others: a node cannot be reached.
        """
        places = [element.node for element in plan.elements.values() if element.node not in plan.machines]
        used = list(dict.fromkeys([*places, *(planned.host for planned in plan.machines.values())]))
        infos = dict(zip(used, await asyncio.gather(*(self.clients[name].info(with_abilities=False) for name in used)), strict=True))
        known: dict[str, str] = {}
        for name, info in infos.items():
            other = known.setdefault(info.id, name)
            if other != name:
                raise InvalidArgument(
                    f"the nodes {other} and {name} of the ptopo are the same",
                    reason="SAME_NODE",
                    remedy="give each the address of a daemon of its own",
                    node=name,
                    other=other,
                )
        offered = {name: list(info.kinds) for name, info in infos.items()}
        for planned in plan.machines.values():
            if "qemu" not in offered[planned.host]:
                raise Unsupported(
                    f"node {planned.name} is to be a virtual machine on {planned.host}, which makes none",
                    reason="KIND_NOT_OFFERED",
                    remedy=f"see `nbctl info` of {planned.host}",
                    node=planned.name,
                )
            offered[planned.name] = ["process"]
        for element in plan.elements.values():
            requests.kind(element)
            if element.element.words.kind not in offered[element.node]:
                raise Unsupported(
                    f"element {element.name} is of kind {element.element.words.kind}, which node {element.node} does not offer",
                    reason="KIND_NOT_OFFERED",
                    remedy=f"see `nbctl info` of {element.node}, or place it elsewhere",
                    element=element.name,
                    kind=element.element.words.kind,
                    node=element.node,
                )
        self._check_underlays(plan, infos)

    @staticmethod
    def _check_underlays(plan: Plan, infos: Mapping[str, node_pb2.NodeInfo]) -> None:
        for lan in plan.lans.values():
            for name in lan.nodes if lan.group else ():
                if not infos[name].underlays:
                    raise HostLacks(
                        f"LAN {lan.name} lies on {len(lan.nodes)} nodes, and {name} has no underlay",
                        reason="NO_UNDERLAY",
                        remedy="start its nestbedd with --underlay IF, or place all members of the LAN on one node",
                        lan=lan.name,
                        node=name,
                    )

    async def holdings(self, experiment: str) -> Holdings:
        """What the nodes have of the experiment."""
        found = Holdings()
        labels = {requests.EXPERIMENT: experiment}

        async def ask(name: str, client: Client) -> None:
            silent: list[node_pb2.NodeFault] = []
            try:
                containers, lans = await asyncio.gather(
                    client.list_containers(labels=labels, unreachable=silent), client.list_lans(labels=labels)
                )
            except NestbedError as error:
                found.unreachable[name] = error
                return
            inside = {each.name: each.spec.labels[requests.NODE] for each in containers if requests.NODE in each.spec.labels}
            for each in containers:
                kind = requests.NODE if requests.NODE in each.spec.labels else requests.ELEMENT
                held = found.machines if kind == requests.NODE else found.containers
                held[inside.get(each.name.rpartition("/")[0], name), each.spec.labels[kind]] = each
            found.lans.update({(name, each.labels[requests.LAN]): each for each in lans if "/" not in each.name})
            for fault in silent:
                if fault.node in inside:
                    found.unreachable[inside[fault.node]] = Unavailable(f"the node does not answer: {fault.detail}", reason="NODE_SILENT")

        machines = {address: name for name, address in reversed(list(self._addresses.items()))}
        await asyncio.gather(*(ask(name, self.clients[name]) for name in machines.values()))
        return found


def addresses(plan: Plan, earlier: Plan | None = None) -> dict[str, str]:
    """Where the nodes of a plan are; those of an earlier plan that are no more in it have a note behind their names. One that is a virtual
    machine is where the node is that runs it, and comes after that.
    """
    found = {name: words.address for name, words in plan.nodes.items() if name not in plan.machines}
    found.update({planned.name: plan.nodes[planned.host].address for planned in plan.machines.values()})
    if earlier is not None:
        known = set(found.values())
        found.update(
            {f"{name} (before)": words.address for name, words in earlier.nodes.items() if words.vm is None and words.address not in known}
        )
    return found


def check_may(plan: Plan, *, admin: bool) -> None:
    """Whether a caller may have this node call the plan's other nodes: it would do so with rights that the caller may lack.

    Raises:
        PermissionDenied: only administrators may.
    """
    made = next(iter(plan.machines), "")
    if made and not admin:
        raise PermissionDenied(
            f"only an administrator may have nodes made, such as {made}",
            reason="NEEDS_ADMIN",
            remedy="call as administrator, or name nodes that there are",
            node=made,
        )
    others = [name for name, words in plan.nodes.items() if words.address != LOCAL]
    if others and not admin:
        raise PermissionDenied(
            f"only an administrator may have this node call others, such as {others[0]}",
            reason="NEEDS_ADMIN",
            remedy="call as administrator, or bring it up on this node alone",
            node=others[0],
        )


def compare(plan: Plan, wanted: Digests, holdings: Holdings) -> list[experiment_pb2.Change]:
    """What is to be done to the nodes, removals first. What is on nodes that could not be asked is left out."""
    make, remove, replace, start = (
        experiment_pb2.CHANGE_KIND_MAKE,
        experiment_pb2.CHANGE_KIND_REMOVE,
        experiment_pb2.CHANGE_KIND_REPLACE,
        experiment_pb2.CHANGE_KIND_START,
    )
    lans = {(node, lan.name): wanted.lans[lan.name] for lan in plan.lans.values() for node in lan.nodes}
    elements = {(element.node, element.name): wanted.elements.get(element.name, "") for element in plan.elements.values()}
    machines = {(planned.host, planned.name): wanted.machines[planned.name] for planned in plan.machines.values()}
    changes = [_change(remove, "element", key) for key in holdings.containers if key not in elements]
    changes += [_change(remove, "node", key) for key in holdings.machines if key not in machines]
    changes += [_change(remove, "lan", key) for key in holdings.lans if key not in lans]
    for noun, keys, have in (
        ("node", machines, {key: held.spec.labels[requests.DIGEST] for key, held in holdings.machines.items()}),
        ("lan", lans, {key: lan.labels[requests.DIGEST] for key, lan in holdings.lans.items()}),
        ("element", elements, {key: container.spec.labels[requests.DIGEST] for key, container in holdings.containers.items()}),
    ):
        for key, value in keys.items():
            if key[0] in holdings.unreachable:
                continue
            if key not in have:
                changes.append(_change(make, noun, key))
            elif have[key] != value:
                changes.append(_change(replace, noun, key))
            elif noun == "element" and _must_start(holdings.containers[key]):
                changes.append(_change(start, noun, key))
    return changes


def _change(kind: experiment_pb2.ChangeKind.ValueType, noun: str, key: tuple[str, str]) -> experiment_pb2.Change:
    return experiment_pb2.Change(kind=kind, noun=noun, name=key[1], node=key[0])


def _must_start(container: api.Container) -> bool:
    if container.state == api.CONTAINER_STATE_CREATED:
        return True
    return container.state == api.CONTAINER_STATE_STOPPED and not has_ended_well(container)


def has_ended_well(container: api.Container) -> bool:
    """Whether its program has ended with 0."""
    return container.state == api.CONTAINER_STATE_STOPPED and container.exit.HasField("code") and container.exit.code == 0
