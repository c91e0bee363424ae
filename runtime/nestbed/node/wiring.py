"""Deciding which NICs and routes a container gets: from what was asked to what will be made, refusing what cannot be.

Nothing is made here. Addresses are taken from the LANs at once, so that two callers never get the same one; a failure gives
all of them back.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nestbed.errors import AlreadyExists, InvalidArgument, NotFound, shown
from nestbed.lan.addressing import Address, Interface, check_mac, parse_address, parse_destination, port_name
from nestbed.lanmodel import LanMember, Nic, NicSpec
from nestbed.model import Route
from nestbed.node.segment import Segment


@dataclass(frozen=True, slots=True)
class Owner:
    """The container that gets NICs: its id and name, and the NICs it has."""

    id: str
    name: str
    nics: tuple[Nic, ...] = ()


def find_segment(segments: Mapping[str, Segment], name: str) -> Segment:
    """The LAN of that name.

    Raises:
        NotFound: there is none (reason LAN_NOT_FOUND).
    """
    segment = segments.get(name)
    if segment is None:
        raise NotFound(
            f"there is no LAN {shown(name)}",
            reason="LAN_NOT_FOUND",
            remedy="make it with `nbctl lan create`, or see `nbctl lan ls`",
            lan=shown(name),
        )
    return segment


def wire(segments: Mapping[str, Segment], owner: Owner, specs: Sequence[NicSpec], next_hops: Sequence[Address]) -> tuple[Nic, ...]:
    """The NICs for ``specs``, in order, members of their LANs from now on; ``segments`` are the node's LANs by name.

    ``next_hops`` are the addresses that the owner's routes need: they are not handed out while it is on the LAN.

    Raises:
        NotFound, AlreadyExists, InvalidArgument, ResourceExhausted: nothing was taken.
    """
    wanted = [find_segment(segments, spec.lan) for spec in specs]
    names = _interface_names(owner, specs)
    ports = _free_ports(owner)
    with contextlib.ExitStack() as undo:
        for segment in {id(segment): segment for segment in wanted}.values():
            if all(nic.lan_id != segment.lan.id for nic in owner.nics):
                undo.callback(segment.forget, owner.id)
            segment.rely_on(owner.id, next_hops)
        given = [_take_given(segment, spec, undo) for segment, spec in zip(wanted, specs, strict=True)]
        macs = _given_macs(wanted, specs)
        ordinals = [nic.lan_id for nic in owner.nics]
        nics = []
        for spec, segment, name, mac, addresses, port in zip(specs, wanted, names, macs, given, ports, strict=False):
            segment.check_room()
            nic = Nic(
                lan=segment.lan.name,
                lan_id=segment.lan.id,
                name=name,
                mac=mac or segment.free_mac(owner.name, ordinals.count(segment.lan.id), macs),
                addresses=tuple(str(interface) for interface in addresses or _allocate(segment, undo)),
                mtu=segment.lan.mtu,
                port=port,
                bridge=segment.lan.bridge,
                impair_to=spec.impair_to,
                impair_from=spec.impair_from,
                is_down=segment.lan.is_down,
            )
            ordinals.append(segment.lan.id)
            segment.join(LanMember(owner.id, owner.name, nic))
            undo.callback(segment.leave, nic.port)
            nics.append(nic)
        undo.pop_all()
        return tuple(nics)


def unwire(segments_by_id: Mapping[str, Segment], owner: Owner, leaving: Sequence[Nic]) -> None:
    """Take ``leaving`` off their LANs; ``owner.nics`` are those that stay."""
    staying = {nic.lan_id for nic in owner.nics}
    for nic in leaving:
        segment = segments_by_id.get(nic.lan_id)
        if segment is not None:
            segment.leave(nic.port)
            if nic.lan_id not in staying:
                segment.forget(owner.id)


def next_hops(gateway: str, routes: Sequence[Route]) -> list[Address]:
    """The addresses that the routes need.

    Raises:
        InvalidArgument: one of them is no address.
    """
    return [parse_address(text) for text in (*([gateway] if gateway else ()), *(route.via for route in routes))]


def check_routes(gateway: str, routes: Sequence[Route], nics: Sequence[Nic]) -> tuple[str, tuple[Route, ...]]:
    """Gateway and routes in canonical form: each to a destination of its own, through a neighbour on one of the NICs.

    Raises:
        InvalidArgument: a destination or next hop is none, is given twice, or cannot be reached from the NICs.
    """
    if not gateway and not routes:
        return "", ()
    interfaces = [ipaddress.ip_interface(address) for nic in nics for address in nic.addresses]
    checked: dict[str, Route] = {}
    for route in (*([Route("default", gateway)] if gateway else ()), *routes):
        via = parse_address(route.via)
        destination = parse_destination(route.destination, via.version)
        _check_neighbour(route, via, interfaces)
        if str(destination) in checked:
            raise InvalidArgument(
                f"there are two routes to {shown(route.destination)}",
                reason="DUPLICATE_ROUTE",
                remedy="give one route for each destination; --gateway is the route to default",
                destination=shown(route.destination),
            )
        checked[str(destination)] = Route("default" if destination.prefixlen == 0 else str(destination), str(via))
    found = tuple(checked.values())
    return (found[0].via, found[1:]) if gateway else ("", found)


def _check_neighbour(route: Route, via: Address, interfaces: Sequence[Interface]) -> None:
    if any(via == interface.ip for interface in interfaces):
        why, reason = "is the container's own address", "OWN_NEXT_HOP"
    elif not any(via in interface.network for interface in interfaces):
        why, reason = "is not on a LAN of the container", "UNREACHABLE_NEXT_HOP"
    else:
        return
    raise InvalidArgument(
        f"the next hop {via} to {shown(route.destination)} {why}",
        reason=reason,
        remedy="give the address of another member, in the subnet of one of the container's NICs",
        via=via,
        destination=shown(route.destination),
    )


def _interface_names(owner: Owner, specs: Sequence[NicSpec]) -> list[str]:
    taken = {nic.name for nic in owner.nics}
    for spec in specs:
        if spec.name in taken:
            raise AlreadyExists(
                f"container {owner.name} would have two NICs of the name {spec.name}",
                reason="NIC_EXISTS",
                remedy="give another name, or none to have it numbered",
                nic=spec.name,
                container=owner.name,
            )
        if spec.name:
            taken.add(spec.name)
    free = (name for name in map("eth{}".format, itertools.count()) if name not in taken)
    return [spec.name or next(free) for spec in specs]


def _free_ports(owner: Owner) -> itertools.filterfalse[str]:
    taken = {nic.port for nic in owner.nics}
    return itertools.filterfalse(taken.__contains__, (port_name(owner.id, index) for index in itertools.count()))


def _given_macs(wanted: Sequence[Segment], specs: Sequence[NicSpec]) -> list[str]:
    macs = [check_mac(spec.mac) if spec.mac else "" for spec in specs]
    seen: set[tuple[str, str]] = set()
    for segment, mac in zip(wanted, macs, strict=True):
        if mac:
            segment.check_mac_free(mac)
        if mac and (segment.lan.id, mac) in seen:
            raise AlreadyExists(
                f"the MAC {mac} is given to two NICs on LAN {segment.lan.name}",
                reason="MAC_TAKEN",
                remedy="give each NIC on a LAN a MAC of its own",
                mac=mac,
                lan=segment.lan.name,
            )
        seen.add((segment.lan.id, mac))
    return macs


def _take_given(segment: Segment, spec: NicSpec, undo: contextlib.ExitStack) -> list[Interface]:
    taken = []
    for text in spec.addresses:
        interface = segment.take_address(text)
        undo.callback(segment.release_address, interface)
        taken.append(interface)
    return taken


def _allocate(segment: Segment, undo: contextlib.ExitStack) -> list[Interface]:
    taken = segment.allocate_addresses()
    for interface in taken:
        undo.callback(segment.release_address, interface)
    return taken
