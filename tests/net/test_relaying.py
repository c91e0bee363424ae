"""LANs of several machines, by what their members see: every kind of frame, byte by byte, both ways, and none of what should not arrive."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import threading
import time

import pytest

from nestbed.testing.segment import checked
from nestbed.testing.station import Station, entered

BROADCAST = bytes.fromhex("ffffffffffff")


def ipv4(payload: int = 26, protocol: int = 253) -> bytes:
    return (
        b"\x08\x00"
        + struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + payload, 7, 0, 64, protocol, 0, b"\x0a\x05\0\x01", b"\x0a\x05\0\x02")
        + bytes(payload)
    )


def ipv6(payload: int = 26) -> bytes:
    return b"\x86\xdd" + struct.pack("!IHBB", 0x60000000, payload, 59, 64) + bytes(32) + bytes(payload)


FRAMES = {
    "arp": (BROADCAST, b"\x08\x06" + bytes.fromhex("0001080006040001") + bytes(20)),
    "ipv4": (None, ipv4()),
    "ipv4-short": (None, b"\x08\x00\x45\x00"),
    "ipv4-full": (None, ipv4(1480)),
    "ipv6": (None, ipv6()),
    "ipv6-full": (None, ipv6(1460)),
    "multicast": (bytes.fromhex("01005e010203"), ipv4()),
    "broadcast": (BROADCAST, ipv4()),
    "lldp": (bytes.fromhex("0180c200000e"), b"\x88\xcc" + bytes(40)),
    "vlan": (None, b"\x81\x00\x20\x05" + ipv4()),
    "vlan-full": (None, b"\x81\x00\x20\x05" + ipv4(1480)),
    "vlan-arp": (BROADCAST, b"\x81\x00\x00\x07\x08\x06" + bytes.fromhex("0001080006040001") + bytes(20)),
    "qinq": (None, b"\x88\xa8\x00\x09\x81\x00\x00\x0a" + ipv6()),
    "three-tags": (None, b"\x81\x00\x00\x01\x81\x00\x00\x02\x81\x00\x00\x03" + ipv4()),
    "802.3": (None, b"\x00\x20" + bytes(range(46))),
    "experimental": (None, b"\x88\xb5" + bytes(range(200))),
    "one-byte": (None, b"\x88\xb5x"),
    "header-alone": (None, b"\x88\xb5"),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_every_frame_passes_unchanged(shared_lab, kind: str) -> None:
    """From a container to a stock member and to the other machine's container, and back."""
    lab, (destination, rest) = shared_lab, FRAMES[kind]
    here, there = lab.stations
    frame = (destination or there.mac) + here.mac + rest
    here.send(frame)
    assert there.expect(frame)
    sender = lab.member.expect(frame)
    assert sender is not None
    (address, port), ttl = sender
    assert (address, ttl) == (lab.segment.address(0), 1)
    assert port != 5000
    foreign = bytes.fromhex("025254000001")
    for station in lab.stations:
        frame = (destination or station.mac) + foreign + rest
        lab.member.send(frame)
        assert station.expect(frame), kind


def test_containers_reach_each_other(lab) -> None:
    assert " 3 received" in lab.nbctl(0, "exec", lab.names[0], "--", "ping", "-c", "3", "-i", "0.1", "-W", "2", "10.5.0.2")
    assert " 3 received" in lab.nbctl(1, "exec", lab.names[1], "--", "ping", "-c", "3", "-i", "0.1", "-W", "2", "fd00:5::1")
    lab.assert_clean()


