"""What a container writes: from its pipes or terminal into its log, and to whoever is attached."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from nestbed import runlog
from nestbed.process.inflight import Inflight, Piece

CHUNK_BYTES = 16 * 1024
"""Read at once. Of the shortest lines that is 3 ms of work, during which nothing else is served."""

Watch = Callable[[int, Callable[[], object] | None], None]


class Journal:
    """The log of one container: ``log`` in its bundle, rotated by size. A full disk loses output, counted, and harms nobody."""

    def __init__(self, bundle: str, inflight: Inflight, *, bytes_max: int, files: int) -> None:
        """``bundle`` is the directory; files are opened when there is something to write. ``inflight`` is told where that goes."""
        self._bundle = bundle
        self._inflight = inflight
        self._bytes_max = max(bytes_max, 4096)
        self._files = max(files, 1)
        self._fd = -1
        self._inode = 0
        self._size = 0
        self.bytes_lost = 0

    def write(self, stream: int, data: bytes) -> None:
        """Append what was read from ``stream`` now. Never raises for a disk that does not take it."""
        entries = runlog.encode(time.time(), stream, data)
        try:
            if self._fd < 0:
                self._open()
            elif self._size and self._size + len(entries) > self._bytes_max:
                self._rotate()
            self._inflight.goes_to(self._inode, self._size)
            written = os.write(self._fd, entries)
            self._size += written
            if written < len(entries):  # the disk is full: half a line is worse than none
                self._size -= written
                os.ftruncate(self._fd, self._size)
                self.bytes_lost += len(data)
        except OSError:
            self.bytes_lost += len(data)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(f"{self._bundle}/log", flags, 0o600)
        shape = os.fstat(fd)
        if not stat.S_ISREG(shape.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "the log is no regular file")
        self._fd, self._inode, self._size = fd, shape.st_ino, shape.st_size

    def write_again(self, piece: Piece) -> None:
        """As :meth:`write`, for what an earlier keeper had in flight: all, a part, or nothing of it is there already."""
        with suppress(OSError):
            self._open()
            if self._inode == piece.inode and self._size > piece.size:
                os.ftruncate(self._fd, piece.size)
                self._size = piece.size
        self.write(piece.stream, piece.data)

    def _rotate(self) -> None:
        self.close()
        base = f"{self._bundle}/log"
        for number in range(self._files - 1, 0, -1):
            older = base if number == 1 else f"{base}.{number - 1}"
            if os.path.lexists(older):
                os.rename(older, f"{base}.{number}")
        if self._files == 1:
            os.unlink(base)
        self._open()

    def close(self) -> None:
        """Let the file go; a later write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Sink:
    """Someone attached: non-blocking write ends for stdout and stderr, and what they have not yet taken."""

    def __init__(self, fds: dict[int, int], watch_reader: Watch) -> None:
        """``watch_reader(fd, f)`` calls f when the reader of ``fd`` is gone; f None ends that."""
        self.fds = fds
        self.pending: dict[int, bytes] = {}
        self._watch_reader = watch_reader

    def when_deserted(self, handler: Callable[[], object]) -> None:
        """Call ``handler``, and no earlier one, when the reader is gone; also while there is nothing to say."""
        for fd in self.fds.values():
            self._watch_reader(fd, handler)

    def offer(self, stream: int, data: bytes) -> bool:
        """Pass ``data`` on. False when the reader is gone."""
        return self._push(stream, self.pending.get(stream, b"") + data)

    def flush(self) -> bool:
        """Try again what is pending. False when the reader is gone."""
        return False not in [self._push(stream, data) for stream, data in list(self.pending.items())]

    def _push(self, stream: int, data: bytes) -> bool:
        try:
            while data:
                data = data[os.write(self.fds[stream], data) :]
        except BlockingIOError:
            self.pending[stream] = data
            return True
        except OSError:
            return False
        self.pending.pop(stream, None)
        return True

    def close(self) -> None:
        """Close its descriptors: an end of file for the reader."""
        for fd in self.fds.values():
            self._watch_reader(fd, None)
            os.close(fd)
        self.fds.clear()
        self.pending.clear()


