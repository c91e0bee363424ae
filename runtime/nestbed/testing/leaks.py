"""Proof that nothing is left: what the machine holds before and after, and the difference.

Only what can be told to be the tester's own is looked at, so that others on the machine do no harm: descendants of this process (which
becomes the reaper of orphans), its mount and network namespace, its descriptors, pinned BPF objects, and the cgroups of given names.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from nestbed.linux.libc import LIBC, checked
from nestbed.linux.rtnl import Rtnl

SETTLE_SECONDS = 5.0
_POLL_SECONDS = 0.02
_PR_SET_CHILD_SUBREAPER = 36
_CGROUPS = Path("/sys/fs/cgroup")
_BPF = Path("/sys/fs/bpf")
_NAMED_NETNS = Path("/run/netns")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there was at one moment, each thing as text."""

    processes: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    namespaces: frozenset[str]
    links: frozenset[str]
    pins: frozenset[str]
    descriptors: frozenset[str]

    @classmethod
    def take(cls, cgroup_names: Collection[str] = ()) -> Snapshot:
        """What there is now; ``cgroup_names`` are names of cgroups below the root of any hierarchy."""
        descendants = list(_descendants(os.getpid()))
        return cls(
            processes=frozenset(f"{pid} {_command(pid)}" for pid in descendants),
            mounts=frozenset(_mounts()),
            cgroups=frozenset(_cgroups(cgroup_names)),
            namespaces=frozenset(_namespaces(descendants)),
            links=frozenset(_links()),
            pins=frozenset(str(path) for path in _BPF.rglob("*")),
            descriptors=frozenset(_descriptors()),
        )

    def since(self, before: Snapshot) -> list[str]:
        """What is here and was not there, as ``kind: thing``."""
        return [
            f"{field.name}: {thing}"
            for field in fields(self)
            for thing in sorted(getattr(self, field.name) - getattr(before, field.name))
        ]  # fmt: skip


def become_reaper() -> None:
    """Make orphaned descendants children of this process (PR_SET_CHILD_SUBREAPER), so that they are found."""
    checked("prctl", LIBC.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def leaked(
    before: Snapshot,
    cgroup_names: Collection[str] = (),
    settle_seconds: float = SETTLE_SECONDS,
    *,
    is_harmless: Callable[[str], bool] | None = None,
) -> list[str]:
    """What is left over ``before``, once the kernel had time to let go: it takes namespaces down later, and says nothing.

    Things that are ``is_harmless`` (as ``kind: thing``) are passed over.
    """
    deadline = time.monotonic() + settle_seconds
    while True:
        reap()
        found = [thing for thing in Snapshot.take(cgroup_names).since(before) if is_harmless is None or not is_harmless(thing)]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(_POLL_SECONDS)


def reap() -> None:
    """Take the exit status of every child that ended. Not while something of this process still waits for one of its own."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def kill_descendants(before: Snapshot) -> None:
    """End everything that descends from this process and did not run ``before``."""
    spared = {int(process.split()[0]) for process in before.processes}
    deadline = time.monotonic() + SETTLE_SECONDS
    while (descendants := [pid for pid in _descendants(os.getpid()) if pid not in spared]) and time.monotonic() < deadline:
        for pid in descendants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(_POLL_SECONDS)


def _descendants(root: int) -> Iterator[int]:
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and len(found := _stat(int(name))) > 1:
            parents.setdefault(int(found[1]), []).append(int(name))
    waiting = [root]
    while waiting:
        children = parents.get(waiting.pop(), [])
        yield from children
        waiting += children


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip() or "(zombie)"
    return "(gone)"


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        yield f"{words[4]} of {words[2]} {words[3]}"


def _cgroups(names: Collection[str]) -> Iterator[str]:
    hierarchies = [_CGROUPS, *(path for path in _CGROUPS.iterdir() if path.is_dir())] if _CGROUPS.exists() else []
    for hierarchy in hierarchies:
        for name in names:
            base = hierarchy / name
            if base.exists():
                yield str(base)
                yield from (str(path) for path in base.rglob("*") if path.is_dir())


def _namespaces(descendants: Collection[int]) -> Iterator[str]:
    for pid in descendants:
        with contextlib.suppress(OSError):
            yield f"{Path(f'/proc/{pid}/ns/net').readlink()} of {pid}"
    if _NAMED_NETNS.exists():
        yield from (str(path) for path in _NAMED_NETNS.iterdir())


def _links() -> Iterator[str]:
    rtnl = Rtnl()
    try:
        yield from (f"{link.name} {link.alias}".strip() for link in rtnl.links())
    finally:
        rtnl.close()


def _descriptors() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith("/proc/"):
                yield f"{name} -> {target}"
