"""Making, removing and taking up LANs, and joining containers to them while they live."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from nestbed.errors import CorruptState, InvalidArgument, NestbedError, WrongState
from nestbed.lan.addressing import bridge_name, check_mtu, check_subnet
from nestbed.lanmodel import NO_IMPAIRMENT, Lan, LanMember, LanRequest, Nic, NicSpec
from nestbed.log import fields
from nestbed.node import requests, wiring
from nestbed.node.bounds import NICS_MAX, check_lan, check_nic, check_request_id
from nestbed.node.elsewhere import members_outside
from nestbed.node.identity import identify
from nestbed.node.impairments import Impairments
from nestbed.node.links import Links
from nestbed.node.names import check_name, is_id
from nestbed.node.nics import lan_nics, with_nics
from nestbed.node.parts import Parts
from nestbed.node.registry import Held
from nestbed.node.segment import Segment

_logger = logging.getLogger(__name__)


class Lans:
    """The LANs of one node."""

    def __init__(self, parts: Parts, impairments: Impairments, links: Links) -> None:
        self._parts = parts
        self._impairments = impairments
        self._links = links

    async def create(self, request: LanRequest, request_id: str) -> Segment:
        """Make a LAN, or find the one that the same request made. See ``Node.create_lan``."""
        check_request_id(request_id)
        check_lan(request)
        subnet = check_subnet(request.subnet, 4) if request.subnet else ""
        subnet6 = check_subnet(request.subnet6, 6) if request.subnet6 else ""
        mtu = check_mtu(request.mtu, has_subnet6=bool(subnet6))
        digest = requests.digest(request, request_id)
        registry = self._parts.registry
        async with self._parts.lans_changing:
            found = registry.lan_of_request(request_id)
            if found is not None:
                requests.check_same(request_id, found.request_digest, digest)
                return found
            registry.check_lan_name_free(request.name)
            lan_id = registry.new_lan_id()
            lan = Lan(lan_id, request.name, bridge_name(lan_id), mtu, subnet, subnet6, request.labels, time.time())
            others = [segment.lan for segment in registry.segments.values()]
            lan = identify(lan, request, others, self._parts.plane.underlays())
            segment = Segment(lan, request_id, digest)
            self._parts.store.write_lan(segment.record())
            try:
                await self._parts.plane.create(lan)
            except NestbedError:
                self._parts.store.remove_lan(lan_id)
                raise
            registry.add_lan(segment)
        self._parts.events.publish("lan.created", lan.id, lan.name)
        return segment

    async def extend(self, wanted: Lan, members: Sequence[LanMember]) -> Segment:
        """Have a LAN of the node outside here, too, with these members elsewhere. See ``Node.extend_lan``."""
        _check_outside(wanted)
        elsewhere = members_outside(members)
        registry = self._parts.registry
        async with self._parts.lans_changing:
            segment = registry.segments.get(wanted.id) or registry.lan_in_group(wanted.name, wanted.group)
            if segment is None:
                segment = await self._take_in(wanted)
            if segment.set_elsewhere("", elsewhere):
                self._parts.hosts.lans_changed({segment.lan.id})
        if segment.lan.outside:
            await self._impairments.set_whole(segment, wanted.impairment)
            if segment.lan.is_down is not wanted.is_down:
                await self._links.set(segment.lan.id, "", "", up=not wanted.is_down)
        return segment

    async def _take_in(self, wanted: Lan) -> Segment:
        registry, plane = self._parts.registry, self._parts.plane
        registry.check_lan_name_free(wanted.name)
        lan = replace(wanted, bridge=bridge_name(wanted.id), created_at=time.time(), outside=True, impairment=NO_IMPAIRMENT, is_down=False)
        request = LanRequest(wanted.name, group=wanted.group, peers=wanted.peers, ttl=wanted.ttl)
        lan = identify(lan, request, [segment.lan for segment in registry.segments.values()], plane.underlays())
        segment = Segment(lan)
        self._parts.store.write_lan(segment.record())
        try:
            await plane.create(lan)
        except NestbedError:
            self._parts.store.remove_lan(lan.id)
            raise
        registry.add_lan(segment)
        self._parts.events.publish("lan.created", lan.id, lan.name)
        return segment

    async def delete(self, ref: str) -> None:
        """Remove a LAN without members. See ``Node.delete_lan``."""
        async with self._parts.lans_changing:
            segment = self._parts.registry.find_lan(ref)
            lan = segment.lan
            if segment.size:
                raise WrongState(
                    f"LAN {lan.name} has {segment.size} members",
                    reason="LAN_HAS_MEMBERS",
                    remedy="remove or disconnect them first; `nbctl lan inspect` lists them",
                    lan=lan.name,
                    members=segment.size,
                )
            # From here on nobody can join.
            self._parts.registry.drop_lan(segment)
            try:
                await self._parts.plane.delete(lan)
                self._parts.store.remove_lan(lan.id)
            except NestbedError:
                self._parts.registry.add_lan(segment)
                raise
        self._parts.events.publish("lan.deleted", lan.id, lan.name)

    def read_records(self) -> None:
        """Have every LAN that is on record, oldest first. One whose record cannot be read is left to its members' NICs."""
        segments: list[Segment] = []
        for record in self._parts.store.lans():
            try:
                if isinstance(record, CorruptState):
                    raise record
                segments.append(Segment(record.lan, record.request_id, record.request_digest))
            except (CorruptState, ValueError) as error:
                _logger.exception("record of a LAN not read", extra=fields(cause=str(error)))
        for segment in sorted(segments, key=lambda segment: (segment.lan.created_at, segment.lan.id)):
            self._parts.registry.add_lan(segment)

    async def take_up(self) -> None:
        """Make what is missing of every LAN, and remove what is left of others."""
        segments = tuple(self._parts.registry.segments.values())
        for segment in segments:
            try:
                self._parts.store.write_lan(segment.record())
                await self._parts.plane.ensure(segment.lan)
            except NestbedError as error:
                _logger.exception("LAN not taken up", extra=fields(lan=segment.lan.id, reason=error.reason, cause=error.message))
        await self._impairments.take_up()
        await self._parts.plane.sweep([segment.lan for segment in segments])

    async def connect(self, held: Held, spec: NicSpec) -> Nic:
        """Give a container a NIC. See ``Node.connect``."""
        check_nic(spec)
        async with held.changing():
            container = await self._parts.container(held)
            before, owner = held.record, _owner(held)
            if len(owner.nics) >= NICS_MAX:
                raise InvalidArgument(
                    f"container {owner.name} has {NICS_MAX} NICs already",
                    reason="TOO_MANY",
                    remedy="disconnect one first",
                    container=owner.name,
                    maximum=NICS_MAX,
                )
            hops = wiring.next_hops(held.spec.gateway, held.spec.routes)
            (nic,) = self._parts.registry.wire(owner, (spec,), hops)
            held.record = with_nics(before, (*owner.nics, nic))
            try:
                self._parts.store.write(held.record)
                await self._impairments.prepare((nic,))
                await container.plug(nic)
            except asyncio.CancelledError:
                raise  # the record names the NIC: the next daemon completes or removes it
            except BaseException:
                held.record = before
                await self._impairments.forget((nic,))
                self._parts.registry.unwire(owner, (nic,))
                with contextlib.suppress(NestbedError):
                    self._parts.store.write(before)
                raise
        self._parts.hosts.changed(held.spec.nics)
        self._parts.events.publish("lan.connected", nic.lan_id, nic.lan, container=owner.name, container_id=owner.id, nic=nic.name)
        return nic

    async def disconnect(self, held: Held, ref: str, nic_name: str) -> None:
        """Take NICs of a container away. See ``Node.disconnect``."""
        async with held.changing():
            container = await self._parts.container(held)
            lan = self._parts.registry.find_lan(ref).lan
            leaving = lan_nics(held, lan, nic_name)
            affected = held.spec.nics
            for nic in leaving:
                await container.unplug(nic.name)
                await self._impairments.forget((nic,))
                held.record = with_nics(held.record, tuple(other for other in held.spec.nics if other is not nic))
                self._parts.registry.unwire(_owner(held), (nic,))
                self._parts.store.write(held.record)
                self._parts.events.publish(
                    "lan.disconnected", lan.id, lan.name, container=held.spec.name, container_id=held.spec.id, nic=nic.name
                )
        self._parts.hosts.changed(affected)


def _check_outside(lan: Lan) -> None:
    """Refuse what no node says of its LANs."""
    check_name(lan.name, "LAN")
    check_mtu(lan.mtu, has_subnet6=bool(lan.subnet6))
    for subnet, version in ((lan.subnet, 4), (lan.subnet6, 6)):
        if subnet:
            check_subnet(subnet, version)
    if not is_id(lan.id) or not lan.group:
        raise InvalidArgument(
            f"LAN {lan.name} has no id or no group of the node outside",
            reason="BAD_LAN",
            remedy="extend a LAN as that node has it",
            lan=lan.name,
        )


def _owner(held: Held) -> wiring.Owner:
    return wiring.Owner(held.spec.id, held.spec.name, held.spec.nics)
