"""Frames as the relay tells them apart: the same classes, by the same rules, as ``bpf/traffic.h``. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from nestbed.lan.relay.tally import CLASSES_AT
from nestbed.lanmodel import TRAFFIC_CLASSES

HEADER_BYTES = 14
TAG_BYTES, TAGS_MAX = 4, 2

_IPV4, _IPV6, _ARP, _VLAN, _SERVICE_VLAN = b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00", b"\x88\xa8"
_TRANSPORTS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
_BROADCAST = b"\xff" * 6
_HOP_BY_HOP = 0


def _cells(*classes: str) -> tuple[int, ...]:
    """Where the counts of frames of these classes are; those of bytes follow each."""
    return tuple(CLASSES_AT + 2 * TRAFFIC_CLASSES.index(name) for name in classes)


def _with_transport(network: str, protocol: int) -> tuple[int, ...]:
    return _cells(network, _TRANSPORTS[protocol]) if protocol in _TRANSPORTS else _cells(network)


_OF_IPV4 = tuple(_with_transport("ipv4", protocol) for protocol in range(256))
_OF_IPV6 = tuple(_with_transport("ipv6", protocol) for protocol in range(256))
_OF_ARP, _OF_OTHER = _cells("arp"), _cells("other")
_OF_BROADCAST, _OF_MULTICAST = _cells("broadcast"), _cells("multicast")


def cells_of(frame: bytes) -> tuple[int, ...]:
    """Which cells of ``struct traffic`` count a frame of at least HEADER_BYTES, beside that of all frames."""
    kind = frame[12:14]
    if kind == _IPV4 and not frame[0] & 1 and len(frame) > 23:
        return _OF_IPV4[frame[23]]
    if kind == _IPV4:
        network = _OF_IPV4[frame[23]] if len(frame) > 23 else _OF_IPV4[255]
    elif kind == _IPV6 and len(frame) > 20 and frame[20] != _HOP_BY_HOP:
        network = _OF_IPV6[frame[20]]
    else:
        network = _behind_tags(frame)
    if frame[0] & 1:
        return network + (_OF_BROADCAST if frame.startswith(_BROADCAST) else _OF_MULTICAST)
    return network


def _behind_tags(frame: bytes) -> tuple[int, ...]:
    at, kind = HEADER_BYTES, frame[12:14]
    for _ in range(TAGS_MAX):
        if kind not in (_VLAN, _SERVICE_VLAN) or len(frame) < at + TAG_BYTES:
            break
        kind = frame[at + 2 : at + 4]
        at += TAG_BYTES
    if kind == _IPV4:
        return _OF_IPV4[frame[at + 9]] if len(frame) > at + 9 else _OF_IPV4[255]
    if kind == _IPV6:
        return _OF_IPV6[_next_header(frame, at)]
    return _OF_ARP if kind == _ARP else _OF_OTHER


def header_bytes(frame: bytes) -> int:
    """The length of the Ethernet header with up to two VLAN tags."""
    at = HEADER_BYTES
    while at < HEADER_BYTES + TAGS_MAX * TAG_BYTES and frame[at - 2 : at] in (_VLAN, _SERVICE_VLAN):
        at += TAG_BYTES
    return at


def _next_header(frame: bytes, at: int) -> int:
    """The transport of an IPv6 packet, behind the one extension header that ordinary traffic has: MLD's router alert."""
    if len(frame) <= at + 6:
        return 255
    protocol = frame[at + 6]
    return frame[at + 40] if protocol == _HOP_BY_HOP and len(frame) > at + 41 else protocol


def count(cells: memoryview, base: int, batch: Iterable[bytes]) -> None:
    """Add frames to the ``struct traffic`` that begins at ``base``: most of a batch are of one kind, so it is added up beforehand."""
    found: dict[tuple[int, ...], list[int]] = {}
    for frame in batch:
        kind = cells_of(frame)
        sums = found.get(kind)
        if sums is None:
            found[kind] = [1, len(frame)]
        else:
            sums[0] += 1
            sums[1] += len(frame)
    for kind, (number, size) in found.items():
        cells[base] += number
        cells[base + 1] += size
        for cell in kind:
            cells[base + cell] += number
            cells[base + cell + 1] += size
