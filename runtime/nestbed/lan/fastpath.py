"""The fast path between machines: the BPF programs of ``bpf/lan.bpf.c``, loaded, with their maps as values.

The maps are pinned in a directory on a BPF file system, and the kernel holds the programs as long as they are attached: LANs are carried
on, and counted, without the daemon. The next one loads the programs anew around the same maps and puts them in the old ones' place.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from nestbed.lan import traffic
from nestbed.lan.members import lan_key
from nestbed.linux import bpf, tc
from nestbed.linux.rtnl import Rtnl

OBJECT = Path(__file__).with_name("bpf") / "lan.bpf.o"
MAPS = ("lans", "groups", "lan_traffic", "places", "members", "refusals", "echoes")

DATAGRAM_BYTES = 28
"""IPv4 without options and UDP: what the underlay's MTU must have room for besides the frame."""
LEGS_MAX, PEERS_MAX = 4, 64

DECAP_PRIORITY, DECAP_HANDLE, DECAP_NAME = 0x6E62, 0x6E62, "nestbed-decap"
"""Where decap stands on an underlay's clsact, which may have others' filters: behind what has been put there with care."""

_UNICAST = 1
_LEG = struct.Struct("=II2x42sI")
_PEER = struct.Struct("=4s6sBB")
_LAN = struct.Struct("=QIIIIIH2sBBH4x")
_GROUP = struct.Struct("=4sI2s2x")
_STATION = struct.Struct("=Q6s2x")
_REFUSAL = struct.Struct("=QQ4s4s")
_ECHO = struct.Struct("=QI4x")
_INDEX = struct.Struct("=I")
_KEY = struct.Struct("=Q")
_COUNT = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class Leg:
    """One underlay as a LAN uses it: where datagrams leave, and from which address."""

    index: int
    mtu: int
    mac: str
    address: str


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node, to which datagrams go by unicast. ``mac`` is that of the next hop, empty while it is not known."""

    address: str
    mac: str = ""
    leg: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """What the programs know of a LAN: ``port`` is the index of the bridge's uplink port, ``outer`` of its other end, ``tap`` 0: none."""

    lan_id: str
    group: str
    port: int
    outer: int
    tap: int
    mtu: int
    segmenter: int = 0
    ttl: int = 1
    legs: tuple[Leg, ...] = ()
    peers: tuple[Peer, ...] = ()
    is_unicast: bool = False

    @property
    def udp_port(self) -> int:
        """The port of datagrams."""
        return int(self.group.rpartition(":")[2])

    @property
    def group_address(self) -> str:
        """The address of the group."""
        return self.group.rpartition(":")[0]

    def pack(self) -> bytes:
        """As ``struct lan``."""
        flags = _UNICAST if self.is_unicast else 0
        head = _LAN.pack(
            lan_key(self.lan_id),
            self.port,
            self.outer,
            self.tap,
            self.segmenter,
            self.mtu + 14,
            flags,
            self.udp_port.to_bytes(2, "big"),
            len(self.legs),
            len(self.peers),
            min((leg.mtu for leg in self.legs), default=0),
        )
        legs = [self._pack_leg(leg) for leg in self.legs] + [bytes(_LEG.size)] * (LEGS_MAX - len(self.legs))
        peers = [_pack_peer(peer) for peer in self.peers] + [bytes(_PEER.size)] * (PEERS_MAX - len(self.peers))
        return head + b"".join(legs) + b"".join(peers)

    def group_keys(self) -> set[bytes]:
        """As ``struct group``: what a datagram for this LAN is addressed to, on each underlay."""
        port = self.udp_port.to_bytes(2, "big")
        return {_GROUP.pack(_packed(leg.address if self.is_unicast else self.group_address), leg.index, port) for leg in self.legs}

    def _pack_leg(self, leg: Leg) -> bytes:
        destination = "0.0.0.0" if self.is_unicast else self.group_address
        header = outer_header(leg, destination, self.udp_port, self.ttl)
        return _LEG.pack(leg.index, leg.mtu, header, sum(struct.unpack_from("=10H", header, 14)))


