"""The tree of nodes, as the API shows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nestbed.experiment.requests import ELEMENT
from nestbed.model import ContainerView, NestedNode, State
from nestbed.nesting.branches import Branch
from nestbed.nesting.naming import joined
from nestbed.v1 import node_pb2 as api


def filled(entry: api.NodeEntry, info: Any) -> api.NodeEntry:
    """``entry`` with what the node says of itself: a NodeInfo, or its own entry."""
    entry.version, entry.id = info.version, info.id
    entry.containers, entry.containers_running = info.containers, info.containers_running
    return entry


def machines(views: Iterable[ContainerView]) -> Iterator[api.NodeEntry]:
    """Those of the containers that are machines, elements of an experiment, and no nodes."""
    for view in views:
        spec, labels = view.spec, dict(view.spec.labels)
        if spec.qemu is not None and not spec.qemu.node and ELEMENT in labels:
            state = api.NODE_STATE_READY if view.status.state is State.RUNNING else api.NODE_STATE_STOPPED
            yield api.NodeEntry(name=spec.name, labels=labels, element=True, depth=1, state=state)


def inside(machines: Sequence[NestedNode], answers: Iterable[tuple[Branch, Any]], faults: Iterable[Any]) -> Iterator[api.NodeEntry]:
    """The nodes inside, each before those inside it: of what they answered, or why they did not."""
    told = {branch.id: answer.nodes for branch, answer in answers}
    missing = {fault.node: fault for fault in faults}
    for machine in machines:
        labels = dict(machine.labels)
        entry = api.NodeEntry(name=machine.name, labels=labels, element=ELEMENT in labels, depth=1, node=True)
        nodes = told.get(machine.id)
        if nodes:
            entry.state = api.NODE_STATE_READY
            yield filled(entry, nodes[0])
            yield from _deeper(machine.name, nodes[1:])
        else:
            fault = missing.get(machine.name, api.NodeFault(state=api.NODE_STATE_SILENT))
            entry.state, entry.detail = fault.state, fault.detail
            yield entry


def _deeper(name: str, nodes: Iterable[api.NodeEntry]) -> Iterator[api.NodeEntry]:
    for node in nodes:
        node.name = joined(name, node.name)
        node.depth += 1
        yield node
