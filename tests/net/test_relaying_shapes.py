"""LANs of several machines in other shapes: peers, jumbo frames, several underlays, routers between LANs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nestbed.testing.segment import Segment, Switch, checked
from nestbed.testing.station import entered

NBCTL = (Path(sys.executable).parent / "nbctl", "-H")


@pytest.fixture(params=["auto", "userspace"])
def own_labs(request: pytest.FixtureRequest, own_labs: Callable[..., Any]) -> Callable[..., Any]:
    """Both with the kernel's fast path and by the relay alone."""
    return partial(own_labs, relay=request.param)


def transfer(source: str, target: str, address: str, size: int = 16 << 20) -> None:
    """Send bytes by TCP between two network namespaces; they arrive as they were."""
    data, received = random.randbytes(1 << 20) * (size >> 20), []
    with entered(target):
        listener = socket.create_server((address, 7000))
    with entered(source):
        sender = socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def receive() -> None:
        connection, _ = listener.accept()
        digest = hashlib.sha256()
        with connection:
            while piece := connection.recv(1 << 20):
                digest.update(piece)
        received.append(digest.digest())

    receiver = threading.Thread(target=receive)
    receiver.start()
    with listener, sender:
        sender.settimeout(10)
        sender.connect((address, 7000))
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)
        receiver.join(20)
    assert received == [hashlib.sha256(data).digest()]


def test_peers_without_multicast(own_labs) -> None:
    """Three machines name each other: who has a station is learnt, and others do not hear what is meant for it."""
    lab = own_labs(3, 3, unicast=True)
    assert lab.pings(0, "10.5.0.2", 3)
    assert lab.pings(1, "10.5.0.3", 3)
    assert lab.pings(2, "fd00:5::1", 3)
    first, second, third = lab.stations
    third.drain()
    frame = second.mac + first.mac + b"\x88\xb5" + bytes(60)
    for _ in range(3):
        first.send(frame)
        assert second.expect(frame)
    assert frame not in third.drain()
    frame = b"\xff" * 6 + first.mac + b"\x88\xb5" + bytes(60)
    first.send(frame)
    assert second.expect(frame)
    assert third.expect(frame)
    transfer(lab.namespaces[0], lab.namespaces[2], "10.5.0.3")
    lab.assert_clean()


def test_strangers_are_not_heard(own_labs) -> None:
    lab = own_labs(3, 2, unicast=True)
    assert lab.pings(0, "10.5.0.2", 3)
    with entered(lab.segment.machines[2].netns_fd):
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    there = lab.stations[1]
    there.drain()
    with stranger:
        stranger.sendto(there.mac + bytes.fromhex("025254000001") + b"\x88\xb5" + bytes(60), ("192.168.77.2", 5000))
    assert there.drain() == []
    assert lab.drops(1) == {"stranger": 1}


@pytest.mark.parametrize("relay", ["auto", "userspace"])
@pytest.mark.parametrize("mtu", [9100, 1500])
def test_jumbo_frames(own_labs, mtu: int, relay: str) -> None:
    """On an underlay that has room for them, and on one that has not: then the relay's datagrams are fragmented."""
    lab = own_labs(2, 2, "--mtu", "9000", mtu=mtu, relay=relay)
    here, there = lab.stations
    for size in (9000, 1472, 60):
        frame = there.mac + here.mac + b"\x88\xb5" + random.randbytes(size)
        here.send(frame)
        assert there.expect(frame), size
    ping = ("ping", "-c", "3", "-i", "0.1", "-W", "2", "-M", "do", "-s", "8972", "10.5.0.2")
    assert " 0% packet loss" in lab.nbctl(0, "exec", lab.names[0], "--", *ping)
    transfer(lab.namespaces[0], lab.namespaces[1], "10.5.0.2", 4 << 20)


def test_a_router_between_two_lans(own_labs) -> None:
    """What one LAN brought from another machine goes on into a second one: super-frames that were carried once are carried again."""
    lab = own_labs(3, 3)
    for at in (1, 2):
        lab.nbctl(at, "lan", "create", "behind", "--group", "239.1.3.1:5001")
    near, far = ("--lan", f"{lab.lan},ip=10.5.0.9/24"), ("--lan", "behind,ip=10.6.0.1/24")
    lab.nbctl(1, "run", "process", "-d", "--name", "router", *near, *far, "--sysctl", "net.ipv4.ip_forward=1", "--", "sleep", "1000")
    route = ("--route", "10.5.0.0/24,via=10.6.0.1")
    lab.nbctl(2, "run", "process", "-d", "--name", "far", "--lan", "behind,ip=10.6.0.2/24", *route, "--", "sleep", "1000")
    pid = json.loads(lab.nbctl(2, "-o", "json", "inspect", "far"))["pid"]
    checked(lab.machines[0].run("nsenter", f"--net={lab.namespaces[0]}", "ip", "route", "add", "10.6.0.0/24", "via", "10.5.0.9"))
    assert lab.pings(0, "10.6.0.2", 3)
    transfer(lab.namespaces[0], f"/proc/{pid}/ns/net", "10.6.0.2", 4 << 20)


