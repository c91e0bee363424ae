"""The values of LANs, of the NICs on them and of what passes there: as ``nestbed.model``, frozen, plain, free of I/O.

Addresses are text in CIDR form (``10.5.0.7/24``, ``fd00::7/64``), MACs are lower-case ``02:..`` text.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Impairment:
    """What is done to the frames of one direction of a port, or of a LAN as a whole. 0 is "not".

    ``rate_bps`` is bits per second of Ethernet frames; ``loss``, ``duplicate``, ``corrupt`` and ``reorder`` are fractions of all frames,
    0 to 1; ``jitter_us`` is the most by which the delay of a frame differs from ``delay_us``; ``limit_frames`` is how many may wait.
    What values may stand beside each other, and how a LAN's and a port's are combined, stands in ``nestbed.lan.impair``.
    """

    rate_bps: int = 0
    delay_us: int = 0
    jitter_us: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    limit_frames: int = 0


NO_IMPAIRMENT = Impairment()


@dataclass(frozen=True, slots=True)
class ImpairmentChange:
    """What is changed of an :class:`Impairment`: None keeps what was, 0 takes it off."""

    rate_bps: int | None = None
    delay_us: int | None = None
    jitter_us: int | None = None
    loss: float | None = None
    duplicate: float | None = None
    corrupt: float | None = None
    reorder: float | None = None
    limit_frames: int | None = None


class Direction(enum.StrEnum):
    """Which frames of a port: those to the container, from it, or both."""

    TO = "to"
    FROM = "from"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class NicSpec:
    """A NIC as asked for: empty fields are filled by the node. ``lan`` is the LAN's name."""

    lan: str
    name: str = ""
    mac: str = ""
    addresses: tuple[str, ...] = ()
    impair_to: Impairment = NO_IMPAIRMENT
    impair_from: Impairment = NO_IMPAIRMENT


@dataclass(frozen=True, slots=True)
class Nic:
    """A NIC as it is: everything resolved, the host's objects named before they are made.

    ``port`` is the interface on the node's side, ``bridge`` the LAN's bridge; both belong to the node's network namespace.
    ``impair_to`` and ``impair_from`` are the port's own, without the LAN's share. ``is_down``: its cable is unplugged.
    """

    lan: str
    lan_id: str
    name: str
    mac: str
    addresses: tuple[str, ...]
    mtu: int
    port: str
    bridge: str
    impair_to: Impairment = NO_IMPAIRMENT
    impair_from: Impairment = NO_IMPAIRMENT
    is_down: bool = False


TRAFFIC_CLASSES = ("ipv4", "ipv6", "arp", "tcp", "udp", "icmp", "multicast", "broadcast", "other")
"""By what frames are told apart. A frame counts in each class it belongs to (a TCP segment in ``ipv4`` and ``tcp``); ``icmp`` is that of
either IP version; ``other`` is what is none of IPv4, IPv6 and ARP."""


@dataclass(frozen=True, slots=True)
class NicImpairment:
    """What is to be done to the frames of a NIC's port to and from the container, whatever the NIC itself says: both are complete."""

    nic: Nic
    to: Impairment = NO_IMPAIRMENT
    from_: Impairment = NO_IMPAIRMENT


@dataclass(frozen=True, slots=True)
class ClassCount:
    """Frames and bytes of one of TRAFFIC_CLASSES."""

    name: str
    frames: int
    bytes: int


@dataclass(frozen=True, slots=True)
class DropCount:
    """Frames dropped for one of the reasons in ``nestbed.lan.reasons``."""

    reason: str
    frames: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What passed in one direction, as frames on the wire (a super-frame counts as those it stands for), and what did not."""

    frames: int = 0
    bytes: int = 0
    classes: tuple[ClassCount, ...] = ()
    drops: tuple[DropCount, ...] = ()


@dataclass(frozen=True, slots=True)
class PortStats:
    """Counters of one port, seen from inside the container: ``rx`` is what goes to it."""

    port: str
    rx: Traffic = Traffic()
    tx: Traffic = Traffic()


@dataclass(frozen=True, slots=True)
class NicStats:
    """Counters of one NIC, seen from inside the container. Classes and reasons are empty where this kernel does not count them."""

    name: str
    lan: str
    rx_frames: int
    rx_bytes: int
    rx_drops: int
    tx_frames: int
    tx_bytes: int
    tx_drops: int
    rx_classes: tuple[ClassCount, ...] = ()
    tx_classes: tuple[ClassCount, ...] = ()
    rx_drop_reasons: tuple[DropCount, ...] = ()
    tx_drop_reasons: tuple[DropCount, ...] = ()


@dataclass(frozen=True, slots=True)
class Lan:
    """One Ethernet segment: the record of a LAN. ``bridge`` is named before it is made.

    ``group`` is ``ADDRESS:PORT`` of the multicast group that carries it between machines; empty: it stays on this one. With ``peers``
    (unicast IPv4 addresses) datagrams go to each of them, to the group's port, instead of to the group. ``ttl`` is that of the datagrams.
    ``impairment`` is that of the whole LAN, from one member to another. ``is_down``: NICs that join have their cable unplugged.
    ``outside``: it is a LAN of the node outside of this one's virtual machine, which hands out its addresses.
    """

    id: str
    name: str
    bridge: str
    mtu: int = 1500
    subnet: str = ""
    subnet6: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    created_at: float = 0.0
    group: str = ""
    peers: tuple[str, ...] = ()
    ttl: int = 1
    impairment: Impairment = NO_IMPAIRMENT
    is_down: bool = False
    outside: bool = False

    @property
    def is_relayed(self) -> bool:
        """Whether other machines may be on it."""
        return bool(self.group)

    @property
    def group_address(self) -> str:
        """The address of ``group``."""
        return self.group.rpartition(":")[0]

    @property
    def group_port(self) -> int:
        """The port of ``group``; 0 without one."""
        return int(self.group.rpartition(":")[2] or 0)


class RelayMode(enum.StrEnum):
    """What carries LANs between machines: the kernel's fast path if there is BPF, only with it, or the relay process alone."""

    AUTO = "auto"
    KERNEL = "kernel"
    USERSPACE = "userspace"


