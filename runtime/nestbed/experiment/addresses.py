"""Subnets and addresses of a topology: given ones are kept and checked, the others handed out, lowest first. Pure and deterministic."""

from __future__ import annotations

import bisect
import dataclasses
import ipaddress

from nestbed.errors import InvalidArgument
from nestbed.experiment.source import Path, Source
from nestbed.experiment.topology import Element, TopoLan, Topology, TopoNic
from nestbed.experiment.vtopo import NO_SUBNET
from nestbed.lan.addressing import AddressPool, Interface, Network, check_on_subnet, check_subnet, parse_interface, usable

PREFIX6 = 64


def address(topology: Topology) -> Topology:
    """The topology with subnets for its LANs and addresses for its NICs.

    Each LAN without a given subnet gets the lowest of the pool that overlaps no other and has room for its members. Each NIC without
    given addresses gets the lowest free one of each subnet, in the order of the file.

    Raises:
        InvalidArgument: a given subnet or address that cannot be, or clashes; a pool or a subnet that is too small.
    """
    members = topology.members()
    lans = _subnets(topology, {name: len(on) for name, on in members.items()})
    taken: dict[str, str] = {}
    pools = {
        name: [AddressPool(ipaddress.ip_network(subnet)) for subnet in (lan.subnet, lan.subnet6) if subnet] for name, lan in lans.items()
    }
    given: dict[tuple[str, int], tuple[str, ...]] = {}
    for name, on in members.items():
        for element, index in on:
            if element.nics[index].addresses:
                given[element.name, index] = _take(topology.source, lans[name], element, index, pools[name], taken)
    elements = {}
    for element in topology.elements.values():
        nics = tuple(
            dataclasses.replace(
                nic, addresses=given.get((element.name, index)) or _hand_out(topology.source, lans[nic.lan], pools[nic.lan], element, nic)
            )
            for index, nic in enumerate(element.nics)
        )
        elements[element.name] = dataclasses.replace(element, nics=nics)
    return dataclasses.replace(topology, lans=lans, elements=elements)


def _subnets(topology: Topology, sizes: dict[str, int]) -> dict[str, TopoLan]:
    source, vtopo = topology.source, topology.vtopo
    taken4, taken6 = _Taken(), _Taken()
    given: dict[tuple[str, int], str] = {}
    for lan in topology.lans.values():
        for version, text, taken in ((4, lan.words.subnet, taken4), (6, lan.words.subnet6, taken6)):
            if text and text != NO_SUBNET:
                path = (*lan.path, "subnet" if version == 4 else "subnet6")
                with source.telling(path):
                    subnet = check_subnet(text, version)
                given[lan.name, version] = subnet
                other = taken.add(ipaddress.ip_network(subnet), lan.name)
                if other:
                    raise source.mistake(
                        path,
                        f"the subnet {subnet} of LAN {lan.name} overlaps that of LAN {other}",
                        reason="SUBNET_CLASH",
                        remedy="give another subnet, or none to have one handed out",
                        subnet=subnet,
                        lan=lan.name,
                        other=other,
                    )
    offers4 = _Offers(source, ("pool",), vtopo.pool, 4, taken4)
    offers6 = _Offers(source, ("pool6",), vtopo.pool6, 6, taken6) if vtopo.pool6 else None
    found = {}
    for lan in topology.lans.values():
        subnet, subnet6 = given.get((lan.name, 4), ""), given.get((lan.name, 6), "")
        if not lan.words.subnet:
            subnet = offers4.next(min(vtopo.prefix, _prefix_for(sizes[lan.name])), lan.name)
        if not lan.words.subnet6 and offers6:
            subnet6 = offers6.next(PREFIX6, lan.name)
        found[lan.name] = dataclasses.replace(lan, subnet=subnet, subnet6=subnet6)
    return found


def _prefix_for(members: int) -> int:
    return 32 - (members + 1).bit_length()


