"""What the host and the agent in a guest say to each other; ``c/frames.h`` is the specification."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nestbed.model import ExecSpec

HEADER = struct.Struct("<B3xII")
FRAME_BYTES_MAX = 16384
CREDIT_BYTES = 65536
NONCE_BYTES = 16
RESYNC = bytes(HEADER.size + FRAME_BYTES_MAX)
"""Sent before HELLO: ends whatever an earlier host left unfinished."""

STREAM_TTY, STREAM_STDIN = 1, 2


class Type(enum.IntEnum):
    """The types of frames."""

    HELLO = 1
    ARGUMENT = 2
    VARIABLE = 3
    END_OF_WORD = 4
    DIRECTORY = 5
    USER = 6
    STREAMS = 7
    RUN = 8
    INPUT = 9
    END_OF_INPUT = 10
    SIGNAL = 11
    RESIZE = 12
    CREDIT = 13
    CLOSE = 14
    WRITE = 15
    HOSTNAME = 16
    NIC = 17
    POWER_OFF = 18
    MOUNT = 19
    KEEP = 20
    GROUP = 24
    ACCOUNT = 25
    READY = 65
    STARTED = 66
    FAILED = 67
    OUTPUT = 68
    ERRORS = 69
    ENDED = 70
    DONE = 71


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame from the guest. Nothing in it can be trusted but its form."""

    type: int
    channel: int
    payload: bytes

    def number(self, index: int = 0) -> int:
        """The 32-bit number at a position; 0 if the guest left it out."""
        piece = self.payload[4 * index : 4 * index + 4]
        return int.from_bytes(piece, "little") if len(piece) == 4 else 0


def frame(kind: Type, channel: int = 0, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEADER.pack(kind, channel, len(payload)) + payload


def number(kind: Type, channel: int, value: int) -> bytes:
    """A frame with one 32-bit number."""
    return frame(kind, channel, value.to_bytes(4, "little"))


def size(kind: Type, channel: int, rows: int, columns: int) -> bytes:
    """A frame with the size of a terminal."""
    return frame(kind, channel, struct.pack("<HH", *(min(max(value, 0), 0xFFFF) for value in (rows, columns))))


def pieces(data: bytes) -> Iterator[bytes]:
    """``data`` in pieces that fit into a frame; one empty piece if there is none."""
    for start in range(0, max(len(data), 1), FRAME_BYTES_MAX):
        yield data[start : start + FRAME_BYTES_MAX]


def keep(channel: int, program: ExecSpec) -> bytes:
    """The frames that start a program which is started again whenever it ends."""
    return b"".join((*_words(Type.ARGUMENT, channel, program.args), frame(Type.KEEP, channel)))


def run(channel: int, program: ExecSpec) -> bytes:
    """The frames that start a program."""
    flags = (STREAM_TTY if program.tty else 0) | (STREAM_STDIN if program.stdin else 0)
    return b"".join(
        (
            *_words(Type.ARGUMENT, channel, program.args),
            *_words(Type.VARIABLE, channel, (f"{name}={value}" for name, value in program.env)),
            *([frame(Type.DIRECTORY, channel, program.cwd.encode())] if program.cwd else []),
            *([frame(Type.USER, channel, program.user.encode())] if program.user else []),
            frame(Type.STREAMS, channel, struct.pack("<HHH", flags, program.rows & 0xFFFF, program.columns & 0xFFFF)),
            frame(Type.RUN, channel),
        )
    )


def _words(kind: Type, channel: int, words: Iterable[str]) -> Iterator[bytes]:
    for word in words:
        yield from (frame(kind, channel, piece) for piece in pieces(word.encode(errors="surrogateescape")))
        yield frame(Type.END_OF_WORD, channel)


def write(channel: int, path: str, content: bytes, mode: int = 0o644) -> bytes:
    """The frame that replaces a small file's content: path and content must fit into one frame."""
    return frame(Type.WRITE, channel, mode.to_bytes(4, "little") + path.encode() + b"\0" + content)


def mount(channel: int, tag: str, path: str, *, read_only: bool) -> bytes:
    """The frame that mounts a file system the machine has as ``tag``."""
    words = (tag, "ro" if read_only else "rw", path)
    return frame(Type.MOUNT, channel, b"".join(word.encode() + b"\0" for word in words))


def nic(channel: int, *, mac: str, name: str, mtu: int, addresses: Iterable[str], routes: Iterable[tuple[str, str]]) -> bytes:
    """The frame that names and configures an interface."""
    words = [mac, name, str(mtu), *addresses, "", *(word for route in routes for word in route)]
    return frame(Type.NIC, channel, b"".join(word.encode() + b"\0" for word in words))


def words(kind: Type, channel: int, *texts: str) -> bytes:
    """A frame of words that end with 0 each."""
    return frame(kind, channel, b"".join(text.encode(errors="surrogateescape") + b"\0" for text in texts))


class Parser:
    """Frames out of a stream, as ``next_frame`` of ``c/frames.h`` finds them. Never holds more than the longest frame and one read."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """What is complete now."""
        self._data += data
        found, at, end = [], 0, len(self._data)
        while at < end:
            if self._data[at] == 0:
                at += 1
                continue
            if end - at < HEADER.size:
                break
            kind, channel, length = HEADER.unpack_from(self._data, at)
            if length > FRAME_BYTES_MAX:
                at += 1
                continue
            if end - at < HEADER.size + length:
                break
            start = at + HEADER.size
            found.append(Frame(kind, channel, bytes(self._data[start : start + length])))
            at = start + length
        del self._data[:at]
        return found
