"""Steps that make a container's root file system: a scratch space of its own, the root of its mode, and the mounts asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from errno import EEXIST, EINVAL, ELOOP, ENODEV, ENOENT, EOPNOTSUPP
from typing import NamedTuple

from nestbed import agentdir
from nestbed.linux import mount
from nestbed.linux.libc import AT_FDCWD
from nestbed.linux.path import openat2
from nestbed.process.mounting import (
    FOUND,
    FREE,
    PARENT,
    ROOT,
    TREE,
    attach,
    copy_tree,
    look_up,
    make,
    mask,
    new_file_system,
    open_at,
    place,
    restrict,
)
from nestbed.process.places import BUNDLES, MASK_DIR, NEW_ROOT, SCRATCH, TEMPLATE
from nestbed.process.program import Label, Program, Register, Steps
from nestbed.process.protocol import Launch, LaunchMount

_NOT_A_LAYER = (EINVAL, EOPNOTSUPP, ENODEV, ELOOP)
"""How overlayfs refuses a file system that cannot be under it."""


class Covers(NamedTuple):
    """Of the template: mount points of real file systems, parents first, without ``/``; hidden paths and whether each is a directory."""

    points: tuple[str, ...]
    masks: tuple[tuple[str, bool], ...]


class Shape(NamedTuple):
    """What an overlay's upper directory must look like: that of the directory under it."""

    mode: int
    uid: int
    gid: int


def write_root(program: Program, launch: Launch, covers: Covers, spare_fd: int) -> None:
    """Everything below the container's root but the kernel's own file systems; ROOT is open afterwards.

    ``spare_fd`` is a descriptor of the keeper's that the new process may replace by another.
    """
    memory, mode = program.memory, launch["root"]["mode"]
    program.add(memory.piece("scratch", _scratch))
    mounts = launch["mounts"]
    sources = [Register(FREE + number) for number in range(len(mounts))]
    _open_sources(program, launch, sources)
    program.about = "root"
    if mode == "host":
        program.add(memory.piece("host", lambda steps: open_at(steps, AT_FDCWD, TEMPLATE, os.O_PATH, to=ROOT)))
    elif mode == "host-ro":
        program.add(memory.piece(("host-ro", covers), lambda steps: _host_ro(steps, covers)))
    elif mode == "overlay":
        _overlay_root(program, launch["root"].get("upper", ""), covers, spare_fd)
    else:
        _rootfs(program, _base(launch, own=launch["root"].get("own", False)), launch["root"]["path"])
    create = mode == "rootfs"
    program.add(memory.piece(("run", create), lambda steps: _run(steps, create=create)))


def write_mounts(program: Program, launch: Launch) -> None:
    """The mounts asked for, over everything else."""
    create = launch["root"]["mode"] in ("overlay", "rootfs")
    for number, item in enumerate(launch["mounts"]):
        base = _base_of(launch, item)
        _mount(program, item, base, Register(FREE + number), create=create)


def _base_of(launch: Launch, item: LaunchMount) -> str:
    """Where the source of a mount is looked up: nestbed's code in the keeper's own root, where it is read-only and not covered."""
    return "/" if item.get("code", False) else _base(launch, own=item.get("own", False))


def _base(launch: Launch, *, own: bool) -> str:
    """Where paths of the node are looked up, or with ``own`` those of the container's bundle."""
    return f"{BUNDLES}/{launch['id']}" if own else TEMPLATE


def _scratch(steps: Steps) -> None:
    steps.about = "run"
    new_file_system(steps, "tmpfs", (("mode", "0755"),), mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV, to=TREE)
    attach(steps, TREE, AT_FDCWD, SCRATCH)
    steps.call("umask", 0)
    for name, permissions in (("run", 0o755), ("run/lock", 0o1777), ("shm", 0o1777)):
        steps.call("mkdirat", AT_FDCWD, f"{SCRATCH}/{name}", permissions, subject=name)
    _agent(steps)
    steps.call("umask", 0o022)


