"""Cables: plugged in or out at a container's NIC, or at all NICs of a LAN. What is so stands in the records, and is so after a restart."""

from __future__ import annotations

import dataclasses

from nestbed.errors import InvalidArgument
from nestbed.lanmodel import LanMember, Nic
from nestbed.node.nics import all_nics, lan_nics, replaced
from nestbed.node.parts import Parts
from nestbed.node.registry import Held
from nestbed.node.segment import Segment


class Links:
    """The cables of one node's LANs."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def set(self, lan: str, container: str, nic_name: str, *, up: bool) -> list[LanMember]:
        """See ``Node.set_link``."""
        registry = self._parts.registry
        segment = registry.find_lan(lan) if lan else None
        if container:
            held = registry.find(container)
            nics = all_nics(held, nic_name) if segment is None else lan_nics(held, segment.lan, nic_name)
            return await self._set_nics(held, [nic.name for nic in nics], up=up)
        if segment is None or nic_name:
            raise InvalidArgument(
                "no container is named" if segment is not None else "neither a LAN nor a container is named",
                reason="CONFLICTING_OPTIONS",
                remedy="name the LAN, or the container and perhaps its NIC",
            )
        return await self._set_lan(segment, up=up)

    async def _set_lan(self, segment: Segment, *, up: bool) -> list[LanMember]:
        registry = self._parts.registry
        async with self._parts.lans_changing:
            registry.find_lan(segment.lan.id)  # it may have gone meanwhile
            if segment.lan.is_down is up:
                segment.lan = dataclasses.replace(segment.lan, is_down=not up)
                self._parts.store.write_lan(segment.record())
        changed = []
        for container_id in segment.member_ids():  # those who join from now on are so already
            held = registry.get(container_id)
            if held is not None:
                changed += await self._set_nics(held, [nic.name for nic in held.spec.nics if nic.lan_id == segment.lan.id], up=up)
        return changed

    async def _set_nics(self, held: Held, names: list[str], *, up: bool) -> list[LanMember]:
        """The record first: a daemon that comes after makes it so."""
        async with held.changing():
            wanted = [dataclasses.replace(nic, is_down=not up) for nic in held.spec.nics if nic.name in names]
            changed = [nic for nic in wanted if nic not in held.spec.nics]
            if changed:
                container = await self._parts.container(held)
                held.record = replaced(held.record, changed)
                self._parts.store.write(held.record)
                for nic in changed:
                    self._parts.registry.segments[nic.lan_id].replace(nic)
                    await container.set_link(nic.name, up=up)
        for nic in changed:
            self._publish(held, nic)
        return [LanMember(held.spec.id, held.spec.name, nic) for nic in wanted]

    def _publish(self, held: Held, nic: Nic) -> None:
        kind = "lan.link-down" if nic.is_down else "lan.link-up"
        self._parts.events.publish(kind, nic.lan_id, nic.lan, container=held.spec.name, container_id=held.spec.id, nic=nic.name)
