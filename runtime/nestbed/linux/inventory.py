"""What a network device has by rtnetlink(7): its addresses, routes and permanent neighbours, kept as the kernel tells them, so that another
device can be given the same.

An :class:`Entry` is a message of a dump: a header and attributes. What the kernel makes of itself with an address (routes of the table
``local``) is no entry. Routes through nexthop objects (``ip nexthop``) are entries, but cannot be given to another device.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nestbed.linux.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RTM_DELADDR,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    attribute,
    attribute_list,
    request,
)
from nestbed.linux.rtnl import Rtnl

FOREVER = 0xFFFFFFFF

_IFADDRMSG = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_NEXTHOP = struct.Struct("=HBBi")

_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_BROADCAST, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_RT_PRIORITY, _IFA_PROTO = 1, 2, 3, 4, 6, 8, 9, 11
_IFA_KEPT = frozenset({_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_BROADCAST, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_RT_PRIORITY, _IFA_PROTO})
_IFA_F_NODAD = 0x02
_IFA_F_KEPT = _IFA_F_NODAD | 0x10 | 0x100 | 0x200 | 0x400
"""Beside it HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN; the kernel finds the others by itself."""

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_MULTIPATH, _RTA_CACHEINFO = 1, 4, 5, 7, 9, 12
_RTA_VIA, _RTA_EXPIRES, _RTA_NH_ID = 18, 23, 30
_NDA_CACHEINFO = 3
_RTN_UNICAST, _RTPROT_KERNEL, _RT_TABLE_LOCAL = 1, 2, 255
_RTM_F_CLONED, _RTNH_F_ONLINK = 0x200, 4
_USER_HZ = 100
_NUD_PERMANENT, _NUD_STALE, _NUD_LEARNED, _NTF_KEPT = 0x80, 0x04, 0x02 | 0x04 | 0x08 | 0x10, 0x08 | 0x80
"""Flags PROXY and ROUTER."""
_AF_INET, _AF_INET6 = 2, 10


class Kind(enum.StrEnum):
    """What an entry is."""

    ADDRESS = "address"
    ROUTE = "route"
    NEIGHBOUR = "neighbour"


_TYPES = {Kind.ADDRESS: (RTM_NEWADDR, RTM_DELADDR), Kind.ROUTE: (RTM_NEWROUTE, RTM_DELROUTE), Kind.NEIGHBOUR: (RTM_NEWNEIGH, RTM_DELNEIGH)}
_HEADERS = {Kind.ADDRESS: _IFADDRMSG, Kind.ROUTE: _RTMSG, Kind.NEIGHBOUR: _NDMSG}


@dataclass(frozen=True, slots=True)
class Entry:
    """An address, route or neighbour of a device. ``attributes`` are numbers and contents, in the kernel's order."""

    kind: Kind
    header: bytes
    attributes: tuple[tuple[int, bytes], ...]

    def get(self, number: int) -> bytes | None:
        """An attribute."""
        return next((data for found, data in self.attributes if found == number), None)

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return self.header[0]

    @property
    def is_ipv6(self) -> bool:
        """Whether it is one of IPv6."""
        return self.family == _AF_INET6

    @property
    def address(self) -> str:
        """Of an address: itself in CIDR form. Of a neighbour: the address."""
        packed = self.get(_IFA_LOCAL if self.kind is Kind.ADDRESS and self.family == _AF_INET else _IFA_ADDRESS) or b""
        text = str(ipaddress.ip_address(packed))
        return f"{text}/{self.header[1]}" if self.kind is Kind.ADDRESS else text

    @property
    def label(self) -> str:
        """Of an IPv4 address: its label."""
        return (self.get(_IFA_LABEL) or b"").rstrip(b"\0").decode()

    @property
    def destination(self) -> str:
        """Of a route: where to, in CIDR form."""
        packed = self.get(_RTA_DST) or bytes(4 if self.family == _AF_INET else 16)
        return f"{ipaddress.ip_address(packed)}/{self.header[1]}"

    @property
    def name(self) -> str:
        """The address, or the destination."""
        return self.destination if self.kind is Kind.ROUTE else self.address

    @property
    def has_gateway(self) -> bool:
        """Of a route: whether its next hop must be reachable by another one."""
        return any(self.get(number) is not None for number in (_RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA))

    @property
    def preferred_source(self) -> str:
        """Of a route: the address that packets have unless they have one; "" for none."""
        packed = self.get(_RTA_PREFSRC)
        return "" if packed is None else str(ipaddress.ip_address(packed))

    @property
    def is_for_address(self) -> bool:
        """Of a route: whether the kernel made it for an address."""
        return self.kind is Kind.ROUTE and _RTMSG.unpack(self.header)[5] == _RTPROT_KERNEL

    def is_like(self, other: Entry) -> bool:
        """Whether they are the same but for how long they last."""
        return self._essence() == other._essence()

    def _essence(self) -> tuple[object, ...]:
        volatile = {Kind.ADDRESS: _IFA_CACHEINFO, Kind.ROUTE: _RTA_CACHEINFO, Kind.NEIGHBOUR: _NDA_CACHEINFO}[self.kind]
        return self.kind, self.header, tuple(one for one in self.attributes if one[0] != volatile)

    @property
    def has_nexthop_object(self) -> bool:
        """Of a route: whether it goes through a nexthop object, which names its own device."""
        return self.kind is Kind.ROUTE and self.get(_RTA_NH_ID) is not None

    @property
    def valid_seconds(self) -> int:
        """Of an address: how long it was valid from the dump on; FOREVER for a permanent one."""
        data = self.get(_IFA_CACHEINFO)
        return FOREVER if data is None else int(struct.unpack_from("=II", data)[1])


