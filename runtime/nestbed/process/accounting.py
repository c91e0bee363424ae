"""What the kernel counted of a container, read from its cgroups.

``directories`` are the container's cgroups by hierarchy: v1 controllers by their names, ``unified`` for the v2 tree. Those that are not
there count nothing. Values of v1 controllers are read by cgroupspy's controllers where it has them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from cgroupspy.controllers import CpuAcctController, MemoryController

from nestbed.model import Stats
from nestbed.process.hierarchies import Directory, Tree

_NO_LIMIT_V1 = 1 << 62


def usage(directories: Mapping[str, Path], tree: Tree) -> Stats:
    """What these cgroups used, without NICs. All None if they are gone."""
    unified = directories.get("unified")
    read_bytes, written_bytes = _io_bytes(directories)
    limit = _memory(directories, "limit_in_bytes", "memory.max")
    if limit is None:
        limit = tree.shared_memory_bytes
    used = _memory(directories, "usage_in_bytes", "memory.current")
    return Stats(
        at=time.time(),
        cpu_seconds=_cpu_seconds(directories),
        memory_bytes=own_memory_bytes(processes(directories)) if used is None and tree.has_v1_memory else used,
        memory_limit_bytes=None if limit is None or limit >= _NO_LIMIT_V1 else limit,
        memory_peak_bytes=_memory(directories, "max_usage_in_bytes", "memory.peak"),
        pids=_number(read(directories.get("pids", unified), "pids.current")),
        pids_limit=_number(read(directories.get("pids", unified), "pids.max")),
        io_read_bytes=read_bytes,
        io_write_bytes=written_bytes,
        oom_kills=_oom_kills(directories),
    )


def processes(directories: Mapping[str, Path]) -> list[int]:
    """The processes in the first of the cgroups that is there."""
    for path in directories.values():
        try:
            return [int(line) for line in (path / "cgroup.procs").read_text().split()]
        except FileNotFoundError:
            continue
    return []


def own_memory_bytes(pids: Iterable[int]) -> int | None:
    """What processes have in memory for themselves: anonymous and shared pages; None without processes (proc(5))."""
    found = [own for pid in pids if (own := _own_pages(pid)) is not None]
    return sum(found) if found else None


def read(directory: Path | None, name: str) -> str | None:
    """What stands in a file of a cgroup; None if it cannot be read."""
    if directory is None:
        return None
    try:
        return (directory / name).read_text().strip()
    except OSError:
        return None


def _cpu_seconds(directories: Mapping[str, Path]) -> float | None:
    if "unified" in directories:
        used = _fields(read(directories["unified"], "cpu.stat")).get("usage_usec")
        return None if used is None else used / 1e6
    try:
        return float(CpuAcctController(Directory(directories["cpuacct"])).usage) / 1e9
    except (KeyError, OSError):
        return None


def _memory(directories: Mapping[str, Path], v1: str, v2: str) -> int | None:
    if "memory" not in directories:
        return _number(read(directories.get("unified"), v2))
    try:
        value = getattr(MemoryController(Directory(directories["memory"])), v1)
    except OSError:
        return None
    return None if value is None else int(value)


def _oom_kills(directories: Mapping[str, Path]) -> int | None:
    name = "memory.oom_control" if "memory" in directories else "memory.events"
    return _fields(read(directories.get("memory", directories.get("unified")), name)).get("oom_kill")


def _io_bytes(directories: Mapping[str, Path]) -> tuple[int | None, int | None]:
    if "blkio" in directories:
        text = read(directories["blkio"], "blkio.throttle.io_service_bytes_recursive")
        words = [line.split() for line in (text or "").splitlines()]
        told = [(line[1], int(line[2])) for line in words if len(line) == 3]
        return sum(count for kind, count in told if kind == "Read"), sum(count for kind, count in told if kind == "Write")
    text = read(directories.get("unified"), "io.stat")
    if text is None:
        return None, None
    pairs = [pair.split("=") for pair in text.split() if "=" in pair]
    return sum(int(v) for k, v in pairs if k == "rbytes"), sum(int(v) for k, v in pairs if k == "wbytes")


def _own_pages(pid: int) -> int | None:
    text = read(Path(f"/proc/{pid}"), "status")
    if text is None:
        return None
    words = [line.split() for line in text.splitlines() if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(int(line[1]) for line in words) * 1024


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _fields(text: str | None) -> dict[str, int]:
    words = [line.split() for line in (text or "").splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) == 2 and line[1].isdecimal()}
