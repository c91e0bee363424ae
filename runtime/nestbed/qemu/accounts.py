"""The testbed's users: the node's people, as machines with a disk of their own get them, by the node's files and no name service."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nestbed.qemu import frames
from nestbed.qemu.frames import Type

UIDS = range(1000, 60000)
"""Of people, and of groups that are no program's (login.defs(5): UID_MIN, UID_MAX)."""
USERS_MAX = 500
SUDO_GROUPS = frozenset(("sudo", "wheel", "admin"))
KEYS_BYTES_MAX = 8192
_FIELD_CHARS_MAX = 255
_MEMBERS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Account:
    """A user; ``keys`` is the content of authorized_keys."""

    name: str
    uid: int
    gid: int
    gecos: str
    home: str
    shell: str
    may_sudo: bool
    keys: str


@dataclass(frozen=True, slots=True)
class Group:
    """A group; ``members`` are those of it that are users of the testbed."""

    name: str
    gid: int
    members: tuple[str, ...]


def frames_of(etc: Path = Path("/etc")) -> bytes:
    """What tells the agent of all of them."""
    groups, users = read(etc)
    told = [
        frames.words(Type.GROUP, 0, group.name, str(group.gid), ",".join(group.members[at : at + _MEMBERS_AT_ONCE]))
        for group in groups
        for at in range(0, max(len(group.members), 1), _MEMBERS_AT_ONCE)
    ]
    for user in users:
        numbers = (str(user.uid), str(user.gid))
        sudo = "sudo" if user.may_sudo else ""
        told.append(frames.words(Type.ACCOUNT, 0, user.name, *numbers, user.gecos, user.home, user.shell, sudo, user.keys))
    return b"".join(told)


def read(etc: Path) -> tuple[list[Group], list[Account]]:
    """The testbed's groups and users by the passwd(5) and group(5) of ``etc``."""
    entries = [fields for fields in _fields(etc / "passwd", 7) if int(fields[2]) in UIDS and fields[5].startswith("/")][:USERS_MAX]
    names = {fields[0] for fields in entries}
    primary = {int(fields[3]) for fields in entries}
    groups, sudoers = [], set()
    for fields in _fields(etc / "group", 4):
        members = tuple(name for name in fields[3].split(",") if name in names)
        if fields[0] in SUDO_GROUPS:
            sudoers |= set(members)
        if members or int(fields[2]) in primary:
            groups.append(Group(fields[0], int(fields[2]), members))
    users = [
        Account(name, int(uid), int(gid), gecos, home, shell, name in sudoers, _keys(home, int(uid)))
        for name, _, uid, gid, gecos, home, shell in entries
    ]
    return groups, users


def _fields(path: Path, count: int) -> Iterator[Sequence[str]]:
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="surrogateescape").splitlines():
            fields = line.split(":")
            if count == 7 and any(len(field) > _FIELD_CHARS_MAX for field in fields):
                continue
            if len(fields) == count and fields[0] and fields[2].isdecimal() and (count == 4 or fields[3].isdecimal()):
                yield fields


def _keys(home: str, uid: int) -> str:
    """The user's keys. A file that is not the user's is another's secret that a link points at."""
    try:
        fd = os.open(f"{home}/.ssh/authorized_keys", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != uid:
            return ""
        text = file.read(KEYS_BYTES_MAX + 1)
    if len(text) > KEYS_BYTES_MAX:
        text = text[: text.rfind(b"\n", 0, KEYS_BYTES_MAX) + 1]
    return text.replace(b"\0", b"").decode(errors="surrogateescape")
