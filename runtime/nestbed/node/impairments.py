"""What is done to frames on purpose: set, taken off, told, and in force again for every port that comes.

What was asked for stands in the records: a LAN's own, and for each NIC the port's own. What is in force on a port is both together
(``nestbed.lan.impair``); the LAN plane is told of it before the port comes and whenever it changes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

from nestbed.errors import InvalidArgument, NestbedError
from nestbed.lan import impair
from nestbed.lanmodel import (
    NO_IMPAIRMENT,
    Direction,
    Impairment,
    ImpairmentChange,
    Lan,
    LanImpairment,
    LanMember,
    LanView,
    Nic,
    NicImpairment,
    PortImpairment,
)
from nestbed.log import fields
from nestbed.node.nics import lan_nics, replaced
from nestbed.node.parts import Parts
from nestbed.node.registry import Held
from nestbed.node.segment import Segment
from nestbed.node.store import Record

_logger = logging.getLogger(__name__)

Edit = Callable[[Impairment], Impairment]


class Impairments:
    """The impairments of one node's LANs. Changes, and what the plane is told, go one after another under ``Parts.lans_changing``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def change(self, lan: str, container: str, nic_name: str, direction: Direction, change: ImpairmentChange) -> LanImpairment:
        """Change the LAN's as a whole, or those of a container's ports on it. See ``Node.set_impairment``."""
        segment = self._parts.registry.find_lan(lan)
        if not container:
            _check_whole(segment, nic_name, direction)
            await self._edit_lan(segment, lambda before: impair.changed(before, change))
            return await self._told(segment)
        held = self._parts.registry.find(container)
        await self._edit_ports(segment, held, nic_name, direction, lambda before: impair.changed(before, change))
        return await self._told(segment, held, nic_name)

    async def set_whole(self, segment: Segment, impairment: Impairment) -> None:
        """Have this done to the frames of a LAN as a whole, and nothing else.

        Raises:
            HostLacks: this machine cannot do it; what was in force still is.
        """
        await self._edit_lan(segment, lambda _: impairment)

    async def reset(self, lan: str, container: str, nic_name: str, direction: Direction) -> LanImpairment:
        """Take off those of a container's ports, or all there are on the LAN. See ``Node.reset_impairment``."""
        segment = self._parts.registry.find_lan(lan)
        if container:
            held = self._parts.registry.find(container)
            await self._edit_ports(segment, held, nic_name, direction, _none)
            return await self._told(segment, held, nic_name)
        _check_whole(segment, nic_name, direction)
        await self._edit_lan(segment, _none)
        for member in segment.members:
            owner = self._parts.registry.get(member.container_id)
            if owner is not None and (member.nic.impair_to, member.nic.impair_from) != (NO_IMPAIRMENT, NO_IMPAIRMENT):
                await self._edit_ports(segment, owner, member.nic.name, Direction.BOTH, _none)
        return await self._told(segment)

    async def list(self, lan: str, container: str, nic_name: str) -> list[LanImpairment]:
        """What is in force, on one LAN or all. See ``Node.impairments``."""
        held = self._parts.registry.find(container) if container else None
        segments = [self._parts.registry.find_lan(lan)] if lan else list(self._parts.registry.segments.values())
        if held is not None and not lan:
            own = {nic.lan_id for nic in held.spec.nics if nic_name in ("", nic.name)}
            segments = [segment for segment in segments if segment.lan.id in own]
        return [await self._told(segment, held, nic_name) for segment in segments]

    async def prepare(self, nics: Sequence[Nic]) -> None:
        """Tell the plane what is to be in force on these NICs, whose ports come now. Cheap where nothing is.

        Raises:
            HostLacks: this machine cannot do it; nothing is in force on any of them.
        """
        if not any(self._is_impaired(nic) for nic in nics):
            return
        async with self._parts.lans_changing:
            await self._apply(nics)

    async def forget(self, nics: Sequence[Nic]) -> None:
        """These NICs are gone: have the plane let go of what was in force. Never fails; cheap where nothing was."""
        if any(self._is_impaired(nic) for nic in nics):
            async with self._parts.lans_changing:
                try:
                    await self._parts.plane.impair([NicImpairment(nic) for nic in nics])
                except NestbedError as error:
                    known = {"ports": [nic.port for nic in nics], "reason": error.reason, "cause": error.message}
                    _logger.warning("impairments not taken off", extra=fields(**known))

    async def take_up(self) -> None:
        """Tell the plane of all ports on record, before their containers are taken up."""
        members = [member for segment in self._parts.registry.segments.values() for member in segment.members]
        impaired = [member for member in members if self._is_impaired(member.nic)]
        try:
            await self._apply([member.nic for member in impaired])
        except NestbedError:  # not of all
            await self._take_up_singly(impaired)

    async def _take_up_singly(self, members: Sequence[LanMember]) -> None:
        for member in members:
            try:
                await self._apply([member.nic])
            except NestbedError as error:
                known = {"container": member.container, "nic": member.nic.name, "reason": error.reason, "cause": error.message}
                _logger.exception("impairment not taken up", extra=fields(lan=member.nic.lan_id, **known))
                self._parts.events.publish("lan.impairment-lost", member.nic.lan_id, member.nic.lan, **known)

    # ------------------------------------------------------------ steps

    async def _edit_lan(self, segment: Segment, edit: Edit) -> None:
        async with self._parts.lans_changing:
            self._parts.registry.find_lan(segment.lan.id)  # it may have gone meanwhile
            before = segment.lan
            after = dataclasses.replace(before, impairment=edit(before.impairment))
            if after == before:
                return
            self._record_lan(segment, after)
            try:
                await self._apply([member.nic for member in segment.members])
            except BaseException:
                self._record_lan(segment, before)
                raise
        self._parts.events.publish("lan.impaired", before.id, before.name)

    async def _edit_ports(self, segment: Segment, held: Held, nic_name: str, direction: Direction, edit: Edit) -> None:
        async with held.changing(), self._parts.lans_changing:
            before = held.record
            nics = lan_nics(held, segment.lan, nic_name)
            edited = [_edited(nic, direction, edit) for nic in nics]
            if edited == nics:
                return

            def put(record: Record, its: Sequence[Nic]) -> None:
                held.record = record
                self._parts.store.write(record)
                for nic in its:
                    segment.replace(nic)

            put(replaced(before, edited), edited)
            try:
                await self._apply(edited)
            except BaseException:
                put(before, nics)
                raise
        for nic in edited:
            self._parts.events.publish("lan.impaired", segment.lan.id, segment.lan.name, container=held.spec.name, nic=nic.name)

    def _record_lan(self, segment: Segment, lan: Lan) -> None:
        segment.lan = lan
        self._parts.store.write_lan(segment.record())

    async def _apply(self, nics: Sequence[Nic]) -> None:
        """Bring these ports in line with the records; after an error all are as before."""
        await self._parts.plane.impair([NicImpairment(nic, *self._in_force(nic)) for nic in nics])

    def _in_force(self, nic: Nic) -> tuple[Impairment, Impairment]:
        segment = self._parts.registry.segments.get(nic.lan_id)
        whole = NO_IMPAIRMENT if segment is None else segment.lan.impairment
        if whole == nic.impair_to == nic.impair_from == NO_IMPAIRMENT:  # of nearly all, and asked at every start
            return NO_IMPAIRMENT, NO_IMPAIRMENT
        return impair.in_force(whole, nic.impair_to), impair.in_force(whole, nic.impair_from)

    def _is_impaired(self, nic: Nic) -> bool:
        return self._in_force(nic) != (NO_IMPAIRMENT, NO_IMPAIRMENT)

    async def _told(self, segment: Segment, held: Held | None = None, nic_name: str = "") -> LanImpairment:
        members = segment.members
        if held is not None:
            wanted = {nic.port for nic in lan_nics(held, segment.lan, nic_name)}
            members = tuple(member for member in members if member.nic.port in wanted)
        view = LanView(segment.lan, segment.members, tuple(self._parts.plane.paths(segment.lan)))
        return LanImpairment(view, tuple([await self._port(member) for member in members]))

    async def _port(self, member: LanMember) -> PortImpairment:
        to, from_ = self._in_force(member.nic)
        achieved_to, achieved_from = await self._parts.plane.achieved(member.nic)
        return PortImpairment(member, to, from_, achieved_to, achieved_from)


def _none(_: Impairment) -> Impairment:
    return NO_IMPAIRMENT


def _edited(nic: Nic, direction: Direction, edit: Edit) -> Nic:
    to = edit(nic.impair_to) if direction is not Direction.FROM else nic.impair_to
    from_ = edit(nic.impair_from) if direction is not Direction.TO else nic.impair_from
    return dataclasses.replace(nic, impair_to=to, impair_from=from_)


def _check_whole(segment: Segment, nic_name: str, direction: Direction) -> None:
    if nic_name:
        raise InvalidArgument(
            f"the NIC {nic_name} of no container is named",
            reason="CONFLICTING_OPTIONS",
            remedy="name the container, too",
            nic=nic_name,
        )
    if direction is not Direction.BOTH:
        raise InvalidArgument(
            f"LAN {segment.lan.name} as a whole has no direction",
            reason="CONFLICTING_OPTIONS",
            remedy="name a port, or leave the direction out",
            lan=segment.lan.name,
            direction=direction.value,
        )
