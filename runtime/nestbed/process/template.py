"""The keeper's private mount namespace, and the template of what containers see.

The keeper's root is a small tmpfs. It holds what Python needs, read-only (so ``/proc/self/exe`` of a clone, the interpreter, can never
be opened for writing, CVE-2019-5736); the bundles; a minimal ``/dev``; covers for what is hidden; and in ``/t`` a private copy of all
the node's mounts with the daemon's secrets covered. Every container's mount namespace begins as a copy of this one, at
about 3 microseconds a mount, which is why it is kept small.

The node's own mount namespace is never changed.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Sequence

import nestbed
from nestbed.linux import mount
from nestbed.linux.libc import AT_RECURSIVE
from nestbed.linux.namespace import CLONE_NEWNS, setns, unshare
from nestbed.linux.path import openat2
from nestbed.process.masks import code_paths
from nestbed.process.places import BUNDLES, DEVICES, DEVICES_KVM, MASK_DIR, MASK_FILE, NEW_ROOT, SCRATCH, TEMPLATE

_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0), ("net/tun", 10, 200))
_DEVICE_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
_PSEUDO = frozenset(
    [
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nsfs",
        "proc",
        "pstore",
        "ramfs",
        "rpc_pipefs",
        "securityfs",
        "sysfs",
        "tmpfs",
        "tracefs",
    ]
)
"""File systems without files of their own to keep: FsMode.OVERLAY shows the directory under them."""
_MEMORY = frozenset(["ramfs", "tmpfs"])
"""Those of them that hold files of the node all the same: FsMode.HOST_RO shows them."""
_VIEWS = _PSEUDO - _MEMORY - {"autofs", "hugetlbfs"}
"""The kernel itself as the node sees it: wherever mounted, no container sees it."""


def enter(bundles_fd: int) -> None:
    """Move this process into a mount namespace of its own that holds only what the keeper needs.

    Called once, before the keeper executes itself again from the read-only copy of its interpreter.
    """
    bundles = mount.open_tree(bundles_fd, "", mount.OPEN_TREE_CLONE)
    unshare(CLONE_NEWNS)
    mount.mount_setattr(-100, "/", recursive=True, propagation=mount.MS_PRIVATE)
    python = {path: mount.open_tree(-100, path, mount.OPEN_TREE_CLONE) for path in _python_paths()}
    links = {name: os.readlink(f"/{name}") for name in ("bin", "lib", "lib32", "lib64", "libx32", "sbin") if os.path.islink(f"/{name}")}
    proc = mount.open_tree(-100, "/proc", mount.OPEN_TREE_CLONE)
    root = mount.fsmount("tmpfs", (("mode", "0755"), ("size", "1m")), mount.MOUNT_ATTR_NOSUID)
    mount.move_mount(root, -100, "/proc")
    os.fchdir(root)
    mount.pivot_root(".", ".")
    mount.umount2(".", mount.MNT_DETACH)
    os.chdir("/")
    for name, target in links.items():
        os.symlink(target, f"/{name}")
    for path, tree in python.items():
        mount.mount_setattr(tree, "", attr_set=mount.MOUNT_ATTR_RDONLY)
        _attach(tree, path)
    _attach(proc, "/proc")
    _attach(bundles, BUNDLES)
    for path in (TEMPLATE, NEW_ROOT, SCRATCH):
        os.mkdir(path)
    _make_covers()
    _make_devices(DEVICES, _DEVICES)
    _make_devices(DEVICES_KVM, (*_DEVICES, ("kvm", 10, 232)))


def _python_paths() -> list[str]:
    """The directories that hold the interpreter and its modules, and nestbed's code, none within another, symbolic links resolved away."""
    wanted = {"/usr", "/lib", "/lib64", "/etc/ld.so.cache", sys.base_prefix, sys.prefix, os.path.dirname(os.path.dirname(nestbed.__file__))}
    wanted.update(map(str, code_paths()))
    real = {path for path in wanted if os.path.lexists(path) and not os.path.islink(path)}
    return sorted(path for path in real if not any(path != other and path.startswith(f"{other}/") for other in real))


def _attach(tree: int, path: str) -> None:
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _touch(path)
    mount.move_mount(tree, -100, path)
    os.close(tree)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _make_covers() -> None:
    os.makedirs(MASK_DIR)
    os.chmod(MASK_DIR, 0o555)  # noqa: S103 - it stays empty
    _touch(MASK_FILE)
    os.chmod(MASK_FILE, 0)
    for path in (MASK_DIR, MASK_FILE):
        tree = mount.open_tree(-100, path, mount.OPEN_TREE_CLONE)
        mount.mount_setattr(tree, "", attr_set=mount.MOUNT_ATTR_RDONLY)
        mount.move_mount(tree, -100, path)
        os.close(tree)


