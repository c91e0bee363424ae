"""Which virtual machines are on the underlay of the nodes inside, and with which address: decided here, made by the LAN plane."""

from __future__ import annotations

from typing import ClassVar

from nestbed.errors import InvalidArgument
from nestbed.lan import nested
from nestbed.lan.addressing import derived_mac, port_name
from nestbed.lanmodel import LanMember, Nic
from nestbed.node.ownnet import OwnNetwork
from nestbed.node.registry import underlay_segment
from nestbed.node.segment import Segment
from nestbed.node.wiring import Owner

PORT_INDEX = 36**4 - 2
"""Of the port on it among those of its machine: the last but that on the control network."""


class NestedUnderlay(OwnNetwork):
    """The underlay of the nodes inside one node; the machines that are nodes are on it."""

    called: ClassVar[str] = "underlay of nodes inside"

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

    @property
    def _segment(self) -> Segment | None:
        return self._registry.underlay

    def _forget(self) -> None:
        self._registry.underlay = None

    async def _make(self, segment: Segment) -> None:
        await self._plane.ensure_nested(segment.lan)

    async def _remove(self) -> None:
        await self._plane.remove_nested()
