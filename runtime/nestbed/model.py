"""The values of containers and of a node that travel between the floors of nestbed: frozen, plain, free of I/O.

Those of LANs stand in ``nestbed.lanmodel``. Sizes are bytes, times are seconds since the epoch (float). Everything in both can be
written as JSON by ``nestbed.plain``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from nestbed.imagemodel import HOST
from nestbed.lanmodel import Nic, NicSpec, NicStats


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
class ProcessSpec:
    """What a process container runs and how it is confined.

    ``user`` is ``NAME|UID[:NAME|GID]``; ``rootfs`` goes with FsMode.ROOTFS; ``overlay_dir`` keeps the changes of
    FsMode.OVERLAY ("" throws them away); capability names are upper case without ``CAP_``. With ``machine`` its network is the node's own:
    its NICs are NICs of the machine.
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
    machine: bool = False


@dataclass(frozen=True, slots=True)
class QemuSpec:
    """What is special to a virtual machine; what it runs stands in ProcessSpec, whose ``args`` may then be empty: it just stays up.

    ``append`` is added to the command line of the guest's kernel. With ``node`` nestbedd runs inside, as a node of its own. ``image`` is
    what it starts from, the node's own root without one; ``kernel`` and ``initrd`` are files of the node to boot the image's disk with.
    ``boot_seconds`` is how long it may take until its program runs; 0 is the default.
    """

    append: str = ""
    node: bool = False
    image: str = ""
    kernel: str = ""
    initrd: str = ""
    boot_seconds: float = 0.0

    @property
    def has_disk(self) -> bool:
        """Whether it starts from a disk image."""
        return self.image not in ("", HOST)


@dataclass(frozen=True, slots=True)
class Spec:
    """What was asked for, validated and complete: the record of a container.

    ``hosts`` are the lines of its hosts file after those of the loopback, if the node is not to keep it.
    ``control`` is its NIC on the node's control network, which is no LAN of an experiment; ``underlay`` the one by which LANs reach the
    node inside it.
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
    control: Nic | None = None
    underlay: Nic | None = None

    @property
    def interfaces(self) -> tuple[Nic, ...]:
        """Every NIC it has: those on LANs, in order, then those on the control network and the underlay of nodes inside."""
        return (*self.nics, *(nic for nic in (self.control, self.underlay) if nic is not None))


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


class Boot(enum.StrEnum):
    """How far a virtual machine has come, since its last start."""

    BOOTING = "booting"
    ANSWERING = "answering"
    """What is ours in it answers."""
    ADDRESSED = "addressed"
    """Its NICs have their addresses."""
    READY = "ready"
    """Its program runs, or, without one, all is as it should be."""


@dataclass(frozen=True, slots=True)
class Status:
    """Where a container is now, as its runtime tells.

    ``boot`` is None for what does not boot, or does not run; a machine that has not come to READY by its first start is not RUNNING yet.
    ``console`` is what its console said last, until it is READY.
    """

    state: State
    pid: int = 0
    started_at: float = 0.0
    exit: ExitStatus | None = None
    restarts: int = 0
    log_bytes_lost: int = 0
    boot: Boot | None = None
    console: str = ""

    @property
    def is_booting(self) -> bool:
        """Whether it boots."""
        return self.boot not in (None, Boot.READY)


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
class ContainerRequest:
    """What a caller asks for, before the node completes it: as :class:`Spec`, with empty fields to be filled.

    ``control``: whether it gets a NIC on the control network; None is as its kind has it, which is yes for virtual machines alone.
    """

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
    control: bool | None = None


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
    last_event: int = 0
    may_be_element: bool = False


@dataclass(frozen=True, slots=True)
class NestedNode:
    """A node inside a virtual machine, as the node outside has it: ``id``, ``name`` and ``labels`` are the machine's.

    ``address`` is ``HOST:PORT`` at which it answers, or will; empty while that is not known.
    """

    id: str
    name: str
    labels: tuple[tuple[str, str], ...]
    is_running: bool
    started_at: float
    address: str = ""


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