def test_frames_of_another_kind_than_a_members(lab) -> None:
    """What is no frame, or none that a station can have sent, is dropped and counted; nothing of it arrives."""
    there = lab.stations[1]
    good = there.mac + bytes.fromhex("025254000001") + ipv4()
    own, member = lab.segment.address(1), lab.member
    there.drain()
    for length in range(14):
        member.send(bytes(length))
    for source in ("000000000000", "ffffffffffff", "01005e000001"):
        member.send(there.mac + bytes.fromhex(source) + ipv4())
    for _ in range(5):
        member.send_raw(own, member.udp(good))
    for length in (0, 7, 4000):
        member.send_raw(member.address, member.udp(good, length=length))
    member.send(there.mac + bytes.fromhex("025254000002") + ipv4(1500))
    assert [frame for frame in there.drain() if frame[:6] == there.mac] == []
    member.send(good)
    assert there.expect(good)
    counted = {"runt": 14, "malformed": 6, "own": 5, "giant": 1}
    if lab.path(1)["kind"] == "PATH_KIND_USERSPACE":
        # Wrong lengths and an own address as the source do not get past the kernel's IP and UDP.
        counted = {"runt": 14, "malformed": 3, "giant": 1}
    assert lab.drops(1) == counted


def test_garbage_at_speed_does_no_harm(lab) -> None:
    there = lab.stations[1]
    random.seed(7)
    for _ in range(5000):
        lab.member.send(random.randbytes(random.choice((0, 3, 13, 14, 20, 60, 300, 1500))))
    lab.member.send_raw(lab.member.address, lab.member.udp(bytes(1472)), fragment=0x2000)
    lab.member.send_raw(lab.member.address, bytes(800), fragment=0x1FFF)
    lab.member.send_raw(lab.member.address, lab.member.udp(bytes(60)), options=bytes(4))
    good = there.mac + bytes.fromhex("025254000003") + ipv4()
    lab.member.send(good)
    assert there.expect(good)
    assert " 3 received" in lab.nbctl(0, "exec", lab.names[0], "--", "ping", "-c", "3", "-i", "0.1", "-W", "2", "10.5.0.2")


@pytest.mark.parametrize("keeps", [True, False], ids=["super-frames", "segments"])
@pytest.mark.parametrize("target", ["10.5.0.2", "fd00:5::2"], ids=["ipv4", "ipv6"])
def test_streams_arrive_whole(lab, keeps: bool, target: str) -> None:
    """TCP, whose super-frames the underlay keeps or has to cut: what arrives is what was sent."""
    for machine in lab.segment.machines[:2]:
        switch = "on" if keeps else "off"
        checked(machine.run("ethtool", "-K", "u0", "tx-udp_tnl-segmentation", switch, "tx-udp_tnl-csum-segmentation", switch))
    namespaces = lab.namespaces
    data = random.randbytes(1 << 20) * 24
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with entered(namespaces[1]):
        listener = socket.create_server((target, 7000), family=family)
    received = []

    def receive() -> None:
        connection, _ = listener.accept()
        digest = hashlib.sha256()
        with connection:
            while piece := connection.recv(1 << 20):
                digest.update(piece)
        received.append(digest.digest())

    receiver = threading.Thread(target=receive)
    receiver.start()
    with entered(namespaces[0]):
        sender = socket.socket(family, socket.SOCK_STREAM)
    with sender, listener:
        sender.settimeout(10)
        sender.connect((target, 7000))
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)
        receiver.join(20)
    assert received == [hashlib.sha256(data).digest()]


def test_datagrams_sent_many_at_once_stay_apart(lab) -> None:
    """UDP_SEGMENT of udp(7): one super-frame of many datagrams."""
    namespaces = lab.namespaces
    with entered(namespaces[1]):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with entered(namespaces[0]):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    pieces = [bytes([at]) * 1000 for at in range(40)]
    with receiver, sender:
        receiver.bind(("10.5.0.2", 7001))
        receiver.settimeout(2)
        sender.setsockopt(socket.IPPROTO_UDP, 103, 1000)
        sender.sendto(b"".join(pieces), ("10.5.0.2", 7001))
        assert [receiver.recv(2000) for _ in pieces] == pieces


