"""The LAN plane of one machine: what the node asks for to have LANs.

A LAN is a Linux bridge in the network namespace of the daemon. Ports are the runtimes': they enslave theirs to the bridge of
``Nic.bridge``. LANs forward on without the daemon.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from nestbed.lan import netfilter
from nestbed.lan.bridge import Bridges
from nestbed.model import Ability, Lan
from nestbed.runtime import Leftover


class LanPlane(Protocol):
    """What makes LANs. Errors are ``nestbed.errors``; methods for one LAN are never called at once."""

    async def open(self) -> None:
        """Make it ready. Called once, before anything else."""
        ...

    async def aclose(self) -> None:
        """Let go without ending any LAN."""
        ...

    async def create(self, lan: Lan) -> None:
        """Make the LAN. Nothing is left after an error."""
        ...

    async def ensure(self, lan: Lan) -> None:
        """Take up a LAN of an earlier daemon; make what is missing of it. Idempotent, harmless to a LAN in use."""
        ...

    async def delete(self, lan: Lan) -> None:
        """Remove the LAN. Idempotent."""
        ...

    async def sweep(self, lans: Collection[Lan]) -> None:
        """Remove what an earlier daemon of this node made for LANs that are not among ``lans``."""
        ...

    async def audit(self, lans: Collection[Lan]) -> Sequence[Leftover]:
        """Compare the records of ``lans``, all of the node, with the kernel; read-only."""
        ...

    def abilities(self) -> Sequence[Ability]:
        """What this machine can and cannot do for LANs, and why."""
        ...


class Plane:
    """LANs as Linux bridges. Everything belongs to the network namespace in which :meth:`open` was called."""

    def __init__(self, *, node_id: str) -> None:
        self._node_id = node_id
        self._opened: Bridges | None = None

    @property
    def _bridges(self) -> Bridges:
        assert self._opened is not None, "open comes first"
        return self._opened

    async def open(self) -> None:
        netfilter.keep_out()
        self._opened = Bridges(self._node_id)

    async def aclose(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    async def create(self, lan: Lan) -> None:
        self._bridges.make(lan)

    async def ensure(self, lan: Lan) -> None:
        self._bridges.ensure(lan)

    async def delete(self, lan: Lan) -> None:
        self._bridges.remove(lan.bridge)

    async def sweep(self, lans: Collection[Lan]) -> None:
        recorded = {lan.id for lan in lans}
        for name, lan_id in self._bridges.ours():
            if lan_id not in recorded:
                self._bridges.remove(name)

    async def audit(self, lans: Collection[Lan]) -> Sequence[Leftover]:
        recorded, found = {lan.id: lan for lan in lans}, dict(self._bridges.ours())
        present = set(found.items())
        extra = [Leftover("extra", "link", name, "a bridge of no LAN") for name, lan_id in found.items() if lan_id not in recorded]
        missing = [
            Leftover("missing", "link", lan.bridge, f"the bridge of LAN {lan.name}")
            for lan in recorded.values()
            if (lan.bridge, lan.id) not in present
        ]
        return [*extra, *missing]

    def abilities(self) -> Sequence[Ability]:
        return [netfilter.ability()]
