"""Blocks of a pcapng file with one interface (draft-ietf-opsawg-pcapng-02), little-endian, times in nanoseconds. Pure."""

from __future__ import annotations

import struct

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER = 0x1A2B3C4D
_LENGTH_UNKNOWN = -1
_LINKTYPE_ETHERNET = 1
_TIME_IN_NANOSECONDS = 9
_PACKET_HEADER = struct.Struct("<7I")
_PADS = (b"", b"\0\0\0", b"\0\0", b"\0")
_TRAILERS = (struct.Struct("<I"), struct.Struct("<3xI"), struct.Struct("<2xI"), struct.Struct("<xI"))
"""The padding of a frame and the length after it, by how much the frame is longer than a multiple of 4."""


def section(application: str) -> bytes:
    """The block that begins a file (section 4.1); ``application`` is what wrote it."""
    return _block(_SECTION, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, _LENGTH_UNKNOWN), [(4, application.encode())])


def interface(name: str, *, snap_bytes: int, expression: str, description: str) -> bytes:
    """The block that describes the interface (section 4.2); a ``snap_bytes`` of 0 is without bound."""
    options = [(2, name.encode()), (3, description.encode()), (9, bytes([_TIME_IN_NANOSECONDS]))]
    if expression:
        options.append((11, b"\0" + expression.encode()))
    return _block(_INTERFACE, struct.pack("<HHI", _LINKTYPE_ETHERNET, 0, snap_bytes), options)


def packet(at_ns: int, length: int, data: bytes) -> bytes:
    """The block of one frame (section 4.3), of which ``data`` is kept of ``length`` bytes."""
    kept = len(data)
    size = 32 + kept + (-kept & 3)
    header = _PACKET_HEADER.pack(_PACKET, size, 0, at_ns >> 32, at_ns & 0xFFFFFFFF, kept, length)
    return header + data + _TRAILERS[kept & 3].pack(size)


def statistics(at_ns: int, started_ns: int, *, received: int, dropped: int, written: int) -> bytes:
    """The block of counters since the beginning (section 4.6): frames that passed the filter, those of them that were lost, those written.

    The loss stands in both places where programs look for it: as the interface's and as the system's.
    """
    times = [(number, struct.pack("<II", at >> 32, at & 0xFFFFFFFF)) for number, at in ((2, started_ns), (3, at_ns))]
    counts = [
        (number, struct.pack("<Q", count)) for number, count in ((4, received), (5, dropped), (6, received), (7, dropped), (8, written))
    ]
    return _block(_STATISTICS, struct.pack("<III", 0, at_ns >> 32, at_ns & 0xFFFFFFFF), times + counts)


def _block(kind: int, body: bytes, options: list[tuple[int, bytes]]) -> bytes:
    for number, value in options:
        body += struct.pack("<HH", number, len(value)) + value + _PADS[len(value) & 3]
    body += b"\0\0\0\0"
    size = len(body) + 12
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)
