"""Addresses and names on a LAN. Pure: nothing here does I/O.

Names of kernel objects and MACs are derived, so that the same experiment has the same ones on every machine:

=========  ===================================================================================================
bridge     ``nbb`` + 10 hex digits of sha256(LAN id)
port       ``nbp`` + 8 hex digits of sha256(container id) + the NIC's index in base 36
MAC        ``02`` + 5 bytes of sha256(``nestbed-mac:LAN/CONTAINER``), names; the second, third... NIC of one container on one
           LAN has ``/1``, ``/2``... after it
=========  ===================================================================================================
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import ipaddress
import re
from typing import TypeAlias

from nestbed.errors import InvalidArgument, shown

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MTU_DEFAULT = 1500
MTU_MIN = 68
"""RFC 791: every module must forward 68 octets; the kernel's ETH_MIN_MTU."""
MTU_MAX = 65535
"""The kernel's ETH_MAX_MTU, of veth and of bridges."""
MTU_MIN_IPV6 = 1280
"""RFC 8200 section 5; the kernel takes IPv6 off an interface below it."""
PORTS_MAX = 1023
"""What a Linux bridge takes: BR_MAX_PORTS is 1 << 10, and number 0 is not given out."""

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_TEXT_MAX = 64
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def bridge_name(lan_id: str) -> str:
    """The name of a LAN's bridge: 13 characters (IFNAMSIZ leaves 15)."""
    return "nbb" + hashlib.sha256(lan_id.encode()).hexdigest()[:10]


def port_prefix(container_id: str) -> str:
    """What the names of all ports of a container begin with: 11 characters."""
    return "nbp" + hashlib.sha256(container_id.encode()).hexdigest()[:8]


def port_name(container_id: str, index: int) -> str:
    """The name of a container's port number ``index`` (0 to 36**4 - 1)."""
    digits = ""
    while index >= 36:
        index, rest = divmod(index, 36)
        digits = _DIGITS[rest] + digits
    return port_prefix(container_id) + _DIGITS[index] + digits


def derived_mac(lan: str, container: str, ordinal: int = 0) -> str:
    """The MAC of a container's NIC number ``ordinal`` on a LAN, from the names of both alone. Unicast, locally administered."""
    seed = f"nestbed-mac:{lan}/{container}" + (f"/{ordinal}" if ordinal else "")
    return "02:" + hashlib.sha256(seed.encode()).digest()[:5].hex(":")


def check_mtu(mtu: int, *, has_subnet6: bool = False) -> int:
    """The MTU of a LAN: ``mtu``, or the default for 0.

    Raises:
        InvalidArgument: outside of MTU_MIN..MTU_MAX, or below MTU_MIN_IPV6 on a LAN with an IPv6 subnet.
    """
    if mtu == 0:
        return MTU_DEFAULT
    low = MTU_MIN_IPV6 if has_subnet6 else MTU_MIN
    if not low <= mtu <= MTU_MAX:
        because = " with an IPv6 subnet" if has_subnet6 else ""
        raise InvalidArgument(
            f"an MTU of {mtu} is outside of {low} to {MTU_MAX}{because}",
            reason="BAD_MTU",
            remedy=f"give an MTU from {low} to {MTU_MAX}, or none for {MTU_DEFAULT}",
            mtu=mtu,
            minimum=low,
            maximum=MTU_MAX,
        )
    return mtu


def check_mac(text: str) -> str:
    """A MAC as six pairs of hex digits, in lower case. Locally administered ones are welcome.

    Raises:
        InvalidArgument: it is none, or not unicast, or zero.
    """
    mac = text.lower().replace("-", ":") if len(text) == 17 else text
    why = ""
    if not _MAC.fullmatch(mac):
        why = "is not six pairs of hex digits"
    elif int(mac[:2], 16) & 1:
        why = "is a group address"
    elif mac == "00:00:00:00:00:00":
        why = "is zero"
    if why:
        raise InvalidArgument(
            f"the MAC {shown(text)} {why}",
            reason="BAD_MAC",
            remedy="give a unicast address such as 02:00:00:00:00:07, or none to have it derived",
            mac=shown(text),
        )
    return mac


def check_subnet(text: str, version: int) -> str:
    """A subnet in canonical CIDR form, as LANs take them: at least two usable unicast addresses, no host bits.

    Raises:
        InvalidArgument: it is not one of IP ``version``.
    """
    example = "10.5.0.0/24" if version == 4 else "fd00:5::/64"
    try:
        _plain(text)
        given = ipaddress.ip_interface(text)
    except ValueError as error:
        raise _bad_subnet(text, version, "is not in CIDR form", f"write it like {example}") from error
    network = given.network
    if given.version != version:
        raise _bad_subnet(text, version, f"is not IPv{version}", f"write it like {example}")
    if given.ip != network.network_address:
        raise _bad_subnet(text, version, "has bits set behind its prefix", f"write {network}")
    if network.prefixlen == 0 or network.num_addresses < 2:
        raise _bad_subnet(text, version, "does not hold 2 to 2^127 addresses", f"write it like {example}")
    first = usable(network)[0]
    why = _not_assignable(ipaddress.ip_address(first) if version == 4 else ipaddress.IPv6Address(first))
    if why:
        raise _bad_subnet(text, version, why, f"write it like {example}")
    return str(network)


def _bad_subnet(text: str, version: int, why: str, remedy: str) -> InvalidArgument:
    return InvalidArgument(f"the subnet {shown(text)} {why}", reason="BAD_SUBNET", remedy=remedy, subnet=shown(text), version=version)


@functools.lru_cache(maxsize=4096)
def interface_of(text: str) -> Interface:
    """An address in CIDR form, known to be one."""
    return ipaddress.ip_interface(text)


def parse_interface(text: str, network: Network | None = None) -> Interface:
    """An address with its prefix length; without one it takes that of ``network``.

    Raises:
        InvalidArgument: it is no address that an interface can have, or the prefix length is missing.
    """
    try:
        _plain(text)
        interface = ipaddress.ip_interface(text)
    except ValueError as error:
        raise _bad_address(text, "is not an IP address in CIDR form", "write it like 10.5.0.7/24 or fd00:5::7/64") from error
    if "/" not in text:
        if network is None or network.version != interface.version:
            raise _bad_address(text, "has no prefix length", f"write it like {interface.ip}/{24 if interface.version == 4 else 64}")
        interface = ipaddress.ip_interface(f"{interface.ip}/{network.prefixlen}")
    why = _not_assignable(interface.ip) or _end_of(interface.ip, interface.network)
    if why or interface.network.prefixlen == 0:
        raise _bad_address(text, why or "covers the whole address space", "give an address that an interface can have")
    return interface


def parse_address(text: str) -> Address:
    """An address alone, such as a gateway's.

    Raises:
        InvalidArgument: it is no unicast address.
    """
    try:
        _plain(text)
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise _bad_address(text, "is not an IP address", "write it like 10.5.0.1 or fd00:5::1") from error
    why = _not_assignable(address)
    if why:
        raise _bad_address(text, why, "give the address of a member of the LAN")
    return address


def parse_destination(text: str, version: int) -> Network:
    """The destination of a route: ``default`` or CIDR without host bits; an address alone means itself.

    Raises:
        InvalidArgument: it is not one of IP ``version``.
    """
    if text == "default":
        return ipaddress.ip_network("0.0.0.0/0" if version == 4 else "::/0")
    try:
        _plain(text)
        given = ipaddress.ip_interface(text)
    except ValueError as error:
        raise _bad_route(text, "is neither `default` nor in CIDR form", "write it like 10.6.0.0/24") from error
    if given.version != version:
        raise _bad_route(text, f"is not of the next hop's family, IPv{version}", "give a next hop of the same family")
    if given.ip != given.network.network_address:
        raise _bad_route(text, "has bits set behind its prefix", f"write {given.network}")
    return given.network


def _bad_route(text: str, why: str, remedy: str) -> InvalidArgument:
    return InvalidArgument(f"the destination {shown(text)} {why}", reason="BAD_ROUTE", remedy=remedy, destination=shown(text))


