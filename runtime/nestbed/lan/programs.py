"""The BPF programs of ports and legs (``bpf/port.bpf.c``), loaded, with their maps as values.

The maps are pinned in a directory on a BPF file system, so what was counted and what is impaired outlives the daemon; the next one loads
the programs anew around the same maps.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nestbed.lan import traffic
from nestbed.lanmodel import Traffic
from nestbed.linux import bpf, tc

OBJECT = Path(__file__).with_name("bpf") / "port.bpf.o"
BUCKETS, BUCKETS_PER_OCTAVE, BUCKET_FIRST_LOG2 = 832, 32, 10

_INDEX = struct.Struct("=I")
_PORT_KEY = struct.Struct("=II")
_DOOR = struct.Struct("=QII")
_HOME = struct.Struct("=QQ6sH")
_LOOP = struct.Struct("=QII6sH")
_STAGE = struct.Struct("=QQQQIIII")
_STAGE_LAST, _STAGE_INGRESS = 1, 2
_COUNTS = struct.Struct(f"={13 + BUCKETS}Q")


class Side(enum.IntEnum):
    """Which frames of a port: the numbers are FROM and TO of ``port.bpf.c``."""

    FROM = 0
    TO = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """What happens to a frame that arrives at a device of a leg, and where it goes next.

    ``loss``, ``duplicate`` and ``corrupt`` are thresholds (``nestbed.lan.impair.threshold``). ``is_last``: ``next_index`` is the port; then
    pauses between frames of up to ``busy_gap_ns`` count as time in which the leg was busy.
    """

    port_index: int
    side: Side
    next_index: int
    is_last: bool = False
    loss: int = 0
    duplicate: int = 0
    corrupt: int = 0
    busy_gap_ns: int = 0

    def pack(self) -> bytes:
        """As ``struct stage``."""
        # Frames from the container go on from the port into the bridge; those to it, out of the port.
        flags = (_STAGE_LAST if self.is_last else 0) | (_STAGE_INGRESS if self.is_last and self.side is Side.FROM else 0)
        return _STAGE.pack(self.loss, self.duplicate, self.corrupt, self.busy_gap_ns, self.port_index, self.side, self.next_index, flags)


@dataclass(frozen=True, slots=True)
class LegCounts:
    """``struct leg_counters``: what a leg did since ``since_ns`` of the wall clock. ``buckets`` is the histogram of delays."""

    since_ns: int = 0
    in_frames: int = 0
    in_bytes: int = 0
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    out_frames: int = 0
    out_bytes: int = 0
    busy_ns: int = 0
    last_ns: int = 0
    delay_count: int = 0
    delay_sum_ns: int = 0
    delay_min_ns: int = 0
    buckets: tuple[int, ...] = (0,) * BUCKETS

    @classmethod
    def unpack(cls, data: bytes) -> LegCounts:
        """From the bytes of the map."""
        numbers = _COUNTS.unpack(data)
        return cls(*(*numbers[:13], numbers[13:]))

    def pack(self) -> bytes:
        """The bytes of the map."""
        return _COUNTS.pack(
            self.since_ns, self.in_frames, self.in_bytes, self.lost, self.duplicated, self.corrupted, self.out_frames, self.out_bytes,
            self.busy_ns, self.last_ns, self.delay_count, self.delay_sum_ns, self.delay_min_ns, *self.buckets,
        )  # fmt: skip

    def delay_quantile_ns(self, quantile: float) -> float:
        """The delay that this fraction of frames stayed below, to 3 %; 0 if none was measured."""
        total = sum(self.buckets)
        seen = 0
        for index, count in enumerate(self.buckets):
            seen += count
            if count and seen >= quantile * total:
                return bucket_end_ns(index)
        return 0.0


@dataclass(frozen=True, slots=True)
class Closing:
    """``struct port_loop``: a port is closed both ways, for the ``count``-th time, because frames came round by it, the last of the station
    ``mac``, that had been at the port ``kept_index``, too.
    """

    count: int
    kept_index: int
    mac: str


def bucket_end_ns(index: int) -> float:
    """Where the delays counted in a bucket end."""
    octave, part = divmod(index, BUCKETS_PER_OCTAVE)
    return float((1 << (octave + BUCKET_FIRST_LOG2)) * (1 + (part + 1) / BUCKETS_PER_OCTAVE))


def guard(mac: str, ipv4: str) -> bytes:
    """``struct guard``: what a container on the control network is called. Its IPv6 address is the one that comes of the MAC (RFC 4291)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    eui64 = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return octets + bytes(2) + ipaddress.IPv4Address(ipv4).packed + bytes.fromhex("fe80000000000000") + eui64


