"""The node's unix sockets: accepts, asks the kernel who it is, and relays bytes to gRPC's inner socket.

gRPC in Python shows no peer credentials, so nobody reaches it directly: the inner socket lies in a file system that is mounted nowhere
(``nestbed.service.server``). A connection costs two system calls per piece of data and direction, no task, and at most
``CHUNK_BYTES`` of memory in each direction: who does not read holds up who writes.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from nestbed.errors import AlreadyExists, NestbedError, ResourceExhausted, translated
from nestbed.log import fields
from nestbed.service import identity
from nestbed.service.peer import Home, Peer, admit

logger = logging.getLogger(__name__)

CHUNK_BYTES = 64 * 1024
BACKLOG = 4096
ACCEPTS_PER_TURN = 64
CONNECTIONS_MAX = 4096
DESCRIPTORS_PER_CONNECTION = 3
"""The caller's, ours to gRPC, and gRPC's own."""

_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Gate:
    """One listening socket at ``path``, with ``mode`` and group ``gid``, in front of gRPC's inner socket.

    ``inner`` is the folder of the inner socket as an absolute path, ``inner_name`` the socket's name in it. Used in one event loop.
    """

    def __init__(self, path: Path, *, mode: int, gid: int, inner: str, inner_name: str, connections_max: int = CONNECTIONS_MAX) -> None:
        self._path = path
        self._mode = mode
        self._gid = gid
        self._inner = inner
        self._inner_name = inner_name
        self._connections_max = connections_max
        self._home = Home.own()
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self._relays: set[Relay] = set()
        self._per_user: Counter[int] = Counter()
        self._serial = 0
        self._is_accepting = False
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Take the place of whatever dead daemon's socket is at the path, and accept.

        The caller holds the run directory's lock, so no living daemon's socket can be there. The socket appears with its mode and
        owner, listening, in one step.

        Raises:
            AlreadyExists: something that is no socket is at the path.
            NestbedError: as the file system says.
        """
        with translated(f"making the socket {self._path}", path=self._path):
            folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                self._place(folder, listener)
            except BaseException:
                listener.close()
                raise
            finally:
                os.close(folder)
        self._listener = listener
        self._resume()

    def _place(self, folder: int, listener: socket.socket) -> None:
        name, new = self._path.name, f".{self._path.name}.new"
        if not _is_socket_or_absent(folder, name):
            raise AlreadyExists(
                f"{self._path} is in the way and is no socket", reason="NOT_A_SOCKET", remedy="move it away", path=self._path
            )
        _unlink(folder, new)
        # Through the descriptor: the path itself may be longer than a socket address.
        listener.bind(f"/proc/self/fd/{folder}/{new}")
        os.chown(new, 0, self._gid, dir_fd=folder, follow_symlinks=False)
        os.chmod(new, self._mode, dir_fd=folder)
        listener.listen(BACKLOG)
        os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)

    def shut(self) -> None:
        """Accept no more, and take the socket away. Connections go on. Idempotent."""
        if self._listener is None:
            return
        self._pause()
        self._listener.close()
        self._listener = None
        with translated(f"removing the socket {self._path}", path=self._path):
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Shut it, and end every connection. Idempotent."""
        self.shut()
        for relay in tuple(self._relays):
            relay.close()

    # ------------------------------------------------------------ accepting

    def _resume(self) -> None:
        if self._listener is not None and not self._is_accepting:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)
            self._is_accepting = True

    def _pause(self) -> None:
        if self._listener is not None and self._is_accepting:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._is_accepting = False

    def _accept(self) -> None:
        """Take what waits, a bounded number at a turn; callers beyond the bound stay in the kernel's queue."""
        assert self._listener is not None
        for _ in range(ACCEPTS_PER_TURN):
            if len(self._relays) >= self._connections_max:
                self._pause()  # the next connection to end resumes
                return
            try:
                connection, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    logger.warning("no descriptor for a connection", extra=fields(cause=str(error)))
                    self._pause()
                    asyncio.get_running_loop().call_later(1.0, self._resume)
                    return
                continue  # it went away while it waited
            self._greet(connection)

    def _greet(self, connection: socket.socket) -> None:
        try:
            peer = admit(connection, self._home)
            self._bound(peer)
            with translated("reaching gRPC's inner socket"):
                inner = self._connect(peer)
        except NestbedError as error:
            connection.close()
            logger.warning("connection refused", extra=fields(socket=self._path.name, cause=error.message, **error.metadata))
            return
        connection.setblocking(False)
        self._per_user[peer.uid] += 1
        relay = Relay(connection, inner, self._buffer, lambda relay: self._ended(relay, peer.uid))
        self._relays.add(relay)
        relay.open()

    def _bound(self, peer: Peer) -> None:
        """No user but root may take more than half of the connections."""
        if peer.uid and self._per_user[peer.uid] >= self._connections_max // 2:
            raise ResourceExhausted(
                f"user {peer.uid} has {self._per_user[peer.uid]} connections", reason="CONNECTIONS", remedy="close some", uid=peer.uid
            )

    def _connect(self, peer: Peer) -> socket.socket:
        """A connection to gRPC that carries the peer's identity as its name; the name's file is needed for a moment only."""
        self._serial += 1
        name = f"{self._inner}/{identity.inner_name(peer.uid, peer.pid, self._serial)}"
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            inner.bind(name)
            os.unlink(name)
            inner.connect(f"{self._inner}/{self._inner_name}")
        except BaseException:
            inner.close()
            raise
        return inner

    def _ended(self, relay: Relay, uid: int) -> None:
        self._relays.discard(relay)
        self._per_user[uid] -= 1
        if not self._per_user[uid]:
            del self._per_user[uid]
        self._resume()


