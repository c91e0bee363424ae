"""The values that travel between the floors of nestbed: frozen, plain, free of I/O.

Addresses are text in CIDR form (``10.5.0.7/24``, ``fd00::7/64``), MACs are lower-case ``02:..`` text, sizes are bytes, times
are seconds since the epoch (float). Everything here can be written as JSON by :func:`to_json` and read by :func:`from_json`.
"""

from __future__ import annotations

import dataclasses
import enum
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
class NicSpec:
    """A NIC as asked for: empty fields are filled by the node. ``lan`` is the LAN's name."""

    lan: str
    name: str = ""
    mac: str = ""
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Nic:
    """A NIC as it is: everything resolved, the host's objects named before they are made.

    ``port`` is the interface on the node's side, ``bridge`` the LAN's bridge; both belong to the node's network namespace.
    """

    lan: str
    lan_id: str
    name: str
    mac: str
    addresses: tuple[str, ...]
    mtu: int
    port: str
    bridge: str


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
class Spec:
    """What was asked for, validated and complete: the record of a container."""

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
    auto_remove: bool = False
    created_at: float = 0.0


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


@dataclass(frozen=True, slots=True)
class NicStats:
    """Counters of one NIC, seen from inside the container."""

    name: str
    lan: str
    rx_frames: int
    rx_bytes: int
    rx_drops: int
    tx_frames: int
    tx_bytes: int
    tx_drops: int


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
    """One Ethernet segment: the record of a LAN. ``bridge`` is named before it is made."""

    id: str
    name: str
    bridge: str
    mtu: int = 1500
    subnet: str = ""
    subnet6: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    created_at: float = 0.0


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
    auto_remove: bool = False


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
    """A LAN as asked for. ``mtu`` 0 is 1500."""

    name: str
    subnet: str = ""
    subnet6: str = ""
    mtu: int = 0
    labels: tuple[tuple[str, str], ...] = ()


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


def to_json(value: Any) -> Any:
    """Plain JSON data of a value of this module: dataclasses as objects, tuples as lists, enums and paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
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
