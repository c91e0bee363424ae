"""Unpacking a tar archive that a container made: nothing in it is trusted.

Everything stays below the destination whatever the archive says: each folder on the way is opened by its descriptor without
following links, files are made anew and never written through what is there, names with ``..`` and absolute ones are refused, so
are devices and FIFOs. Owners are the caller's; set-id bits and write permission for others are dropped. These are the rules of
tarfile's ``data`` filter, which not every supported Python has, but for symbolic links: they may point anywhere, as none is followed.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from typing import IO, Self

from nbctl.failure import Failure

_MODE_MASK = 0o755
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Unpacker:
    """Makes the tree of an archive as ``name`` in the folder ``parent``, or adds to what is there. Use it as a context manager.

    The first member is the tree's top; all others are below it, by name.

    Raises:
        OSError: the folder cannot be opened.
    """

    def __init__(self, parent: str, name: str) -> None:
        self._name = name
        self._top: str | None = None
        self._parent = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._parent)

    def put(self, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        """Make one member; ``content`` is that of a regular file.

        Raises:
            Failure: it is of a kind that is not made here, or a name leads out of the tree.
            OSError: the file system refuses.
        """
        if self._top is None:
            self._top = member.name
        folder, name = self._open_folder(member.name)
        try:
            self._make(member, folder, name, content)
        finally:
            os.close(folder)

    def _below_top(self, name: str) -> list[str]:
        parts, top = _components(name), _components(self._top or "")
        if parts[: len(top)] != top:
            raise _outside(name)
        return parts[len(top) :]

    def _open_folder(self, path: str) -> tuple[int, str]:
        """A descriptor of the folder in which a member shall be, and its name there. Missing folders are made."""
        *folders, name = [self._name, *self._below_top(path)]
        at = os.dup(self._parent)
        for folder in folders:
            try:
                _make_folder(at, folder, 0o755)
                below = os.open(folder, _FOLDER, dir_fd=at)
            finally:
                os.close(at)
            at = below
        return at, name

    def _make(self, member: tarfile.TarInfo, folder: int, name: str, content: IO[bytes] | None) -> None:
        if member.isdir():
            _make_folder(folder, name, member.mode & _MODE_MASK | 0o700)
            return
        if not (member.isreg() or member.issym() or member.islnk()):
            raise Failure(f"{member.name} is a device or FIFO, which nbctl does not make", remedy="copy to `-` and unpack with tar")
        _clear(folder, name)
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=folder)
        elif member.islnk():
            self._link(member, folder, name)
            return
        else:
            _write(folder, name, member.mode & _MODE_MASK | 0o600, content)
        os.utime(name, (member.mtime, member.mtime), dir_fd=folder, follow_symlinks=False)

    def _link(self, member: tarfile.TarInfo, folder: int, name: str) -> None:
        source, source_name = self._open_folder(member.linkname)
        try:
            os.link(source_name, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(source)


def _components(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise _outside(path)
    return parts


def _outside(path: str) -> Failure:
    return Failure(f"the archive names '{path}', which is outside of it", remedy="do not trust this container")


def _make_folder(at: int, name: str, mode: int) -> None:
    try:
        os.mkdir(name, mode, dir_fd=at)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            raise


def _clear(at: int, name: str) -> None:
    """Take away a file or link that is in the way; folders and devices stay, and the caller is told."""
    try:
        there = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(there) or stat.S_ISLNK(there)):
        what = "a folder" if stat.S_ISDIR(there) else "no regular file"
        raise Failure(f"{name} exists and is {what}", remedy="choose another destination, or remove it first")
    os.unlink(name, dir_fd=at)


def _write(at: int, name: str, mode: int, content: IO[bytes] | None) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=at)
    with open(fd, "wb") as file:
        if content is not None:
            shutil.copyfileobj(content, file, 256 * 1024)
        os.fchmod(fd, mode)
