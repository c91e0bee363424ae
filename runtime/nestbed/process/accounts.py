"""Who a program runs as: ``NAME|UID[:NAME|GID]`` resolved against the node's accounts or those of a rootfs.

The files of a rootfs are untrusted text: read through a descriptor that cannot leave the rootfs, bounded, no line believed that is not
well formed. Numbers are decimal ASCII digits and nothing else (CVE-2026-30892: a lenient parser ran programs as the wrong user).
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from nestbed.errors import InvalidArgument
from nestbed.linux.path import openat2

ID_MAX = 2**32 - 2
"""The largest uid and gid; 2**32 - 1 means "unchanged" to the kernel."""

FILE_BYTES_MAX = 4 << 20

_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}\$?", re.ASCII)


@dataclass(frozen=True, slots=True)
class User:
    """Credentials, and what the environment tells of them."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str


@dataclass(frozen=True, slots=True)
class Account:
    """A line of passwd(5)."""

    name: str
    uid: int
    gid: int
    home: str


class Accounts(Protocol):
    """A database of users and groups."""

    def by_name(self, name: str) -> Account | None:
        """The user of this name."""
        ...

    def by_uid(self, uid: int) -> Account | None:
        """The first user with this uid."""
        ...

    def gid_of(self, group: str) -> int | None:
        """The gid of the group."""
        ...

    def groups_of(self, account: Account) -> tuple[int, ...]:
        """The gids of all groups the user is in, the own one included."""
        ...


class NodeAccounts:
    """The accounts of this machine, wherever its name service has them."""

    def by_name(self, name: str) -> Account | None:
        """See :class:`Accounts`."""
        try:
            return self._account(pwd.getpwnam(name))
        except KeyError:
            return None

    def by_uid(self, uid: int) -> Account | None:
        """See :class:`Accounts`."""
        try:
            return self._account(pwd.getpwuid(uid))
        except KeyError:
            return None

    def gid_of(self, group: str) -> int | None:
        """See :class:`Accounts`."""
        try:
            return grp.getgrnam(group).gr_gid
        except KeyError:
            return None

    def groups_of(self, account: Account) -> tuple[int, ...]:
        """See :class:`Accounts`."""
        return tuple(sorted(os.getgrouplist(account.name, account.gid)))

    @staticmethod
    def _account(entry: pwd.struct_passwd) -> Account:
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


class TextAccounts:
    """The accounts of a passwd(5) and a group(5) text."""

    def __init__(self, passwd: str, group: str) -> None:
        self._accounts = list(_parse_passwd(passwd))
        self._groups = list(_parse_group(group))

    def by_name(self, name: str) -> Account | None:
        """See :class:`Accounts`."""
        return next((account for account in self._accounts if account.name == name), None)

    def by_uid(self, uid: int) -> Account | None:
        """See :class:`Accounts`."""
        return next((account for account in self._accounts if account.uid == uid), None)

    def gid_of(self, group: str) -> int | None:
        """See :class:`Accounts`."""
        return next((gid for name, gid, _ in self._groups if name == group), None)

    def groups_of(self, account: Account) -> tuple[int, ...]:
        """See :class:`Accounts`."""
        return tuple(sorted({account.gid, *(gid for _, gid, members in self._groups if account.name in members)}))


def accounts_in(root_fd: int) -> TextAccounts:
    """The accounts of the file system whose root is the descriptor; empty where it has no such files."""
    return TextAccounts(_read_inside(root_fd, "etc/passwd"), _read_inside(root_fd, "etc/group"))


def resolve_user(text: str, accounts: Accounts) -> User:
    """The credentials for ``text``; "" is root. A number need not be in the database, a name must.

    A group that is given replaces all groups of the user.

    Raises:
        InvalidArgument: reason BAD_USER (not of the form), UNKNOWN_USER, UNKNOWN_GROUP.
    """
    user, colon, group = (text or "0").partition(":")
    if not _is_word(user) or (colon and not _is_word(group)):
        raise InvalidArgument(f"{text!r} is no user", reason="BAD_USER", remedy="use NAME or UID, with :NAME or :GID", user=text)
    account = _account(user, accounts)
    if colon:
        gid = _gid(group, accounts)
        return User(account.uid, gid, (gid,), account.name, account.home)
    return User(account.uid, account.gid, accounts.groups_of(account) if account.name else (account.gid,), account.name, account.home)


def _account(user: str, accounts: Accounts) -> Account:
    if user[0].isdigit():
        uid = int(user)
        return accounts.by_uid(uid) or Account("root" if uid == 0 else "", uid, 0, "/root" if uid == 0 else "/")
    account = accounts.by_name(user)
    if account is None:
        raise InvalidArgument(
            f"there is no user {user!r} in the container",
            reason="UNKNOWN_USER",
            remedy="use a user of its /etc/passwd, or a uid",
            user=user,
        )
    return account


def _gid(group: str, accounts: Accounts) -> int:
    if group[0].isdigit():
        return int(group)
    gid = accounts.gid_of(group)
    if gid is None:
        raise InvalidArgument(
            f"there is no group {group!r} in the container",
            reason="UNKNOWN_GROUP",
            remedy="use a group of its /etc/group, or a gid",
            group=group,
        )
    return gid


def _is_word(text: str) -> bool:
    return _is_number(text) or _NAME.fullmatch(text) is not None


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and int(text) <= ID_MAX


def _parse_passwd(text: str) -> Iterator[Account]:
    for line in text.splitlines():
        parts = line.split(":")
        if len(parts) == 7 and _NAME.fullmatch(parts[0]) and _is_number(parts[2]) and _is_number(parts[3]):
            home = parts[5] if parts[5].startswith("/") and parts[5].isprintable() else "/"
            yield Account(parts[0], int(parts[2]), int(parts[3]), home)


def _parse_group(text: str) -> Iterator[tuple[str, int, frozenset[str]]]:
    for line in text.splitlines():
        parts = line.split(":")
        if len(parts) == 4 and _NAME.fullmatch(parts[0]) and _is_number(parts[2]):
            yield parts[0], int(parts[2]), frozenset(parts[3].split(","))


def _read_inside(root_fd: int, path: str) -> str:
    try:
        fd = openat2(root_fd, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return file.read(FILE_BYTES_MAX).decode("utf-8", "replace")