class PortPrograms:
    """The programs and maps. What is attached works on without this object."""

    def __init__(self, loaded: bpf.Object) -> None:
        """Use :meth:`load`."""
        self._object = loaded
        self._in, self._out, self._leg = (loaded.program(name) for name in ("port_in", "port_out", "leg"))
        self._guard = loaded.program("guard")
        self._traffic, self._doors, self._stages, self._counts, self._guards, self._homes, self._loops = self._maps = [
            loaded.map(name)
            for name in ("port_traffic", "port_doors", "leg_stages", "leg_counts", "port_guards", "port_homes", "port_loops")
        ]

    @classmethod
    def load(cls, pin_dir: Path) -> PortPrograms:
        """Load them around the maps pinned in ``pin_dir``, on a BPF file system.

        Raises:
            OSError: this kernel, or this process, cannot.
        """
        return cls(bpf.Object.load(OBJECT, pin_dir=pin_dir))

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        for one in self._maps:
            one.close()
        self._object.close()

    # ---- what is attached

    def on_port(self, index: int) -> list[bytes]:
        """Requests that give a port, new, its programs."""
        return [tc.clsact(index), *self.on_port_again(index)]

    def on_port_again(self, index: int) -> list[bytes]:
        """Requests that put this object's programs in the place of those an earlier daemon attached."""
        return [
            tc.program(index, tc.Direction.INGRESS, self._in, name="nestbed-in"),
            tc.program(index, tc.Direction.EGRESS, self._out, name="nestbed-out"),
        ]

    def on_control_port(self, index: int, mac: str, ipv4: str) -> bytes:
        """The request that lets a port on the control network, which has its programs, take only what its container says in its own name,
        or does so anew.
        """
        self._guards.update(_INDEX.pack(index), guard(mac, ipv4))
        return tc.program(index, tc.Direction.INGRESS, self._guard, name="nestbed-guard", priority=2)

    def on_leg(self, index: int) -> list[bytes]:
        """Requests that give a device of a leg, new, its program."""
        return [tc.clsact(index), self.on_leg_again(index)]

    def on_leg_again(self, index: int) -> bytes:
        """The request that puts this object's program in the place of an earlier daemon's."""
        return tc.program(index, tc.Direction.INGRESS, self._leg, name="nestbed-leg")

    # ---- maps

    def traffic(self, port_index: int, side: Side) -> Traffic:
        """What passed a port on one side since it came; drops are those of its leg's loss."""
        return traffic.decode(self._traffic.lookup_cpus(_PORT_KEY.pack(port_index, side)) or ())

    def set_stage(self, device_index: int, stage: Stage) -> None:
        """What the program does at a device of a leg from now on."""
        self._stages.update(_INDEX.pack(device_index), stage.pack())

    def drop_stage(self, device_index: int) -> None:
        """The device is going: it drops everything. Idempotent."""
        self._stages.delete(_INDEX.pack(device_index))

    def set_door(self, port_index: int, side: Side, device_index: int) -> None:
        """Lead the port's frames to a device of its leg from now on."""
        self._doors.update(_PORT_KEY.pack(port_index, side), _DOOR.pack(0, device_index, 0))

    def drop_door(self, port_index: int, side: Side) -> None:
        """Let the port's frames pass from now on. Idempotent."""
        self._doors.delete(_PORT_KEY.pack(port_index, side))

    def counts(self, port_index: int, side: Side) -> LegCounts | None:
        """What the leg did; None if the port has none."""
        data = self._counts.lookup(_PORT_KEY.pack(port_index, side))
        return None if data is None else LegCounts.unpack(data)

    def begin_counts(self, port_index: int, side: Side, since_ns: int) -> None:
        """Count from zero."""
        self._counts.update(_PORT_KEY.pack(port_index, side), LegCounts(since_ns).pack())

    def drop_counts(self, port_index: int, side: Side) -> None:
        """Forget what the leg did. Idempotent."""
        self._counts.delete(_PORT_KEY.pack(port_index, side))

    def close_leg(self, port_index: int, side: Side) -> None:
        """Let the port's frames pass, and forget what its leg did. Idempotent."""
        self.drop_door(port_index, side)
        self.drop_counts(port_index, side)

    def forget_port(self, port_index: int) -> None:
        """The port is gone: forget everything of it. Idempotent."""
        for one in (self._guards, self._homes, self._loops):
            one.delete(_INDEX.pack(port_index))
        for side in Side:
            self.close_leg(port_index, side)
            self._traffic.delete(_PORT_KEY.pack(port_index, side))

    def keep_only(self, port_indexes: Iterable[int], device_indexes: Iterable[int]) -> None:
        """Forget every port and every device of a leg but these: an earlier daemon did not live to do it."""
        ports, devices = set(port_indexes), set(device_indexes)
        for index in {index for index in self._port_indexes() if index not in ports}:
            self.forget_port(index)
        for index in [_INDEX.unpack(key)[0] for key in self._stages.keys()]:  # noqa: SIM118 - no dictionary
            if index not in devices:
                self.drop_stage(index)

    # ---- loops

    def set_home(self, port_index: int, lan: int, mac: str) -> None:
        """Look for loops at a port, of the NIC with this MAC on the LAN of this key (``nestbed.lan.members.lan_key``)."""
        self._homes.update(_INDEX.pack(port_index), _HOME.pack(lan, 0, bytes.fromhex(mac.replace(":", "")), 0))

    def closings(self) -> dict[int, Closing]:
        """The ports that are closed now, by index."""
        found = {}
        for key in list(self._loops.keys()):
            value = self._loops.lookup(key)
            if value is not None:
                until_ns, count, kept, mac, _ = _LOOP.unpack(value)
                if until_ns > time.monotonic_ns():
                    found[_INDEX.unpack(key)[0]] = Closing(count, kept, mac.hex(":"))
        return found

    def _port_indexes(self) -> Iterator[int]:
        yield from (_INDEX.unpack(key)[0] for key in list(self._homes.keys()))
        for one in (self._traffic, self._doors, self._counts):
            for key in list(one.keys()):
                yield _PORT_KEY.unpack(key)[0]