def addresses(rtnl: Rtnl, index: int = 0) -> list[Entry]:
    """The addresses of a device, or of all, in the kernel's order: those of IPv4 first, a primary one before its secondaries."""
    found = [_entry(Kind.ADDRESS, payload) for payload in rtnl.dump(RTM_GETADDR, RTM_NEWADDR, bytes(_IFADDRMSG.size))]
    found = [entry for entry in found if entry.family in (_AF_INET, _AF_INET6)]
    return [entry for entry in found if index in (0, _IFADDRMSG.unpack(entry.header)[4])]


def routes(rtnl: Rtnl, index: int = 0) -> list[Entry]:
    """The routes of all tables through a device, or of all, but for those that come and go with an address of themselves."""
    found = []
    for family in (_AF_INET, _AF_INET6):
        for payload in rtnl.dump(RTM_GETROUTE, RTM_NEWROUTE, struct.pack("=B11x", family)):
            entry = _entry(Kind.ROUTE, payload)
            _, _, _, _, table, protocol, _, kind, flags = _RTMSG.unpack(entry.header)
            is_made_by_itself = protocol == _RTPROT_KERNEL and (kind != _RTN_UNICAST or table == _RT_TABLE_LOCAL)
            if not flags & _RTM_F_CLONED and not is_made_by_itself and index in (0, *_devices(entry)):
                found.append(entry)
    return found


def neighbours(rtnl: Rtnl, index: int, *, learned: bool = False) -> list[Entry]:
    """The neighbours of a device that somebody entered for good; or those that it ``learned``, as if it had not seen them for a while."""
    kept = []
    for payload in rtnl.dump(RTM_GETNEIGH, RTM_NEWNEIGH, bytes(_NDMSG.size)):
        entry = _entry(Kind.NEIGHBOUR, payload)
        family, number, state, flags, kind = _NDMSG.unpack(entry.header)
        if number != index or family not in (_AF_INET, _AF_INET6):
            continue
        if not learned and state & _NUD_PERMANENT:
            kept.append(entry)
        elif learned and state & _NUD_LEARNED:
            kept.append(replace(entry, header=_NDMSG.pack(family, number, _NUD_STALE, flags, kind)))
    return kept