def _make_devices(where: str, devices: Sequence[tuple[str, int, int]]) -> None:
    tree = mount.fsmount("tmpfs", (("mode", "0755"), ("size", "64k")), mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NOEXEC)
    _attach(tree, where)
    for name in ("pts", "shm", "net"):
        os.mkdir(f"{where}/{name}")
        os.chmod(f"{where}/{name}", 0o755)  # noqa: S103 - what every /dev grants, whatever the umask
    for name, major, minor in devices:
        os.mknod(f"{where}/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(f"{where}/{name}", 0o666)  # noqa: S103 - what every /dev grants
    for name, target in _DEVICE_LINKS:
        os.symlink(target, f"{where}/{name}")
    _touch(f"{where}/console")
    mount.mount_setattr(-100, where, attr_set=mount.MOUNT_ATTR_RDONLY)


class Template:
    """The copy of the node's mounts at ``/t``; made anew when the node's mounts or the masks changed."""

    def __init__(self, node_mnt_fd: int) -> None:
        """``node_mnt_fd`` is the node's mount namespace."""
        self._node_mnt_fd = node_mnt_fd
        self._own_mnt_fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._wanted: tuple[str, ...] = ()
        self.stale = True
        self.masks: tuple[tuple[str, bool], ...] = ()
        """What is hidden, and whether it is a directory."""
        self._points: tuple[tuple[str, str], ...] = ()
        """Mount points below the root, and what is mounted there."""
        self._cover_dev = os.lstat(MASK_FILE).st_dev

    def hide(self, paths: list[str]) -> None:
        """Hide these absolute paths from every container started from now on."""
        if tuple(paths) != self._wanted:
            self._wanted = tuple(paths)
            self.stale = True

    def refresh(self) -> None:
        """Make the template anew if it is stale."""
        if not self.stale and self._is_covered():
            return
        tree = self._copy_node()
        try:
            mount.umount2(TEMPLATE, mount.MNT_DETACH)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        mount.mount_setattr(tree, "", recursive=True, propagation=mount.MS_PRIVATE)
        mount.move_mount(tree, -100, TEMPLATE)
        os.close(tree)
        points = self._prune()
        self._cover()
        hidden = [path for path, _ in self.masks]
        self._points = tuple(
            (point, kind) for point, kind in points if not any(point == path or point.startswith(f"{path}/") for path in hidden)
        )
        self.stale = False

    def points(self, *, with_memory: bool) -> tuple[str, ...]:
        """The mount points of real file systems below the root, parents first; ``with_memory`` also of those in memory."""
        return tuple(point for point, kind in self._points if kind not in _PSEUDO or (with_memory and kind in _MEMORY))

    def _is_covered(self) -> bool:
        """Whether all that is to be hidden still is.

        A file loses its cover when another is renamed over it, and what was absent may come.
        """
        for path in self._wanted:
            try:
                shape = os.lstat(TEMPLATE + path)
            except OSError:
                continue
            if shape.st_dev != self._cover_dev and not stat.S_ISLNK(shape.st_mode):
                return False
        return True

    def _copy_node(self) -> int:
        setns(self._node_mnt_fd, CLONE_NEWNS)
        try:
            # A mount namespace that somebody keeps as a file (snapd does) cannot be mounted here again: that would be a loop (ELOOP). A
            # copy of a namespace leaves such files out, as copy_tree() in fs/namespace.c says; a copy of a tree does not.
            unshare(CLONE_NEWNS)
            return mount.open_tree(-100, "/", mount.OPEN_TREE_CLONE | AT_RECURSIVE)
        finally:
            setns(self._own_mnt_fd, CLONE_NEWNS)

    @staticmethod
    def _prune() -> list[tuple[str, str]]:
        """Drop what every container replaces anyway, and views of the kernel; give the mount points left below the root."""
        prefix = f"{TEMPLATE}/"
        kept: list[tuple[str, str]] = []
        mounts = [(point, kind) for point, kind, _ in mount.mountpoints() if point.startswith(prefix)]
        for point, kind in reversed(mounts):
            inside = point[len(TEMPLATE) :]
            if inside.startswith(("/proc/", "/sys/", "/dev/")) or inside in ("/proc", "/sys") or kind in _VIEWS:
                mount.umount2(point, mount.MNT_DETACH)
            else:
                kept.append((inside, kind))
        return kept[::-1]

    def _cover(self) -> None:
        root = os.open(TEMPLATE, os.O_PATH | os.O_CLOEXEC)
        covered = []
        try:
            for path in self._wanted:
                try:
                    found = openat2(root, path, os.O_PATH)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
                        continue
                    raise
                directory = stat.S_ISDIR(os.fstat(found).st_mode)
                tree = mount.open_tree(-100, MASK_DIR if directory else MASK_FILE, mount.OPEN_TREE_CLONE)
                mount.move_mount(tree, found)
                os.close(tree)
                os.close(found)
                covered.append((path, directory))
        finally:
            os.close(root)
        self.masks = tuple(covered)
