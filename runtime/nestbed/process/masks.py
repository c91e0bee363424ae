"""What no container ever sees of the node: nestbed's own directories, keys and code, other daemons' sockets, the node's secrets.

Every path by which another mount of the same file system leads there is hidden as well. A bind mount still lets a program connect to
unix sockets, so sockets of other daemons are hidden one by one. The list is as fresh as ``SECONDS_FRESH``; the directories where
sockets usually are (``/run``, ``/dev``) are the container's own anyway.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nestbed.linux.mount import unescape
from nestbed.process.plan import is_within

SECONDS_FRESH = 5.0

_SECRETS = ("/root/.ssh", "/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/security/opasswd", "/boot")
_PACKAGES = ("nestbed", "nestbedd", "nbctl")
_OWN_ANYWAY = ("/run", "/var/run", "/dev", "/proc", "/sys")


class Masks:
    """The paths to hide, symbolic links resolved, sorted, none below another."""

    def __init__(self, hidden: Iterable[Path]) -> None:
        """``hidden`` are the daemon's own directories and keys, besides its code and the node's secrets, which are always hidden."""
        self._fixed = [os.path.realpath(path) for path in (*hidden, *code_paths(), *(Path(path) for path in _SECRETS))]
        self._paths: tuple[str, ...] = ()
        self._looked_at = float("-inf")

    def paths(self, *, skip_netns: Callable[[], Collection[int]]) -> tuple[str, ...]:
        """The paths to hide now: the same tuple as long as nothing changed.

        Sockets in the network namespaces of ``skip_netns`` (inode numbers: the containers' own) are not looked for.
        """
        if time.monotonic() - self._looked_at > SECONDS_FRESH:
            sockets = (path for path in listening_paths(skip_netns()) if not path.startswith(tuple(f"{top}/" for top in _OWN_ANYWAY)))
            hidden = [*self._fixed, *map(os.path.realpath, sockets)]
            paths = outermost([*hidden, *aliases(hidden, parse_mounts(Path("/proc/self/mountinfo").read_bytes()))])
            self._paths = self._paths if paths == self._paths else paths
            self._looked_at = time.monotonic()
        return self._paths


def outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """The paths that are not below another one, sorted."""
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda path: path.split("/")):
        if not (kept and (path == kept[-1] or path.startswith(f"{kept[-1]}/"))):
            kept.append(path)
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of mountinfo: which file system, which directory or file of it, and where."""

    device: str
    root: str
    point: str


def parse_mounts(text: bytes) -> list[Mounted]:
    """The mounts of a ``/proc/PID/mountinfo`` (proc(5)), in order of mounting."""
    lines = (line.split(b" ", 5) for line in text.splitlines())
    return [Mounted(words[2].decode(), unescape(words[3]), unescape(words[4])) for words in lines if len(words) == 6]


def aliases(paths: Iterable[str], mounts: Sequence[Mounted]) -> set[str]:
    """By which other paths what is at ``paths``, or a part of it, can be reached through these mounts."""
    found = set()
    for path in paths:
        home = max((mount for mount in reversed(mounts) if is_within(path, mount.point)), key=lambda mount: len(mount.point), default=None)
        if home is None:
            continue
        inside = _joined(home.root, path[len(home.point.rstrip("/")) :])
        for mount in mounts:
            if mount.device != home.device:
                continue
            if is_within(inside, mount.root):
                found.add(_joined(mount.point, inside[len(mount.root.rstrip("/")) :]))
            elif is_within(mount.root, inside):
                found.add(mount.point)
        found.discard(path)
    return found


def _joined(directory: str, rest: str) -> str:
    return f"{directory.rstrip('/')}/{rest.lstrip('/')}".rstrip("/") or "/"


def listening_paths(skip_netns: Collection[int]) -> set[str]:
    """The path names of unix sockets bound in any network namespace that a process of this node is in."""
    seen = set(skip_netns)
    found: set[str] = set()
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            inode = os.stat(f"/proc/{name}/ns/net").st_ino
            if inode not in seen:
                seen.add(inode)
                found |= parse_unix(Path(f"/proc/{name}/net/unix").read_bytes())
        except OSError:  # the process ended meanwhile
            continue
    return found


def parse_unix(text: bytes) -> set[str]:
    """The absolute paths in a ``/proc/net/unix`` that something listens on or receives from (state unconnected: proc(5))."""
    found = set()
    for line in text.splitlines()[1:]:
        # address: references protocol flags type state inode path
        words = line.split(None, 7)
        if len(words) == 8 and words[7].startswith(b"/") and words[5] == b"01":
            found.add(os.fsdecode(words[7]))
    return found


def code_paths() -> list[Path]:
    """Where the daemon's code is: a virtual environment, and the packages themselves."""
    found = [Path(sys.prefix)] if sys.prefix != sys.base_prefix else []
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        found += [Path(location) for location in (spec.submodule_search_locations or ())] if spec else []
    return found
