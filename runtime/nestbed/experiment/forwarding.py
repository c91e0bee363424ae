"""Where a packet goes by the plan's routes alone: what `verify` expects of each pair. Pure. IPv4."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from nestbed.experiment.plan import Plan, PlannedElement
from nestbed.experiment.topology import TopoNic

TTL = 64
"""What Linux sends with, unless told otherwise (net.ipv4.ip_default_ttl)."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way over LANs, in order."""

    lans: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expected:
    """What an element should see of an address: the TTL of replies, the largest packet, the delay there and back."""

    ttl: int
    path_mtu: int
    delay_us: int


class Forwarding:
    """Follows packets through a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._owners: dict[tuple[str, str], tuple[str, TopoNic]] = {}
        self._owner_of: dict[str, str] = {}
        self._subnets = {
            name: [
                (int(interface.network.network_address), int(interface.network.broadcast_address), nic, str(interface.ip))
                for nic in planned.element.nics
                for interface in map(ipaddress.ip_interface, nic.addresses)
                if interface.version == 4
            ]
            for name, planned in plan.elements.items()
        }
        for name, planned in plan.elements.items():
            for nic in planned.element.nics:
                for address in nic.addresses:
                    self._owners[nic.lan, address.partition("/")[0]] = name, nic
                    self._owner_of[address.partition("/")[0]] = name
        self._tables = {name: _table(planned) for name, planned in plan.elements.items()}

    def expected(self, element: str, address: str) -> Expected | None:
        """What comes of calls from an element to another's address; None if none should come back."""
        there = self._way(element, address)
        if there is None:
            return None
        source = self._source(element, address)
        back = self._way(self._owner_of[address], source) if source else None
        if back is None:
            return None
        lans = [self._plan.lans[name].lan.words for name in (*there.lans, *back.lans)]
        return Expected(TTL - (len(back.lans) - 1), min(words.mtu for words in lans), sum(words.delay for words in lans))

    def _source(self, element: str, address: str) -> str:
        """The address that packets to ``address`` are sent from."""
        step = self._step(element, address)
        return step[1] if step else ""

    def _step(self, element: str, address: str) -> tuple[TopoNic, str, str] | None:
        """Out of which NIC, from which address, to which neighbour a packet to ``address`` goes."""
        number = int(ipaddress.IPv4Address(address))
        for first, last, nic, own in self._subnets[element]:
            if first <= number <= last:
                return nic, own, address
        for first, last, via in self._tables[element]:
            if first <= number <= last:
                return self._step(element, via)
        return None

    def _way(self, element: str, address: str) -> Way | None:
        here = element
        lans: list[str] = []
        while len(lans) <= TTL:
            step = self._step(here, address)
            if step is None:
                return None
            nic, _, neighbour = step
            owner = self._owners.get((nic.lan, neighbour))
            lans.append(nic.lan)
            if owner is None:
                return None
            here = owner[0]
            if self._owner_of.get(address) == here:
                return Way(tuple(lans))
            if not self._plan.elements[here].element.forwards:
                return None
        return None


def _table(planned: PlannedElement) -> list[tuple[int, int, str]]:
    """Its IPv4 routes, the longest prefix first."""
    networks = [
        (ipaddress.ip_network("0.0.0.0/0" if route.destination == "default" else route.destination), route.via)
        for route in planned.routes
        if ":" not in route.via
    ]
    networks.sort(key=lambda entry: -entry[0].prefixlen)
    return [(int(network.network_address), int(network.broadcast_address), via) for network, via in networks]