class _Taken:
    """Networks that do not overlap, by their first address."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._all: list[tuple[int, int, str]] = []

    def add(self, network: Network, name: str) -> str:
        """Take it; or the name of one that it overlaps, and nothing is taken."""
        first, last = int(network.network_address), int(network.broadcast_address)
        other = self.overlapping(first, last)
        if other is not None:
            return other[2]
        at = bisect.bisect(self._starts, first)
        self._starts.insert(at, first)
        self._all.insert(at, (first, last, name))
        return ""

    def overlapping(self, first: int, last: int) -> tuple[int, int, str] | None:
        at = bisect.bisect(self._starts, last) - 1
        return self._all[at] if at >= 0 and self._all[at][1] >= first else None


class _Offers:
    """The subnets of a pool, lowest first."""

    def __init__(self, source: Source, path: Path, pool: str, version: int, taken: _Taken) -> None:
        self._source, self._path, self._taken = source, path, taken
        with source.telling(path):
            self._pool: Network = ipaddress.ip_network(check_subnet(pool, version))
        self._cursor = int(self._pool.network_address)

    def next(self, prefix: int, lan: str) -> str:
        """The lowest free one of this prefix length."""
        size = 1 << (self._pool.max_prefixlen - prefix)
        end = int(self._pool.broadcast_address)
        first = -(-self._cursor // size) * size
        while first + size - 1 <= end:
            other = self._taken.overlapping(first, first + size - 1)
            if other is None:
                self._cursor = first + size
                made = type(self._pool)((first, prefix))
                self._taken.add(made, lan)
                return str(made)
            first = -(-(other[1] + 1) // size) * size
        raise self._source.mistake(
            self._path,
            f"the pool {self._pool} has no subnet of prefix length {prefix} left for LAN {lan}",
            reason="POOL_EMPTY",
            remedy="give a larger pool, a longer prefix, or subnets",
            pool=self._pool,
            lan=lan,
        )


def _take(source: Source, lan: TopoLan, element: Element, index: int, pools: list[AddressPool], taken: dict[str, str]) -> tuple[str, ...]:
    """The given addresses of a NIC, checked."""
    nic = element.nics[index]
    networks = [ipaddress.ip_network(subnet) for subnet in (lan.subnet, lan.subnet6) if subnet]
    found = []
    for number, text in enumerate(nic.addresses):
        path = (*nic.path, "addresses", number)
        with source.telling(path):
            interface = _parse(text, networks, lan.name)
        other = taken.setdefault(f"{interface.ip}", f"{element.name} ({nic.name})")
        if other != f"{element.name} ({nic.name})" or str(interface) in found:
            raise source.mistake(
                path,
                f"{element.name} and {other} have the address {interface.ip}",
                reason="ADDRESS_CLASH",
                remedy="give another address, or none to have one handed out",
                address=interface.ip,
            )
        for network, pool in zip(networks, pools, strict=True):
            if interface.ip in network:
                pool.take(int(interface.ip))
        found.append(str(interface))
    return tuple(found)


def _parse(text: str, networks: list[Network], lan: str) -> Interface:
    version = 6 if ":" in text else 4
    own = next((network for network in networks if network.version == version), None)
    interface = parse_interface(text, own)
    if own is not None:
        check_on_subnet(interface, own, lan)
        if interface.network != own:
            raise InvalidArgument(
                f"the address {interface} has another prefix length than {own}, the subnet of LAN {lan}",
                reason="PREFIX_CLASH",
                remedy=f"write {interface.ip}/{own.prefixlen}, or {interface.ip} alone",
                address=interface,
                subnet=own,
            )
    return interface


def _hand_out(source: Source, lan: TopoLan, pools: list[AddressPool], element: Element, nic: TopoNic) -> tuple[str, ...]:
    found = []
    for subnet, pool in zip([subnet for subnet in (lan.subnet, lan.subnet6) if subnet], pools, strict=True):
        number = pool.allocate()
        if number is None:
            first, last = usable(ipaddress.ip_network(subnet))
            raise source.mistake(
                nic.path,
                f"the subnet {subnet} of LAN {lan.name} has no address left for {element.name}: it holds {last - first + 1}",
                reason="SUBNET_FULL",
                remedy="give the LAN a larger subnet, or none to have one handed out",
                subnet=subnet,
                lan=lan.name,
                element=element.name,
            )
        kind = ipaddress.IPv6Address if ":" in subnet else ipaddress.IPv4Address
        found.append(f"{kind(number)}/{subnet.partition('/')[2]}")
    return tuple(found)
