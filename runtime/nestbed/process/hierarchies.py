"""Where cgroups are, and this node's own part of each hierarchy: ``<hierarchy>/nestbed-<node id>``."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cgroupspy.controllers import DevicesController

from nestbed.errors import InvalidArgument
from nestbed.linux.mount import unescape

ID = re.compile(r"[0-9a-f]{1,64}", re.ASCII)
SHARED = ("devices", "memory")
"""Hierarchies in which containers are in one cgroup of the node's together, which is called as they are."""
_V1_CONTROLLERS = ("cpu", "cpuacct", "memory", "pids", "blkio", "devices", "freezer")
_V2_CONTROLLERS = ("cpu", "memory", "pids", "io")
_DEVICES = (
    "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm", "c 10:200 rwm",
    "c 10:232 rwm",
)  # fmt: skip
"""null zero full random urandom tty console ptmx pts/* net/tun kvm; which of them are there is the keeper's to decide"""


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where cgroups are mounted: v1 controllers by name, the v2 tree or None, and what v2 can control."""

    v1: dict[str, Path] = field(default_factory=dict)
    v2: Path | None = None
    v2_controllers: frozenset[str] = frozenset()

    @property
    def version(self) -> str:
        """``v1``, ``hybrid``, ``v2`` or ``none``."""
        if self.v2 is None:
            return "v1" if self.v1 else "none"
        return "hybrid" if self.v1 else "v2"


class Directory:
    """What cgroupspy's controllers need of a node of its tree."""

    def __init__(self, path: Path) -> None:
        self.full_path = os.fsencode(path)


