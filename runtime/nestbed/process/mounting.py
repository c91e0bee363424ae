"""Steps that mount: pieces of what a container's first process does, for the new mount calls (fsopen(2), open_tree(2), move_mount(2)).

Paths inside a container are looked up from its root as if that were the root directory (RESOLVE_IN_ROOT), and where a mount must be
at that very place, without passing any symbolic link: a root file system may try to lead a mount astray.
"""

from __future__ import annotations

import os
import struct
from errno import EEXIST, EINVAL, ENOENT, ENOTDIR

from nestbed.linux import mount
from nestbed.linux.libc import AT_EMPTY_PATH, AT_FDCWD, AT_RECURSIVE
from nestbed.linux.path import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS
from nestbed.process.places import MASK_DIR, MASK_FILE
from nestbed.process.program import Label, Register, Steps, Text

ROOT, PROC, SYS, DEVPTS, TREE, FOUND, ANSWER, PARENT = (Register(number) for number in range(8))
"""ROOT is the container's root directory, PROC, SYS and DEVPTS its own file systems of the kernel; the others are for the moment."""
FREE = 16
"""Registers from here on are for whoever needs many."""

STRICT = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS
_HOW, _ATTRIBUTES = struct.Struct("=QQQ"), struct.Struct("=QQQQ")
_MISPLACED = (EINVAL, ENOTDIR)
"""How the kernel refuses a directory over a file, and a file over a directory."""


def look_up(
    steps: Steps,
    directory: int,
    path: Text,
    flags: int = os.O_PATH,
    *,
    to: Register,
    resolve: int = RESOLVE_IN_ROOT,
    allow: tuple[int, ...] = (),
    orelse: Label | None = None,
) -> None:
    """openat2(2)."""
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, resolve)
    steps.call("openat2", directory, path, steps.data(how), _HOW.size, to=to, allow=allow, orelse=orelse, subject=path)


def open_at(steps: Steps, directory: int, path: Text, flags: int, mode: int = 0, *, to: Register, allow: tuple[int, ...] = ()) -> None:
    """openat(2)."""
    steps.call("openat", directory, path, flags | os.O_CLOEXEC, mode, to=to, allow=allow, subject=path)


def copy_tree(
    steps: Steps,
    directory: int,
    path: Text = "",
    *,
    to: Register = TREE,
    recursive: bool = False,
    allow: tuple[int, ...] = (),
    orelse: Label | None = None,
) -> None:
    """A detached copy of a mount: open_tree(2)."""
    flags = mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    steps.call("open_tree", directory, path, flags, to=to, allow=allow, orelse=orelse, subject=path)


def attach(steps: Steps, tree: int, directory: int, path: Text = "", *, allow: tuple[int, ...] = (), orelse: Label | None = None) -> None:
    """Mount a detached tree at ``path``, or over the directory or file ``directory`` itself: move_mount(2)."""
    flags = mount.MOVE_MOUNT_F_EMPTY_PATH | (0 if path else mount.MOVE_MOUNT_T_EMPTY_PATH)
    steps.call("move_mount", tree, "", directory, path, flags, allow=allow, orelse=orelse, subject=path)


def restrict(steps: Steps, tree: int, attributes: int, *, recursive: bool = False) -> None:
    """Set mount attributes: mount_setattr(2)."""
    data = _ATTRIBUTES.pack(attributes, 0, 0, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    steps.call("mount_setattr", tree, "", flags, steps.data(data), _ATTRIBUTES.size)


def new_file_system(steps: Steps, kind: str, options: tuple[tuple[str, str], ...], attributes: int, *, to: Register) -> None:
    """A file system that is mounted nowhere yet: fsopen(2), fsconfig(2), fsmount(2)."""
    steps.call("fsopen", kind, mount.FSOPEN_CLOEXEC, to=FOUND, subject=kind)
    for key, value in options:
        command, text = (mount.FSCONFIG_SET_STRING, steps.text(value)) if value else (mount.FSCONFIG_SET_FLAG, 0)
        steps.call("fsconfig", FOUND, command, key, text, 0, subject=key)
    steps.call("fsconfig", FOUND, mount.FSCONFIG_CMD_CREATE, 0, 0, 0, subject=kind)
    steps.call("fsmount", FOUND, mount.FSMOUNT_CLOEXEC, attributes, to=to, subject=kind)


def place(steps: Steps, tree: int, name: str, *, create: bool, or_leave: bool = False) -> None:
    """Attach a tree at the directory ``name`` of the root, which is made if it may be; ``or_leave`` it if there is none."""
    missing, end = Label(), Label()
    flags = os.O_PATH | os.O_DIRECTORY
    if create:
        look_up(steps, ROOT, name, flags, to=FOUND, resolve=STRICT, allow=(ENOENT,), orelse=missing)
        steps.jump(end)
        steps.mark(missing)
        steps.call("mkdirat", ROOT, name, 0o755, subject=name)
        look_up(steps, ROOT, name, flags, to=FOUND, resolve=STRICT)
        steps.mark(end)
        attach(steps, tree, FOUND)
    elif or_leave:
        look_up(steps, ROOT, name, flags, to=FOUND, resolve=STRICT, allow=(ENOENT,), orelse=end)
        attach(steps, tree, FOUND)
        steps.mark(end)
    else:
        look_up(steps, ROOT, name, flags, to=FOUND, resolve=STRICT)
        attach(steps, tree, FOUND)


def make(steps: Steps, path: str, *, directory: bool, allow: tuple[int, ...] = (), orelse: Label | None = None) -> None:
    """Make a directory or an empty file inside: FOUND is its descriptor. Parents are made, links never left by."""
    parts = [part for part in path.split("/") if part and part != "."]
    if not parts or ".." in parts:
        steps.fail(EINVAL, f"not a path below the root: {path}")
        return
    parent = ROOT
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        prefix = "/".join(parts[: number + 1])
        if not last or directory:
            steps.call("mkdirat", parent, part, 0o755, allow=(EEXIST, *allow), subject=path)
            look_up(steps, ROOT, prefix, os.O_PATH | os.O_DIRECTORY, to=FOUND if last else PARENT, allow=allow, orelse=orelse)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            steps.call("openat", parent, part, flags, 0o644, to=ANSWER, allow=allow, orelse=orelse, subject=path)
            steps.call("close", ANSWER)
            look_up(steps, ROOT, prefix, to=FOUND, allow=allow, orelse=orelse)
        parent = PARENT


def cover(steps: Steps, target: int, *, is_directory: bool | None) -> None:
    """Hide what ``target`` is open at behind emptiness; None if it is not known what it is."""
    if is_directory is not None:
        copy_tree(steps, AT_FDCWD, MASK_DIR if is_directory else MASK_FILE)
        attach(steps, TREE, target)
        return
    is_file, end = Label(), Label()
    copy_tree(steps, AT_FDCWD, MASK_DIR)
    attach(steps, TREE, target, allow=_MISPLACED, orelse=is_file)
    steps.jump(end)
    steps.mark(is_file)
    copy_tree(steps, AT_FDCWD, MASK_FILE)
    attach(steps, TREE, target)
    steps.mark(end)


def mask(steps: Steps, directory: int, path: str, *, is_directory: bool | None) -> None:
    """Hide a path below ``directory``, if it is there; no tree is copied in vain, for to drop one takes the kernel long."""
    end = Label()
    look_up(steps, directory, path, to=FOUND, allow=(ENOENT,), orelse=end)
    cover(steps, FOUND, is_directory=is_directory)
    steps.mark(end)
