"""rtnetlink(7): which way a packet would go, the hardware address of a neighbour, and how many neighbours the kernel can know."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass

from nestbed.linux.netlink import (
    NLM_F_CREATE,
    RTM_GETNEIGH,
    RTM_GETNEIGHTBL,
    RTM_GETROUTE,
    RTM_NEWNEIGH,
    RTM_NEWNEIGHTBL,
    RTM_NEWROUTE,
    attribute,
    attributes,
    number,
    request,
)
from nestbed.linux.rtnl import Rtnl

_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_NDA_DST, _NDA_LLADDR = 1, 2
_NDTA_THRESH3 = 4
_NDTMSG_BYTES = 4
_NUD_VALID = 0x80 | 0x40 | 0x10 | 0x08 | 0x04 | 0x02
_NTF_USE = 0x01
_RTMSG = struct.Struct("=8BI")
_NDMSG = struct.Struct("=B3xiHBB")


@dataclass(frozen=True, slots=True)
class Hop:
    """The interface by which an IPv4 address is reached, and who takes the packet there: a gateway, or the address itself."""

    index: int
    address: str


def next_hop(rtnl: Rtnl, address: str) -> Hop | None:
    """The way to an IPv4 address; None if there is no route."""
    destination = ipaddress.IPv4Address(address).packed
    body = _RTMSG.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, destination)
    try:
        payload = rtnl.ask(RTM_GETROUTE, RTM_NEWROUTE, body)
    except OSError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOENT, errno.EACCES, errno.EINVAL):
            return None
        raise
    attrs = attributes(payload[_RTMSG.size :])
    if _RTA_OIF not in attrs:
        return None
    gateway = attrs.get(_RTA_GATEWAY)
    return Hop(number(attrs[_RTA_OIF]), address if gateway is None else str(ipaddress.IPv4Address(bytes(gateway))))


def hardware_address(rtnl: Rtnl, hop: Hop) -> str:
    """The MAC of a neighbour; empty if it is not known now."""
    body = _NDMSG.pack(socket.AF_INET, hop.index, 0, 0, 0) + _destination(hop)
    try:
        payload = rtnl.ask(RTM_GETNEIGH, RTM_NEWNEIGH, body)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return ""
        raise
    _, _, state, _, _ = _NDMSG.unpack_from(payload)
    mac = attributes(payload[_NDMSG.size :]).get(_NDA_LLADDR)
    return bytes(mac).hex(":") if mac is not None and state & _NUD_VALID else ""


def use(hop: Hop) -> bytes:
    """The request that has the kernel ask for a neighbour's hardware address, or confirm it, as if a packet were to be sent to it."""
    body = _NDMSG.pack(socket.AF_INET, hop.index, 0, _NTF_USE, 0) + _destination(hop)
    return request(RTM_NEWNEIGH, NLM_F_CREATE, body)


def limits(rtnl: Rtnl) -> dict[int, int]:
    """How many entries the kernel's table of neighbours takes, by IP version: one for all network namespaces (gc_thresh3 of arp(7))."""
    found = {}
    for payload in rtnl.dump(RTM_GETNEIGHTBL, RTM_NEWNEIGHTBL, bytes(_NDTMSG_BYTES)):
        limit = attributes(payload[_NDTMSG_BYTES:]).get(_NDTA_THRESH3)
        version = {socket.AF_INET: 4, socket.AF_INET6: 6}.get(socket.AddressFamily(payload[0]))
        if limit is not None and version is not None:  # else it holds settings of one interface
            found[version] = number(limit)
    return found


def _destination(hop: Hop) -> bytes:
    return attribute(_NDA_DST, ipaddress.IPv4Address(hop.address).packed)
