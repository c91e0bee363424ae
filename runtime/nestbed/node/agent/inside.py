"""The agent's directory of a running process container, from outside. All in it is the container's to change at any moment: nothing is
followed out of it, opened before it is known what it is, or read without a bound.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from nestbed import agentdir
from nestbed.errors import WrongState, translated
from nestbed.linux.path import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from nestbed.node.agent.lines import LINE_BYTES_MAX

ORDERS_BYTES_MAX = 256 * 1024
ENTRIES_AT_ONCE = 256
_ANSWERS_MAX = 256
_WITHIN = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV


@dataclass(frozen=True, slots=True)
class Dropped:
    """An entry of the drop directory. ``data`` is its content, None if it is no file or too large; ``mark`` tells it from others."""

    name: str
    mark: str
    data: bytes | None


class Directory:
    """One container's, of one run. Owns its descriptors until ``close``."""

    def __init__(self, fd: int) -> None:
        """Takes the descriptor, which O_PATH may have opened."""
        self._fd = fd
        self._drop = -1
        self._answers: deque[str] = deque()
        try:
            with contextlib.suppress(OSError):  # something else is there: nothing is heard by files, then
                self._drop = openat2(fd, agentdir.DROP, os.O_RDONLY | os.O_DIRECTORY, resolve=_WITHIN)
        except BaseException:
            self.close()
            raise

    @property
    def drop_path(self) -> str:
        """Where the drop directory can be watched; empty if there is none."""
        return f"/proc/self/fd/{self._drop}" if self._drop >= 0 else ""

    def close(self) -> None:
        """Let go. Idempotent."""
        for fd in (self._fd, self._drop):
            if fd >= 0:
                os.close(fd)
        self._fd = self._drop = -1

    def order(self, line: bytes) -> None:
        """Add a line to the orders. A file grown long begins anew, as ``tail -f`` understands.

        Raises:
            WrongState: something else is at its place. ResourceExhausted: no room.
        """
        with translated("writing orders"):
            fd = openat2(self._fd, agentdir.ORDERS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, mode=0o600, resolve=_WITHIN)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise WrongState(
                    "orders is no file any more", reason="NOT_A_FILE", remedy=f"remove {agentdir.DIRECTORY}/{agentdir.ORDERS} inside"
                )
            with translated("writing orders"):
                os.fchmod(fd, agentdir.ORDERS_MODE)
                if found.st_size + len(line) > ORDERS_BYTES_MAX:
                    os.ftruncate(fd, 0)
                os.write(fd, line)
        finally:
            os.close(fd)

    def answer(self, arrival_id: str, outcome: str) -> None:
        """Leave an answer for who waits at a barrier. Whoever sees the file sees all of it.

        Raises:
            others of ``from_errno``: the directory is not what it was.
        """
        with translated("answering at a barrier"):
            directory = openat2(self._fd, agentdir.BARRIERS, os.O_RDONLY | os.O_DIRECTORY, resolve=_WITHIN)
            try:
                _remove(directory, f".{arrival_id}")
                fd = os.open(f".{arrival_id}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
                try:
                    os.fchmod(fd, 0o644)
                    os.write(fd, f"{outcome}\n".encode())
                finally:
                    os.close(fd)
                os.rename(f".{arrival_id}", arrival_id, src_dir_fd=directory, dst_dir_fd=directory)
                self._answers.append(arrival_id)
                if len(self._answers) > _ANSWERS_MAX:
                    _remove(directory, self._answers.popleft())
            finally:
                os.close(directory)

    def forget_answer(self, arrival_id: str) -> None:
        """Remove an earlier answer of that name, if there is one."""
        with contextlib.suppress(OSError):
            directory = openat2(self._fd, agentdir.BARRIERS, os.O_RDONLY | os.O_DIRECTORY, resolve=_WITHIN)
            try:
                _remove(directory, arrival_id)
            finally:
                os.close(directory)

    def dropped(self) -> Iterator[Dropped]:
        """What was dropped and is not being written any more, among the first ENTRIES_AT_ONCE entries. Names that begin with a dot, and
        directories, are left alone.
        """
        if self._drop < 0:
            return
        with contextlib.suppress(OSError), os.scandir(self._drop) as entries:
            names = [entry.name for entry, _ in zip(entries, range(ENTRIES_AT_ONCE), strict=False) if not entry.name.startswith(".")]
        for name in sorted(names):
            found = self._look(name)
            if found is not None:
                yield found

    def remove(self, found: Dropped) -> None:
        """Remove an entry; what another one has taken the place of goes, too."""
        if self._drop >= 0:
            with contextlib.suppress(OSError):
                os.unlink(found.name, dir_fd=self._drop)

    def _look(self, name: str) -> Dropped | None:
        """The entry; None if there is nothing to take: it is gone, a directory, or still written."""
        try:
            seen = openat2(self._drop, name, os.O_PATH | os.O_NOFOLLOW, resolve=RESOLVE_BENEATH | RESOLVE_NO_XDEV)
        except OSError:
            return None
        try:
            status = os.fstat(seen)
            mark = f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"
            if stat.S_ISDIR(status.st_mode):
                return None
            if not stat.S_ISREG(status.st_mode):
                return Dropped(name, mark, None)
            return self._read(f"/proc/self/fd/{seen}", name, mark, status.st_size)
        except OSError:
            return None
        finally:
            os.close(seen)

    @staticmethod
    def _read(path: str, name: str, mark: str, size: int) -> Dropped | None:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if _is_being_written(fd):
                return None
            return Dropped(name, mark, os.pread(fd, LINE_BYTES_MAX + 1, 0) if size <= LINE_BYTES_MAX else None)
        finally:
            os.close(fd)


def _is_being_written(fd: int) -> bool:
    """Whether anybody has the file open for writing: a read lease is refused then (fcntl(2))."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _remove(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
