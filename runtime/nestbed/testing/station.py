"""Who speaks on a LAN in tests: frames, byte by byte, inside a network namespace; and datagrams of a stock member of a group."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator

from nestbed.linux.namespace import CLONE_NEWNET, setns

FRAME_BYTES_MAX = 65536
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_SO_RCVBUFFORCE = 33
_IP_RECVTTL = 12
_PACKET_OUTGOING = 4
_TP_STATUS_VLAN_VALID, _TP_STATUS_VLAN_TPID_VALID = 1 << 4, 1 << 6
_AUXDATA = struct.Struct("=IIIHHHH")


@contextlib.contextmanager
def entered(namespace: str | int) -> Iterator[None]:
    """Be in a network namespace (a path or descriptor), with this thread, for the block."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC) if isinstance(namespace, str) else os.dup(namespace)
    try:
        setns(target, CLONE_NEWNET)
        yield
    finally:
        setns(own, CLONE_NEWNET)
        os.close(own)
        os.close(target)


class Station:
    """A station on a LAN that sends and receives whole frames, by a packet(7) socket on an interface of a network namespace."""

    def __init__(self, namespace: str | int, interface: str = "eth0") -> None:
        with entered(namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(_ETH_P_ALL))
        self._socket.bind((interface, _ETH_P_ALL))
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
        self.mac: bytes = self._socket.getsockname()[4]

    def send(self, frame: bytes) -> None:
        """Put a frame on the LAN as it is."""
        self._socket.send(frame)

    def receive(self, timeout_seconds: float = 2.0) -> bytes | None:
        """The next frame that arrives, with its tag in it; None if none comes in time. What others of this host send is passed over."""
        deadline = time.monotonic() + timeout_seconds
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                frame, control, _, address = self._socket.recvmsg(FRAME_BYTES_MAX, 256)
            except TimeoutError:
                return None
            if address[2] != _PACKET_OUTGOING:
                return _tagged(frame, control)
        return None

    def expect(self, frame: bytes, timeout_seconds: float = 2.0) -> bool:
        """Whether exactly this frame arrives; others before it are passed over."""
        deadline = time.monotonic() + timeout_seconds
        while (left := deadline - time.monotonic()) > 0:
            if self.receive(left) == frame:
                return True
        return False

    def drain(self) -> list[bytes]:
        """Every frame that has arrived."""
        frames = []
        while (frame := self.receive(0.05)) is not None:
            frames.append(frame)
        return frames

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()


class Member:
    """A stock member of a group, as QEMU's ``-netdev socket,mcast=GROUP,localaddr=ADDRESS``: one frame a datagram."""

    def __init__(self, namespace: str | int, group: str, address: str) -> None:
        host, _, port = group.rpartition(":")
        self._group = (host, int(port))
        with entered(namespace):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
        self._socket.bind(self._group)
        for sock in (self._socket, self._raw):
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(host) + socket.inet_aton(address))
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
        self.address = address

    def send(self, frame: bytes) -> None:
        """Send a frame to the group."""
        self._socket.sendto(frame, self._group)

    def send_raw(self, source: str, datagram: bytes, *, options: bytes = b"", fragment: int = 0, ttl: int = 1) -> None:
        """Send an IPv4 packet to the group with any source, IP options and fragment field; ``datagram`` begins with UDP's header."""
        head = struct.pack(
            "!BBHHHBBH4s4s",
            0x45 + len(options) // 4, 0, 20 + len(options) + len(datagram), 1, fragment, ttl, 17, 0,
            socket.inet_aton(source), socket.inet_aton(self._group[0]),
        )  # fmt: skip
        self._raw.sendto(head + options + datagram, (self._group[0], 0))

    def udp(self, frame: bytes, *, length: int | None = None) -> bytes:
        """A UDP header without checksum and the frame; ``length`` is what the header says, if not the truth."""
        return struct.pack("!HHHH", 40000, self._group[1], 8 + len(frame) if length is None else length, 0) + frame

    def receive(self, timeout_seconds: float = 2.0) -> tuple[bytes, tuple[str, int], int] | None:
        """The next datagram, who sent it, and its TTL; None if none comes in time. Its own come too."""
        self._socket.settimeout(timeout_seconds)
        try:
            frame, control, _, sender = self._socket.recvmsg(FRAME_BYTES_MAX, 256)
        except TimeoutError:
            return None
        ttl = next((int.from_bytes(data[:4], "little") for _, kind, data in control if kind == socket.IP_TTL), 0)
        return frame, sender, ttl

    def expect(self, frame: bytes, timeout_seconds: float = 2.0) -> tuple[tuple[str, int], int] | None:
        """Who sent exactly this frame, and its TTL; None if it does not come. Others before it are passed over."""
        deadline = time.monotonic() + timeout_seconds
        while (left := deadline - time.monotonic()) > 0:
            found = self.receive(left)
            if found is not None and found[0] == frame:
                return found[1], found[2]
        return None

    def close(self) -> None:
        """Leave the group. Idempotent."""
        self._socket.close()
        self._raw.close()


def _tagged(frame: bytes, control: list[tuple[int, int, bytes]]) -> bytes:
    for level, kind, data in control:
        if level == _SOL_PACKET and kind == _PACKET_AUXDATA:
            status, _, _, _, _, tci, tpid = _AUXDATA.unpack_from(data)
            if status & _TP_STATUS_VLAN_VALID:
                return frame[:12] + struct.pack("!HH", tpid if status & _TP_STATUS_VLAN_TPID_VALID else 0x8100, tci) + frame[12:]
    return frame
