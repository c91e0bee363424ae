"""Reading a container's log: from its beginning or its end, across rotation, and onwards as it grows.

The log is written by somebody else (the keeper) while it is read: ``log`` is renamed to ``log.1`` and so on. Files are told apart by
inode. Nothing is read through a symbolic link or from anything but a regular file.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nestbed import runlog
from nestbed.errors import InvalidArgument, translated
from nestbed.linux import inotify
from nestbed.runlog import Entry

BATCH_BYTES = 128 * 1024
"""How much of the log one batch of entries is made of; more than the longest line."""

_CHANGES = inotify.IN_MODIFY | inotify.IN_CREATE | inotify.IN_MOVED_TO | inotify.IN_DELETE_SELF | inotify.IN_ONLYDIR
_STAMP_BYTES = len(runlog.stamp(0.0))
_TAIL_MAX = 1 << 40


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries: only from the time ``since`` on, only those of the last ``tail`` lines; None is all."""

    since: float | None = None
    tail: int | None = None

    def check(self) -> Selection:
        """Itself.

        Raises:
            InvalidArgument: a number that cannot be (reason BAD_LOG_SELECTION).
        """
        is_time = self.since is None or 0 <= self.since < 253402300800  # the year 10000 ends RFC 3339
        is_count = self.tail is None or 0 <= self.tail <= _TAIL_MAX
        if is_time and is_count:
            return self
        raise InvalidArgument(
            "the log cannot be selected like that",
            reason="BAD_LOG_SELECTION",
            remedy="give a time since 1970 and a number of lines that is not negative",
            since=self.since,
            tail=self.tail,
        )


