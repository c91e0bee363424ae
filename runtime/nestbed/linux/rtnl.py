"""rtnetlink(7): links, addresses and routes, in batches over one blocking socket.

Requests are built by pyroute2's message classes and sent many at a time: pyroute2's own ``IPRoute`` takes 0.3-1.3 ms for a call, a batch
of four here 0.2 ms. What every container needs is encoded once for each shape and filled in from then on. Answers to dumps are read
by hand: decoding a link by pyroute2 takes as long as the kernel takes for a hundred.

Every method raises OSError with the kernel's errno and, where it gives one, its explanation. None waits for anything but the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nestbed.linux.messages import ifaddrmsg, ifinfmsg, rtmsg

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR = 20
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTNLGRP_LINK = 1

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_ECHO, _NLM_F_DUMP = 0x1, 0x4, 0x8, 0x300
_NLM_F_REPLACE, _NLM_F_EXCL, _NLM_F_CREATE = 0x100, 0x200, 0x400
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 1, 10, 11

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_STATS64, _IFLA_INFO_KIND = 18, 20, 23, 1
_RTEXT_FILTER_SKIP_STATS = 8
_RTM_SETLINK, _AF_BRIDGE, _IFLA_PROTINFO, _IFLA_BRPORT_ISOLATED = 19, 7, 0x800C, 33
_IFF_UP, _IFF_RUNNING, _IFF_NOARP = 0x1, 0x40, 0x80
_IFA_F_NODAD = 2
_SIOCGIFFLAGS, _SIOCGIFINDEX = 0x8913, 0x8933

_GROUP_FWD_MASK = 0xFFF8
"""All of 01:80:C2:00:00:0X that the kernel lets a bridge forward; it refuses the first three (STP, pause frames, LACP)."""

_ADDRESS_MARKS = {
    4: {"local": "90.91.92.93", "address": "94.95.96.97", "broadcast": "98.99.100.101"},
    6: {"address": "5a5b:5c5d:5e5f:6061:6263:6465:6667:6869"},
}
"""Addresses to be replaced in a template, by attribute."""

_DELETIONS_ONLY = struct.pack(
    "=HBBIHBBIHBBIHBBI",
    *(0x28, 0, 0, 4),  # ldh: nlmsg_type, at offset 4 and taken for big-endian
    *(0x15, 0, 1, int.from_bytes(RTM_DELLINK.to_bytes(2, sys.byteorder), "big")),  # jeq
    *(0x06, 0, 0, 0xFFFFFFFF),  # ret: all of it
    *(0x06, 0, 0, 0),  # ret: nothing
)
"""A filter of four instructions (``struct sock_filter``): each device that comes makes some ten messages that nobody needs."""
_SO_ATTACH_FILTER = 26

_BATCH_MAX = 64
"""Requests sent at once: the socket's receive buffer must hold their answers."""

_RECEIVE_BYTES = 256 * 1024
_ANSWER_BYTES = 8192
_NLMSGHDR = struct.Struct("=IHHII")
_FLAGS_OFFSET, _SEQUENCE_OFFSET = 6, 8
_RTMSG = struct.Struct("=BBBBBBBBI")
_RTA_DST, _RTA_OIF = 1, 4
_MAIN_TABLE, _RTN_UNICAST = 254, 1
_ADDRESS_BYTES = {socket.AF_INET: 4, socket.AF_INET6: 16}
_IFINFOMSG = struct.Struct("=BxHiII")
_STATS64 = struct.Struct("=8Q")


@dataclass(frozen=True, slots=True)
class Link:
    """A network device. ``kind`` is ``veth``, ``bridge``, ...; ``master`` the index of its bridge or 0."""

    index: int
    name: str
    alias: str
    kind: str
    master: int
    mac: str
    mtu: int
    up: bool


@dataclass(frozen=True, slots=True)
class Counters:
    """What a device counted since it was made."""

    name: str
    rx_frames: int
    rx_bytes: int
    rx_drops: int
    tx_frames: int
    tx_bytes: int
    tx_drops: int


