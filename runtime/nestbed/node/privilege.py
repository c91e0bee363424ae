"""Which containers are the node's administrators' business.

Root with the node's file systems is root of the node, so a container that writes to them, or that has more capabilities than the default,
is *privileged*: only admin makes one, and only admin gets a program or bytes into one. So is a virtual machine that is a node: who is root
in it is an administrator of the node inside.
"""

from __future__ import annotations

from nestbed.errors import PermissionDenied
from nestbed.model import FsMode, ProcessSpec, QemuSpec

_PRIVILEGED_MODES = (FsMode.HOST, FsMode.ROOTFS)


def reasons(spec: ProcessSpec, qemu: QemuSpec | None = None) -> list[str]:
    """What makes a container of this spec privileged; nothing if it is not."""
    found = [f"file system mode {spec.fs.value}"] if spec.fs in _PRIVILEGED_MODES else []
    if spec.mounts:
        found.append("mounts")
    if spec.overlay_dir:
        found.append("a directory of the node for its changes")
    if spec.cap_add:
        found.append("added capabilities")
    if spec.machine:
        found.append("the node's own network")
    if qemu is not None and qemu.node:
        found.append("a node inside")
    if qemu is not None and (qemu.kernel or qemu.initrd):
        found.append("a kernel that is a file of the node")
    return found


def check_creation(spec: ProcessSpec, qemu: QemuSpec | None = None, *, admin: bool) -> None:
    """Whether the caller may make such a container.

    Raises:
        PermissionDenied: it is privileged and the caller is not admin (reason NEEDS_ADMIN).
    """
    found = reasons(spec, qemu)
    if found and not admin:
        raise PermissionDenied(
            f"only admin may make a container with {' and '.join(found)}",
            reason="NEEDS_ADMIN",
            remedy="use --fs overlay or host-ro without mounts and added capabilities, or ask an administrator of the node",
            privileges=", ".join(found),
        )


def check_entry(name: str, *, privileged: bool, admin: bool, doing: str) -> None:
    """Whether the caller may do what puts a program, bytes or limits into the container ``name``.

    Raises:
        PermissionDenied: it is privileged and the caller is not admin (reason NEEDS_ADMIN).
    """
    if privileged and not admin:
        raise PermissionDenied(
            f"only admin may {doing} the privileged container {name}",
            reason="NEEDS_ADMIN",
            remedy="ask an administrator of the node",
            container=name,
        )
