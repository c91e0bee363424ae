"""What passes on LANs: counters of LANs and of containers' NICs, and captures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from nestbed.lan.contract import CaptureStream
from nestbed.lanmodel import CaptureRequest, LanStats, Nic, PortStats
from nestbed.model import Stats
from nestbed.node.nics import only_nic
from nestbed.node.parts import Parts
from nestbed.node.registry import Held
from nestbed.node.segment import Segment


async def lan_stats(parts: Parts, segments: Sequence[Segment]) -> list[LanStats]:
    """The counters of these LANs and of their members' ports."""
    counters = await parts.plane.counters([segment.lan for segment in segments])
    members = [segment.members for segment in segments]
    ports = await parts.plane.port_counters([member.nic.port for group in members for member in group])
    at = time.time()
    return [
        LanStats(at, segment.lan, counted, tuple((member, ports[member.nic.port]) for member in group if member.nic.port in ports))
        for segment, counted, group in zip(segments, counters, members, strict=True)
    ]


async def add_classes(parts: Parts, nics: Sequence[Nic], used: Stats) -> Stats:
    """``used``, of the container with these NICs, with what the LAN plane tells of each."""
    counted = await parts.plane.port_counters([nic.port for nic in nics])
    by_name = {nic.name: counted[nic.port] for nic in nics if nic.port in counted}
    if not by_name:
        return used
    return dataclasses.replace(
        used,
        nics=tuple(
            dataclasses.replace(
                each,
                rx_classes=port.rx.classes,
                tx_classes=port.tx.classes,
                rx_drop_reasons=port.rx.drops,
                tx_drop_reasons=port.tx.drops,
            )
            for each in used.nics
            for port in (by_name.get(each.name, PortStats("")),)
        ),
    )


async def capture_lan(parts: Parts, segment: Segment, request: CaptureRequest) -> CaptureStream:
    """A pcapng file of the LAN's frames; see ``LanPlane.capture``."""
    return await parts.plane.capture(segment.lan.bridge, segment.lan.name, request)


async def capture_nic(parts: Parts, held: Held, nic_name: str, request: CaptureRequest) -> CaptureStream:
    """A pcapng file of the frames of a container's NIC, called ``CONTAINER:NIC`` in it."""
    nic = only_nic(held, nic_name)
    return await parts.plane.capture(nic.port, f"{held.spec.name}:{nic.name}", request)
