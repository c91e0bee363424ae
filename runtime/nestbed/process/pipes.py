"""Finding the pipes of a program again that an earlier keeper made for it, through whoever holds them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from nestbed.linux.descriptors import keep
from nestbed.process.protocol import Launch


def find_pipe(pids: Iterable[int], inode: int) -> int:
    """A read end of the pipe with this inode, through whichever of the processes holds it; -1 if none does."""
    wanted = f"pipe:[{inode}]"
    for pid in pids:
        directory = f"/proc/{pid}/fd"
        try:
            for name in sorted(os.listdir(directory), key=int):
                path = f"{directory}/{name}"
                if os.readlink(path) == wanted:
                    return keep(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            continue
    return -1


def members(launch: Launch, host_root_fd: int) -> list[int]:
    """The processes in a container's cgroup; none if it has none. ``host_root_fd`` is the node's root directory."""
    paths = [f"{launch['cgroup2_mount']}/{launch['cgroup2']}"] if launch["cgroup2"] else launch["cgroups"][:1]
    for path in paths:
        try:
            fd = os.open(f"{path.lstrip('/')}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=host_root_fd)
        except OSError:
            continue
        with os.fdopen(fd) as file:
            return [int(line) for line in file]
    return []
