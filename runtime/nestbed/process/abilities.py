"""What this machine can do for process containers, and what it means where it cannot."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nestbed.errors import HostLacks
from nestbed.model import Ability
from nestbed.process.hierarchies import Tree

_INITS = (
    "/usr/bin/tini-static",
    "/usr/bin/catatonit",
    "/usr/libexec/podman/catatonit",
    "/usr/libexec/catatonit/catatonit",
    "/usr/bin/dumb-init",
)
_LIMITS = {
    "cpu": "--cpus is refused; containers share the processors evenly",
    "memory": "--memory is refused; one container can use up the memory of the node",
    "pids": "--pids-limit is refused; one container can use up the processes of the node",
    "io": "the I/O weight is refused",
}


def find_init() -> str:
    """A static init program of the node for ``--init``.

    Raises:
        HostLacks: there is none (reason NO_INIT).
    """
    found = next((path for path in _INITS if os.access(path, os.X_OK)), "")
    if not found:
        raise HostLacks(
            "this machine has no init program for --init",
            reason="NO_INIT",
            remedy="install the package tini or catatonit, or leave --init out",
        )
    return found


def abilities(tree: Tree) -> Sequence[Ability]:
    """Everything that may be lacking, in the order in which it is shown."""
    found = [Ability("cgroups", tree.version != "none", tree.version, "" if tree.version != "none" else "no limits, no figures, no pause")]
    for limit, consequence in _LIMITS.items():
        can = tree.can(limit)
        found.append(Ability(f"limit-{limit}", can, "by cgroup" if can else tree.lacks(limit), "" if can else consequence))
    can = tree.can("freeze")
    found.append(Ability("pause", can, "cgroup freezer" if can else tree.lacks("freeze"), "" if can else "pause is refused"))
    can = tree.filters_devices
    found.append(
        Ability(
            "device-filter",
            can,
            "cgroup devices" if can else "no v1 devices hierarchy",
            "" if can else "devices are kept away by /dev, nodev mounts and capabilities alone",
        )
    )
    found.append(_overlay())
    found.append(_exit_information())
    return found


def _overlay() -> Ability:
    can = "\toverlay\n" in Path("/proc/filesystems").read_text()
    return Ability("overlay", can, "overlayfs" if can else "overlayfs is not in this kernel", "" if can else "--fs overlay is refused")


def _exit_information() -> Ability:
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2] if part.isdecimal())
    can = release >= (6, 15)
    consequence = "" if can else "the exit status of a program that ends while no keeper runs is unknown"
    return Ability("exit-information", can, "PIDFD_GET_INFO" if can else "Linux is older than 6.15", consequence)