@dataclass(frozen=True, slots=True)
class Underlay:
    """An interface of the machine that carries LANs, as it is now. ``address`` is empty without an IPv4 address; without the interface
    (``exists`` False) nothing else counts.
    """

    name: str
    exists: bool = False
    is_up: bool = False
    has_multicast: bool = False
    address: str = ""
    mtu: int = 0


class PathKind(enum.StrEnum):
    """How a LAN's frames get onto an underlay."""

    KERNEL = "kernel"
    USERSPACE = "userspace"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class LanPath:
    """How a LAN uses one underlay now. ``detail`` says why, and what it means for speed."""

    underlay: str
    kind: PathKind
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LanRequest:
    """A LAN as asked for. ``mtu`` 0 is 1500, ``ttl`` 0 is 1. ``is_local`` keeps it on the machine."""

    name: str
    subnet: str = ""
    subnet6: str = ""
    mtu: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    group: str = ""
    peers: tuple[str, ...] = ()
    ttl: int = 0
    is_local: bool = False


@dataclass(frozen=True, slots=True)
class LanMember:
    """A NIC on a LAN and whose it is."""

    container_id: str
    container: str
    nic: Nic


@dataclass(frozen=True, slots=True)
class LanView:
    """A LAN as callers see it."""

    lan: Lan
    members: tuple[LanMember, ...] = ()
    paths: tuple[LanPath, ...] = ()
    cut: frozenset[str] = frozenset()
    """The ports of members that are closed at present, because they closed a loop."""


@dataclass(frozen=True, slots=True)
class LanCounters:
    """What a LAN exchanged with other machines: ``received`` came from them into the LAN, ``sent`` left it."""

    lan_id: str
    received: Traffic = Traffic()
    sent: Traffic = Traffic()


@dataclass(frozen=True, slots=True)
class LanStats:
    """Counters of a LAN and of its members (with their ports') at the time ``at``."""

    at: float
    lan: Lan
    counters: LanCounters
    ports: tuple[tuple[LanMember, PortStats], ...] = ()


@dataclass(frozen=True, slots=True)
class Achieved:
    """What an impaired direction of a port did since it was set, at ``since``.

    ``frames`` and ``bytes`` came in; of these ``lost`` were dropped by the wanted loss and ``overflowed`` because too many waited.
    The delays are None until a frame has been measured, the rate (of what went out) until there was some traffic.
    """

    since: float
    frames: int = 0
    bytes: int = 0
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    reordered: int = 0
    overflowed: int = 0
    delay_min_us: float | None = None
    delay_mean_us: float | None = None
    delay_p99_us: float | None = None
    rate_bps: float | None = None


@dataclass(frozen=True, slots=True)
class PortImpairment:
    """One member of a LAN: what is in force on its port (the LAN's share and its own together), and what came of it.

    ``achieved_to`` and ``achieved_from`` are None for a direction that is not impaired.
    """

    member: LanMember
    to: Impairment
    from_: Impairment
    achieved_to: Achieved | None = None
    achieved_from: Achieved | None = None


@dataclass(frozen=True, slots=True)
class LanImpairment:
    """What is in force on a LAN and on some of its members' ports; the LAN as a whole has ``view.lan.impairment``."""

    view: LanView
    ports: tuple[PortImpairment, ...] = ()


@dataclass(frozen=True, slots=True)
class CaptureRequest:
    """What to capture: ``filter`` is a pcap filter expression (empty: everything); each bound is 0 for none.

    ``snap_bytes`` cuts frames, ``count`` bounds their number, ``size_bytes`` what is written, ``seconds`` the time.
    """

    filter: str = ""
    snap_bytes: int = 0
    count: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
