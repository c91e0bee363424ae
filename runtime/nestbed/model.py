"""The values that travel between the floors of nestbed: frozen, plain, free of I/O.

Addresses are text in CIDR form (``10.5.0.7/24``, ``fd00::7/64``), MACs are lower-case ``02:..`` text, sizes are bytes, times
are seconds since the epoch (float). Everything here can be written as JSON by :func:`to_json` and read by :func:`from_json`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nestbed.errors import CorruptState

T = TypeVar("T")


class Kind(enum.StrEnum):
    """What implements a container."""

    PROCESS = "process"
    QEMU = "qemu"


class State(enum.StrEnum):
    """Where a container is in its life; ``docs/runtime.md`` draws the transitions."""

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    DELETING = "deleting"


class FsMode(enum.StrEnum):
    """What a process container sees as its file system (DESIGN section 4)."""

    HOST = "host"
    HOST_RO = "host-ro"
    OVERLAY = "overlay"
    ROOTFS = "rootfs"


class RestartMode(enum.StrEnum):
    """When a container that ended is started again."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """``max_retries`` bounds ON_FAILURE; 0 means without bound."""

    mode: RestartMode = RestartMode.NO
    max_retries: int = 0


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory or file of the node (``source``) at ``destination`` in the container. Both absolute."""

    source: str
    destination: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A route inside the container: ``destination`` CIDR (or ``default``) through the address ``via``."""

    destination: str
    via: str


@dataclass(frozen=True, slots=True)
class Resources:
    """Limits; None is "as the default of the node" for pids and memory, "none" for cpu and io.

    ``cpus`` is a number of processors (1.5), ``memory_bytes`` includes page cache, ``pids`` counts threads,
    ``io_weight`` is 1..10000 (v2 scale).
    """

    cpus: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    io_weight: int | None = None


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
    ``impair_to`` and ``impair_from`` are the port's own, without the LAN's share.
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


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What a process container runs and how it is confined.

    ``user`` is ``NAME|UID[:NAME|GID]``; ``rootfs`` goes with FsMode.ROOTFS; ``overlay_dir`` keeps the changes of
    FsMode.OVERLAY ("" throws them away); capability names are upper case without ``CAP_``.
    """

    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    cwd: str = ""
    user: str = ""
    fs: FsMode = FsMode.HOST
    rootfs: str = ""
    overlay_dir: str = ""
    mounts: tuple[Mount, ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    init: bool = False
    tty: bool = False
    stdin: bool = False


@dataclass(frozen=True, slots=True)
class QemuSpec:
    """What is special to a virtual machine; what it runs stands in ProcessSpec, whose ``args`` may then be empty: it just stays up.

    ``append`` is added to the command line of the guest's kernel.
    """

    append: str = ""


@dataclass(frozen=True, slots=True)
class Spec:
    """What was asked for, validated and complete: the record of a container.

    ``hosts`` are the lines of its hosts file after those of the loopback, if the node is not to keep it.
    """

    id: str
    name: str
    kind: Kind
    process: ProcessSpec
    hostname: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    resources: Resources = field(default_factory=Resources)
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    nics: tuple[Nic, ...] = ()
    routes: tuple[Route, ...] = ()
    gateway: str = ""
    hosts: str = ""
    auto_remove: bool = False
    created_at: float = 0.0
    qemu: QemuSpec | None = None


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a program ended. Exactly one of ``code`` (0..255) and ``signal`` is set, or neither: unknown, never 0.

    ``reason`` says why where it is known: ``exited``, ``signaled``, ``oom-killed``, ``unknown``, ``start-failed``.
    """

    code: int | None = None
    signal: int | None = None
    reason: str = "exited"
    message: str = ""
    at: float = 0.0

    @property
    def shell_code(self) -> int:
        """The status as a shell shows it: the code, 128 + signal, or 255 for unknown."""
        if self.code is not None:
            return self.code
        return 255 if self.signal is None else 128 + self.signal


@dataclass(frozen=True, slots=True)
class Status:
    """Where a container is now, as its runtime tells."""

    state: State
    pid: int = 0
    started_at: float = 0.0
    exit: ExitStatus | None = None
    restarts: int = 0
    log_bytes_lost: int = 0


TRAFFIC_CLASSES = ("ipv4", "ipv6", "arp", "tcp", "udp", "icmp", "multicast", "broadcast", "other")
"""By what frames are told apart. A frame counts in each class it belongs to (a TCP segment in ``ipv4`` and ``tcp``); ``icmp`` is that of
either IP version; ``other`` is what is none of IPv4, IPv6 and ARP."""


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
class Stats:
    """Use of resources at the time ``at``; a None is a figure this kernel does not give."""

    at: float
    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    memory_peak_bytes: int | None = None
    pids: int | None = None
    pids_limit: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    oom_kills: int | None = None
    nics: tuple[NicStats, ...] = ()


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A further program in a running container. Empty fields are the container's own."""

    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    cwd: str = ""
    user: str = ""
    tty: bool = False
    stdin: bool = False
    rows: int = 24
    columns: int = 80


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing this machine can or cannot do, and what that means for the user."""

    name: str
    available: bool
    detail: str
    consequence: str = ""


@dataclass(frozen=True, slots=True)
class Lan:
    """One Ethernet segment: the record of a LAN. ``bridge`` is named before it is made.

    ``group`` is ``ADDRESS:PORT`` of the multicast group that carries it between machines; empty: it stays on this one. With ``peers``
    (unicast IPv4 addresses) datagrams go to each of them, to the group's port, instead of to the group. ``ttl`` is that of the datagrams.
    ``impairment`` is that of the whole LAN, from one member to another.
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
class ContainerRequest:
    """What a caller asks for, before the node completes it: as :class:`Spec`, with empty fields to be filled."""

    kind: Kind
    process: ProcessSpec
    name: str = ""
    hostname: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    resources: Resources = field(default_factory=Resources)
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    nics: tuple[NicSpec, ...] = ()
    routes: tuple[Route, ...] = ()
    gateway: str = ""
    hosts: str = ""
    auto_remove: bool = False
    qemu: QemuSpec | None = None


@dataclass(frozen=True, slots=True)
class ContainerView:
    """A container as callers see it."""

    spec: Spec
    status: Status


@dataclass(frozen=True, slots=True)
class Change:
    """What ``update`` changes: None leaves things as they are; in ``resources`` so does each None."""

    resources: Resources | None = None
    restart: RestartPolicy | None = None
    name: str | None = None


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


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: ``type`` is ``noun.verb`` (``container.started``), ``id`` and ``name`` say to what."""

    sequence: int
    at: float
    type: str
    id: str
    name: str
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a node is."""

    name: str
    id: str
    version: str
    kernel: str
    cpus: int
    memory_bytes: int
    run_dir: str
    state_dir: str
    containers: int
    containers_running: int
    lans: int
    started_at: float
    kinds: tuple[Kind, ...]
    abilities: tuple[Ability, ...]
    underlays: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """The directory of one container; who keeps what in it stands in ``docs/runtime.md``.

    ``path`` exists, is 0700 and belongs to root. The runtime may make any entry in it except ``record.json`` and ``made``, which are
    the node's. ``destroy`` leaves the directory empty but for ``record.json``; the node removes it.
    """

    path: Path

    @property
    def id(self) -> str:
        """The container's id: the name of the directory."""
        return self.path.name


_PLAIN = frozenset([str, int, float, bool, type(None)])


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def to_json(value: Any) -> Any:
    """Plain JSON data of a value of this module: dataclasses as objects, tuples as lists, enums and paths as text."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if dataclasses.is_dataclass(kind):
        return {name: to_json(getattr(value, name)) for name in _field_names(kind)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    return value


def from_json(kind: type[T], data: Any) -> T:
    """The value of class ``kind`` that :func:`to_json` wrote. Unknown keys are ignored (a newer daemon wrote them).

    Raises:
        CorruptState: a field is missing or of the wrong type.
    """
    try:
        return typing.cast(T, _read(kind, data))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptState(f"record of {kind.__name__} cannot be read: {error}", reason="CORRUPT_RECORD", kind=kind.__name__) from error


_HINTS: dict[type, dict[str, Any]] = {}


def _read_fields(kind: type, data: Any) -> Any:
    hints = _HINTS.get(kind)
    if hints is None:
        hints = _HINTS[kind] = typing.get_type_hints(kind)
    if not isinstance(data, dict):
        raise TypeError(f"an object was expected, not {type(data).__name__}")
    return kind(**{name: _read(hint, data[name]) for name, hint in hints.items() if name in data})


def _read(kind: Any, data: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin is tuple:
        args = typing.get_args(kind)
        if not isinstance(data, list):
            raise TypeError(f"a list was expected, not {type(data).__name__}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_read(args[0], item) for item in data)
        return tuple(_read(arg, item) for arg, item in zip(args, data, strict=True))
    if origin is not None:  # X | None
        return None if data is None else _read(next(arg for arg in typing.get_args(kind) if arg is not type(None)), data)
    if dataclasses.is_dataclass(kind):
        return _read_fields(typing.cast(type, kind), data)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    if kind is float and isinstance(data, int):
        return float(data)
    if kind in (str, int, float, bool) and type(data) is not kind:
        raise TypeError(f"{kind.__name__} was expected, not {type(data).__name__}")
    return data