def _entry(kind: Kind, payload: memoryview) -> Entry:
    size = _HEADERS[kind].size
    return Entry(kind, bytes(payload[:size]), tuple((number, bytes(data)) for number, data in attribute_list(payload[size:])))


def _devices(route: Entry) -> set[int]:
    """The devices that a route goes through."""
    found = {struct.unpack("=i", data)[0] for number, data in route.attributes if number == _RTA_OIF}
    data = route.get(_RTA_MULTIPATH) or b""
    return found | {index for _, index, _ in _next_hops(data)}


def _next_hops(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Where each hop of a multipath route begins, its device, and how long it is."""
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        length, _, _, index = _NEXTHOP.unpack_from(data, offset)
        if length < _NEXTHOP.size:
            return
        yield offset, index, length
        offset += (length + 3) & ~3


def ipv4_address(index: int, cidr: str, label: str) -> Entry:
    """An IPv4 address for a device, for ever, under a label of at most 15 characters."""
    interface = ipaddress.IPv4Interface(cidr)
    packed, network = interface.ip.packed, interface.network
    attributes = [(_IFA_LOCAL, packed), (_IFA_ADDRESS, packed), (_IFA_LABEL, label.encode() + b"\0")]
    if network.prefixlen < 31:
        attributes.append((_IFA_BROADCAST, network.broadcast_address.packed))
    return Entry(Kind.ADDRESS, _IFADDRMSG.pack(_AF_INET, network.prefixlen, 0, 0, index), tuple(attributes))


# ---- another device


@dataclass(frozen=True, slots=True)
class Device:
    """A device by its index and name."""

    index: int
    name: str


def moved(entry: Entry, source: Device, target: Device) -> Entry:
    """The same entry of another device: labels of addresses follow the device's name."""
    if entry.kind is Kind.ADDRESS:
        family, length, flags, scope, _ = _IFADDRMSG.unpack(entry.header)
        header = _IFADDRMSG.pack(family, length, flags, scope, target.index)
        return replace(entry, header=header, attributes=tuple(_relabelled(entry.attributes, source.name, target.name)))
    if entry.kind is Kind.NEIGHBOUR:
        family, _, state, flags, kind = _NDMSG.unpack(entry.header)
        return replace(entry, header=_NDMSG.pack(family, target.index, state, flags, kind))
    return replace(entry, attributes=tuple(_redirected(entry.attributes, source.index, target.index)))


def _relabelled(attributes: Sequence[tuple[int, bytes]], source: str, target: str) -> Iterator[tuple[int, bytes]]:
    for number, data in attributes:
        if number != _IFA_LABEL:
            yield number, data
            continue
        label = data.rstrip(b"\0").decode()
        if label == source or label.startswith(f"{source}:"):
            label = target + label[len(source) :]
        yield number, label.encode()[:15] + b"\0"


def _redirected(attributes: Sequence[tuple[int, bytes]], source: int, target: int) -> Iterator[tuple[int, bytes]]:
    for number, data in attributes:
        if number == _RTA_OIF and data == struct.pack("=i", source):
            yield number, struct.pack("=i", target)
        elif number == _RTA_MULTIPATH:
            changed = bytearray(data)
            for offset, index, _ in _next_hops(data):
                if index == source:
                    struct.pack_into("=i", changed, offset + 4, target)
            yield number, bytes(changed)
        else:
            yield number, data


def creation(entry: Entry, *, elapsed_seconds: float = 0.0) -> list[bytes]:
    """Requests that make the entry (EEXIST: there is one); none if its time is over. ``elapsed_seconds``: since it was dumped.

    An IPv6 address is usable at once: nobody else is asked whether he has it. A route comes after those to the same place.
    """
    if entry.kind is Kind.ADDRESS:
        return _address_creation(entry, elapsed_seconds)
    new, _ = _TYPES[entry.kind]
    if entry.kind is Kind.NEIGHBOUR:
        family, index, state, flags, kind = _NDMSG.unpack(entry.header)
        kept = [(number, data) for number, data in entry.attributes if number in (1, 2)]  # NDA_DST, NDA_LLADDR
        return [_message(new, NLM_F_CREATE | NLM_F_REPLACE, _NDMSG.pack(family, index, state, flags & _NTF_KEPT, kind), kept)]
    attributes = [(number, data) for number, data in entry.attributes if number not in (_RTA_CACHEINFO, _RTA_EXPIRES)]
    left = _route_seconds(entry)
    if left is not None:
        if left <= elapsed_seconds:
            return []
        attributes.append((_RTA_EXPIRES, struct.pack("=I", int(left - elapsed_seconds))))
    family, length, source, tos, table, protocol, scope, kind, flags = _RTMSG.unpack(entry.header)
    header = _RTMSG.pack(family, length, source, tos, table, protocol, scope, kind, flags & _RTNH_F_ONLINK)
    return [_message(new, NLM_F_CREATE | NLM_F_APPEND, header, attributes)]


def _address_creation(entry: Entry, elapsed_seconds: float) -> list[bytes]:
    family, length, flags, scope, index = _IFADDRMSG.unpack(entry.header)
    data = entry.get(_IFA_FLAGS)
    flags = (int.from_bytes(data, "little") if data else flags) & _IFA_F_KEPT
    attributes = []
    for number, content in entry.attributes:
        if number == _IFA_CACHEINFO:
            preferred, valid, created, updated = struct.unpack("=IIII", content)
            if valid != FOREVER and valid <= elapsed_seconds:
                return []
            preferred, valid = (one if one == FOREVER else max(0, int(one - elapsed_seconds)) for one in (preferred, valid))
            attributes.append((number, struct.pack("=IIII", preferred, valid, created, updated)))
        elif number in _IFA_KEPT and number != _IFA_FLAGS:
            attributes.append((number, content))
    header = _IFADDRMSG.pack(family, length, flags & 0xFF, scope, index)

    def creating(flags: int) -> bytes:
        return _message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, header, [*attributes, (_IFA_FLAGS, struct.pack("=I", flags))])

    # Only a new address is asked about: the second request takes the flag off again.
    return [creating(flags | _IFA_F_NODAD), creating(flags)] if family == _AF_INET6 and not flags & _IFA_F_NODAD else [creating(flags)]