class Relay:
    """Bytes between two connected sockets, both ways, until both have ended or one failed. Owns the sockets; calls ``ended`` once."""

    def __init__(self, outer: socket.socket, inner: socket.socket, buffer: memoryview, ended: Callable[[Relay], None]) -> None:
        self._sockets = (outer, inner)
        self._ways = (_Way(outer, inner, buffer, self), _Way(inner, outer, buffer, self))
        self._ended = ended
        self._is_open = True

    def open(self) -> None:
        """Begin."""
        for way in self._ways:
            way.read()

    def close(self) -> None:
        """End now; what is under way is lost. Idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        loop = asyncio.get_running_loop()
        for end in self._sockets:
            loop.remove_reader(end)
            loop.remove_writer(end)
            end.close()
        self._ended(self)

    def settle(self) -> None:
        """Close if both ways have ended."""
        if all(way.has_ended for way in self._ways):
            self.close()


class _Way:
    """One direction. Reading stops while a rest waits to be written, so at most one buffer's worth is held."""

    __slots__ = ("_buffer", "_loop", "_relay", "_rest", "_sink", "_source", "has_ended")

    def __init__(self, source: socket.socket, sink: socket.socket, buffer: memoryview, relay: Relay) -> None:
        self._source = source
        self._sink = sink
        self._buffer = buffer
        self._relay = relay
        self._rest = memoryview(b"")
        self._loop = asyncio.get_running_loop()
        self.has_ended = False

    def read(self) -> None:
        """Wait for data."""
        self._loop.add_reader(self._source, self._readable)

    def _readable(self) -> None:
        try:
            count = self._source.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            self._relay.close()
            return
        if not count:
            self._end()
            return
        sent = self._send(self._buffer[:count])
        if 0 <= sent < count:
            self._rest = memoryview(bytes(self._buffer[sent:count]))
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._writable)

    def _writable(self) -> None:
        sent = self._send(self._rest)
        if sent < 0:
            return
        self._rest = self._rest[sent:]
        if not self._rest:
            self._loop.remove_writer(self._sink)
            self.read()

    def _send(self, data: memoryview) -> int:
        """How much the sink took; -1 if it failed, and the relay is closed."""
        try:
            return self._sink.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._relay.close()
            return -1

    def _end(self) -> None:
        """Pass the end of the stream on; the other way may go on."""
        self._loop.remove_reader(self._source)
        self.has_ended = True
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._relay.close()
            return
        self._relay.settle()


def _is_socket_or_absent(folder: int, name: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return True


def _unlink(folder: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return


def connections_max(descriptors: int) -> int:
    """How many connections a gate may hold, of two gates and a limit of ``descriptors``: half of them stay for containers."""
    return max(16, min(CONNECTIONS_MAX, descriptors // (2 * 2 * DESCRIPTORS_PER_CONNECTION)))