@dataclass(frozen=True, slots=True)
class KnownRoute:
    """A route of the main table: where to, and by which device."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    index: int


Request = Any
"""A message of pyroute2 with its type and flags set, not encoded yet; or an encoded one without its sequence number."""


def bridge(name: str, *, mtu: int) -> Request:
    """Make a bridge, down, that adds no frame of its own: no STP, no multicast snooping, link-local groups forwarded."""
    data = [
        ("IFLA_BR_STP_STATE", 0),
        ("IFLA_BR_FORWARD_DELAY", 0),
        ("IFLA_BR_MCAST_SNOOPING", 0),
        ("IFLA_BR_GROUP_FWD_MASK", _GROUP_FWD_MASK),
    ]
    attrs = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), _link_info("bridge", data)]
    return _request(ifinfmsg(), RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, attrs)


def veth(port: str, *, bridge_index: int, mtu: int, peer_name: str, peer_mac: str, peer_netns_fd: int, one_queue: bool = False) -> Request:
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
    request = _request(ifinfmsg(), RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, attrs)
    return _Template(request, port=port.encode(), peer=peer_name.encode(), mac=mac, netns=struct.pack("=I", netns))


def veth_pair(name: str, peer: str, *, mtu: int) -> Request:
    """Make a pair of devices, both down, both in this network namespace."""
    info = _link_info("veth", [("VETH_INFO_PEER", {"attrs": [("IFLA_IFNAME", peer), ("IFLA_MTU", mtu)]})])
    return _request(ifinfmsg(), RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), info])


def link_owned_up(name: str, alias: str) -> Request:
    """Say whose a device is, and set it up. (The kernel ignores an alias given when a device is made.)"""
    return _owned_up_template(len(name), len(alias)).fill(name=name.encode(), alias=alias.encode())


@lru_cache(maxsize=256)
def _owned_up_template(name_length: int, alias_length: int) -> _Template:
    name, alias, message = "n" * name_length, "a" * alias_length, ifinfmsg()
    message["flags"], message["change"] = _IFF_UP, _IFF_UP
    request = _request(message, RTM_NEWLINK, 0, [("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias)])
    return _Template(request, name=name.encode(), alias=alias.encode())


@lru_cache(maxsize=256)
def link_up(index: int) -> Request:
    """Set a device up."""
    message = ifinfmsg()
    message["index"], message["flags"], message["change"] = index, _IFF_UP, _IFF_UP
    return _Template(_request(message, RTM_NEWLINK, 0, [])).fill()


@lru_cache(maxsize=256)
def link_down(index: int) -> Request:
    """Set a device down: the other end of a veth loses its carrier."""
    message = ifinfmsg()
    message["index"], message["flags"], message["change"] = index, 0, _IFF_UP
    return _Template(_request(message, RTM_NEWLINK, 0, [])).fill()


def link_noarp(index: int) -> Request:
    """Have a device answer no ARP request: a bridge would, for every address that this network namespace has anywhere."""
    message = ifinfmsg()
    message["index"], message["flags"], message["change"] = index, _IFF_NOARP, _IFF_NOARP
    return _request(message, RTM_NEWLINK, 0, [])


def link_mtu(index: int, mtu: int) -> Request:
    """Set the MTU of a device."""
    message = ifinfmsg()
    message["index"] = index
    return _request(message, RTM_NEWLINK, 0, [("IFLA_MTU", mtu)])


def link_master(index: int, bridge_index: int) -> Request:
    """Make a device a port of the bridge."""
    message = ifinfmsg()
    message["index"] = index
    return _request(message, RTM_NEWLINK, 0, [("IFLA_MASTER", bridge_index)])


def link_deletion(name: str) -> Request:
    """Delete a device by its name; the other end of a veth goes with it."""
    return _request(ifinfmsg(), RTM_DELLINK, 0, [("IFLA_IFNAME", name)])


def link_group(name: str, group: int) -> Request:
    """Put a device into a group, out of the one it is in (all are in group 0 at first)."""
    return _request(ifinfmsg(), RTM_NEWLINK, 0, [("IFLA_IFNAME", name), ("IFLA_GROUP", group)])


def link_owned(name: str, alias: str) -> Request:
    """Say whose a device is."""
    return _request(ifinfmsg(), RTM_NEWLINK, 0, [("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias)])


def link_mac(index: int, mac: str) -> Request:
    """Give a device a hardware address."""
    message = ifinfmsg()
    message["index"] = index
    return _request(message, RTM_NEWLINK, 0, [("IFLA_ADDRESS", mac)])


def link_name(index: int, name: str) -> Request:
    """Give a device, which is down, another name."""
    message = ifinfmsg()
    message["index"] = index
    return _request(message, RTM_NEWLINK, 0, [("IFLA_IFNAME", name)])


def port_isolation(index: int) -> bytes:
    """Have the port of a bridge exchange no frame with other ports of it that are isolated too."""
    body = struct.pack("=BxHiII", _AF_BRIDGE, 0, index, 0, 0) + struct.pack("=HHHHB3x", 12, _IFLA_PROTINFO, 5, _IFLA_BRPORT_ISOLATED, 1)
    return _NLMSGHDR.pack(_NLMSGHDR.size + len(body), _RTM_SETLINK, _NLM_F_REQUEST | _NLM_F_ACK, 0, 0) + body


def group_deletion(group: int) -> Request:
    """Delete every device of the group, in the time that one takes (ENODEV: it is empty)."""
    return _request(ifinfmsg(), RTM_DELLINK, 0, [("IFLA_GROUP", group)])


def address(index: int, cidr: str) -> Request:
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
    request = _request(message, RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_REPLACE, attrs)
    return _Template(request, **{name: mark.packed for name, mark in marks.items()})


def route(destination: str, via: str, index: int) -> Request:
    """A route to ``destination`` (CIDR or ``default``) through the address ``via`` on the device. Replaces one to the same place."""
    gateway, message = ipaddress.ip_address(via), rtmsg()
    message["family"] = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    message["table"], message["proto"], message["scope"], message["type"] = 254, 4, 0, 1  # main, static, universe, unicast
    attrs: list[tuple[str, Any]] = [("RTA_GATEWAY", via), ("RTA_OIF", index)]
    if destination != "default":
        network = ipaddress.ip_network(destination, strict=False)
        message["dst_len"] = network.prefixlen
        attrs.insert(0, ("RTA_DST", str(network.network_address)))
    return _request(message, RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_REPLACE, attrs)


class Rtnl:
    """One rtnetlink socket: of this process's network namespace, or of the namespace in which ``sock`` was made (then owned).

    Not for two threads at a time.
    """

    def __init__(self, sock: socket.socket | None = None) -> None:
        if sock is None:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            sock.bind((0, 0))
        sock.setblocking(True)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket = sock
        self._sequence = 0
        self._ipv6_fd = -1

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()
        if self._ipv6_fd >= 0:
            os.close(self._ipv6_fd)
            self._ipv6_fd = -1

    def batch(self, requests: Sequence[Request]) -> None:
        """Carry the requests out in order; the first one the kernel refuses is raised once all have been answered.

        Raises:
            OSError: with the kernel's errno and explanation. The requests after the refused one have been tried too.
        """
        refused: OSError | None = None
        for start in range(0, len(requests), _BATCH_MAX):
            refused = self._exchange(requests[start : start + _BATCH_MAX]) or refused
        if refused is not None:
            raise refused

    def add_bridge(self, name: str, *, mtu: int) -> None:
        """Make a bridge, down; see :func:`bridge`. Follow it by :meth:`bring_up`."""
        self.batch([bridge(name, mtu=mtu)])

    def add_veth(
        self, port: str, *, bridge_index: int, mtu: int, peer_name: str, peer_mac: str, peer_netns_fd: int, one_queue: bool = False
    ) -> None:
        """Make a pair of devices, both down; see :func:`veth`. Follow it by :meth:`bring_up`."""
        pair = veth(
            port,
            bridge_index=bridge_index,
            mtu=mtu,
            peer_name=peer_name,
            peer_mac=peer_mac,
            peer_netns_fd=peer_netns_fd,
            one_queue=one_queue,
        )
        self.batch([pair])

    def configure(self, name: str, *, addresses: Sequence[str] = (), routes: Sequence[tuple[str, str]] = ()) -> None:
        """Set the device up with ``addresses`` (CIDR) and ``routes`` (destination, via), in this order, in one batch."""
        index = self.link_index(name)
        self.batch([link_up(index), *(address(index, cidr) for cidr in addresses), *(route(to, via, index) for to, via in routes)])

    def bring_up(self, name: str, *, alias: str, first: Sequence[Request] = ()) -> None:
        """Mark a device of this process's network namespace with its owner, keep it from adding frames of its own, and set it up.

        The requests ``first`` are carried out before it goes up, in the same exchange; if one is refused, that is raised, and it is up.
        """
        self._disable_ipv6(name)
        self.batch([*first, link_owned_up(name, alias)])

    def delete_link(self, name: str) -> None:
        """Delete the device, if it is there. The kernel takes about 16 ms for a veth."""
        try:
            self.batch([link_deletion(name)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def link_index(self, name: str) -> int:
        """The index of the device (ENODEV: there is none)."""
        answer = fcntl.ioctl(self._socket.fileno(), _SIOCGIFINDEX, struct.pack("16si20x", name.encode(), 0))
        return int(struct.unpack_from("16si", answer)[1])

    def is_up(self, name: str) -> bool:
        """Whether the device is set up (ENODEV: there is none)."""
        answer = fcntl.ioctl(self._socket.fileno(), _SIOCGIFFLAGS, struct.pack("16sh22x", name.encode(), 0))
        return bool(struct.unpack_from("16sh", answer)[1] & _IFF_UP)

    def links(self) -> list[Link]:
        """Every device of the namespace."""
        return [_link(payload) for payload in self._dump_links(_RTEXT_FILTER_SKIP_STATS)]

    def routes(self) -> list[KnownRoute]:
        """The routes of the main table to single addresses and subnets, but for link-local and multicast ones."""
        found = []
        for payload in self.dump(RTM_GETROUTE, RTM_NEWROUTE, bytes(_RTMSG.size)):
            family, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(payload)
            attrs = attributes(payload[_RTMSG.size :])
            if table != _MAIN_TABLE or kind != _RTN_UNICAST or family not in _ADDRESS_BYTES:
                continue
            start = bytes(attrs.get(_RTA_DST, bytes(_ADDRESS_BYTES[family])))
            network = ipaddress.ip_network((start, length))
            if not network.is_link_local and not network.is_multicast:
                found.append(KnownRoute(network, _number(attrs.get(_RTA_OIF))))
        return found

    def counters(self) -> list[Counters]:
        """The counters of every device of the namespace."""
        return [_counters(payload) for payload in self._dump_links(0)]

    def _disable_ipv6(self, name: str) -> None:
        """Keep the device, one of this process's network namespace, from ever having an IPv6 address or sending an IPv6 packet.

        Call it while the device is down. Does nothing on a kernel without IPv6.
        """
        if self._ipv6_fd < 0:
            if not os.path.exists("/proc/sys/net/ipv6"):
                return
            # Held: with it goes the look-up of a name that every network namespace of the machine has.
            self._ipv6_fd = os.open("/proc/sys/net/ipv6/conf", os.O_PATH | os.O_CLOEXEC)
        fd = os.open(f"{name}/disable_ipv6", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._ipv6_fd)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)

    def _exchange(self, requests: Sequence[Request]) -> OSError | None:
        data, first = bytearray(), self._sequence + 1
        begin = 0
        for request in requests:
            self._sequence = (self._sequence + 1) & 0x7FFFFFFF
            begin = len(data)
            data += request if isinstance(request, bytes) else _encoded(request)
            struct.pack_into("=I", data, begin + _SEQUENCE_OFFSET, self._sequence)
            data[begin + _FLAGS_OFFSET] &= ~_NLM_F_ACK
            data += bytes(-len(data) % 4)
        # The kernel works through them in order: the answer to the last one comes last, of the others only what was refused.
        data[begin + _FLAGS_OFFSET] |= _NLM_F_ACK
        self._socket.send(data)
        refused: OSError | None = None
        sequence = 0
        while sequence != self._sequence:
            for kind, flags, sequence, payload in messages(self._socket.recv(_ANSWER_BYTES)):
                if kind == _NLMSG_ERROR and first <= sequence <= self._sequence:
                    refused = refused or _refusal(flags, payload)
        return refused

    def dump(self, request: int, answer: int, body: bytes) -> Iterator[memoryview]:
        """The bodies of all ``answer`` messages to a dump of type ``request``. Exhaust it before anything else is asked."""
        self._sequence = sequence = (self._sequence + 1) & 0x7FFFFFFF
        self._socket.send(_NLMSGHDR.pack(16 + len(body), request, _NLM_F_REQUEST | _NLM_F_DUMP, sequence, 0) + body)
        while True:
            for kind, flags, number, payload in messages(self._socket.recv(_RECEIVE_BYTES)):
                if number != sequence:
                    continue
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise _refusal(flags, payload) or OSError(0, "dump ended without an error")
                if kind == answer:
                    yield payload

    def ask(self, request: int, answer: int, body: bytes) -> memoryview:
        """The body of the one ``answer`` message to a request about one thing (ENODEV, ENOENT: there is none)."""
        self._sequence = sequence = (self._sequence + 1) & 0x7FFFFFFF
        flags = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_ECHO  # before 6.8 tc answers to an echo alone
        self._socket.send(_NLMSGHDR.pack(16 + len(body), request, flags, sequence, 0) + body)
        found: memoryview | None = None
        while True:
            for kind, told, number, payload in messages(self._socket.recv(_RECEIVE_BYTES)):
                if number != sequence:
                    continue
                if kind == answer:
                    found = payload
                elif kind == _NLMSG_ERROR:
                    refusal = _refusal(told, payload)
                    if refusal is not None or found is None:
                        raise refusal or OSError(errno.ENOENT, os.strerror(errno.ENOENT))
                    return found

    def link(self, name: str) -> Link:
        """The device of that name (ENODEV: there is none)."""
        return _link(self.ask(RTM_GETLINK, RTM_NEWLINK, _IFINFOMSG.pack(0, 0, self.link_index(name), 0, 0)))

    def is_carrying(self, name: str) -> bool:
        """Whether the device has a carrier and takes frames: the kernel gets ready for that some time after the carrier came (ENODEV)."""
        answer = self.ask(RTM_GETLINK, RTM_NEWLINK, _IFINFOMSG.pack(0, 0, self.link_index(name), 0, 0))
        return bool(_IFINFOMSG.unpack_from(answer)[3] & _IFF_RUNNING)

    def counters_of(self, index: int) -> Counters:
        """The counters of one device (ENODEV: there is none)."""
        return _counters(self.ask(RTM_GETLINK, RTM_NEWLINK, _IFINFOMSG.pack(0, 0, index, 0, 0)))

    def _dump_links(self, filter_mask: int) -> Iterator[memoryview]:
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + struct.pack("=HHI", 8, 29, filter_mask)  # IFLA_EXT_MASK
        return self.dump(RTM_GETLINK, RTM_NEWLINK, body)


class LinkDeletions:
    """A non-blocking socket that tells which devices of this network namespace went away; wait for ``fileno`` to be readable."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        program = ctypes.create_string_buffer(_DELETIONS_ONLY, len(_DELETIONS_ONLY))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(program)))
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def read(self) -> set[str] | None:
        """The names of the devices deleted since the last call; None if some were missed (look for yourself then)."""
        names: set[str] = set()
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return names
            except OSError:  # ENOBUFS: more news than the buffer holds
                return None
            # A port that leaves its bridge is told like one that is gone, by a message of the bridge's own family.
            gone = (payload for kind, _, _, payload in messages(data) if kind == RTM_DELLINK and payload[0] != socket.AF_BRIDGE)
            names |= {_link(payload).name for payload in gone}