class Outlet:
    """Everything a container's output goes through: sources in, journal and sinks out.

    A sink that is full stops the sources until it takes more; so an attached reader slows the program and loses nothing.
    """

    def __init__(self, id: str, journal: Journal, inflight: Inflight, watch: Watch, drain: Watch, lost: Callable[[int], None]) -> None:
        """``watch(fd, f)`` calls f when fd can be read, ``drain(fd, f)`` when it can be written; f None ends that.

        ``id`` is the container's. ``lost`` is told the total of bytes that could not be logged, whenever it grew.
        """
        self._id = id
        self._inflight = inflight
        self.journal = journal
        self.sources: dict[int, int] = {}
        self.sinks: list[Sink] = []
        self._watch = watch
        self._drain = drain
        self._lost = lost
        self._held = False

    def add_source(self, fd: int, stream: int) -> None:
        """Read ``fd`` (owned from now on) as ``stream``, until its end."""
        os.set_blocking(fd, False)
        self.sources[fd] = stream
        if not self._held:
            self._watch(fd, partial(self.pump, fd))

    def add_sink(self, sink: Sink) -> None:
        """Give everything from now on to ``sink`` too."""
        for fd in sink.fds.values():
            os.set_blocking(fd, False)
        self.sinks.append(sink)
        sink.when_deserted(partial(self._desert, sink))

    def pump(self, fd: int) -> bool:
        """Read once from ``fd``. False when there was nothing (more)."""
        stream = self.sources[fd]
        try:
            data = self._inflight.read(fd, self._id, stream)
        except BlockingIOError:
            return False
        except OSError:  # a terminal whose last slave closed reads EIO
            data = b""
        if not data:
            self._inflight.done()
            self._end(fd)
            return False
        lost = self.journal.bytes_lost
        self.journal.write(stream, data)
        self._inflight.done()
        if self.journal.bytes_lost != lost:
            self._lost(self.journal.bytes_lost)
        for sink in list(self.sinks):
            if not sink.offer(stream, data):
                self._drop(sink)
        self._hold()
        return True

    def finish(self) -> None:
        """The program ended: take what is left in the sources, then close everything."""
        for fd in list(self.sources):
            while fd in self.sources and self.pump(fd):
                pass
            if fd in self.sources:
                self._end(fd)
        self.journal.close()
        for sink in list(self.sinks):
            if not sink.pending:
                self._drop(sink)

    def _end(self, fd: int) -> None:
        if not self._held:
            self._watch(fd, None)
        del self.sources[fd]
        os.close(fd)

    def _drop(self, sink: Sink) -> None:
        for stream in sink.pending:
            self._drain(sink.fds[stream], None)
        sink.close()
        if sink in self.sinks:
            self.sinks.remove(sink)

    def _desert(self, sink: Sink) -> None:
        self._drop(sink)
        self._hold()

    def _hold(self) -> None:
        """Stop or resume the sources as the sinks demand."""
        full = [sink for sink in self.sinks if sink.pending]
        for sink in full:
            for stream in sink.pending:
                self._drain(sink.fds[stream], partial(self._resume, sink))
        held = bool(full)
        if held != self._held:
            self._held = held
            for fd in self.sources:
                self._watch(fd, None if held else partial(self.pump, fd))

    def _resume(self, sink: Sink) -> None:
        waiting = list(sink.pending)
        fds = {stream: sink.fds[stream] for stream in waiting}
        alive = sink.flush()
        for stream in waiting:
            if stream not in sink.pending:
                self._drain(fds[stream], None)
        if not alive or (not sink.pending and not self.sources):
            self._drop(sink)
        self._hold()