def _route_seconds(entry: Entry) -> float | None:
    """How long a route was to last from the dump on; None for ever. (``struct rta_cacheinfo``: the third number, in ticks.)"""
    data = entry.get(_RTA_CACHEINFO)
    ticks = struct.unpack_from("=i", data, 8)[0] if data and len(data) >= 12 else 0
    return ticks / _USER_HZ if ticks > 0 else None


def deletion(entry: Entry) -> bytes:
    """The request that removes the entry (ESRCH, EADDRNOTAVAIL, ENOENT: there is none)."""
    _, gone = _TYPES[entry.kind]
    if entry.kind is Kind.ADDRESS:
        kept = {_IFA_ADDRESS, _IFA_LOCAL}
    elif entry.kind is Kind.NEIGHBOUR:
        kept = {1}
    else:
        kept = {number for number, _ in entry.attributes} - {_RTA_CACHEINFO, _RTA_EXPIRES}
    header = entry.header
    if entry.kind is Kind.ROUTE:
        family, length, source, tos, table, protocol, scope, kind, _ = _RTMSG.unpack(header)
        header = _RTMSG.pack(family, length, source, tos, table, protocol, scope, kind, 0)
    return _message(gone, 0, header, [(number, data) for number, data in entry.attributes if number in kept])


def _message(kind: int, flags: int, header: bytes, attributes: Sequence[tuple[int, bytes]]) -> bytes:
    return request(kind, flags, header + b"".join(attribute(number, data) for number, data in attributes))