class LogWatch:
    """One inotify instance for all readers of one node: sets a reader's event when something in its directory changes."""

    def __init__(self) -> None:
        self._fd = -1
        self._readers: dict[int, list[asyncio.Event]] = {}

    def open(self) -> None:
        """Make it ready, in the running event loop. Called once."""
        with translated("watching for changes of logs"):
            self._fd = inotify.inotify_init()
        asyncio.get_running_loop().add_reader(self._fd, self._on_change)

    def close(self) -> None:
        """Let go. Idempotent."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    @contextlib.contextmanager
    def watching(self, directory: Path, event: asyncio.Event) -> Iterator[None]:
        """Set ``event`` at every change in the directory during the block.

        Raises:
            NotFound: there is no such directory. ResourceExhausted: the kernel watches enough already.
        """
        with translated(f"watching {directory}", path=directory):
            watch = inotify.inotify_add_watch(self._fd, str(directory), _CHANGES)
        readers = self._readers.setdefault(watch, [])
        readers.append(event)
        try:
            yield
        finally:
            readers.remove(event)
            if not readers and self._readers.get(watch) is readers:
                del self._readers[watch]
                with contextlib.suppress(OSError):  # the directory went, and the watch with it
                    inotify.inotify_rm_watch(self._fd, watch)

    def _on_change(self) -> None:
        for change in inotify.read_changes(self._fd):
            if change.mask & inotify.IN_Q_OVERFLOW:
                concerned = [event for readers in self._readers.values() for event in readers]
            else:
                concerned = self._readers.get(change.watch, [])
            for event in concerned:
                event.set()


async def read(directory: Path, selection: Selection) -> AsyncIterator[Sequence[Entry]]:
    """The entries that are in the log now, in batches. Gives way to others between batches."""
    fds = _open_newer(directory)
    try:
        reader = _Reader(selection.since)
        for fd, offset in await _starts(fds, selection):
            async for batch in reader.batches(fd, offset):
                yield batch
    finally:
        _close(fds, fds)


async def follow(
    directory: Path, selection: Selection, watch: LogWatch, wake: asyncio.Event, has_ended: Callable[[], bool]
) -> AsyncIterator[Sequence[Entry]]:
    """As :func:`read`, then entries as they are written, until ``has_ended`` and everything was given out.

    ``wake`` must be set when ``has_ended`` may have changed.
    """
    fds = _open_newer(directory)
    try:
        with watch.watching(directory, wake):
            reader = _Reader(selection.since)
            places = await _starts(fds, selection)
            while True:
                wake.clear()
                is_last_round = has_ended()
                for fd, offset in places:
                    async for batch in reader.batches(fd, offset):
                        yield batch
                _close(fds, [fd for fd, _ in places[:-1]])
                # What was written to the last file before it was renamed comes before the newer ones.
                places = [(places[-1][0], reader.offset)] if places else []
                newer = _open_newer(directory, reader.inode)
                if newer:
                    fds += newer
                    places += [(fd, 0) for fd in newer]
                elif is_last_round:
                    return
                else:
                    await wake.wait()
    finally:
        _close(fds, fds)


class _Reader:
    """Turns the bytes of files into entries; knows how far it came in the last one."""

    def __init__(self, since: float | None) -> None:
        self.offset = 0
        self.inode = 0
        self._since = None if since is None else runlog.stamp(since)

    async def batches(self, fd: int, offset: int) -> AsyncIterator[list[Entry]]:
        """The entries from ``offset`` on, up to the last whole line."""
        self.inode, self.offset = os.fstat(fd).st_ino, offset
        while True:
            with translated("reading a log"):
                data = os.pread(fd, BATCH_BYTES, self.offset)
            end = data.rfind(b"\n") + 1
            if not end:
                if len(data) < BATCH_BYTES:
                    return
                end = len(data)  # no line is that long: torn, and skipped
            entries = [entry for line in _lines(data[:end]) if (entry := self._entry(line)) is not None]
            self.offset += end
            if entries:
                yield entries
            await asyncio.sleep(0)

    def _entry(self, line: bytes) -> Entry | None:
        # Stamps are of one width, so they compare as text.
        if self._since is not None and line[:_STAMP_BYTES] < self._since:
            return None
        return runlog.decode(line)


def _open_newer(directory: Path, inode: int = 0) -> list[int]:
    """Descriptors of the log's files that are newer than the one with this inode, oldest first; all of them for 0.

    Opened newest first, so that a rotation in between neither hides a file nor, inodes compared, doubles one.
    """
    found: dict[int, int] = {}
    for number in itertools.count():
        fd = _open(directory / (f"log.{number}" if number else "log"))
        if fd is None:
            if number:
                break
            continue
        found_inode = os.fstat(fd).st_ino
        if found_inode == inode or found_inode in found:
            os.close(fd)
            if found_inode == inode:
                break
        else:
            found[found_inode] = fd
    return list(reversed(found.values()))


def _open(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # not there, or a symbolic link
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _close(fds: list[int], done: Sequence[int]) -> None:
    for fd in tuple(done):
        fds.remove(fd)
        os.close(fd)


async def _starts(fds: Sequence[int], selection: Selection) -> list[tuple[int, int]]:
    """Where to begin: every file with something wanted, and the newest, each with an offset; oldest first."""
    if selection.tail is not None:
        index, offset = await _tail(fds, selection.tail)
        return [(fd, 0 if number else offset) for number, fd in enumerate(fds[index:])]
    since = selection.since
    return [(fd, 0) for fd in fds if since is None or fd == fds[-1] or os.fstat(fd).st_mtime >= since]


async def _tail(fds: Sequence[int], lines: int) -> tuple[int, int]:
    """Index and offset at which the last ``lines`` lines begin. Pieces belong to the line that they are of."""
    seen = 0
    is_newest = True
    for index in range(len(fds) - 1, -1, -1):
        async for offset, line in _backwards(fds[index]):
            entry = runlog.decode(line)
            if entry is None:
                continue
            seen += is_newest or not entry.partial
            is_newest = False
            if seen > lines:
                return index, offset + len(line)
    return 0, 0


async def _backwards(fd: int) -> AsyncIterator[tuple[int, bytes]]:
    """The lines of a file with their offsets, last first."""
    end, rest = os.fstat(fd).st_size, b""
    while end > 0:
        start = max(0, end - BATCH_BYTES)
        with translated("reading a log"):
            data = os.pread(fd, end - start, start) + rest
        lines = _lines(data)
        rest = lines.pop(0) if start else b""
        offset = start + len(data)
        for line in reversed(lines):
            offset -= len(line)
            yield offset, line
        if len(rest) > 2 * BATCH_BYTES:
            rest = b""  # no line is that long: torn
        end = start
        await asyncio.sleep(0)


def _lines(data: bytes) -> list[bytes]:
    # splitlines() would split at carriage returns too.
    parts = data.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines
