"""Which virtual machines are on the underlay of the nodes inside, and with which address: decided here, made by the LAN plane.

It is there while a machine that is a node is on it. No file says so: the records of those machines name it, before it is made.
"""

from __future__ import annotations

import asyncio
import logging

from nestbed.errors import InvalidArgument, NestbedError
from nestbed.lan import nested
from nestbed.lan.addressing import derived_mac, port_name
from nestbed.lan.plane import LanPlane
from nestbed.lanmodel import LanMember, Nic
from nestbed.log import fields
from nestbed.node.registry import Registry, underlay_segment
from nestbed.node.wiring import Owner

PORT_INDEX = 36**4 - 2
"""Of the port on it among those of its machine: the last but that on the control network."""

_logger = logging.getLogger(__name__)


class NestedUnderlay:
    """The underlay of the nodes inside one node."""

    def __init__(self, registry: Registry, plane: LanPlane, node_id: str) -> None:
        self._registry = registry
        self._plane = plane
        self._node_id = node_id
        self._changing = asyncio.Lock()

    def assign(self, owner: Owner) -> Nic:
        """A NIC on it for a machine that has none. ``owner.nics`` are those on its LANs.

        Raises:
            InvalidArgument: a NIC has its name. ResourceExhausted: it is full.
        """
        for nic in owner.nics:
            if nic.name == nested.NIC:
                raise InvalidArgument(
                    f"a node's NIC to other nodes is called {nested.NIC}, so the one on LAN {nic.lan} cannot be",
                    reason="NIC_NAME_TAKEN",
                    remedy="give that NIC another name",
                    nic=nic.name,
                    lan=nic.lan,
                )
        segment = self._registry.underlay or underlay_segment(self._node_id, self._plane.choose_nested())
        (address,) = segment.allocate_addresses()
        self._registry.underlay = segment
        lan = segment.lan
        nic = Nic(
            lan=lan.name,
            lan_id=lan.id,
            name=nested.NIC,
            mac=derived_mac(f"{lan.name}/{self._node_id}", owner.id),
            addresses=(str(address),),
            mtu=lan.mtu,
            port=port_name(owner.id, PORT_INDEX),
            bridge=lan.bridge,
        )
        segment.join(LanMember(owner.id, owner.name, nic))
        return nic

    async def ensure(self) -> None:
        """Make it, if a machine is to be on it. Idempotent.

        Raises:
            AlreadyExists, HostLacks: it cannot be had.
        """
        async with self._changing:
            segment = self._registry.underlay
            if segment is not None and segment.size:
                await self._plane.ensure_nested(segment.lan)

    async def settle(self) -> None:
        """Remove it, unless a machine is on it. Idempotent; a failure is logged, and found by the next daemon."""
        async with self._changing:
            if self._registry.underlay is not None and self._registry.underlay.size:
                return
            self._registry.underlay = None
            try:
                await self._plane.remove_nested()
            except NestbedError as error:
                _logger.warning("underlay of nodes inside not removed", extra=fields(reason=error.reason, cause=error.message))

    async def take_up(self) -> None:
        """Make what is missing of it, or remove it: every record has been read."""
        try:
            await self.ensure()
        except NestbedError as error:
            _logger.exception("underlay of nodes inside not taken up", extra=fields(reason=error.reason, cause=error.message))
        await self.settle()