def test_a_station_in_two_places_is_pinned_to_one(lab) -> None:
    """Who answers from here and from there in turn is in a loop, or an impostor: it is heard in one place only until it is quiet."""
    here, there = lab.stations
    stray = bytes.fromhex("025254000009")
    there.drain()
    for number in range(60):
        here.send(there.mac + stray + b"\x88\xb5" + bytes([1, number]) + bytes(50))
        lab.member.send(there.mac + stray + b"\x88\xb5" + bytes([2, number]) + bytes(50))
        # In turn: each has arrived, or been refused, before the next.
        there.receive(0.01)
    assert lab.drops(1)["loop"] >= 20
    told = lab.await_event(1, "lan.loop")
    assert dict(told.attributes)["mac"] == stray.hex(":")
    good = there.mac + bytes.fromhex("02525400000a") + ipv4()
    lab.member.send(good)
    assert there.expect(good), "others are not harmed"


def test_the_underlay_goes_and_comes_back(lab) -> None:
    def awaited(*, down: bool) -> None:
        deadline = time.monotonic() + 5
        while (lab.path(0)["kind"] == "PATH_KIND_DOWN") is not down:
            assert time.monotonic() < deadline, lab.path(0)

    assert lab.pings(0, "10.5.0.2")
    switch = lab.segment.switch
    switch.set_port(lab.segment.ports[0], up=False)
    awaited(down=True)
    assert not lab.pings(0, "10.5.0.2")
    switch.set_port(lab.segment.ports[0], up=True)
    awaited(down=False)
    assert lab.pings(0, "10.5.0.2")
    checked(lab.segment.machines[0].run("ip", "link", "del", "u0"))
    awaited(down=True)
    lab.segment.ports[0] = switch.plug(lab.segment.machines[0], "u0", f"{lab.segment.address(0)}/24")
    awaited(down=False)
    assert lab.pings(0, "10.5.0.2")
    checked(lab.segment.machines[0].run("ip", "addr", "del", f"{lab.segment.address(0)}/24", "dev", "u0"))
    awaited(down=True)
    checked(lab.segment.machines[0].run("ip", "addr", "add", f"{lab.segment.address(0)}/24", "dev", "u0"))
    checked(lab.segment.machines[0].run("ip", "link", "set", "u0", "address", "02:00:00:00:77:01"))
    awaited(down=False)
    assert lab.pings(0, "10.5.0.2")
    assert lab.segment.machines[0].nbctl("audit").returncode == 0, lab.segment.machines[0].nbctl("audit").stdout


class Exchange:
    """Numbered frames from each of two stations to the other, each in a thread; what has arrived stands in ``seen``."""

    TAG = b"\x88\xb6"

    def __init__(self, first: Station, second: Station, total: int) -> None:
        self.total = total
        self.seen: tuple[list[int], list[int]] = ([], [])
        work = [(self._receive, (first, self.seen[0])), (self._receive, (second, self.seen[1]))]
        work += [(self._send, (first, second)), (self._send, (second, first))]
        self._threads = [threading.Thread(target=act, args=arguments) for act, arguments in work]
        for thread in self._threads:
            thread.start()
        while not all(self.seen):
            time.sleep(0.001)

    @property
    def is_complete(self) -> bool:
        return all(len(numbers) >= self.total for numbers in self.seen)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)

    def _send(self, sender: Station, target: Station) -> None:
        for number in range(self.total):
            sender.send(target.mac + sender.mac + self.TAG + number.to_bytes(4, "big") + bytes(46))

    def _receive(self, station: Station, numbers: list[int]) -> None:
        while len(numbers) < self.total and (frame := station.receive(5)) is not None:
            if frame[12:14] == self.TAG:
                numbers.append(int.from_bytes(frame[14:18], "big"))


def test_not_a_frame_is_lost_when_the_daemons_die(own_labs) -> None:
    """Two machines exchange numbered frames, in both directions, while both daemons are killed and started again."""
    lab = own_labs(2, 2)
    before = lab.stats(0).sent.frames
    exchange = Exchange(*lab.stations, 50_000)
    for machine in lab.machines:
        machine.daemon.kill()
    assert not exchange.is_complete, "the daemons died too late to prove anything"
    for machine in lab.machines:
        machine.daemon.start("--underlay", "u0")
    exchange.join()
    assert [numbers == list(range(50_000)) for numbers in exchange.seen] == [True, True]
    assert lab.stats(0).sent.frames - before >= 50_000
    assert lab.stats(1).received.frames >= 50_000
    lab.assert_clean()
