"""Static routes and distances: shortest paths from every element to every LAN. Pure and deterministic.

A path leads over LANs; between two of them stands an element that forwards. Its length is the number of elements in between. Of
several shortest paths the one through the first NIC, then through the element that stands first in the file, is taken.

Elements with the same LANs in the same order have the same paths: they are computed once for each such *footing*.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nestbed.errors import InvalidArgument
from nestbed.experiment.topology import Element, Topology
from nestbed.experiment.vtopo import RouteWords
from nestbed.lan.addressing import parse_address, parse_destination
from nestbed.model import Route

Footing = tuple[int, ...]

FAR = 1 << 30
"""The distance of what cannot be reached."""


@dataclass(frozen=True, slots=True)
class _Reach:
    """From one footing: the distance of each LAN, and through whom (element, NIC) the first step leads; (-1, -1) for none."""

    distances: list[int]
    first_hops: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Subnet:
    """A subnet as numbers, and the number of its LAN."""

    network: int
    prefix: int
    lan: int


class Paths:
    """The shortest paths of a topology that has its addresses."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._elements = list(topology.elements.values())
        lans = list(topology.lans.values())
        self._numbers = {lan.name: index for index, lan in enumerate(lans)}
        self._lans_of = [tuple(self._numbers[nic.lan] for nic in element.nics) for element in self._elements]
        self._forwarders: list[list[tuple[int, int]]] = [[] for _ in lans]
        for number, element in enumerate(self._elements):
            if element.forwards:
                for nic, lan in enumerate(self._lans_of[number]):
                    if element.nics[nic].addresses:
                        self._forwarders[lan].append((number, nic))
        self._reaches: dict[Footing, _Reach] = {}
        self._routes: dict[Footing, tuple[Route, ...]] = {}
        self._subnets = {4: _sorted_subnets(lan.subnet for lan in lans), 6: _sorted_subnets(lan.subnet6 for lan in lans)}
        self._next_hops = {
            version: [[_address(nic.addresses, version) for nic in element.nics] if element.forwards else [] for element in self._elements]
            for version in (4, 6)
        }

    def footing(self, element: Element) -> Footing:
        """The numbers of its LANs, in the order of its NICs."""
        return tuple(self._numbers[nic.lan] for nic in element.nics)

    def distances(self, footing: Footing) -> Sequence[int]:
        """How many elements are between it and each LAN, by number; FAR if it cannot be reached."""
        return self._reach(footing).distances

    def routes(self, element: Element) -> tuple[Route, ...]:
        """The routes of an element: its own as they are, and, with static routing, those to the other LANs.

        Raises:
            InvalidArgument: one of its own routes cannot be.
        """
        own = self._own(element)
        if self._topology.vtopo.routing != "static":
            return own
        taken = {route.destination for route in own}
        return own + tuple(route for route in self._computed(self.footing(element)) if route.destination not in taken)

    def _computed(self, footing: Footing) -> tuple[Route, ...]:
        if footing not in self._routes:
            first_hops = self._reach(footing).first_hops
            found: list[Route] = []
            for version, subnets in self._subnets.items():
                found += _joined(subnets, first_hops, self._next_hops[version], version)
            self._routes[footing] = tuple(found)
        return self._routes[footing]

    def _reach(self, footing: Footing) -> _Reach:
        reach = self._reaches.get(footing)
        if reach is None:
            reach = self._reaches[footing] = self._search(footing)
        return reach

    def _search(self, footing: Footing) -> _Reach:
        distances = [FAR] * len(self._forwarders)
        hops = [(-1, -1)] * len(self._forwarders)
        lans_of, forwarders = self._lans_of, self._forwarders
        here = list(dict.fromkeys(footing))
        for lan in here:
            distances[lan] = 0
        passed: set[int] = set()
        step = 0
        while here:
            step += 1
            following: list[int] = []
            for lan in here:
                hop = hops[lan]
                for through in forwarders[lan]:
                    if through[0] in passed:
                        continue
                    passed.add(through[0])
                    for other in lans_of[through[0]]:
                        if distances[other] == FAR:
                            distances[other] = step
                            hops[other] = through if step == 1 else hop
                            following.append(other)
            here = following
        return _Reach(distances, hops)

    def _own(self, element: Element) -> tuple[Route, ...]:
        found: dict[str, Route] = {}
        for index, words in enumerate(element.words.routes):
            with self._topology.source.telling((*element.path, "routes", index), f"route of {element.name}: "):
                route = self._route(element, words)
                if found.setdefault(route.destination, route) is not route:
                    raise _twice(route)
        return tuple(found.values())

    def _route(self, element: Element, words: RouteWords) -> Route:
        via = self._via(element, words.via)
        version, lan = parse_address(via).version, self._topology.lans.get(words.to)
        text = words.to if lan is None else lan.subnet if version == 4 else lan.subnet6
        destination = parse_destination(text, version)
        return Route("default" if destination.prefixlen == 0 else str(destination), via)

    def _via(self, element: Element, text: str) -> str:
        other = self._topology.elements.get(text)
        if other is None:
            via = parse_address(text)
            if not any(via in ipaddress.ip_interface(address).network for nic in element.nics for address in nic.addresses):
                raise InvalidArgument(
                    f"the next hop {via} is on none of its LANs",
                    reason="UNREACHABLE_NEXT_HOP",
                    remedy="name an element on one of its LANs, or give an address there",
                )
            return str(via)
        own = {nic.lan for nic in element.nics}
        found = next((address for nic in other.nics if nic.lan in own for address in nic.addresses), "")
        if not found or other.name == element.name:
            raise InvalidArgument(
                f"the next hop {text} has no address on a LAN of {element.name}",
                reason="UNREACHABLE_NEXT_HOP",
                remedy="name an element on one of its LANs",
            )
        return found.partition("/")[0]


def _twice(route: Route) -> InvalidArgument:
    return InvalidArgument(f"there are two to {route.destination}", reason="DUPLICATE_ROUTE", remedy="leave one out")


def _sorted_subnets(texts: Iterable[str]) -> list[_Subnet]:
    networks = [(ipaddress.ip_network(text), lan) for lan, text in enumerate(texts) if text]
    return sorted(
        (_Subnet(int(network.network_address), network.prefixlen, lan) for network, lan in networks), key=lambda subnet: subnet.network
    )


def _address(addresses: Iterable[str], version: int) -> str:
    return next((address.partition("/")[0] for address in addresses if (":" in address) == (version == 6)), "")


def _joined(
    subnets: Sequence[_Subnet], first_hops: Sequence[tuple[int, int]], next_hops: Sequence[Sequence[str]], version: int
) -> list[Route]:
    """The routes to the subnets, neighbours with the same next hop joined as far as they make up a larger prefix exactly."""
    bits = 32 if version == 4 else 128
    stack: list[tuple[int, int, str]] = []
    for subnet in subnets:
        element, nic = first_hops[subnet.lan]
        if element < 0 or not (via := next_hops[element][nic]):
            continue
        network, prefix = subnet.network, subnet.prefix
        while stack and stack[-1][1] == prefix and stack[-1][2] == via and not (stack[-1][0] >> (bits - prefix)) & 1:
            if stack[-1][0] + (1 << (bits - prefix)) != network:
                break
            network, prefix = stack.pop()[0], prefix - 1
        stack.append((network, prefix, via))
    kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    return [Route(f"{kind(network)}/{prefix}" if prefix else "default", via) for network, prefix, via in stack]


def index_by_number(topology: Topology) -> Mapping[str, int]:
    """The numbers that footings are made of, by the LAN's name."""
    return {name: index for index, name in enumerate(topology.lans)}