def parse_hierarchies(mountinfo: str) -> Hierarchies:
    """The cgroup mounts of a ``/proc/PID/mountinfo`` (proc(5)); of several mounts of one hierarchy the first counts."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        point = Path(unescape(before.split(" ")[4].encode()))
        if kind == "cgroup2":
            v2 = v2 or point
        elif kind == "cgroup":
            for name in options.split(" ", 1)[1].split(","):
                if name in _V1_CONTROLLERS:
                    v1.setdefault(name, point)
    return Hierarchies(v1, v2)


def detect() -> Hierarchies:
    """The hierarchies of this machine, with the v2 controllers that are not taken by v1."""
    found = parse_hierarchies(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))
    if found.v2 is None:
        return found
    controllers = frozenset((found.v2 / "cgroup.controllers").read_text().split())
    return Hierarchies(found.v1, found.v2, controllers & set(_V2_CONTROLLERS))


class Tree:
    """The node's cgroups, one in every hierarchy. Call :meth:`open` first."""

    def __init__(self, node_id: str, hierarchies: Hierarchies) -> None:
        if not ID.fullmatch(node_id):
            raise InvalidArgument(f"{node_id!r} is no node id", reason="BAD_ID", id=node_id)
        self.base = f"nestbed-{node_id}"
        self.v1 = dict(hierarchies.v1)
        """v1 controllers in use, and where they are mounted."""
        self.v2 = hierarchies.v2
        """Where v2 is mounted, if it is in use."""
        self.v2_limits: frozenset[str] = frozenset()
        """Controllers that limit in the v2 tree."""
        self._v2_offers = hierarchies.v2_controllers
        self._trouble = ""
        self.has_kill = self.has_freeze = False
        self.shared_memory: Path | None = None
        """The v1 cgroup that limits the memory of all containers without a limit of their own together, and how much that is."""
        self.shared_memory_bytes: int | None = None

    def open(self, memory_bytes: int | None = None) -> None:
        """Make the node's cgroups and switch the controllers on. Idempotent. What cannot be had is told by :meth:`lacks`.

        Where memory is limited in a v1 hierarchy, containers without a limit of their own share ``memory_bytes``.
        """
        if self.v2 is not None:
            base = self.v2 / self.base
            try:
                base.mkdir(exist_ok=True)
                self.v2_limits = self._delegate(base)
            except OSError as error:
                self._trouble = f"{base}: {os.strerror(error.errno or 0).lower()}"
                self.v2 = None
            else:
                self.has_kill = (base / "cgroup.kill").exists()
                self.has_freeze = (base / "cgroup.freeze").exists()
        for name, mount in list(self.v1.items()):
            try:
                (mount / self.base).mkdir(exist_ok=True)
            except OSError as error:
                self._trouble = f"{mount / self.base}: {os.strerror(error.errno or 0).lower()}"
                del self.v1[name]
        self._restrict_devices()
        if memory_bytes is not None and self.has_v1_memory:
            self._share_memory(memory_bytes)

    def close(self) -> None:
        """Remove the node's cgroups if they are empty: for a node without containers."""
        for _, path in self.bases():
            for name in (*SHARED, ""):
                try:
                    (path / name).rmdir()
                except OSError:
                    continue

    def _delegate(self, base: Path) -> frozenset[str]:
        """Switch the v2 controllers on from the mount down to ``base``; those that could be."""
        usable = set()
        for name in sorted(self._v2_offers):
            try:
                for directory in (base.parent, base):
                    self._enable(directory, name)
            except OSError as error:
                self._trouble = f"{base.parent}/cgroup.subtree_control: {name}: {os.strerror(error.errno or 0).lower()}"
            else:
                usable.add(name)
        return frozenset(usable)

    @staticmethod
    def _enable(directory: Path, controller: str) -> None:
        if controller in (directory / "cgroup.subtree_control").read_text().split():
            return
        try:
            write(directory / "cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            # Below the root of the hierarchy a cgroup with processes of its own cannot have controllers for others. If the only one there
            # is this daemon, it moves; processes of others are not touched.
            if error.errno != errno.EBUSY or (directory / "cgroup.procs").read_text().split() != [str(os.getpid())]:
                raise
            own = directory / f"nestbedd-{os.getpid()}"
            own.mkdir(exist_ok=True)
            write(own / "cgroup.procs", "0")
            write(directory / "cgroup.subtree_control", f"+{controller}")

    def _restrict_devices(self) -> None:
        mount = self.v1.get("devices")
        if mount is None:
            return
        shared = mount / self.base / "devices"
        try:
            if not shared.exists():
                shared.mkdir()
                controller = DevicesController(Directory(shared))
                controller.set_property(b"devices.deny", "a")
                for device in _DEVICES:
                    controller.set_property(b"devices.allow", device)
        except OSError as error:
            self._trouble = f"{shared}: {os.strerror(error.errno or 0).lower()}"
            del self.v1["devices"]

    def _share_memory(self, limit: int) -> None:
        shared = self.v1["memory"] / self.base / "memory"
        try:
            shared.mkdir(exist_ok=True)
            write(shared / "memory.limit_in_bytes", str(limit))
            if (shared / "memory.memsw.limit_in_bytes").exists():
                write(shared / "memory.memsw.limit_in_bytes", str(limit))
        except OSError as error:
            self._trouble = f"{shared}: {os.strerror(error.errno or 0).lower()}"
        else:
            self.shared_memory, self.shared_memory_bytes = shared, limit

    @property
    def version(self) -> str:
        """``v1``, ``hybrid``, ``v2`` or ``none``."""
        return Hierarchies(self.v1, self.v2).version

    @property
    def filters_devices(self) -> bool:
        """Whether containers are kept from other devices by a cgroup too."""
        return "devices" in self.v1

    def can(self, limit: str) -> bool:
        """Whether ``cpu``, ``memory``, ``pids``, ``io`` can be limited, ``freeze`` and ``kill`` done."""
        if limit == "freeze":
            return self.has_freeze or "freezer" in self.v1
        if limit == "kill":
            return self.has_kill
        if limit == "io":
            return self.v1_weight_file() != "" or self._has_v2_weight()
        return limit in self.v2_limits or limit in self.v1

    def lacks(self, limit: str) -> str:
        """Why :meth:`can` says no: one sentence for people."""
        if self._trouble:
            return f"the cgroup hierarchy refused it ({self._trouble})"
        if limit == "io" and ("io" in self.v2_limits or "blkio" in self.v1):
            return "no I/O scheduler with weights (bfq) or io.weight in this kernel"
        return f"no cgroup hierarchy with the controller for {limit} is mounted where nestbedd was started"

    def needed(self) -> list[str]:
        """The v1 hierarchies every container joins."""
        names: list[str] = [name for name in ("pids", "cpu") if name in self.v1 and name not in self.v2_limits]
        if self.v2 is None and "cpuacct" in self.v1:
            names.append("cpuacct")
        if not self.has_freeze and "freezer" in self.v1:
            names.append("freezer")
        return names

    @property
    def has_v1_memory(self) -> bool:
        """Whether memory is limited in a v1 hierarchy. A container has a cgroup there for a limit of its own alone: each costs a tenth of a
        MiB and more, 8 bytes for every file system that was ever mounted on the machine at once (alloc_shrinker_info() in mm/shrinker.c).
        """
        return "memory" in self.v1 and "memory" not in self.v2_limits

    def bases(self) -> Iterator[tuple[str, Path]]:
        """The node's directory in every hierarchy, once where controllers share one."""
        if self.v2 is not None:
            yield "unified", self.v2 / self.base
        seen: set[Path] = set()
        for name, mount in self.v1.items():
            if mount not in seen:
                seen.add(mount)
                yield name, mount / self.base

    def v1_weight_file(self) -> str:
        """The file for a weight in the v1 controller blkio, or ""."""
        mount = self.v1.get("blkio")
        names = ("blkio.bfq.weight", "blkio.weight")
        return next((name for name in names if mount is not None and (mount / self.base / name).exists()), "")

    def _has_v2_weight(self) -> bool:
        return "io" in self.v2_limits and self.v2 is not None and self.v2_weight_file(self.v2 / self.base) != ""

    @staticmethod
    def v2_weight_file(directory: Path) -> str:
        """The file for a weight in a v2 cgroup, or ""."""
        return next((name for name in ("io.weight", "io.bfq.weight") if (directory / name).exists()), "")


def write(path: Path, text: str) -> None:
    """Put ``text`` into a file that exists, by one system call, as the kernel's files want it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
