"""The members that this node's LANs have on the nodes inside its virtual machines: with which addresses, on record.

The outermost node hands out the addresses of its whole tree. What it handed out stands in the bundle of the machine that it is in
(``elsewhere.json``), written before the node inside is asked to make anything, and is given back when that node says that the container is
gone, or when its machine is.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence

from nestbed.errors import NestbedError, WrongState
from nestbed.lan.addressing import check_mac, parse_interface
from nestbed.lanmodel import Lan, LanMember, LanRequest, Nic, NicSpec
from nestbed.node import wiring
from nestbed.node.identity import identify
from nestbed.node.names import check_name
from nestbed.node.parts import Parts
from nestbed.node.segment import Segment
from nestbed.node.store import Elsewhere, Entry

_REMEMBERED = 1024


class MembersElsewhere:
    """Of all nodes inside one node. Every method but :meth:`open_lan` is done at once."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._entries: dict[str, dict[str, Entry]] = {}
        self._gone: OrderedDict[tuple[str, str], None] = OrderedDict()

    def read_records(self, machine_ids: Iterable[str]) -> None:
        """Have what was handed out to the containers in these machines. After the LANs were read."""
        for machine_id in machine_ids:
            entries = self._parts.store.read_elsewhere(machine_id).entries
            self._entries[machine_id] = {entry.name: entry for entry in entries}
            self.show(machine_id)

    async def open_lan(self, name: str) -> Lan | None:
        """The LAN of that name, carried to the nodes inside from now on; None if this node has none.

        Raises:
            WrongState: it was made to stay on this node (reason LAN_STAYS).
        """
        registry = self._parts.registry
        async with self._parts.lans_changing:
            segment = next((one for one in registry.segments.values() if name in (one.lan.id, one.lan.name)), None)
            if segment is None or segment.lan.is_relayed:
                return None if segment is None else segment.lan
            own = registry.underlay.lan.bridge if registry.underlay is not None else ""
            underlays = [underlay for underlay in self._parts.plane.underlays() if underlay.name == own]
            if len(underlays) < len(self._parts.plane.underlays()):
                raise WrongState(
                    f"LAN {segment.lan.name} stays on its node, and so out of the nodes inside",
                    reason="LAN_STAYS",
                    remedy="make it without --local",
                    lan=segment.lan.name,
                )
            others = [other.lan for other in registry.segments.values()]
            lan = identify(segment.lan, LanRequest(segment.lan.name), others, underlays)
            await self._carry(segment, lan)
            return lan

    async def _carry(self, segment: Segment, lan: Lan) -> None:
        before, segment.lan = segment.lan, lan
        try:
            self._parts.store.write_lan(segment.record())
            await self._parts.plane.ensure(lan)
        except NestbedError:
            segment.lan = before
            self._parts.store.write_lan(segment.record())
            raise

    def assign(self, machine_id: str, name: str, specs: Sequence[NicSpec], request_id: str = "") -> tuple[Nic, ...]:
        """Addresses and MACs for NICs on LANs of this node, of a container that is to be made, or gets them, inside a machine. The same
        ``request_id`` has them again.

        Raises:
            as ``nestbed.node.wiring.wire``: nothing was taken.
        """
        entries = self._entries.setdefault(machine_id, {})
        known = next((entry for entry in entries.values() if request_id and entry.request_id == request_id), None)
        if known is not None:
            return known.nics
        leaf = name.rpartition("/")[2]
        owner = wiring.Owner(secrets.token_hex(6), leaf)
        nics = self._parts.registry.wire(owner, specs, ())
        self._parts.registry.unwire(owner, nics)  # they are shown as this machine's instead, in one go
        entries[name] = Entry("", name, nics, request_id)
        self.show(machine_id)
        try:
            self._write(machine_id)
        except NestbedError:
            self.release(machine_id, name)
            raise
        return nics

    def settle(self, machine_id: str, name: str, container_id: str, nics: Sequence[Nic]) -> None:
        """What was assigned under that name became this container, which has these NICs."""
        entries = self._entries.setdefault(machine_id, {})
        before = entries.pop(name, None)
        if (machine_id, container_id) not in self._gone:
            entries[name] = Entry(container_id, name, self._own(nics), before.request_id if before else "")
        self.show(machine_id)
        self._write(machine_id)

    def release(self, machine_id: str, name: str) -> None:
        """What was assigned under that name is not needed. Idempotent."""
        if self._entries.get(machine_id, {}).pop(name, None) is not None:
            self.show(machine_id)
            self._write(machine_id)

    def drop(self, machine_id: str, container_id: str) -> None:
        """The container inside is gone. Idempotent."""
        self._gone[machine_id, container_id] = None
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)
        entries = self._entries.get(machine_id, {})
        for name in [name for name, entry in entries.items() if entry.id == container_id]:
            self.release(machine_id, name)

    def reconcile(self, machine_id: str, containers: Iterable[tuple[str, str, Sequence[Nic]]]) -> None:
        """The node inside has these containers: id, name, NICs. What is being made stays."""
        before = self._entries.get(machine_id, {})
        requests = {entry.id: entry.request_id for entry in before.values()}
        after = {name: entry for name, entry in before.items() if not entry.id}
        for container_id, name, nics in containers:
            own = self._own(nics)
            if own:
                after[name] = Entry(container_id, name, own, requests.get(container_id, ""))
        if after != before:
            self._entries[machine_id] = after
            self.show(machine_id)
            self._write(machine_id)

    def forget(self, machine_id: str) -> None:
        """The node inside is gone, with all it had. Idempotent."""
        if self._entries.pop(machine_id, None):
            self.show(machine_id)
            self._write(machine_id)

    def members(self, lan_id: str, machine_id: str) -> tuple[Lan, tuple[LanMember, ...]] | None:
        """A LAN as the node in that machine is told of it, with the members that are not inside there; None if there is none."""
        segment = self._parts.registry.segments.get(lan_id)
        if segment is None:
            return None
        return segment.lan, (*segment.members, *segment.elsewhere(without=machine_id))

    def _own(self, nics: Sequence[Nic]) -> tuple[Nic, ...]:
        """Those on LANs of this node, with these LANs' ids."""
        ids = {segment.lan.name: segment.lan.id for segment in self._parts.registry.segments.values()}
        return tuple(dataclasses.replace(nic, lan_id=ids[nic.lan]) for nic in nics if nic.lan in ids)

    def show(self, machine_id: str) -> None:
        """Have the LANs show what is on record, by the name that the machine has now."""
        members: dict[str, list[LanMember]] = {}
        for entry in self._entries.get(machine_id, {}).values():
            for number, nic in enumerate(entry.nics):
                port = f"{machine_id}/{entry.id or entry.name}/{number}"
                shown = dataclasses.replace(nic, port=port, bridge="")
                member = LanMember(self._path(machine_id, entry.id), f"{self._name(machine_id)}/{entry.name}", shown)
                members.setdefault(nic.lan_id, []).append(member)
        segments = self._parts.registry.segments.values()
        changed = {one.lan.id for one in segments if one.set_elsewhere(machine_id, members.get(one.lan.id, ()))}
        self._parts.hosts.lans_changed(changed)

    def _name(self, machine_id: str) -> str:
        held = self._parts.registry.get(machine_id)
        return held.spec.name if held is not None else machine_id

    @staticmethod
    def _path(machine_id: str, container_id: str) -> str:
        return f"{machine_id}/{container_id}" if container_id else ""

    def _write(self, machine_id: str) -> None:
        if self._parts.registry.get(machine_id) is not None:
            self._parts.store.write_elsewhere(machine_id, Elsewhere(tuple(self._entries.get(machine_id, {}).values())))


def members_outside(members: Collection[LanMember]) -> list[LanMember]:
    """Members that the node outside tells of, with ports that no other has.

    Raises:
        InvalidArgument: a name, MAC or address is none.
    """
    for member in members:
        check_name(member.container, "container")
        check_mac(member.nic.mac)
        for address in member.nic.addresses:
            parse_interface(address)
    return [
        LanMember("", f"../{member.container}", dataclasses.replace(member.nic, port=f"../{number}/{member.nic.mac}", bridge=""))
        for number, member in enumerate(members)
    ]
