"""Devices, their addresses and routes, as requests for :meth:`nestbed.linux.rtnl.Rtnl.batch`. Pure.

They are encoded by pyroute2's message classes. What every container needs is encoded once for each shape and filled in from then on.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from nestbed.linux.messages import ifaddrmsg, ifinfmsg, rtmsg
from nestbed.linux.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    RTM_DELLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_SETLINK,
    attribute,
    request,
)

_AF_BRIDGE, _IFLA_PROTINFO, _IFLA_BRPORT_ISOLATED = 7, 0x800C, 33
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_IFA_F_NODAD = 2

_GROUP_FWD_MASK = 0xFFF8
"""All of 01:80:C2:00:00:0X that the kernel lets a bridge forward; it refuses the first three (STP, pause frames, LACP)."""

_ADDRESS_MARKS = {
    4: {"local": "90.91.92.93", "address": "94.95.96.97", "broadcast": "98.99.100.101"},
    6: {"address": "5a5b:5c5d:5e5f:6061:6263:6465:6667:6869"},
}
"""Addresses to be replaced in a template, by attribute."""


def bridge(name: str, *, mtu: int) -> bytes:
    """Make a bridge, down, that adds no frame of its own: no STP, no multicast snooping, link-local groups forwarded."""
    data = [
        ("IFLA_BR_STP_STATE", 0),
        ("IFLA_BR_FORWARD_DELAY", 0),
        ("IFLA_BR_MCAST_SNOOPING", 0),
        ("IFLA_BR_GROUP_FWD_MASK", _GROUP_FWD_MASK),
    ]
    attrs = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), _link_info("bridge", data)]
    return _request(ifinfmsg(), RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, attrs)


def veth(port: str, *, bridge_index: int, mtu: int, peer_name: str, peer_mac: str, peer_netns_fd: int, one_queue: bool = False) -> bytes:
    """Make a pair of devices, both down: ``port`` here, a port of the bridge, and ``peer_name`` in the namespace of the descriptor.

    ``one_queue`` saves memory: a veth has as many queues as the machine may ever have processors, of use to GRO and XDP alone.
    """
    return _veth_template(len(port), len(peer_name), mtu, bridge_index, one_queue).fill(
        port=port.encode(), peer=peer_name.encode(), mac=bytes.fromhex(peer_mac.replace(":", "")), netns=struct.pack("=I", peer_netns_fd)
    )


@lru_cache(maxsize=256)
def _veth_template(port_length: int, peer_length: int, mtu: int, bridge_index: int, one_queue: bool) -> _Template:  # noqa: FBT001 - cached
    port, peer_name, mac, netns = "p" * port_length, "q" * peer_length, b"\x5a\x5b\x5c\x5d\x5e\x5f", 0x5A5B5C5D
    queues = [("IFLA_NUM_TX_QUEUES", 1), ("IFLA_NUM_RX_QUEUES", 1)] if one_queue else []
    peer = [("IFLA_IFNAME", peer_name), ("IFLA_ADDRESS", mac.hex(":")), ("IFLA_MTU", mtu), ("IFLA_NET_NS_FD", netns), *queues]
    info = _link_info("veth", [("VETH_INFO_PEER", {"attrs": peer})])
    attrs = [("IFLA_IFNAME", port), ("IFLA_MTU", mtu), ("IFLA_MASTER", bridge_index), *queues, info]
    encoded = _request(ifinfmsg(), RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, attrs)
    return _Template(encoded, port=port.encode(), peer=peer_name.encode(), mac=mac, netns=struct.pack("=I", netns))


def veth_pair(name: str, peer: str, *, mtu: int) -> bytes:
    """Make a pair of devices, both down, both in this network namespace."""
    info = _link_info("veth", [("VETH_INFO_PEER", {"attrs": [("IFLA_IFNAME", peer), ("IFLA_MTU", mtu)]})])
    return _request(ifinfmsg(), RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), info])


def link_owned_up(name: str, alias: str) -> bytes:
    """Say whose a device is, and set it up. (The kernel ignores an alias given when a device is made.)"""
    return _owned_up_template(len(name), len(alias)).fill(name=name.encode(), alias=alias.encode())


@lru_cache(maxsize=256)
def _owned_up_template(name_length: int, alias_length: int) -> _Template:
    name, alias, message = "n" * name_length, "a" * alias_length, ifinfmsg()
    message["flags"], message["change"] = _IFF_UP, _IFF_UP
    encoded = _request(message, RTM_NEWLINK, 0, [("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias)])
    return _Template(encoded, name=name.encode(), alias=alias.encode())


@lru_cache(maxsize=256)
def link_up(index: int) -> bytes:
    """Set a device up."""
    message = ifinfmsg()
    message["index"], message["flags"], message["change"] = index, _IFF_UP, _IFF_UP
    return _request(message, RTM_NEWLINK, 0, [])


@lru_cache(maxsize=256)
def link_down(index: int) -> bytes:
    """Set a device down: the other end of a veth loses its carrier."""
    message = ifinfmsg()
    message["index"], message["flags"], message["change"] = index, 0, _IFF_UP
    return _request(message, RTM_NEWLINK, 0, [])


def link_noarp(index: int) -> bytes:
    """Have a device answer no ARP request: a bridge would, for every address that this network namespace has anywhere."""
    message = ifinfmsg()
    message["index"], message["flags"], message["change"] = index, _IFF_NOARP, _IFF_NOARP
    return _request(message, RTM_NEWLINK, 0, [])


def link_mtu(index: int, mtu: int) -> bytes:
    """Set the MTU of a device."""
    message = ifinfmsg()
    message["index"] = index
    return _request(message, RTM_NEWLINK, 0, [("IFLA_MTU", mtu)])


def link_master(index: int, bridge_index: int) -> bytes:
    """Make a device a port of the bridge."""
    message = ifinfmsg()
    message["index"] = index
    return _request(message, RTM_NEWLINK, 0, [("IFLA_MASTER", bridge_index)])


def link_deletion(name: str) -> bytes:
    """Delete a device by its name; the other end of a veth goes with it."""
    return _request(ifinfmsg(), RTM_DELLINK, 0, [("IFLA_IFNAME", name)])


def link_group(name: str, group: int) -> bytes:
    """Put a device into a group, out of the one it is in (all are in group 0 at first)."""
    return _request(ifinfmsg(), RTM_NEWLINK, 0, [("IFLA_IFNAME", name), ("IFLA_GROUP", group)])


def link_owned(name: str, alias: str) -> bytes:
    """Say whose a device is."""
    return _request(ifinfmsg(), RTM_NEWLINK, 0, [("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias)])


def link_mac(index: int, mac: str) -> bytes:
    """Give a device a hardware address."""
    message = ifinfmsg()
    message["index"] = index
    return _request(message, RTM_NEWLINK, 0, [("IFLA_ADDRESS", mac)])


def link_name(index: int, name: str) -> bytes:
    """Give a device, which is down, another name."""
    message = ifinfmsg()
    message["index"] = index
    return _request(message, RTM_NEWLINK, 0, [("IFLA_IFNAME", name)])


def port_isolation(index: int) -> bytes:
    """Have the port of a bridge exchange no frame with other ports of it that are isolated too."""
    option = attribute(_IFLA_PROTINFO, attribute(_IFLA_BRPORT_ISOLATED, b"\1"))
    return request(RTM_SETLINK, 0, struct.pack("=BxHiII", _AF_BRIDGE, 0, index, 0, 0) + option)


def group_deletion(group: int) -> bytes:
    """Delete every device of the group, in the time that one takes (ENODEV: it is empty)."""
    return _request(ifinfmsg(), RTM_DELLINK, 0, [("IFLA_GROUP", group)])


def address(index: int, cidr: str) -> bytes:
    """Give the device an address in CIDR form, usable at once (no duplicate address detection)."""
    interface = ipaddress.ip_interface(cidr)
    length, packed = interface.network.prefixlen, interface.ip.packed
    values = {"local": packed, "address": packed} if interface.version == 4 else {"address": packed}
    if interface.version == 4 and length < 31:
        values["broadcast"] = interface.network.broadcast_address.packed
    return _address_template(index, interface.version, length).fill(**values)


@lru_cache(maxsize=256)
def _address_template(index: int, version: int, length: int) -> _Template:
    message = ifaddrmsg()
    message["index"], message["prefixlen"] = index, length
    marks = {name: ipaddress.ip_address(text) for name, text in _ADDRESS_MARKS[version].items() if name != "broadcast" or length < 31}
    attrs: list[tuple[str, Any]] = [(f"IFA_{name.upper()}", str(mark)) for name, mark in marks.items()]
    if version == 4:
        message["family"] = socket.AF_INET
    else:
        message["family"] = socket.AF_INET6
        attrs.append(("IFA_FLAGS", _IFA_F_NODAD))
    encoded = _request(message, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, attrs)
    return _Template(encoded, **{name: mark.packed for name, mark in marks.items()})


def route(destination: str, via: str, index: int) -> bytes:
    """A route to ``destination`` (CIDR or ``default``) through the address ``via`` on the device. Replaces one to the same place."""
    gateway, message = ipaddress.ip_address(via), rtmsg()
    message["family"] = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    message["table"], message["proto"], message["scope"], message["type"] = 254, 4, 0, 1  # main, static, universe, unicast
    attrs: list[tuple[str, Any]] = [("RTA_GATEWAY", via), ("RTA_OIF", index)]
    if destination != "default":
        network = ipaddress.ip_network(destination, strict=False)
        message["dst_len"] = network.prefixlen
        attrs.insert(0, ("RTA_DST", str(network.network_address)))
    return _request(message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, attrs)


class _Template:
    """A request encoded once; others of its shape differ from it only in bytes at known places."""

    def __init__(self, request: bytes, **marks: bytes) -> None:
        """Each mark stands in the request once, where :meth:`fill` puts the value of its name, of the same length."""
        self._data = request
        self._places = {name: self._data.index(mark) for name, mark in marks.items()}
        assert all(self._data.count(mark) == 1 for mark in marks.values())

    def fill(self, **values: bytes) -> bytes:
        """The request with these values."""
        data = bytearray(self._data)
        for name, value in values.items():
            data[self._places[name] : self._places[name] + len(value)] = value
        return bytes(data)


def _request(message: Any, kind: int, flags: int, attrs: Sequence[tuple[str, Any]]) -> bytes:
    message["header"]["type"], message["header"]["flags"] = kind, flags | NLM_F_REQUEST | NLM_F_ACK
    message["attrs"] = list(attrs)
    message.encode()
    return bytes(message.data)


def _link_info(kind: str, data: Sequence[tuple[str, Any]]) -> tuple[str, Any]:
    return "IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": list(data)})]}
