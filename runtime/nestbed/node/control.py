"""Who is on the node's control network, and with which address: decided here, made by the LAN plane."""

from __future__ import annotations

import ipaddress
from typing import ClassVar

from nestbed.errors import InvalidArgument
from nestbed.lan import control
from nestbed.lan.addressing import Interface, Network, derived_mac, port_name
from nestbed.lan.contract import LanPlane
from nestbed.lanmodel import Lan, LanMember, Nic
from nestbed.model import ContainerRequest, Kind
from nestbed.node.ownnet import OwnNetwork
from nestbed.node.registry import Registry, control_segment
from nestbed.node.segment import Segment
from nestbed.node.wiring import Owner

PORT_INDEX = 36**4 - 1
"""Of the port on the control network among those of its container: the last that there is."""


def is_wanted(request: ContainerRequest) -> bool:
    """Whether a container gets a NIC on the control network."""
    return request.kind is Kind.QEMU if request.control is None else request.control


class ControlNetwork(OwnNetwork):
    """The control network of one node. ``subnet`` is the setting; empty: one is chosen when it is needed."""

    called: ClassVar[str] = "control network"

    def __init__(self, registry: Registry, plane: LanPlane, node_id: str, subnet: str) -> None:
        super().__init__(registry, plane, node_id)
        self._subnet = subnet

    def assign(self, owner: Owner) -> Nic:
        """A NIC for a container that has none, in effect once :meth:`join` was called. ``owner.nics`` are those on its LANs.

        Raises:
            InvalidArgument: a LAN's subnet and this one's overlap, or a NIC has its name. ResourceExhausted: it is full.
        """
        segment = self._registry.control or control_segment(self._subnet or self._choose(owner), self._plane.control_mtu())
        _check_fits(segment.lan, owner)
        segment.check_room()
        (address,) = segment.allocate_addresses()
        self._registry.control = segment
        nic = Nic(
            lan=control.BRIDGE,
            lan_id=control.LAN_ID,
            name=control.NIC,
            mac=derived_mac(f"{control.BRIDGE}/{self._node_id}", owner.id),
            addresses=(f"{address.ip}/{self._plane.control_prefix(segment.lan.subnet)}",),
            mtu=segment.lan.mtu,
            port=port_name(owner.id, PORT_INDEX),
            bridge=control.BRIDGE,
        )
        segment.join(LanMember(owner.id, owner.name, nic))
        return nic

    def _choose(self, owner: Owner) -> str:
        own = [str(ipaddress.ip_interface(address).network) for nic in owner.nics for address in nic.addresses]
        lans = [segment.lan.subnet for segment in self._registry.segments.values() if segment.lan.subnet]
        return self._plane.choose_control([*own, *lans])

    @property
    def _segment(self) -> Segment | None:
        return self._registry.control

    def _forget(self) -> None:
        self._registry.control = None

    async def _make(self, segment: Segment) -> None:
        await self._plane.ensure_control(segment.lan, [member.nic for member in segment.members])

    async def _remove(self) -> None:
        await self._plane.remove_control()


def _check_fits(lan: Lan, owner: Owner) -> None:
    network = ipaddress.ip_network(lan.subnet)
    for nic in owner.nics:
        if nic.name == control.NIC:
            raise InvalidArgument(
                f"the NIC of a container on the control network is called {control.NIC}, so the one on LAN {nic.lan} cannot be",
                reason="NIC_NAME_TAKEN",
                remedy="give that NIC another name, or make the container with --no-control",
                nic=nic.name,
                lan=nic.lan,
            )
        for address in map(ipaddress.ip_interface, nic.addresses):
            if _overlap(address, network):
                raise InvalidArgument(
                    f"the address {address} on LAN {nic.lan} is of a subnet that overlaps the control network's, {network}",
                    reason="CONTROL_OVERLAP",
                    remedy="make the container with --no-control, or give the node another --control-subnet",
                    address=address,
                    lan=nic.lan,
                    subnet=network,
                )


def _overlap(address: Interface, network: Network) -> bool:
    return address.version == network.version and address.network.overlaps(network)
