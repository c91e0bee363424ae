"""The mount calls, old and new: mount(2), umount2(2), pivot_root(2), open_tree(2), move_mount(2), mount_setattr(2), fsopen(2)."""

from __future__ import annotations

import ctypes
import os

from nestbed.linux.libc import AT_EMPTY_PATH, AT_RECURSIVE, LIBC, call, checked, encoded

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18

MNT_DETACH = 0x2

OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(source: str | bytes, target: str | bytes, fstype: str | bytes, flags: int, data: str | bytes = b"") -> None:
    """mount(2)."""
    checked(
        "mount",
        LIBC.mount(encoded(source), encoded(target), encoded(fstype), ctypes.c_ulong(flags), encoded(data) or None),
        target,
    )


def umount2(target: str | bytes, flags: int = 0) -> None:
    """umount2(2)."""
    checked("umount2", LIBC.umount2(encoded(target), flags), target)


def pivot_root(new_root: str | bytes, put_old: str | bytes) -> None:
    """pivot_root(2)."""
    call("pivot_root", _PIVOT_ROOT, ctypes.c_char_p(encoded(new_root)), ctypes.c_char_p(encoded(put_old)))


def open_tree(dirfd: int, path: str | bytes, flags: int) -> int:
    """open_tree(2): a descriptor of the mount at ``path``, of a detached copy with OPEN_TREE_CLONE; always close-on-exec."""
    if not path:
        flags |= AT_EMPTY_PATH
    return call("open_tree", _OPEN_TREE, ctypes.c_int(dirfd), ctypes.c_char_p(encoded(path)), ctypes.c_uint(flags | OPEN_TREE_CLOEXEC))


def move_mount(from_fd: int, to_fd: int, to_path: str | bytes = b"") -> None:
    """move_mount(2) of the mount ``from_fd`` to ``to_path`` below ``to_fd``, or onto ``to_fd`` itself."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if to_path else MOVE_MOUNT_T_EMPTY_PATH)
    call(
        "move_mount",
        _MOVE_MOUNT,
        ctypes.c_int(from_fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(to_fd),
        ctypes.c_char_p(encoded(to_path)),
        ctypes.c_uint(flags),
    )


def mount_setattr(
    dirfd: int, path: str | bytes, *, recursive: bool = False, attr_set: int = 0, attr_clr: int = 0, propagation: int = 0
) -> None:
    """mount_setattr(2); with ``recursive`` submounts too."""
    attr = _MountAttr(attr_set, attr_clr, propagation, 0)
    flags = (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    call(
        "mount_setattr",
        _MOUNT_SETATTR,
        ctypes.c_int(dirfd),
        ctypes.c_char_p(encoded(path)),
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )


def fsmount(fstype: str, options: tuple[tuple[str, str], ...] = (), attributes: int = 0) -> int:
    """A new file system of ``fstype``, mounted nowhere: fsopen(2), fsconfig(2) per option (an empty value is a flag), fsmount(2).

    Returns a close-on-exec descriptor of its root, usable as a directory at once and by :func:`move_mount`.
    """
    context = call("fsopen", _FSOPEN, ctypes.c_char_p(fstype.encode()), ctypes.c_uint(FSOPEN_CLOEXEC))
    try:
        for key, value in options:
            command = FSCONFIG_SET_STRING if value else FSCONFIG_SET_FLAG
            text = ctypes.c_char_p(encoded(value)) if value else None
            call("fsconfig", _FSCONFIG, ctypes.c_int(context), ctypes.c_uint(command), ctypes.c_char_p(key.encode()), text, ctypes.c_int(0))
        call("fsconfig", _FSCONFIG, ctypes.c_int(context), ctypes.c_uint(FSCONFIG_CMD_CREATE), None, None, ctypes.c_int(0))
        return call("fsmount", _FSMOUNT, ctypes.c_int(context), ctypes.c_uint(FSMOUNT_CLOEXEC), ctypes.c_uint(attributes))
    finally:
        os.close(context)


def mountpoints(path: str = "/proc/self/mountinfo") -> list[tuple[str, str, str]]:
    """``(mount point, file system type, mount options)`` of every mount in order of mounting, escapes undone (proc(5))."""
    with open(path, "rb") as file:
        text = file.read()
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(b" - ")
        parts = left.split(b" ")
        found.append((unescape(parts[4]), right.split(b" ", 1)[0].decode(), parts[5].decode()))
    return found


def unescape(field: bytes) -> str:
    """Undo the octal escapes of mountinfo: blank, tab, line feed, backslash."""
    for escape, plain in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(escape, plain)
    return os.fsdecode(field)