def outer_header(leg: Leg, destination: str, udp_port: int, ttl: int) -> bytes:
    """Ethernet, IPv4 and UDP in front of a frame, with lengths, IP id, checksums and source port 0. RFC 1112 section 6.4 gives the MAC."""
    group = _packed(destination)
    mac = b"\x01\x00\x5e" + bytes([group[1] & 0x7F]) + group[2:]
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, ttl, 17, 0, _packed(leg.address), group)
    return mac + bytes.fromhex(leg.mac.replace(":", "")) + b"\x08\x00" + ip + struct.pack("!HHHH", 0, udp_port, 0, 0)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A station that goes round in a loop: its frames from ``refused`` are dropped, those from ``kept`` are not ("" is this machine)."""

    lan_key: int
    mac: str
    frames: int
    kept: str
    refused: str


class FastPath:
    """The programs and maps. Errors are OSError.

    A LAN is announced by :meth:`put`, whose order is such that at every moment what the programs find in the maps makes sense.
    """

    def __init__(self, loaded: bpf.Object) -> None:
        """Use :meth:`load`."""
        self._object = loaded
        self._encap, self._resume, self._decap, self._from_tap = (loaded.program(name) for name in ("encap", "resume", "decap", "from_tap"))
        self._maps = {name: loaded.map(name) for name in MAPS}

    @classmethod
    def load(cls, pin_dir: Path) -> FastPath:
        """Load them around the maps pinned in ``pin_dir``, on a BPF file system.

        Raises:
            OSError: this kernel, or this process, cannot.
        """
        return cls(bpf.Object.load(OBJECT, pin_dir=pin_dir))

    def close(self) -> None:
        """Close the descriptors; everything attached works on. Idempotent."""
        for one in self._maps.values():
            one.close()
        self._object.close()

    # ---- what is attached

    def on_uplink(self, port: int) -> bytes:
        """The request that has frames leaving the bridge by its uplink port sent, in the place of an earlier daemon's."""
        return tc.program(port, tc.Direction.EGRESS, self._encap, name="nestbed-encap")

    def on_segmenter(self, far_end: int) -> bytes:
        """The request that has the segments which arrive at the far end of the segmenter sent, in the place of an earlier daemon's."""
        return tc.program(far_end, tc.Direction.INGRESS, self._resume, name="nestbed-resume")

    def on_tap(self, tap: int) -> bytes:
        """The request that has what the relay writes to the tap go into the bridge, in the place of an earlier daemon's."""
        return tc.program(tap, tc.Direction.INGRESS, self._from_tap, name="nestbed-tap")

    def on_underlay(self, index: int) -> bytes:
        """The request that has datagrams arriving on an underlay looked at, in the place of an earlier daemon's."""
        return tc.program(index, tc.Direction.INGRESS, self._decap, name=DECAP_NAME, priority=DECAP_PRIORITY, handle=DECAP_HANDLE)

    # ---- LANs

    def put(self, entry: Entry) -> None:
        """Carry the LAN as the entry says from now on; what was counted counts on."""
        key = _KEY.pack(lan_key(entry.lan_id))
        if self._maps["lan_traffic"].lookup_cpus(key) is None:
            self._maps["lan_traffic"].update(key, bytes(self._maps["lan_traffic"].value_size))
        packed = entry.pack()
        for index in (entry.port, entry.tap):
            if index:
                self._maps["lans"].update(_INDEX.pack(index), packed)
        wanted = entry.group_keys()
        for group in self._groups_of(entry.port) - wanted:
            self._maps["groups"].delete(group)
        for group in wanted:
            self._maps["groups"].update(group, _INDEX.pack(entry.port))

    def remove(self, lan_id: str, indexes: Collection[int]) -> None:
        """Forget the LAN, whose uplink port and tap have these ``indexes``. Idempotent."""
        for index in indexes:
            for group in self._groups_of(index):
                self._maps["groups"].delete(group)
            self._maps["lans"].delete(_INDEX.pack(index))
        self._maps["lan_traffic"].delete(_KEY.pack(lan_key(lan_id)))

    def keep_only(self, lan_ids: Collection[str], indexes: Collection[int]) -> None:
        """Forget every LAN, and every uplink port and tap, but these: an earlier daemon did not live to do it."""
        keys, kept = {lan_key(lan_id) for lan_id in lan_ids}, set(indexes)
        for group in list(self._maps["groups"].keys()):
            port = self._maps["groups"].lookup(group)
            if port is not None and _INDEX.unpack(port)[0] not in kept:
                self._maps["groups"].delete(group)
        for index in [_INDEX.unpack(key)[0] for key in self._maps["lans"].keys()]:  # noqa: SIM118 - no dictionary
            if index not in kept:
                self._maps["lans"].delete(_INDEX.pack(index))
        for key in [_KEY.unpack(key)[0] for key in self._maps["lan_traffic"].keys()]:  # noqa: SIM118 - no dictionary
            if key not in keys:
                self._maps["lan_traffic"].delete(_KEY.pack(key))

    def traffic(self, lan_id: str) -> tuple[list[bytes], list[bytes]]:
        """What the LAN received and sent by this path since it was first put, on each CPU, as ``nestbed.lan.traffic`` decodes it."""
        values = self._maps["lan_traffic"].lookup_cpus(_KEY.pack(lan_key(lan_id))) or []
        return [value[traffic.BYTES :] for value in values], [value[: traffic.BYTES] for value in values]

    def refusals(self) -> list[Refusal]:
        """The stations whose frames were refused because they came round."""
        found = []
        for key in list(self._maps["refusals"].keys()):
            value = self._maps["refusals"].lookup(key)
            if value is not None:
                number, mac = _STATION.unpack(key)
                frames, _, kept, refused = _REFUSAL.unpack(value)
                found.append(Refusal(number, mac.hex(":"), frames, _address(kept), _address(refused)))
        return found

    def echoes(self) -> dict[tuple[int, int], int]:
        """By LAN key and underlay: how many datagrams came in there that this node had sent on another underlay."""
        found = {}
        for key in list(self._maps["echoes"].keys()):
            value = self._maps["echoes"].lookup(key)
            if value is not None:
                found[_ECHO.unpack(key)] = int(_COUNT.unpack(value)[0])
        return found

    def _groups_of(self, port: int) -> set[bytes]:
        groups = self._maps["groups"]
        return {key for key in list(groups.keys()) if groups.lookup(key) == _INDEX.pack(port)}


def decap_is_on(rtnl: Rtnl, index: int) -> bool:
    """Whether an interface has the program for underlays, of whichever daemon of this node."""
    return any(one.name == DECAP_NAME and one.priority == DECAP_PRIORITY for one in tc.filters(rtnl, index))


def off_underlay(index: int) -> bytes:
    """The request that takes the program off an underlay (ENOENT, EINVAL: it has none)."""
    return tc.program_deletion(index, tc.Direction.INGRESS, priority=DECAP_PRIORITY, handle=DECAP_HANDLE)


def _pack_peer(peer: Peer) -> bytes:
    mac = bytes.fromhex(peer.mac.replace(":", "")) if peer.mac else bytes(6)
    return _PEER.pack(_packed(peer.address), mac, peer.leg, bool(peer.mac))


def _packed(address: str) -> bytes:
    return ipaddress.IPv4Address(address).packed


def _address(packed: bytes) -> str:
    return "" if packed == bytes(4) else str(ipaddress.IPv4Address(packed))
