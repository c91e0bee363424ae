"""Removing a directory tree without leaving it: by descriptor, following no symbolic link, crossing no mount."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator

from nestbed.linux.path import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV


def remove_tree(parent_fd: int, name: str) -> None:
    """Remove the entry ``name`` (no slash in it) of the directory ``parent_fd``: a directory with all it holds, or anything else.

    Idempotent. A tree of any depth takes two descriptors: directories found below are first moved up to its top. After an error, or
    when killed, what is left can be removed by another call.

    Raises:
        OSError: EBUSY or EXDEV for a mount point at or below ``name`` (nothing behind it was touched); what the kernel gave for others.
    """
    if "/" in name or name in ("", ".", ".."):
        raise OSError(errno.EINVAL, f"not the name of an entry: {name!r}")
    try:
        top = openat2(parent_fd, name, os.O_RDONLY | os.O_DIRECTORY, resolve=_RESOLVE)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=parent_fd)
        return
    try:
        _empty(top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent_fd)


def _empty(top: int) -> None:
    fresh = itertools.count()
    while names := os.listdir(top):
        for name in names:
            if not _unlinked(top, name):
                _flatten(top, name, fresh)


def _unlinked(directory: int, name: str) -> bool:
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True


def _flatten(top: int, name: str, fresh: Iterator[int]) -> None:
    """Remove the directory ``name`` of ``top``, its files with it; its directories become entries of ``top``."""
    directory = openat2(top, name, os.O_RDONLY | os.O_DIRECTORY, resolve=_RESOLVE)
    try:
        for entry in os.listdir(directory):
            if not _unlinked(directory, entry):
                _move_up(directory, entry, top, fresh)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=top)


def _move_up(directory: int, name: str, top: int, fresh: Iterator[int]) -> None:
    for number in fresh:
        try:
            os.rename(name, f".removing-{number}", src_dir_fd=directory, dst_dir_fd=top)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            return
