"""rtnetlink(7): links, addresses and routes, in batches over one blocking socket.

Requests (:mod:`nestbed.linux.devices` and others) are sent many at a time: pyroute2's own ``IPRoute`` takes 0.3-1.3 ms for a call, a
batch of four here 0.2 ms. Answers to dumps are read by hand: decoding a link by pyroute2 takes as long as the kernel takes for a hundred.

Every method raises OSError with the kernel's errno and, where it gives one, its explanation. None waits for anything but the kernel.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nestbed.linux.devices import address, bridge, link_deletion, link_owned_up, link_up, route, veth
from nestbed.linux.netlink import (
    HEADER,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_ECHO,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    attribute,
    attributes,
    messages,
    number,
    refusal,
    string,
)

_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_STATS64, _IFLA_INFO_KIND, _IFLA_EXT_MASK = 18, 20, 23, 1, 29
_RTEXT_FILTER_SKIP_STATS = 8
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_SIOCGIFFLAGS, _SIOCGIFINDEX = 0x8913, 0x8933

_BATCH_MAX = 64
"""Requests sent at once: the socket's receive buffer must hold their answers."""

_RECEIVE_BYTES = 256 * 1024
_ANSWER_BYTES = 8192
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

    def batch(self, requests: Sequence[bytes]) -> None:
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

    def bring_up(self, name: str, *, alias: str, first: Sequence[bytes] = ()) -> None:
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
        return [link_of(payload) for payload in self._dump_links(_RTEXT_FILTER_SKIP_STATS)]

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
                found.append(KnownRoute(network, number(attrs.get(_RTA_OIF))))
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

    def _exchange(self, requests: Sequence[bytes]) -> OSError | None:
        data, first = bytearray(), self._sequence + 1
        begin = 0
        for request in requests:
            self._sequence = (self._sequence + 1) & 0x7FFFFFFF
            begin = len(data)
            data += request
            struct.pack_into("=I", data, begin + _SEQUENCE_OFFSET, self._sequence)
            data[begin + _FLAGS_OFFSET] &= ~NLM_F_ACK
            data += bytes(-len(data) % 4)
        # The kernel works through them in order: the answer to the last one comes last, of the others only what was refused.
        data[begin + _FLAGS_OFFSET] |= NLM_F_ACK
        self._socket.send(data)
        refused: OSError | None = None
        sequence = 0
        while sequence != self._sequence:
            for kind, flags, sequence, payload in messages(self._socket.recv(_ANSWER_BYTES)):
                if kind == NLMSG_ERROR and first <= sequence <= self._sequence:
                    refused = refused or refusal(flags, payload)
        return refused

    def dump(self, request: int, answer: int, body: bytes) -> Iterator[memoryview]:
        """The bodies of all ``answer`` messages to a dump of type ``request``. Exhaust it before anything else is asked."""
        self._sequence = sequence = (self._sequence + 1) & 0x7FFFFFFF
        self._socket.send(HEADER.pack(HEADER.size + len(body), request, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0) + body)
        while True:
            for kind, flags, answered, payload in messages(self._socket.recv(_RECEIVE_BYTES)):
                if answered != sequence:
                    continue
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    raise refusal(flags, payload) or OSError(0, "dump ended without an error")
                if kind == answer:
                    yield payload

    def ask(self, request: int, answer: int, body: bytes) -> memoryview:
        """The body of the one ``answer`` message to a request about one thing (ENODEV, ENOENT: there is none)."""
        self._sequence = sequence = (self._sequence + 1) & 0x7FFFFFFF
        flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO  # before 6.8 tc answers to an echo alone
        self._socket.send(HEADER.pack(HEADER.size + len(body), request, flags, sequence, 0) + body)
        found: memoryview | None = None
        while True:
            for kind, told, answered, payload in messages(self._socket.recv(_RECEIVE_BYTES)):
                if answered != sequence:
                    continue
                if kind == answer:
                    found = payload
                elif kind == NLMSG_ERROR:
                    refused = refusal(told, payload)
                    if refused is not None or found is None:
                        raise refused or OSError(errno.ENOENT, os.strerror(errno.ENOENT))
                    return found

    def link(self, name: str) -> Link:
        """The device of that name (ENODEV: there is none)."""
        return link_of(self.ask(RTM_GETLINK, RTM_NEWLINK, _IFINFOMSG.pack(0, 0, self.link_index(name), 0, 0)))

    def is_carrying(self, name: str) -> bool:
        """Whether the device has a carrier and takes frames: the kernel gets ready for that some time after the carrier came (ENODEV)."""
        answer = self.ask(RTM_GETLINK, RTM_NEWLINK, _IFINFOMSG.pack(0, 0, self.link_index(name), 0, 0))
        return bool(_IFINFOMSG.unpack_from(answer)[3] & _IFF_RUNNING)

    def counters_of(self, index: int) -> Counters:
        """The counters of one device (ENODEV: there is none)."""
        return _counters(self.ask(RTM_GETLINK, RTM_NEWLINK, _IFINFOMSG.pack(0, 0, index, 0, 0)))

    def _dump_links(self, filter_mask: int) -> Iterator[memoryview]:
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + attribute(_IFLA_EXT_MASK, struct.pack("=I", filter_mask))
        return self.dump(RTM_GETLINK, RTM_NEWLINK, body)


def link_of(payload: memoryview) -> Link:
    """The device that a message tells of."""
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(payload)
    attrs = attributes(payload[_IFINFOMSG.size :])
    info = attrs.get(_IFLA_LINKINFO)
    return Link(
        index=index,
        name=string(attrs.get(_IFLA_IFNAME)),
        alias=string(attrs.get(_IFLA_IFALIAS)),
        kind="" if info is None else string(attributes(info).get(_IFLA_INFO_KIND)),
        master=number(attrs.get(_IFLA_MASTER)),
        mac=bytes(attrs.get(_IFLA_ADDRESS, b"")).hex(":"),
        mtu=number(attrs.get(_IFLA_MTU)),
        up=bool(flags & _IFF_UP),
    )


def _counters(payload: memoryview) -> Counters:
    attrs = attributes(payload[_IFINFOMSG.size :])
    stats = attrs.get(_IFLA_STATS64)
    rx_frames, tx_frames, rx_bytes, tx_bytes, _, _, rx_drops, tx_drops = _STATS64.unpack_from(stats) if stats else (0,) * 8
    return Counters(string(attrs.get(_IFLA_IFNAME)), rx_frames, rx_bytes, rx_drops, tx_frames, tx_bytes, tx_drops)
