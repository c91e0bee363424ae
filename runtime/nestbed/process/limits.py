"""Limits of containers by cgroups: v1, hybrid and v2 hosts.

A container's cgroups are ``<hierarchy>/nestbed-<node id>/<container id>`` in every hierarchy that is needed. On a hybrid host the v2
tree gives clone-into, kill, freeze and the time of the processors, the v1 trees give limits. The values of v1 controllers are read and
written by cgroupspy's controllers, put on a directory of ours; what cgroupspy lacks, and why its tree is not used, stands
in ``docs/decisions/0002-cgroups.md``.

Where hierarchies are mounted, and the node's own cgroups in them, is :mod:`nestbed.process.hierarchies`. All methods here are a few
writes to kernel files, well under a millisecond together, except :meth:`Cgroups.freeze`.
Ids come from the node and are checked here once more: nothing but hexadecimal digits becomes part of a path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cgroupspy.controllers import BlkIOController, CpuController, MemoryController

from nestbed.errors import Busy, Deadline, HostLacks, InvalidArgument, translated
from nestbed.model import Resources, Stats
from nestbed.process import accounting
from nestbed.process.hierarchies import ID, SHARED, Directory, Tree, write

PERIOD_US = 100_000
_QUOTA_MIN_US = 1000
_CPUS = os.cpu_count() or 1
_WEIGHT_MIN, _WEIGHT_MAX = 10, 1000


@dataclass(frozen=True, slots=True)
class Membership:
    """What a container joins; as ``cgroup2``, ``cgroup2_mount`` and ``cgroups`` of ``launch.json``."""

    cgroup2: str
    cgroup2_mount: str
    cgroups: tuple[str, ...]


class Cgroups:
    """The cgroups of the containers of one node."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._found: list[tuple[str, str]] | None = None

    def check(self, resources: Resources) -> None:
        """Refuse limits this machine cannot set, and impossible ones.

        Raises:
            HostLacks: reason LIMIT_NOT_SUPPORTED. InvalidArgument: reason BAD_LIMIT.
        """
        for limit, value in (
            ("cpu", resources.cpus),
            ("memory", resources.memory_bytes),
            ("pids", resources.pids),
            ("io", resources.io_weight),
        ):
            if value is not None and not self.tree.can(limit):
                raise HostLacks(
                    f"this machine cannot limit {limit}: {self.tree.lacks(limit)}",
                    reason="LIMIT_NOT_SUPPORTED",
                    remedy=f"leave the limit for {limit} out, or let nestbedd see the controller "
                    "(`ip netns exec` hides it; `nsenter --net` does not)",
                    limit=limit,
                )
        _check_ranges(resources)

    def create(self, container: str, resources: Resources) -> None:
        """Make the container's cgroups with these limits. Idempotent; leaves nothing after an error."""
        self.check(resources)
        try:
            with translated(f"making the cgroups of container {container}", container=container):
                directories = dict(self._wanted(container, resources))
                for path in directories.values():
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(path)
                self._apply(directories, resources)
        except BaseException:
            self.remove(container)
            raise

    def membership(self, container: str, resources: Resources) -> Membership:
        """What a container with these limits joins; nothing is made."""
        cgroups = [str(path) for name, path in self._wanted(container, resources) if name != "unified"]
        if self.tree.filters_devices:
            cgroups.append(str(self.tree.v1["devices"] / self.tree.base / "devices"))
        if self.tree.shared_memory is not None and resources.memory_bytes is None:
            cgroups.append(str(self.tree.shared_memory))
        joined = tuple(dict.fromkeys(cgroups))
        return (
            Membership("", "", joined) if self.tree.v2 is None else Membership(f"{self.tree.base}/{container}", str(self.tree.v2), joined)
        )

    def update(self, container: str, resources: Resources, *, before: Resources) -> None:
        """Set the complete new limits; after an error those of ``before`` hold again."""
        self.check(resources)
        try:
            with translated(f"changing the limits of container {container}", container=container):
                self._join(container, resources)
                self._apply(self._joined(container, resources), resources, changing=True)
        except BaseException:
            self._apply(self._joined(container, before), before, changing=True)
            raise

    def remove(self, container: str) -> None:
        """Remove the container's cgroups. Idempotent.

        Raises:
            Busy: processes are still in one of them.
        """
        for name, path in self._directories(container):
            try:
                path.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise Busy(
                    f"cgroup {name} of container {container} still has processes",
                    reason="CGROUP_IN_USE",
                    remedy="try again in a moment",
                    container=container,
                    cgroup=path,
                ) from error

    def kill(self, container: str) -> None:
        """Send SIGKILL to everything in the container's v2 cgroup, or else to each process of its v1 one. Idempotent."""
        if self.tree.has_kill and self.tree.v2 is not None:
            try:
                write(self.tree.v2 / self.tree.base / _checked(container) / "cgroup.kill", "1")
            except FileNotFoundError:
                return
            return
        for pid in self.processes(container):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue

    def processes(self, container: str) -> list[int]:
        """The processes in the container's cgroups."""
        return accounting.processes(dict(self._directories(container)))

    def freeze(self, container: str, seconds: float = 5.0) -> None:
        """Stop everything in the container and wait until it stands still. Blocks: not for the event loop.

        Raises:
            Deadline: it does not stand still after ``seconds``; it is thawed again.
        """
        with translated(f"freezing container {container}", container=container):
            frozen = self._freeze_v2(container, seconds) if self.tree.has_freeze else self._freeze_v1(container, seconds)
        if not frozen:
            self.thaw(container)
            raise Deadline(f"container {container} does not stand still", reason="FREEZE_TIMEOUT", remedy="try again", container=container)

    def _freeze_v2(self, container: str, seconds: float) -> bool:
        assert self.tree.v2 is not None
        path = self.tree.v2 / self.tree.base / _checked(container)
        fd = os.open(path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            write(path / "cgroup.freeze", "1")
            end = time.monotonic() + seconds
            while b"frozen 1" not in os.pread(fd, 4096, 0):
                left = end - time.monotonic()
                if left <= 0:
                    return False
                poll.poll(left * 1000)
            return True
        finally:
            os.close(fd)

    def _freeze_v1(self, container: str, seconds: float) -> bool:
        path = self.tree.v1["freezer"] / self.tree.base / _checked(container) / "freezer.state"
        end = time.monotonic() + seconds
        while True:
            # Reading the state makes the kernel look again at tasks that were not ready to freeze.
            write(path, "FROZEN")
            if path.read_text().strip() == "FROZEN":
                return True
            if time.monotonic() > end:
                return False
            os.sched_yield()

    def thaw(self, container: str) -> None:
        """Let everything in the container go on. Idempotent."""
        with translated(f"thawing container {container}", container=container):
            if self.tree.has_freeze and self.tree.v2 is not None:
                write(self.tree.v2 / self.tree.base / _checked(container) / "cgroup.freeze", "0")
            else:
                write(self.tree.v1["freezer"] / self.tree.base / _checked(container) / "freezer.state", "THAWED")

    def is_frozen(self, container: str) -> bool:
        """Whether the container is stopped by :meth:`freeze`."""
        directories = dict(self._directories(container))
        if self.tree.has_freeze:
            return accounting.read(directories.get("unified"), "cgroup.freeze") == "1"
        return accounting.read(directories.get("freezer"), "freezer.state") == "FROZEN"

    def objects(self, container: str) -> list[str]:
        """The container's cgroups that exist, as ``memory/nestbed-../ID``, ``unified/nestbed-../ID``."""
        return [f"{name}/{self.tree.base}/{container}" for name, path in self._directories(container) if path.exists()]

    def listing(self) -> Iterator[tuple[str, str]]:
        """Every cgroup below the node's, as ``(hierarchy, id)``; for the audit."""
        for name, path in self.tree.bases():
            try:
                with os.scandir(path) as found:
                    entries = [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
            except FileNotFoundError:
                continue
            yield from ((name, entry) for entry in entries if not (entry == name and name in SHARED))

    # ---- counters

    def usage(self, container: str) -> Stats:
        """What the container used, without its NICs. All None if its cgroups are gone."""
        return accounting.usage(dict(self._directories(container)), self.tree)

    def _wanted(self, container: str, resources: Resources) -> Iterator[tuple[str, Path]]:
        names = (*self.tree.needed(), *self._asked(resources))
        for name, path in self._directories(container):
            if name == "unified" or name in names:
                yield name, path

    def _asked(self, resources: Resources) -> Iterator[str]:
        """The v1 hierarchies that are joined for the sake of a limit alone."""
        if resources.memory_bytes is not None and self.tree.has_v1_memory:
            yield "memory"
        if resources.io_weight is not None and self.tree.v1_weight_file():
            yield "blkio"

    def _directories(self, container: str) -> Iterator[tuple[str, Path]]:
        """Every place where the container may have a cgroup, the v2 one first."""
        _checked(container)
        for name, directory in self._bases():
            yield name, Path(f"{directory}/{container}")

    def _bases(self) -> list[tuple[str, str]]:
        if self._found is None:
            v2 = [] if self.tree.v2 is None else [("unified", self.tree.v2)]
            names = (*self.tree.needed(), *(["memory"] if self.tree.has_v1_memory else []), "blkio")
            v1 = [(name, self.tree.v1[name]) for name in names if name in self.tree.v1]
            self._found = [(name, f"{path}/{self.tree.base}") for name, path in (*v2, *v1)]
        return self._found

    def _join(self, container: str, resources: Resources) -> None:
        """A running container that is given a limit of memory or an I/O weight for the first time: its processes join the hierarchy."""
        for name in self._asked(resources):
            path = self.tree.v1[name] / self.tree.base / _checked(container)
            if path.exists():
                continue
            processes = self.processes(container)
            if name == "memory" and (accounting.own_memory_bytes(processes) or 0) > (resources.memory_bytes or 0):
                raise OSError(errno.EBUSY, "it uses more memory than that")  # as the kernel has it, which counts from now on
            path.mkdir()
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    write(path / "cgroup.procs", str(pid))

    def _joined(self, container: str, resources: Resources) -> dict[str, Path]:
        """The container's cgroups: those that it needs, and those that it has of limits that hold no longer."""
        needed = dict(self._wanted(container, resources))
        return needed | {name: path for name, path in self._directories(container) if name not in needed and path.exists()}

    def _apply(self, directories: dict[str, Path], resources: Resources, *, changing: bool = False) -> None:
        """Write the limits; without ``changing`` what is not limited is left as the kernel made it."""
        if resources.cpus is not None or changing:
            self._set_cpu(directories, resources.cpus)
        if resources.memory_bytes is not None or changing:
            self._set_memory(directories, resources.memory_bytes, changing=changing)
        if (resources.pids is not None or changing) and self.tree.can("pids"):
            write(directories.get("pids", directories.get("unified", Path())) / "pids.max", _or_max(resources.pids))
        if resources.io_weight is not None:
            self._set_io(directories, resources.io_weight)

    def _set_cpu(self, directories: dict[str, Path], cpus: float | None) -> None:
        quota = None if cpus is None else max(round(cpus * PERIOD_US), _QUOTA_MIN_US)
        if "cpu" in directories:
            controller = CpuController(Directory(directories["cpu"]))
            controller.cfs_period_us = PERIOD_US
            controller.cfs_quota_us = -1 if quota is None else quota
        elif "cpu" in self.tree.v2_limits:
            write(directories["unified"] / "cpu.max", f"{_or_max(quota)} {PERIOD_US}")

    def _set_memory(self, directories: dict[str, Path], limit: int | None, *, changing: bool) -> None:
        if "memory" not in directories:
            if "memory" in self.tree.v2_limits:
                write(directories["unified"] / "memory.max", _or_max(limit))
                _write_if_there(directories["unified"] / "memory.swap.max", "max" if limit is None else "0")
            return
        path = directories["memory"]
        controller = MemoryController(Directory(path))
        if limit is None:
            limit = self.tree.shared_memory_bytes  # it stays in a cgroup of its own
        value = -1 if limit is None else limit
        # Memory with swap may never be less than memory alone: grow it first, shrink it last.
        swap = (path / "memory.memsw.limit_in_bytes").exists()
        if swap and changing:
            controller.memsw_limit_in_bytes = -1
        controller.limit_in_bytes = value
        if swap and limit is not None:
            controller.memsw_limit_in_bytes = value

    def _set_io(self, directories: dict[str, Path], weight: int) -> None:
        name = self.tree.v1_weight_file()
        if name == "blkio.weight":
            BlkIOController(Directory(directories["blkio"])).weight = _v1_weight(weight)
        elif name:
            write(directories["blkio"] / name, str(_v1_weight(weight)))
        else:
            file = self.tree.v2_weight_file(directories["unified"])
            write(directories["unified"] / file, f"default {weight}" if file == "io.weight" else str(_v1_weight(weight)))


def _v1_weight(weight: int) -> int:
    """The v2 scale (1..10000, usual 100) on that of v1 and bfq (10..1000, usual 500 or 100)."""
    return min(max(weight, _WEIGHT_MIN), _WEIGHT_MAX)


def _check_ranges(resources: Resources) -> None:
    cpus = _CPUS
    wrong = [
        ("cpus", resources.cpus, resources.cpus is not None and not 0.01 <= resources.cpus <= cpus, f"0.01 to {cpus}"),
        ("memory_bytes", resources.memory_bytes, resources.memory_bytes is not None and resources.memory_bytes < 1 << 20, "at least 1 MiB"),
        ("pids", resources.pids, resources.pids is not None and not 1 <= resources.pids <= 4_194_304, "1 to 4194304"),
        ("io_weight", resources.io_weight, resources.io_weight is not None and not 1 <= resources.io_weight <= 10_000, "1 to 10000"),
    ]
    for name, value, is_wrong, allowed in wrong:
        if is_wrong:
            raise InvalidArgument(f"{name} is {value}", reason="BAD_LIMIT", remedy=f"choose {allowed}", limit=name, value=value)


def _checked(container: str) -> str:
    if not ID.fullmatch(container):
        raise InvalidArgument(f"{container!r} is no container id", reason="BAD_ID", id=container)
    return container


def _or_max(value: int | None) -> str:
    return "max" if value is None else str(value)


def _write_if_there(path: Path, text: str) -> None:
    try:
        write(path, text)
    except FileNotFoundError:
        return
