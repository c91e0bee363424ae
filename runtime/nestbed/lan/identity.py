"""What makes LANs of several machines one segment: the group and port they share, or the peers they name. Pure.

A group is written ``ADDRESS:PORT``. The one a LAN has unless it is given another lies in the organisation-local scope of RFC 2365
(239.192.0.0/14) and is derived from the LAN's id: 18 bits of the address and 14 of the port (from 49152 on, so that the source ports of
the fast path, 32768 to 49151, are never the port of such a group) of sha256(``nestbed-group:ID``), or of ``nestbed-group:ID/1``, ``/2``...
while another LAN of the node has that one.
"""

from __future__ import annotations

import hashlib
import ipaddress

from nestbed.errors import InvalidArgument, shown

MTU_MAX = 65507 - 18
"""RFC 768 and 791: a datagram carries 65507 bytes at most, and a frame has 14 bytes of header and may have 4 of a VLAN tag."""
PEERS_MAX = 64
TTL_MAX = 255

_DEFAULT_FIRST = int(ipaddress.IPv4Address("239.192.0.0"))
_PORT_FIRST = 49152
_LOCAL_CONTROL = ipaddress.ip_network("224.0.0.0/24")
_TEXT_MAX = 64


def default_group(lan_id: str, ordinal: int = 0) -> str:
    """The group of a LAN that is given none; ``ordinal`` counts those that were taken."""
    digest = hashlib.sha256(f"nestbed-group:{lan_id}{f'/{ordinal}' if ordinal else ''}".encode()).digest()
    address = ipaddress.IPv4Address(_DEFAULT_FIRST | int.from_bytes(digest[:3], "big") >> 6)
    return f"{address}:{_PORT_FIRST | int.from_bytes(digest[3:5], 'big') >> 2}"


def check_group(text: str) -> str:
    """A group as it was given, in canonical form.

    Raises:
        InvalidArgument: it is none that a LAN can have (reason BAD_GROUP).
    """
    address_text, colon, port_text = text.rpartition(":")
    if not colon or len(text) > _TEXT_MAX:
        raise _bad_group(text, "is not ADDRESS:PORT")
    address = _address(address_text)
    if address is None or not address.is_multicast:
        raise _bad_group(text, "does not begin with an IPv4 multicast address")
    if address in _LOCAL_CONTROL:
        raise _bad_group(text, "lies in 224.0.0.0/24, which belongs to routing protocols (RFC 5771)")
    if not (port_text.isascii() and port_text.isdecimal() and len(port_text) <= 5 and 0 < int(port_text) <= 65535):
        raise _bad_group(text, "does not end with a port from 1 to 65535")
    return f"{address}:{int(port_text)}"


def check_peer(text: str) -> str:
    """The address of another node, in canonical form.

    Raises:
        InvalidArgument: it is no unicast IPv4 address (reason BAD_PEER).
    """
    address = _address(text)
    if address is None:
        why = "is no IPv4 address"
    elif address.is_multicast or address.is_reserved:
        why = "is not unicast"
    elif address.is_loopback or int(address) >> 24 == 0:
        why = "is no address of another node"
    else:
        return str(address)
    raise bad_peer(text, why)


def check_ttl(ttl: int) -> int:
    """The TTL of a LAN's datagrams: ``ttl``, or 1 for 0.

    Raises:
        InvalidArgument: RFC 791 has 8 bits for it (reason BAD_TTL).
    """
    if not 0 <= ttl <= TTL_MAX:
        raise InvalidArgument(
            f"a TTL of {ttl} is outside of 1 to {TTL_MAX}", reason="BAD_TTL", remedy="give a TTL from 1 to 255, or none for 1", ttl=ttl
        )
    return ttl or 1


def bad_peer(text: str, why: str) -> InvalidArgument:
    """The refusal of a peer that cannot be one."""
    return InvalidArgument(
        f"the peer {shown(text)} {why}",
        reason="BAD_PEER",
        remedy="give the IPv4 address that another node has on the underlay, such as 192.0.2.7",
        peer=shown(text),
    )


def _address(text: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(text) if text.isascii() and len(text) <= _TEXT_MAX else None
    except ValueError:
        return None


def _bad_group(text: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"the group {shown(text)} {why}",
        reason="BAD_GROUP",
        remedy="give an IPv4 multicast address and a port, such as 239.1.2.3:5000, or none to have one derived",
        group=shown(text),
    )
