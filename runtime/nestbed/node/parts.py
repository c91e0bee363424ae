"""What the parts of a node share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from nestbed.errors import Unsupported, WrongState
from nestbed.lan.contract import LanPlane
from nestbed.model import Kind, Spec
from nestbed.node.authority import Authority
from nestbed.node.events import Events
from nestbed.node.hostsfiles import HostsFiles
from nestbed.node.operations import Operations
from nestbed.node.registry import Held, Registry
from nestbed.node.store import Store
from nestbed.runtime import Container, Runtime


@dataclass(frozen=True, slots=True)
class Parts:
    """One node's registry, records, events, changes under way, hosts files, LAN plane and runtimes.

    ``lans_changing`` is held by who makes or removes a LAN, or changes what is done to its frames.
    """

    registry: Registry
    store: Store
    events: Events
    operations: Operations
    hosts: HostsFiles
    plane: LanPlane
    runtimes: Mapping[Kind, Runtime]
    authority: Authority
    file_systems: tuple[str, ...] = ()
    """Directories of the testbed."""
    may_be_element: bool = False
    """Whether the machine itself may be a member of LANs."""
    lans_changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def runtime(self, kind: Kind) -> Runtime:
        """The runtime for a kind.

        Raises:
            Unsupported: this daemon has none (reason NO_RUNTIME).
        """
        runtime = self.runtimes.get(kind)
        if runtime is None:
            raise Unsupported(
                f"this node runs no containers of kind {kind.value}",
                reason="NO_RUNTIME",
                remedy="see `nbctl info` for the kinds it runs",
                kind=kind.value,
            )
        return runtime

    async def container(self, held: Held) -> Container:
        """The container, taken up again if that failed before. For one who is changing it.

        Raises:
            what taking it up fails with.
        """
        if held.container is None:
            if held.broken is None:
                raise being_made(held)
            held.container = await self.runtime(held.spec.kind).recover(held.spec, held.bundle)
            held.broken = None
        return held.container


def present(held: Held) -> Container:
    """The container, for one who only reads or runs something in it.

    Raises:
        WrongState: it is being made (reason CREATING), or could not be taken up (reason BROKEN).
    """
    if held.container is not None:
        return held.container
    if held.broken is None:
        raise being_made(held)
    raise WrongState(
        f"container {held.spec.name} could not be taken up again: {held.broken.message}",
        reason="BROKEN",
        remedy=f"start it, or remove it: nbctl rm {held.spec.name}",
        container=held.spec.name,
        cause=held.broken.message,
    )


def being_made(held: Held) -> WrongState:
    """The error for a container that is not there yet."""
    return WrongState(
        f"container {held.spec.name} is still being made",
        reason="CREATING",
        remedy="try again in a moment",
        container=held.spec.name,
    )


def unsupported(spec: Spec, clause: str, *, remedy: str = "do it by means of a program inside") -> Unsupported:
    """The error for a container whose kind lacks an ability; ``clause`` is about the kind, such as "which cannot be paused"."""
    return Unsupported(
        f"container {spec.name} is of kind {spec.kind.value}, {clause}",
        reason="UNSUPPORTED_BY_KIND",
        remedy=remedy,
        container=spec.name,
        kind=spec.kind.value,
    )
