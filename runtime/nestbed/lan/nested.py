"""The underlay of the nodes inside a node's own virtual machines: a bridge that joins the node with them, as an underlay joins machines.

It is one more underlay of the node, so a LAN that is carried to it and to others is one segment over all depths; the machine's own
underlays are not touched. It is there while a virtual machine that is a node is on it. Its subnet tells how deep the node is, for a node
has two of them when it is inside another.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from nestbed.lan.addressing import bridge_name, usable
from nestbed.lanmodel import Lan

LAN_ID = "underlay"
"""In place of a LAN's id, in the NICs on it and in the bridge's mark."""
NIC = "underlay"
"""What the guest calls its NIC on it."""
MTU = 9216
"""Jumbo frames of LANs fit with what is put before them; larger ones go in fragments."""

_SUBNETS = ipaddress.ip_network("198.18.0.0/16")
"""Of the block that RFC 2544 has for benchmarks: no network of anybody's."""


def lan_of(node_id: str, subnet: str) -> Lan:
    """The underlay of the nodes inside this one, as a LAN."""
    return Lan(id=LAN_ID, name=LAN_ID, bridge=bridge_name(f"{LAN_ID}:{node_id}"), mtu=MTU, subnet=subnet)


def subnet_below(addresses: Iterable[str]) -> str:
    """The subnet of the nodes inside a node whose own underlays have these addresses."""
    depths = [int(found) >> 8 & 0xFF for found in map(ipaddress.ip_address, filter(None, addresses)) if found in _SUBNETS]
    return f"198.18.{(max(depths, default=-1) + 1) % 256}.0/24"


def own_address(lan: Lan) -> str:
    """The node's address on it, in CIDR form."""
    network = ipaddress.ip_network(lan.subnet)
    return f"{ipaddress.ip_address(usable(network)[0])}/{network.prefixlen}"
