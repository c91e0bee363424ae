"""Hearing oneself: datagrams of our own that come in on another underlay than they went out on. The two are one segment then.

IP drops such datagrams unseen, because their source is an address of this machine (``ip_mc_validate_source`` of net/ipv4/route.c), so a
packet(7) socket listens, whose filter lets nothing else through.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

_ETH_P_IP = 0x0800
_SO_ATTACH_FILTER = 26
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_LD_WORD, _JEQ, _RET = 0x20, 0x15, 0x06
_SOURCE_AT, _DESTINATION_AT = 12, 16
_SHOWN_BYTES = 20
_INSTRUCTION = struct.Struct("=HBBI")


def open_ear(interface: str, group: str, addresses: Sequence[str]) -> socket.socket:
    """A non-blocking socket that hears what comes in on the interface for the group from one of these addresses (OSError)."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        program = _filter(_number(group), [_number(address) for address in addresses])
        buffer = ctypes.create_string_buffer(program, len(program))
        descriptor = struct.pack("=H6xQ", len(program) // _INSTRUCTION.size, ctypes.addressof(buffer))  # struct sock_fprog
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)
        sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        sock.bind((interface, _ETH_P_IP))
    except BaseException:
        sock.close()
        raise
    return sock


def source_of(packet: bytes) -> str:
    """Who sent what was heard."""
    return socket.inet_ntoa(packet[_SOURCE_AT : _SOURCE_AT + 4])


def _filter(group: int, sources: Sequence[int]) -> bytes:
    """Classic BPF (Documentation/networking/filter.rst): for the group, and from one of the sources."""
    program = [
        (_LD_WORD, 0, 0, _DESTINATION_AT),
        (_JEQ, 0, len(sources) + 1, group),
        (_LD_WORD, 0, 0, _SOURCE_AT),
        *((_JEQ, len(sources) - at, 0, source) for at, source in enumerate(sources)),
        (_RET, 0, 0, 0),
        (_RET, 0, 0, _SHOWN_BYTES),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def _number(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big")
