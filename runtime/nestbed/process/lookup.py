"""Looking, before anything is made, at what a container will see: are the program, the directories and the mounts there?

Paths are resolved by openat2(2) inside the container's root, so nothing in a rootfs leads out of it. Whatever cannot be known beforehand
(what a mount or kept changes will show, what is the container's own) is left to the start.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from nestbed.errors import InvalidArgument, NestbedError, NotFound, shown, translated
from nestbed.linux.path import openat2
from nestbed.model import FsMode, ProcessSpec
from nestbed.process.launch import candidates
from nestbed.process.masks import code_paths
from nestbed.process.plan import bind, is_within
from nestbed.process.protocol import LaunchMount

_OWN = ("/proc", "/sys", "/dev", "/run", "/var/run")
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.EACCES, errno.ENAMETOOLONG)


class Lookup:
    """The root of one container to be, open for looking; a context manager."""

    def __init__(self, process: ProcessSpec, hidden: Sequence[str], own: str = "") -> None:
        """``hidden`` are the paths of the node that no container sees, except for what is in ``own``, and then for nestbed's code.

        Raises:
            NotFound: there is no such rootfs or overlay directory. InvalidArgument: it is no absolute path, or hidden.
        """
        self._process = process
        self._hidden = hidden
        self._own = own
        self._code = {os.path.realpath(path) for path in code_paths()} if own else frozenset[str]()
        is_own = bool(own) and is_within(process.rootfs, own)
        self._root = _directory("rootfs", process.rootfs, () if is_own else hidden) if process.fs is FsMode.ROOTFS else "/"
        if process.fs is FsMode.OVERLAY and process.overlay_dir:
            _directory("overlay directory", process.overlay_dir, hidden)
        self._fds = ExitStack()
        with translated("opening the container's root", path=self._root):
            self.root_fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fds.callback(os.close, self.root_fd)

    def __enter__(self) -> Lookup:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._fds.close()

    def mounts(self) -> tuple[LaunchMount, ...]:
        """The bind mounts, checked.

        Raises:
            NotFound: a source does not exist (MOUNT_SOURCE_NOT_FOUND), or in the modes that show the node's own files a
                destination (MOUNT_DESTINATION_NOT_FOUND). InvalidArgument: see :func:`plan.bind`.
        """
        found = []
        for mount in self._process.mounts:
            source = os.path.realpath(mount.source)
            binding = bind(mount, source, self._hidden, self._own, self._code)
            if not os.path.lexists(source):
                raise _missing("mount source", mount.source, "MOUNT_SOURCE_NOT_FOUND", "make it, or mount another one")
            if self._process.fs in (FsMode.HOST, FsMode.HOST_RO) and self._stat(binding["destination"], is_mount=True) is None:
                raise _missing(
                    "mount destination", mount.destination, "MOUNT_DESTINATION_NOT_FOUND", "make it on the node, or use --fs overlay"
                )
            found.append(binding)
        return tuple(found)

    def check_directory(self, path: str) -> None:
        """Refuse a working directory that is not there.

        Raises:
            NotFound: reason DIRECTORY_NOT_FOUND. InvalidArgument: it is no directory (reason NOT_A_DIRECTORY).
        """
        shape = self._stat(path)
        if shape is None:
            if self._is_certain(path):
                raise _missing("directory", path, "DIRECTORY_NOT_FOUND", "make it, or choose another one with -w")
        elif not stat.S_ISDIR(shape.st_mode):
            raise InvalidArgument(
                f"{shown(path)} is no directory", reason="NOT_A_DIRECTORY", remedy="choose another one with -w", path=shown(path)
            )

    def check_program(self, name: str, env: list[str], directory: str) -> None:
        """Refuse a program that is not there, or is none. ``env`` are ``K=V`` items, ``directory`` is where it starts.

        Raises:
            NotFound: reason PROGRAM_NOT_FOUND. InvalidArgument: reason NOT_EXECUTABLE.
        """
        refusal: NestbedError = program_not_found(name)
        for path in (os.path.join(directory, os.fsdecode(path)) for path in candidates(name, env)):
            shape = self._stat(path)
            if shape is None:
                if not self._is_certain(path):
                    return
            elif stat.S_ISREG(shape.st_mode) and shape.st_mode & 0o111:
                return
            else:
                refusal = not_executable(name)
        raise refusal

    def _stat(self, path: str, *, is_mount: bool = False) -> os.stat_result | None:
        """What ``path`` is inside, links followed; None if it is not there, or hidden. With ``is_mount`` what is below the mount."""
        root_fd, rest = self._whose(path, is_mount=is_mount)
        try:
            fd = openat2(root_fd, rest.lstrip("/") or ".", os.O_PATH)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        try:
            real = os.readlink(f"/proc/self/fd/{fd}")
            return None if any(is_within(real, path) for path in self._hidden) else os.fstat(fd)
        finally:
            os.close(fd)

    def _whose(self, path: str, *, is_mount: bool) -> tuple[int, str]:
        """The directory that will be mounted where ``path`` is, and the path below it."""
        mounts = [mount for mount in self._process.mounts if is_within(path, mount.destination.rstrip("/"))]
        mounts = [mount for mount in mounts if not (is_mount and mount.destination.rstrip("/") == path)]
        if not mounts:
            return self.root_fd, path
        nearest = max(mounts, key=lambda mount: len(mount.destination))
        try:
            fd = os.open(nearest.source, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return self.root_fd, path
        self._fds.callback(os.close, fd)
        return fd, path[len(nearest.destination.rstrip("/")) :]

    def _is_certain(self, path: str) -> bool:
        """Whether the absence of ``path`` here means its absence in the container."""
        if self._process.mounts or self._process.overlay_dir:
            return False
        return not any(is_within(path, top) for top in _OWN)


def program_not_found(name: str) -> NotFound:
    """There is no such program inside."""
    return NotFound(
        f"there is no program {shown(name)} in the container",
        reason="PROGRAM_NOT_FOUND",
        remedy="check its name, the container's PATH, and that its file system has it",
        program=shown(name),
    )


def not_executable(name: str) -> InvalidArgument:
    """It is there, but nothing that can be executed."""
    return InvalidArgument(
        f"{shown(name)} is no program that can be executed",
        reason="NOT_EXECUTABLE",
        remedy="check its mode, its format, and the interpreter in its first line",
        program=shown(name),
    )


def _missing(what: str, path: str, reason: str, remedy: str) -> NotFound:
    return NotFound(f"there is no {what} {shown(path)}", reason=reason, remedy=remedy, path=shown(path))


def _directory(what: str, path: str, hidden: Sequence[str]) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"{shown(path)} is no absolute path", reason="BAD_DIRECTORY", remedy="begin it with /", path=shown(path))
    real = os.path.realpath(path)
    if any(is_within(real, secret) for secret in hidden):
        raise InvalidArgument(
            f"{shown(path)} is hidden from containers", reason="HIDDEN_SOURCE", remedy="choose another directory", path=shown(path)
        )
    if not os.path.isdir(real):
        raise _missing(what, path, "ROOTFS_NOT_FOUND" if what == "rootfs" else "OVERLAY_DIR_NOT_FOUND", "make it, or choose another one")
    return real