def _agent(steps: Steps) -> None:
    """What is in the agent's directory at first; FIFOs come later."""
    top = f"{SCRATCH}{agentdir.DIRECTORY}"
    directories = (os.path.dirname(top), 0o755), (top, 0o755), (f"{top}/{agentdir.DROP}", agentdir.DROP_MODE)
    for path, permissions in (*directories, (f"{top}/{agentdir.BARRIERS}", agentdir.BARRIERS_MODE)):
        steps.call("mkdirat", AT_FDCWD, path, permissions, subject=path)
    files = (
        (agentdir.REPORT, 0, ""),
        (agentdir.ORDERS, agentdir.ORDERS_MODE, ""),
        (agentdir.BARRIER, agentdir.BARRIER_MODE, agentdir.BARRIER_SCRIPT),
    )
    for name, permissions, text in files:
        open_at(steps, AT_FDCWD, f"{top}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions, to=FOUND)
        if text:
            steps.call("write", FOUND, text, len(text), subject=name)
        steps.call("close", FOUND)


def _run(steps: Steps, *, create: bool) -> None:
    steps.about = "run"
    copy_tree(steps, AT_FDCWD, f"{SCRATCH}/run")
    place(steps, TREE, "run", create=create, or_leave=not create)


def _open_sources(program: Program, launch: Launch, sources: Sequence[Register]) -> None:
    """Copies of what is to be shown, taken before anything is mounted over it."""
    program.about = "mount"
    opened = ""
    for item, source in zip(launch["mounts"], sources, strict=True):
        base = _base_of(launch, item)
        if base != opened:
            open_at(program, AT_FDCWD, base, os.O_PATH, to=PARENT)
            opened = base
        look_up(program, PARENT, item["source"], to=FOUND)
        copy_tree(program, FOUND, to=source, recursive=True)


def _host_ro(steps: Steps, covers: Covers) -> None:
    """Overlays without an upper layer: what is read-only otherwise still lets sockets be connected to and FIFOs be written.

    An inode of an overlay is another one than that below, so nobody is at its other end.
    """
    steps.about = "overlay"
    for point in ("", *covers.points):
        _overlay(steps, point, f"lowerdir={_overlay_escaped(TEMPLATE + point)}:{MASK_DIR}", mount.MS_RDONLY)
    _masked(steps, covers)


def _overlay_root(program: Program, upper: str, covers: Covers, spare_fd: int) -> None:
    program.about = "overlay"
    base = SCRATCH
    if upper:
        # Opened by the new process: an overlay takes no layer from another mount namespace.
        open_at(program, AT_FDCWD, TEMPLATE, os.O_PATH, to=PARENT)
        look_up(program, PARENT, upper, os.O_RDONLY | os.O_DIRECTORY, to=FOUND)
        program.call("dup3", FOUND, spare_fd, os.O_CLOEXEC)
        base = f"/proc/self/fd/{spare_fd}"
    shapes = tuple(_shape(TEMPLATE + point) for point in ("", *covers.points))
    program.add(program.memory.piece(("overlay", base, covers, shapes), lambda steps: _overlays(steps, base, covers, shapes)))


def _shape(path: str) -> Shape:
    found = os.stat(path)
    return Shape(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def _overlays(steps: Steps, base: str, covers: Covers, shapes: Sequence[Shape]) -> None:
    steps.about = "overlay"
    for number, (point, shape) in enumerate(zip(("", *covers.points), shapes, strict=True)):
        upper, work = (f"{base}/{kind}{number}" for kind in ("upper", "work"))
        for layer in (upper, work):
            steps.call("mkdirat", AT_FDCWD, layer, 0o755, allow=(EEXIST,), subject=layer)
        steps.call("fchmodat", AT_FDCWD, upper, shape.mode, subject=upper)
        steps.call("fchownat", AT_FDCWD, upper, shape.uid, shape.gid, 0, subject=upper)
        _overlay(steps, point, f"lowerdir={_overlay_escaped(TEMPLATE + point)},upperdir={upper},workdir={work}", 0)
    _masked(steps, covers)


def _overlay(steps: Steps, point: str, data: str, flags: int) -> None:
    """An overlay for one mount point of the template; what cannot be under one is shown read-only."""
    refused, end = Label(), Label()
    if not point or stat.S_ISDIR(os.lstat(TEMPLATE + point).st_mode):
        allowed = _NOT_A_LAYER if point else ()
        label = refused if point else None
        steps.call(
            "mount", "overlay", NEW_ROOT + point, "overlay", flags | mount.MS_NODEV, data, allow=allowed, orelse=label, subject=point
        )
        if not point:
            return
        steps.jump(end)
    steps.mark(refused)
    copy_tree(steps, AT_FDCWD, TEMPLATE + point)
    restrict(steps, TREE, mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NODEV)
    attach(steps, TREE, AT_FDCWD, NEW_ROOT + point)
    steps.mark(end)


def _masked(steps: Steps, covers: Covers) -> None:
    open_at(steps, AT_FDCWD, NEW_ROOT, os.O_PATH, to=ROOT)
    for path, is_directory in covers.masks:
        mask(steps, ROOT, path, is_directory=is_directory)


def _rootfs(program: Program, base: str, path: str) -> None:
    open_at(program, AT_FDCWD, base, os.O_PATH, to=PARENT)
    look_up(program, PARENT, path, os.O_PATH | os.O_DIRECTORY, to=FOUND)
    copy_tree(program, FOUND, recursive=True)
    restrict(program, TREE, mount.MOUNT_ATTR_NODEV, recursive=True)
    attach(program, TREE, AT_FDCWD, NEW_ROOT)
    open_at(program, AT_FDCWD, NEW_ROOT, os.O_PATH, to=ROOT)


def _mount(program: Program, item: LaunchMount, base: str, source: Register, *, create: bool) -> None:
    program.about = "mount"
    missing, there = Label(), Label()
    if create:
        look_up(program, ROOT, item["destination"], to=FOUND, allow=(ENOENT,), orelse=missing)
        program.jump(there)
        program.mark(missing)
        make(program, item["destination"], directory=_is_directory(base, item["source"]))
        program.mark(there)
    else:
        look_up(program, ROOT, item["destination"], to=FOUND)
    attributes = mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOSUID | (mount.MOUNT_ATTR_RDONLY if item["read_only"] else 0)
    restrict(program, source, attributes, recursive=True)
    attach(program, source, FOUND)
    for path in item["masks"]:
        mask(program, ROOT, path, is_directory=None)


def _is_directory(base: str, source: str) -> bool:
    """Whether a path below ``base`` is a directory; the new process will find out itself if it is not there at all."""
    directory = os.open(base, os.O_PATH | os.O_CLOEXEC)
    try:
        found = openat2(directory, source, os.O_PATH)
    except OSError:
        return False
    finally:
        os.close(directory)
    try:
        return stat.S_ISDIR(os.fstat(found).st_mode)
    finally:
        os.close(found)


def _overlay_escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
