"""Reports of IPv6 multicast listeners on a LAN: who hears them, and that all other frames about groups pass."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from nestbed.lan.addressing import bridge_name, port_name
from nestbed.lan.plane import Plane
from nestbed.lanmodel import Lan, Nic
from nestbed.linux.rtnl import Rtnl
from nestbed.process.ports import Ports
from nestbed.testing.machine import Machine
from nestbed.testing.station import Station

NODE = "0123abcd"
LAN = Lan("6c616e300000", "lan0", bridge_name("6c616e300000"))
ALL_NODES, ALL_MLD_ROUTERS = "ff02::1", "ff02::16"
ONE, MDNS = "ff02::1:ff00:1", "ff02::fb"
QUERY, REPORT, REPORT_V1, DONE = 130, 143, 131, 132
CHANGE_TO_EXCLUDE, ALLOW = 4, 5


def record(group: str, *sources: str, kind: int = CHANGE_TO_EXCLUDE) -> bytes:
    """RFC 3810, section 5.2."""
    packed = (socket.inet_pton(socket.AF_INET6, address) for address in (group, *sources))
    return struct.pack("!BBH", kind, 0, len(sources)) + b"".join(packed)


def mld(source_mac: bytes, kind: int, destination: str, body: bytes) -> bytes:
    """A frame of MLD, with its router alert; the checksum is left out, which is of no interest on the way."""
    message = struct.pack("!BBHH", kind, 0, 0, 0) + body
    option = bytes([58, 0, 5, 2, 0, 0, 1, 0])
    packed = socket.inet_pton(socket.AF_INET6, destination)
    header = struct.pack("!IHBB", 6 << 28, len(option) + len(message), 0, 1) + socket.inet_pton(socket.AF_INET6, "fe80::1") + packed
    return b"\x33\x33" + packed[12:] + source_mac + b"\x86\xdd" + header + option + message


def report(source_mac: bytes, *records: bytes) -> bytes:
    """RFC 3810, section 5.2."""
    return mld(source_mac, REPORT, ALL_MLD_ROUTERS, struct.pack("!H", len(records)) + b"".join(records))


class Segment:
    """A LAN with two members, ``one`` and ``two``, whose kernels have no IPv6."""

    def __init__(self, node: Machine, one: Machine, two: Machine) -> None:
        self._node, self._machines = node, (one, two)
        node.run_dir.mkdir(parents=True, exist_ok=True)
        self.plane = Plane(node_id=NODE, run_dir=node.run_dir)
        self._ports = Ports(NODE, self.plane)
        self.nics = [
            Nic(LAN.name, LAN.id, "eth0", f"02:00:00:00:00:{number:02x}", (), 1500, port_name(f"{number:012x}", 0), LAN.bridge)
            for number in (1, 2)
        ]

    async def open(self) -> None:
        await self.plane.open(lambda *_: None)
        await self.plane.create(LAN)
        await self.plane.sweep_ports()
        self._ports.open()
        for number, (nic, machine) in enumerate(zip(self.nics, self._machines, strict=True), 1):
            assert machine.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1").returncode == 0
            with machine.entered():
                inside = Rtnl()
            with contextlib.closing(inside):
                self._ports.plug(f"{number:012x}", nic, [], machine.netns_fd, inside)
        self.one, self.two = (Station(machine.netns_fd) for machine in self._machines)

    async def close(self) -> None:
        for station in (self.one, self.two):
            station.close()
        for nic in self.nics:
            self._ports.unplug(nic.port)
        self._ports.close()
        await self.plane.delete(LAN)
        await self.plane.aclose()

    def passed(self, *frames: bytes) -> list[bytes]:
        """Which of these frames, sent by one, reach two."""
        end = b"\xff" * 6 + self.one.mac + b"\x88\xb5" + b"end".ljust(46)
        for frame in (*frames, end):
            self.one.send(frame)
        return list(self._until(end))

    def _until(self, end: bytes) -> Iterator[bytes]:
        while (frame := self.two.receive()) != end:
            assert frame is not None
            yield frame

    async def drops(self) -> dict[str, int]:
        (stats,) = (await self.plane.port_counters([self.nics[0].port])).values()
        return {drop.reason: drop.frames for drop in stats.tx.drops}


@pytest.fixture
async def segment(machines: Callable[[str], Machine]) -> AsyncIterator[Segment]:
    node = machines("node")
    segment = Segment(node, machines("one"), machines("two"))
    with node.entered():
        await segment.open()
        yield segment
        await segment.close()


async def test_reports_of_own_addresses_reach_nobody_who_did_not_ask(segment: Segment) -> None:
    mac = segment.one.mac
    assert segment.passed(report(mac, record(ONE)), report(mac, record(ONE), record("ff02::1:ffff:ffff"))) == []
    assert await segment.drops() == {"unasked": 2}


async def test_whatever_else_is_said_about_groups_passes(segment: Segment) -> None:
    mac = segment.one.mac
    frames = [
        report(mac, record(MDNS)),
        report(mac, record(ONE), record(MDNS)),
        report(mac, record(ONE, "fe80::2", kind=ALLOW)),
        report(mac, record("ff02::1:fe00:1")),
        report(mac, record("ff05::1:ff00:1")),
        report(mac),
        report(mac, *[record(ONE)] * 9),
        report(mac, record(ONE))[:-1],
        mld(mac, REPORT_V1, ONE, socket.inet_pton(socket.AF_INET6, ONE)),
        mld(mac, DONE, "ff02::2", socket.inet_pton(socket.AF_INET6, ONE)),
    ]
    assert segment.passed(*frames) == frames
    assert await segment.drops() == {}


@pytest.mark.parametrize("by_one", [True, False])
async def test_who_asks_gets_every_report_from_then_on(segment: Segment, *, by_one: bool) -> None:
    about_one = report(segment.one.mac, record(ONE))
    assert segment.passed(about_one) == []
    asking, asked = (segment.one, segment.two) if by_one else (segment.two, segment.one)
    query = mld(asking.mac, QUERY, ALL_NODES, bytes(20))
    asking.send(query)
    assert asked.expect(query)
    assert segment.passed(about_one) == [about_one]