def test_two_underlays_that_are_one_segment(own_labs) -> None:
    """A machine that hears itself uses one of the two, and says so."""

    def prepare(segment: Segment) -> None:
        segment.switch.plug(segment.machines[0], "u1", "192.168.77.101/24")

    lab = own_labs(2, 1, prepare=prepare, underlays=["u0,u1"])
    lab.stations[0].send(b"\xff" * 6 + lab.stations[0].mac + b"\x88\xb5" + bytes(60))
    assert dict(lab.await_event(0, "lan.loop").attributes)["underlay"] == "u1"
    paths = json.loads(lab.nbctl(0, "-o", "json", "lan", "inspect", lab.lan))["paths"]
    assert [path["kind"] == "PATH_KIND_DOWN" for path in paths] == [False, True]
    frame = b"\xff" * 6 + lab.stations[0].mac + b"\x88\xb5" + random.randbytes(60)
    lab.stations[0].send(frame)
    arrived = []
    while (found := lab.member.receive(0.2)) is not None:
        arrived.append(found[0])
    assert arrived.count(frame) == 1


def test_a_machine_joins_its_underlays(own_labs) -> None:
    """Two machines that share no underlay with each other, and one that has both: one LAN."""
    with contextlib.ExitStack() as stack:

        def prepare(segment: Segment) -> None:
            other = Switch(segment.machines[0].run_dir.parent / "other", "other")
            stack.callback(other.close)
            other.plug(segment.machines[1], "u1", "192.168.78.2/24")
            checked(segment.machines[2].run("ip", "link", "del", "u0"))
            other.plug(segment.machines[2], "u0", "192.168.78.3/24")

        lab = own_labs(3, 3, prepare=prepare, underlays=["u0", "u0,u1", "u0"])
        assert lab.pings(0, "10.5.0.2", 2)
        assert lab.pings(1, "10.5.0.3", 2)
        assert lab.pings(0, "10.5.0.3", 2)
        transfer(lab.namespaces[0], lab.namespaces[2], "10.5.0.3")
        assert all(lab.drops(at).get("loop", 0) == 0 for at in range(3))


def test_a_loop_over_two_underlays_is_cut(own_labs) -> None:
    """Two machines that both join the same two underlays close a loop: what goes round does not go round for long."""
    with contextlib.ExitStack() as stack:

        def prepare(segment: Segment) -> None:
            other = Switch(segment.machines[0].run_dir.parent / "other", "other")
            stack.callback(other.close)
            for at in (0, 1):
                other.plug(segment.machines[at], "u1", f"192.168.78.{at + 1}/24")

        lab = own_labs(2, 2, prepare=prepare, underlays=["u0,u1"])
        here, there = lab.stations
        here.send(b"\xff" * 6 + here.mac + b"\x88\xb5" + bytes(60))
        lab.await_event(0, "lan.loop")
        first = lab.stats(0).sent.frames + lab.stats(0).received.frames
        assert first < 1000
        assert lab.pings(0, "10.5.0.2", 5)
        there.drain()
        for number in range(20):
            here.send(there.mac + here.mac + b"\x88\xb5" + bytes([number]) * 60)
        assert len([frame for frame in there.drain() if frame[12:14] == b"\x88\xb5"]) == 20


def test_daemons_that_die_while_lans_come_and_go_leave_nothing(own_labs) -> None:
    """Killed at any step of making or removing a LAN: the next daemon finishes or undoes it."""
    lab = own_labs(1, 1)
    machine = lab.machines[0]
    for number in range(4):
        name = f"extra{number}"
        if number % 2:
            lab.nbctl(0, "lan", "create", name, "--group", f"239.1.4.{number}:5000")
        verb = ("lan", "rm", name) if number % 2 else ("lan", "create", name, "--group", f"239.1.4.{number}:5000")
        with machine.popen([*NBCTL, machine.address, *verb], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as asking:
            time.sleep(0.08 + number * 0.008)  # nbctl takes 0.1 s to ask: the daemon dies around its few milliseconds of work
            machine.daemon.kill()
            asking.wait(10)
        machine.daemon.start("--underlay", "u0")
        lab.assert_clean()
