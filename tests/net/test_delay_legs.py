"""Delay legs of the relay process: what goes out of a tap comes in again later."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nestbed.lan.relay.wanted import DelayLeg
from nestbed.lan.relay_client import RelayClient
from nestbed.testing.machine import Machine

WAIT_SECONDS = 5.0
TAP = "leg0"
KIND = 0x88B5
HEADER = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + KIND.to_bytes(2, "big")
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_GSO_TCPV4, _NEEDS_CSUM = 1, 1


class LegEnd:
    """The two ends of one leg: what is sent goes into it, what is received came out."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.run_dir.mkdir(parents=True)
        with machine.entered():
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        for line in (f"tuntap add {TAP} mode tap vnet_hdr", f"link set {TAP} txqueuelen 10000 mtu 9000", f"link set {TAP} up"):
            assert machine.run("ip", *line.split()).returncode == 0
        self.client = RelayClient(machine.run_dir, lambda *_: None)
        with machine.entered():
            self.client.open()
            self.socket = self.open_socket(KIND)

    def open_socket(self, kind: int, *, vnet: bool = False) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
        sock.bind((TAP, kind))
        sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, int(vnet))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.setblocking(False)
        return sock

    async def ask(self, **fields: float) -> None:
        with self.machine.entered():
            self.client.set_leg(DelayLeg(TAP, **fields))  # type: ignore[arg-type]
            await self.client.settle()
        self.client.check(TAP)

    def send(self, number: int) -> None:
        self.socket.send(HEADER + struct.pack("=Qq", number, time.monotonic_ns()) + bytes(30))

    async def receive(self) -> tuple[int, float]:
        """A frame's number and what it was delayed by, in milliseconds."""
        async with asyncio.timeout(WAIT_SECONDS):
            data = await asyncio.get_running_loop().sock_recv(self.socket, 10_000)
        number, sent_ns = struct.unpack_from("=Qq", data, len(HEADER))
        return number, (time.monotonic_ns() - sent_ns) / 1e6

    async def none_is_left(self) -> bool:
        self.send(1 << 40)
        return (await self.receive())[0] == 1 << 40


@pytest.fixture
async def leg(machine) -> AsyncIterator[LegEnd]:
    end = LegEnd(machine)
    yield end
    end.client.drop_leg(TAP)
    async with asyncio.timeout(WAIT_SECONDS):
        while end.client.is_running:  # noqa: ASYNC110 - its end does not call
            await asyncio.sleep(0.002)
    end.client.close()
    end.socket.close()


async def test_frames_wait_and_keep_their_order(leg: LegEnd) -> None:
    await leg.ask(delay_us=20_000)
    for number in range(500):
        leg.send(number)
    found = [await leg.receive() for _ in range(500)]
    assert [number for number, _ in found] == list(range(500))
    assert min(delay for _, delay in found) >= 19.9
    achieved = leg.client.achieved(TAP)
    assert achieved is not None
    assert achieved.frames == 500
    assert achieved.delay_min_us is not None
    assert achieved.delay_mean_us is not None
    assert achieved.delay_p99_us is not None
    assert 19_900 <= achieved.delay_min_us <= achieved.delay_mean_us <= achieved.delay_p99_us


async def test_a_change_leaves_those_that_wait_alone(leg: LegEnd) -> None:
    await leg.ask(delay_us=300_000)
    leg.send(1)
    await leg.ask(delay_us=1000, epoch=1)
    leg.send(2)
    assert [(await leg.receive())[0], (await leg.receive())[0]] == [2, 1]
    achieved = leg.client.achieved(TAP)
    assert achieved is not None
    assert achieved.frames == 1  # counted anew


async def test_frames_in_flight_have_no_limit_but_the_one_asked_for(leg: LegEnd) -> None:
    await leg.ask(delay_us=200_000, limit_frames=0)
    for number in range(3000):
        leg.send(number)
    assert len({(await leg.receive())[0] for _ in range(3000)}) == 3000
    await leg.ask(delay_us=200_000, limit_frames=100, epoch=1)
    for number in range(150):
        leg.send(number)
    assert [(await leg.receive())[0] for _ in range(100)] == list(range(100))
    assert await leg.none_is_left()
    achieved = leg.client.achieved(TAP)
    assert achieved is not None
    assert achieved.overflowed == 50


async def test_jitter_and_reordering(leg: LegEnd) -> None:
    await leg.ask(delay_us=30_000, jitter_us=10_000)
    for number in range(300):
        leg.send(number)
    delays = [(await leg.receive())[1] for _ in range(300)]
    assert min(delays) >= 19.9
    assert max(delays) - min(delays) > 10
    await leg.ask(delay_us=30_000, reorder=0.3, epoch=1)
    for number in range(300):
        leg.send(number)
    numbers = [(await leg.receive())[0] for _ in range(300)]
    assert sorted(numbers) == list(range(300))
    achieved = leg.client.achieved(TAP)
    assert achieved is not None
    assert 40 < achieved.reordered < 150
    assert numbers[: achieved.reordered // 2] != list(range(achieved.reordered // 2))


async def test_super_frames_are_not_harmed(leg: LegEnd) -> None:
    await leg.ask(delay_us=5000)
    payload = os.urandom(20_000)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + len(payload), 0, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    tcp = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 0x50, 0x10, 1000, 0, 0)
    frame = b"\xff" * 6 + b"\x02\0\0\0\0\x01\x08\0" + ip + tcp + payload
    header = struct.pack("=BBHHHH", _NEEDS_CSUM, _GSO_TCPV4, 54, 1448, 34, 16)
    with leg.machine.entered(), leg.open_socket(0x0800, vnet=True) as sock:
        sock.send(header + frame)
        async with asyncio.timeout(WAIT_SECONDS):
            data = await asyncio.get_running_loop().sock_recv(sock, 70_000)
    told = struct.unpack_from("=BBHHHH", data)
    assert (told[1], told[3]) == (_GSO_TCPV4, 1448)
    assert data[10 + 54 :] == payload


async def test_it_is_taken_up_with_what_waits(leg: LegEnd) -> None:
    await leg.ask(delay_us=300_000)
    leg.send(1)
    leg.client.close()
    leg.client = RelayClient(leg.machine.run_dir, lambda *_: None)
    with leg.machine.entered():
        leg.client.open()
    assert leg.client.is_running
    number, delay = await leg.receive()
    assert (number, delay >= 299.9) == (1, True)


async def test_killed_it_delays_again_within_a_second(leg: LegEnd) -> None:
    await leg.ask(delay_us=10_000)
    with leg.machine.entered():
        os.kill(leg.client.pid, 9)
        begin = time.monotonic()
        while time.monotonic() - begin < WAIT_SECONDS:
            leg.send(7)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    if (await leg.receive())[0] == 7:
                        break
    assert time.monotonic() - begin < 1.0
