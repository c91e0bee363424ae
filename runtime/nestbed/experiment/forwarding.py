"""Where a packet goes by the plan's routes alone, and what is done to it on the way: what `verify` expects of each pair. Pure."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from functools import cache

from nestbed.experiment.plan import Plan, PlannedElement, impairment
from nestbed.experiment.topology import TopoNic
from nestbed.experiment.vtopo import Impairing, LanWords
from nestbed.lan.impair import in_force, queue_frames
from nestbed.lanmodel import Impairment

HOP_LIMIT = 64
"""What Linux sends with, unless told otherwise (net.ipv4.ip_default_ttl, net.ipv6.conf.all.hop_limit)."""


@dataclass(frozen=True, slots=True)
class Hop:
    """From one element's NIC to another's, on one LAN."""

    sender: TopoNic
    receiver: TopoNic


@dataclass(frozen=True, slots=True)
class Expected:
    """What an element should see of an address: the TTL of replies, the largest packet, and what is done to a packet and its reply.

    ``loss`` is the share of calls without a reply, ``copies`` how many replies a call has that was not lost, ``rate_bps`` the least rate
    on the way (0: none is declared), ``queue_frames`` how many may wait for a rate (0: no matter), ``neighbour`` whether no router is
    between.
    """

    ttl: int
    path_mtu: int
    delay_us: int = 0
    jitter_us: int = 0
    reorders: bool = False
    loss: float = 0.0
    copies: float = 1.0
    rate_bps: int = 0
    queue_frames: int = 0
    neighbour: bool = False


class Forwarding:
    """Follows packets through a plan, IPv4 and IPv6 alike."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._owners: dict[tuple[str, str], tuple[str, TopoNic]] = {}
        self._owner_of: dict[str, str] = {}
        self._subnets = {
            name: [
                (
                    interface.version,
                    int(interface.network.network_address),
                    int(interface.network.broadcast_address),
                    nic,
                    str(interface.ip),
                )
                for nic in planned.element.nics
                for interface in map(ipaddress.ip_interface, nic.addresses)
            ]
            for name, planned in plan.elements.items()
        }
        for name, planned in plan.elements.items():
            for nic in planned.element.nics:
                for address in nic.addresses:
                    self._owners[nic.lan, address.partition("/")[0]] = name, nic
                    self._owner_of[address.partition("/")[0]] = name
        self._tables = {name: _table(planned) for name, planned in plan.elements.items()}
        self._legs = cache(self._legs_of)

    def expected(self, element: str, address: str) -> Expected | None:
        """What comes of calls from an element to another's address; None if none should come back."""
        there = self._way(element, address)
        if there is None:
            return None
        source = self._source(element, address)
        back = self._way(self._owner_of[address], source) if source else None
        if back is None:
            return None
        hops = [*there, *back]
        legs = [leg for hop in hops for leg in self._legs(hop)]
        return Expected(
            ttl=HOP_LIMIT - (len(back) - 1),
            path_mtu=min(self._plan.lans[hop.sender.lan].lan.words.mtu for hop in hops),
            delay_us=sum(leg.delay_us for leg in legs),
            jitter_us=sum(leg.jitter_us for leg in legs),
            reorders=any(leg.reorder for leg in legs),
            loss=1 - math.prod((1 - leg.loss) * (1 - leg.corrupt) for leg in legs),
            copies=math.prod(1 + leg.duplicate for leg in legs),
            rate_bps=min((leg.rate_bps for leg in legs if leg.rate_bps), default=0),
            queue_frames=min((queue_frames(leg, 1500) for leg in legs if leg.rate_bps), default=0),
            neighbour=len(there) == len(back) == 1,
        )

    def _legs_of(self, hop: Hop) -> tuple[Impairment, ...]:
        """What is done to a packet on the way from one port to the other; nothing for most."""
        lan = _model(self._plan.lans[hop.sender.lan].lan.words)
        legs = (in_force(lan, _model(hop.sender.from_)), in_force(lan, _model(hop.receiver.to)))
        return tuple(leg for leg in legs if leg != Impairment())

    def _source(self, element: str, address: str) -> str:
        """The address that packets to ``address`` are sent from."""
        step = self._step(element, address)
        return step[1] if step else ""

    def _step(self, element: str, address: str) -> tuple[TopoNic, str, str] | None:
        """Out of which NIC, from which address, to which neighbour a packet to ``address`` goes."""
        goal = ipaddress.ip_address(address)
        number = int(goal)
        for kind, first, last, nic, own in self._subnets[element]:
            if kind == goal.version and first <= number <= last:
                return nic, own, address
        for version, first, last, via in self._tables[element]:
            if version == goal.version and first <= number <= last:
                return self._step(element, via)
        return None

    def _way(self, element: str, address: str) -> tuple[Hop, ...] | None:
        here = element
        hops: list[Hop] = []
        while len(hops) <= HOP_LIMIT:
            step = self._step(here, address)
            if step is None:
                return None
            nic, _, neighbour = step
            owner = self._owners.get((nic.lan, neighbour))
            if owner is None:
                return None
            here = owner[0]
            hops.append(Hop(nic, owner[1]))
            if self._owner_of.get(address) == here:
                return tuple(hops)
            if not self._plan.elements[here].element.forwards:
                return None
        return None


def _model(words: LanWords | Impairing) -> Impairment:
    return Impairment(**impairment(words))


def _table(planned: PlannedElement) -> list[tuple[int, int, int, str]]:
    """Its routes, the longest prefix first."""
    networks = [(_network(route.destination, route.via), route.via) for route in planned.routes]
    networks.sort(key=lambda entry: -entry[0].prefixlen)
    return [(network.version, int(network.network_address), int(network.broadcast_address), via) for network, via in networks]


def _network(destination: str, via: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if destination == "default":
        return ipaddress.ip_network("::/0" if ":" in via else "0.0.0.0/0")
    return ipaddress.ip_network(destination)
