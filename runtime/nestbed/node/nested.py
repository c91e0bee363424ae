"""Nodes inside virtual machines: which containers are some, and what is known of them here."""

from __future__ import annotations

from nestbed.errors import WrongState
from nestbed.model import NestedNode, State
from nestbed.node.registry import Held
from nestbed.runtime import Nesting

_RUNS = (State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING)


def is_node(held: Held) -> bool:
    """Whether nestbedd runs in this container."""
    return held.spec.qemu is not None and held.spec.qemu.node


def view(held: Held) -> NestedNode:
    """The node inside a container that is one."""
    spec, status = held.spec, held.status
    container: object = held.container
    address = container.node_address if isinstance(container, Nesting) else ""
    return NestedNode(spec.id, spec.name, spec.labels, status.state in _RUNS, status.started_at, address)


def check_node(held: Held) -> Held:
    """``held``, if it is one.

    Raises:
        WrongState: it is not (reason NOT_A_NODE).
    """
    if not is_node(held):
        raise WrongState(
            f"container {held.spec.name} is no node: nothing can be inside it",
            reason="NOT_A_NODE",
            remedy="name a virtual machine that was made with --node; `nbctl node ls` shows them",
            container=held.spec.name,
        )
    return held