def check_on_subnet(interface: Interface, network: Network, lan: str) -> None:
    """Whether a member of the LAN with this subnet can have the address.

    Raises:
        InvalidArgument: it lies outside (reason ADDRESS_OUTSIDE_SUBNET), or is the subnet's own or broadcast address.
    """
    if interface.ip not in network:
        raise InvalidArgument(
            f"the address {interface} is outside of {network}, the subnet of LAN {lan}",
            reason="ADDRESS_OUTSIDE_SUBNET",
            remedy=f"give an address of {network}, or none to have one handed out",
            address=interface,
            subnet=network,
            lan=lan,
        )
    why = _end_of(interface.ip, network)
    if why:
        raise _bad_address(str(interface), why, "give another address of the subnet, or none to have one handed out")


def usable(network: Network) -> tuple[int, int]:
    """The first and the last address that members can have, as numbers: without network and broadcast address (IPv4) or
    subnet-router anycast address (IPv6, RFC 4291 2.6.1), except on two-address subnets (RFC 3021, RFC 6164).
    """
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.num_addresses <= 2:
        return first, last
    return first + 1, last - 1 if network.version == 4 else last


def _plain(text: str) -> None:
    if len(text) > _TEXT_MAX or not text.isascii() or "%" in text:  # ipaddress takes zone indices and other scripts' digits
        raise ValueError("not an address")


def _not_assignable(address: Address) -> str:
    if address.is_multicast:
        return "is multicast"
    if address.is_loopback:
        return "is the loopback's"
    if address.is_unspecified or (address.version == 4 and int(address) >> 24 == 0):
        return "is unspecified"
    if int(address) == 0xFFFFFFFF and address.version == 4:
        return "is the limited broadcast address"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return "is an IPv4 address in IPv6 form"
    return ""


def _end_of(address: Address, network: Network) -> str:
    first, last = usable(network)
    if int(address) < first:
        return f"is the address of the subnet {network} itself"
    return f"is the broadcast address of {network}" if int(address) > last else ""


def _bad_address(text: str, why: str, remedy: str) -> InvalidArgument:
    return InvalidArgument(f"the address {shown(text)} {why}", reason="BAD_ADDRESS", remedy=remedy, address=shown(text))


class AddressPool:
    """The addresses of one family on one LAN, as numbers: which are taken, and the lowest that is free.

    ``network`` None has none to hand out, but still knows which are taken. A reserved address (a gateway that somebody
    relies on) is not handed out, but may be taken. Every operation is O(log n) amortised.
    """

    def __init__(self, network: Network | None) -> None:
        self._taken: set[int] = set()
        self._reserved: dict[int, int] = {}
        # Every free address below the cursor is in the heap (and in the set beside it); none at or above it is.
        self._cursor, self._last = usable(network) if network else (1, 0)
        self._first = self._cursor
        self._heap: list[int] = []
        self._heaped: set[int] = set()

    def is_taken(self, address: int) -> bool:
        """Whether a member has it."""
        return address in self._taken

    def take(self, address: int) -> None:
        """Mark an address, inside or outside the subnet, as a member's."""
        self._taken.add(address)

    def allocate(self) -> int | None:
        """Take the lowest address that is neither taken nor reserved; None if there is none."""
        while self._heap:
            address = heapq.heappop(self._heap)
            self._heaped.discard(address)
            if self._is_free(address):
                self._taken.add(address)
                return address
        while self._cursor <= self._last:
            address = self._cursor
            self._cursor += 1
            if self._is_free(address):
                self._taken.add(address)
                return address
        return None

    def release(self, address: int) -> None:
        """The member does not have it any more."""
        self._taken.discard(address)
        self._offer(address)

    def reserve(self, address: int) -> None:
        """Do not hand it out. Counted: each call needs its ``unreserve``."""
        self._reserved[address] = self._reserved.get(address, 0) + 1

    def unreserve(self, address: int) -> None:
        """Undo one ``reserve``."""
        left = self._reserved.pop(address, 0) - 1
        if left > 0:
            self._reserved[address] = left
        else:
            self._offer(address)

    def _is_free(self, address: int) -> bool:
        return address not in self._taken and address not in self._reserved

    def _offer(self, address: int) -> None:
        if self._first <= address < self._cursor and self._is_free(address) and address not in self._heaped:
            heapq.heappush(self._heap, address)
            self._heaped.add(address)
