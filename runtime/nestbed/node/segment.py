"""A LAN and who is on it: addresses, MACs, ports, and the lines of ``/etc/hosts``, kept so that joining and leaving are cheap."""

from __future__ import annotations

import bisect
import dataclasses
import ipaddress
from collections.abc import Iterable, Sequence

from nestbed.errors import AlreadyExists, InvalidArgument, ResourceExhausted, WrongState
from nestbed.lan.addressing import (
    MTU_MIN_IPV6,
    PORTS_MAX,
    Address,
    AddressPool,
    Interface,
    Network,
    check_on_subnet,
    derived_mac,
    interface_of,
    parse_interface,
)
from nestbed.lan.hosts import member_lines
from nestbed.lanmodel import Lan, LanMember, Nic
from nestbed.node.store import LanRecord


class Segment:
    """One LAN of the node with its members. Changes nothing outside of itself."""

    def __init__(self, lan: Lan, request_id: str = "", request_digest: str = "") -> None:
        self.lan = lan
        self.request_id = request_id
        self.request_digest = request_digest
        self._networks: dict[int, Network] = {}
        for version, subnet in ((4, lan.subnet), (6, lan.subnet6)):
            if subnet:
                self._networks[version] = ipaddress.ip_network(subnet)
        self._pools = {version: AddressPool(self._networks.get(version)) for version in (4, 6)}
        self._macs: set[str] = set()
        self._members: dict[str, LanMember] = {}
        self._elsewhere: dict[str, dict[str, LanMember]] = {}
        self._hosts: list[tuple[str, int, str]] = []
        self._lines: list[str] = []
        self._next_hops: dict[str, tuple[Address, ...]] = {}
        self._version = 0

    @property
    def version(self) -> int:
        """Rises whenever the lines of ``/etc/hosts`` change."""
        return self._version

    @property
    def members(self) -> tuple[LanMember, ...]:
        """In the order in which they joined."""
        return tuple(self._members.values())

    @property
    def size(self) -> int:
        """How many members it has, here and elsewhere."""
        return len(self._members) + sum(map(len, self._elsewhere.values()))

    def elsewhere(self, without: str | None = None) -> tuple[LanMember, ...]:
        """The members on other nodes: inside virtual machines, and outside; those that ``without`` is the source of are left out."""
        return tuple(member for source, members in self._elsewhere.items() if source != without for member in members.values())

    def set_elsewhere(self, source: str, members: Iterable[LanMember]) -> bool:
        """The members that ``source`` (the id of a machine that is a node; empty: the node outside) tells of are these, and no others;
        whether that is new. They have addresses and MACs as all members do, and ports that no other has.
        """
        before, after = self._elsewhere.get(source, {}), {member.nic.port: member for member in members}
        if before == after:
            return False
        for port, member in before.items():
            if after.get(port) != member:
                self._let_go(member)
        for port, member in after.items():
            if before.get(port) != member:
                self._take_in(member)
        self._elsewhere[source] = after
        if not after:
            del self._elsewhere[source]
        return True

    def record(self) -> LanRecord:
        """What is kept of it on disk."""
        return LanRecord(self.lan, self.request_id, self.request_digest)

    def member(self, port: str) -> LanMember:
        """The member at ``port``, which there is."""
        return self._members[port]

    def replace(self, nic: Nic) -> None:
        """The member at ``nic.port`` has this NIC now: the same but for its impairments and its cable."""
        self._members[nic.port] = dataclasses.replace(self._members[nic.port], nic=nic)

    def check_room(self) -> None:
        """Whether one more can join.

        Raises:
            ResourceExhausted: a bridge takes no more (reason LAN_FULL).
        """
        if len(self._members) >= PORTS_MAX:
            raise ResourceExhausted(
                f"LAN {self.lan.name} has {PORTS_MAX} members, and a Linux bridge takes no more",
                reason="LAN_FULL",
                remedy="spread the members over several LANs joined by a router or a bridging container",
                lan=self.lan.name,
                members=PORTS_MAX,
            )

    def take_address(self, text: str) -> Interface:
        """Take an address that somebody asked for; give it back by :meth:`release_address`.

        Raises:
            InvalidArgument: it is none, or not one for this LAN.
            AlreadyExists: a member has it (reason ADDRESS_TAKEN).
        """
        interface = self._parse(text)
        pool = self._pools[interface.version]
        if pool.is_taken(int(interface.ip)):
            raise AlreadyExists(
                f"the address {interface.ip} is taken on LAN {self.lan.name}{self._holder_of(interface.ip)}",
                reason="ADDRESS_TAKEN",
                remedy="give another address, or none to have one handed out",
                address=interface.ip,
                lan=self.lan.name,
            )
        pool.take(int(interface.ip))
        return interface

    def allocate_addresses(self) -> list[Interface]:
        """Take the lowest free address of each subnet; give them back by :meth:`release_address`. None without a subnet.

        Raises:
            ResourceExhausted: a subnet has no free address (reason SUBNET_FULL).
            WrongState: the node outside hands them out (reason ADDRESSES_FROM_OUTSIDE).
        """
        if self.lan.outside and self._networks:
            raise WrongState(
                f"the addresses of LAN {self.lan.name} are handed out by the node outside",
                reason="ADDRESSES_FROM_OUTSIDE",
                remedy="make the container by way of that node (nbctl run --on), or give it an address",
                lan=self.lan.name,
            )
        taken: list[Interface] = []
        for version, network in self._networks.items():
            number = self._pools[version].allocate()
            if number is None:
                for interface in taken:
                    self.release_address(interface)
                raise ResourceExhausted(
                    f"the subnet {network} of LAN {self.lan.name} has no free address",
                    reason="SUBNET_FULL",
                    remedy="give an address of your own, remove members, or make a LAN with a larger subnet",
                    subnet=network,
                    lan=self.lan.name,
                )
            taken.append(ipaddress.ip_interface((number, network.prefixlen)))
        return taken

    def release_address(self, interface: Interface) -> None:
        """Undo :meth:`take_address` or one of :meth:`allocate_addresses`."""
        self._pools[interface.version].release(int(interface.ip))

    def check_mac_free(self, mac: str) -> None:
        """Whether a MAC that somebody asked for can be had.

        Raises:
            AlreadyExists: a member has it (reason MAC_TAKEN).
        """
        if mac in self._macs:
            raise AlreadyExists(
                f"the MAC {mac} is taken on LAN {self.lan.name}",
                reason="MAC_TAKEN",
                remedy="give another MAC, or none to have it derived",
                mac=mac,
                lan=self.lan.name,
            )

    def free_mac(self, container: str, ordinal: int, also_taken: Iterable[str]) -> str:
        """The derived MAC of the container's NIC number ``ordinal``, or of the next number whose MAC nobody has."""
        taken = self._macs.union(also_taken) if also_taken else self._macs
        while (mac := derived_mac(self.lan.name, container, ordinal)) in taken:
            ordinal += 1
        return mac

    def join(self, member: LanMember) -> None:
        """Make it a member; its addresses may be taken already."""
        self._take_in(member)
        self._members[member.nic.port] = member

    def leave(self, port: str) -> None:
        """Let the member at ``port`` go, with its addresses and MAC. Idempotent."""
        member = self._members.pop(port, None)
        if member is not None:
            self._let_go(member)

    def rename(self, port: str, container: str) -> None:
        """The member's container has a new name: its lines change, its MAC and addresses stay."""
        member = self._members[port]
        self._forget_lines(member)
        self._members[port] = renamed = LanMember(member.container_id, container, member.nic)
        self._add_lines(renamed)

    def rely_on(self, container_id: str, next_hops: Sequence[Address]) -> None:
        """Hand out none of the addresses that the container's routes need. Replaces what it relied on before."""
        self.forget(container_id)
        wanted = tuple(address for address in next_hops if address.version in self._networks and address in self._networks[address.version])
        if wanted:
            self._next_hops[container_id] = wanted
        for address in wanted:
            self._pools[address.version].reserve(int(address))

    def forget(self, container_id: str) -> None:
        """Undo :meth:`rely_on`. Idempotent."""
        for address in self._next_hops.pop(container_id, ()):
            self._pools[address.version].unreserve(int(address))

    def hosts_of_others(self, container: str) -> str:
        """The lines of ``/etc/hosts`` of every member but the container of that name, name by name."""
        first = bisect.bisect_left(self._hosts, (container, 0, ""))
        last = bisect.bisect_left(self._hosts, (f"{container}\0", 0, ""))
        return "".join(self._lines[:first]) + "".join(self._lines[last:])

    def member_ids(self) -> list[str]:
        """The containers on it, each once."""
        return list(dict.fromkeys(member.container_id for member in self._members.values()))

    def _take_in(self, member: LanMember) -> None:
        for address in member.nic.addresses:
            interface = interface_of(address)
            self._pools[interface.version].take(int(interface.ip))
        self._macs.add(member.nic.mac)
        self._add_lines(member)

    def _let_go(self, member: LanMember) -> None:
        for address in member.nic.addresses:
            self.release_address(interface_of(address))
        self._macs.discard(member.nic.mac)
        self._forget_lines(member)

    def _add_lines(self, member: LanMember) -> None:
        self._version += 1
        key = _hosts_key(member)
        place = bisect.bisect_left(self._hosts, key)
        self._hosts.insert(place, key)
        self._lines.insert(place, member_lines(_leaf(member), member.nic))

    def _forget_lines(self, member: LanMember) -> None:
        self._version += 1
        place = bisect.bisect_left(self._hosts, _hosts_key(member))
        del self._hosts[place], self._lines[place]

    def _parse(self, text: str) -> Interface:
        interface = parse_interface(text, self._networks.get(6 if ":" in text else 4))
        network = self._networks.get(interface.version)
        if network is not None:
            check_on_subnet(interface, network, self.lan.name)
        if interface.version == 6 and self.lan.mtu < MTU_MIN_IPV6:
            raise InvalidArgument(
                f"LAN {self.lan.name} has an MTU of {self.lan.mtu}, too small for the IPv6 address {interface}",
                reason="BAD_ADDRESS",
                remedy=f"give an IPv4 address, or make a LAN with an MTU of at least {MTU_MIN_IPV6}",
                lan=self.lan.name,
                mtu=self.lan.mtu,
                address=interface,
            )
        return interface

    def _holder_of(self, address: Address) -> str:
        beginning = f"{address}/"
        for member in (*self._members.values(), *self.elsewhere()):
            if any(given.startswith(beginning) for given in member.nic.addresses):
                return f" by container {member.container}"
        return ""


def _hosts_key(member: LanMember) -> tuple[str, int, str]:
    # By length and then by text, the ports of one container sort by the number of the NIC.
    return _leaf(member), len(member.nic.port), member.nic.port


def _leaf(member: LanMember) -> str:
    """What a member is called inside, whatever node it is on."""
    return member.container.rpartition("/")[2]