def _encoded(request: Request) -> bytes:
    """The message as it is sent, but for its sequence number."""
    request["header"]["flags"] |= _NLM_F_REQUEST | _NLM_F_ACK
    request.encode()
    return bytes(request.data)


class _Template:
    """A request encoded once; others of its shape differ from it only in bytes at known places."""

    def __init__(self, request: Request, **marks: bytes) -> None:
        """Each mark stands in the request once, where :meth:`fill` puts the value of its name, of the same length."""
        self._data = _encoded(request)
        self._places = {name: self._data.index(mark) for name, mark in marks.items()}
        assert all(self._data.count(mark) == 1 for mark in marks.values())

    def fill(self, **values: bytes) -> bytes:
        """The request with these values."""
        data = bytearray(self._data)
        for name, value in values.items():
            data[self._places[name] : self._places[name] + len(value)] = value
        return bytes(data)


def _request(message: Any, kind: int, flags: int, attrs: Sequence[tuple[str, Any]]) -> Request:
    message["header"]["type"], message["header"]["flags"] = kind, flags
    message["attrs"] = list(attrs)
    return message


def _link_info(kind: str, data: Sequence[tuple[str, Any]]) -> tuple[str, Any]:
    return "IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": list(data)})]}


def messages(data: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """Type, flags, sequence number and body of each message in what was received."""
    view, offset = memoryview(data), 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = _NLMSGHDR.unpack_from(data, offset)
        if not 16 <= length <= len(data) - offset:
            return
        yield kind, flags, sequence, view[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def attributes(data: memoryview) -> dict[int, memoryview]:
    """The attributes of a message or of another attribute, by type; ends where they do not make sense any more."""
    found, offset = {}, 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if not 4 <= length <= len(data) - offset:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _refusal(flags: int, payload: memoryview) -> OSError | None:
    (number,) = struct.unpack_from("=i", payload)
    if number == 0:
        return None
    message = os.strerror(-number)
    if flags & _NLM_F_ACK_TLVS:
        # The request is echoed, whole or (capped) its header alone, between the errno and the attributes.
        (echoed,) = struct.unpack_from("=I", payload, 4)
        start = 4 + (16 if flags & _NLM_F_CAPPED else (echoed + 3) & ~3)
        explanation = string(attributes(payload[start:]).get(_NLMSGERR_ATTR_MSG))
        message = f"{message}: {explanation}" if explanation else message
    return OSError(-number, message)


def string(data: memoryview | None) -> str:
    """A text attribute; "" for none."""
    return "" if data is None else bytes(data).rstrip(b"\0").decode("utf-8", "replace")


def _number(data: memoryview | None) -> int:
    return 0 if data is None else int.from_bytes(data, "little")


def _link(payload: memoryview) -> Link:
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(payload)
    attrs = attributes(payload[16:])
    info = attrs.get(_IFLA_LINKINFO)
    return Link(
        index=index,
        name=string(attrs.get(_IFLA_IFNAME)),
        alias=string(attrs.get(_IFLA_IFALIAS)),
        kind="" if info is None else string(attributes(info).get(_IFLA_INFO_KIND)),
        master=_number(attrs.get(_IFLA_MASTER)),
        mac=bytes(attrs.get(_IFLA_ADDRESS, b"")).hex(":"),
        mtu=_number(attrs.get(_IFLA_MTU)),
        up=bool(flags & _IFF_UP),
    )


def _counters(payload: memoryview) -> Counters:
    attrs = attributes(payload[16:])
    stats = attrs.get(_IFLA_STATS64)
    rx_frames, tx_frames, rx_bytes, tx_bytes, _, _, rx_drops, tx_drops = _STATS64.unpack_from(stats) if stats else (0,) * 8
    return Counters(string(attrs.get(_IFLA_IFNAME)), rx_frames, rx_bytes, rx_drops, tx_frames, tx_bytes, tx_drops)
