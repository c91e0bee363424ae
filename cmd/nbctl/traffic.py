"""Counters of frames as tables: one line for each direction of a port or LAN."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nestbed.v1.container_pb2 import ContainerStats
    from nestbed.v1.lan_pb2 import LanStats
    from nestbed.v1.traffic_pb2 import ClassCount, DropCount

CLASSES = ("ipv4", "ipv6", "arp", "tcp", "udp", "icmp", "multicast", "broadcast", "other")
_FIGURES = ("FRAMES", "BYTES", *(name.upper() for name in CLASSES), "DROPPED")
LAN_HEADINGS = ("LAN", "PORT", "WAY", *_FIGURES)
NIC_HEADINGS = ("NAME", "NIC", "LAN", "WAY", *_FIGURES)


def lan_rows(stats: Iterable[LanStats]) -> Iterator[Sequence[str]]:
    """For each LAN what it exchanged with other machines, then its ports, as the containers see it."""
    for lan in stats:
        if lan.HasField("received"):
            for way, traffic in (("received", lan.received), ("sent", lan.sent)):
                yield lan.name, "(others)", way, *_figures(traffic.frames, traffic.bytes, traffic.classes, traffic.drops)
        for port in lan.ports:
            for way, traffic in (("rx", port.rx), ("tx", port.tx)):
                figures = _figures(traffic.frames, traffic.bytes, traffic.classes, traffic.drops)
                yield lan.name, f"{port.container}:{port.nic}", way, *figures


def nic_rows(stats: Iterable[ContainerStats]) -> Iterator[Sequence[str]]:
    """For each NIC of each container both ways."""
    for container in stats:
        for nic in container.nics:
            name = (container.name, nic.name, nic.lan)
            received, sent = _drops(nic.rx_drop_reasons, nic.rx_drops), _drops(nic.tx_drop_reasons, nic.tx_drops)
            yield *name, "rx", str(nic.rx_frames), str(nic.rx_bytes), *_classes(nic.rx_classes), received
            yield *name, "tx", str(nic.tx_frames), str(nic.tx_bytes), *_classes(nic.tx_classes), sent


def _figures(frames: int, size: int, classes: Sequence[ClassCount], drops: Sequence[DropCount]) -> Iterator[str]:
    yield str(frames)
    yield str(size)
    yield from _classes(classes)
    yield _drops(drops, 0)


def _classes(counts: Sequence[ClassCount]) -> Iterator[str]:
    """Frames of each class; a dash where this kernel does not count them."""
    by_name = {count.name: count.frames for count in counts}
    return (str(by_name.get(name, 0)) if counts else "-" for name in CLASSES)


def _drops(reasons: Sequence[DropCount], by_kernel: int) -> str:
    """``12 (loss 10, queue 2)``; what the kernel itself dropped has no reason."""
    named = [f"{drop.reason} {drop.frames}" for drop in reasons if drop.frames]
    total = by_kernel + sum(drop.frames for drop in reasons)
    return f"{total} ({', '.join(named)})" if named else str(total)
