"""Who is on the node's control network, and with which address: decided here, made by the LAN plane.

The network is there while a container is on it. No file says so: the records of those containers name it, before it is made.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging

from nestbed.errors import InvalidArgument, NestbedError
from nestbed.lan import control
from nestbed.lan.addressing import Interface, Network, derived_mac, port_name
from nestbed.lan.plane import LanPlane
from nestbed.lanmodel import Lan, LanMember, Nic
from nestbed.log import fields
from nestbed.model import ContainerRequest, Kind
from nestbed.node.registry import Registry, control_segment
from nestbed.node.wiring import Owner

PORT_INDEX = 36**4 - 1
"""Of the port on the control network among those of its container: the last that there is."""

_logger = logging.getLogger(__name__)


def is_wanted(request: ContainerRequest) -> bool:
    """Whether a container gets a NIC on the control network."""
    return request.kind is Kind.QEMU if request.control is None else request.control


class ControlNetwork:
    """The control network of one node. ``subnet`` is the setting; empty: one is chosen when it is needed."""

    def __init__(self, registry: Registry, plane: LanPlane, node_id: str, subnet: str) -> None:
        self._registry = registry
        self._plane = plane
        self._node_id = node_id
        self._subnet = subnet
        self._changing = asyncio.Lock()

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

    async def ensure(self) -> None:
        """Make the network, if somebody is to be on it. Idempotent.

        Raises:
            AlreadyExists, HostLacks: it cannot be had.
        """
        async with self._changing:
            segment = self._registry.control
            if segment is not None and segment.size:
                await self._plane.ensure_control(segment.lan, [member.nic for member in segment.members])

    async def settle(self) -> None:
        """Remove the network, unless somebody is on it. Idempotent; a failure is logged, and found by the next daemon."""
        async with self._changing:
            if self._registry.control is not None and self._registry.control.size:
                return
            self._registry.control = None
            try:
                await self._plane.remove_control()
            except NestbedError as error:
                _logger.warning("control network not removed", extra=fields(reason=error.reason, cause=error.message))

    async def take_up(self) -> None:
        """Make what is missing of it, or remove it: every record has been read."""
        try:
            await self.ensure()
        except NestbedError as error:
            _logger.exception("control network not taken up", extra=fields(reason=error.reason, cause=error.message))
        await self.settle()


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
