"""The relay process under a real daemon: what its death, its daemon's, and bad input cost, and members on the node's own machine."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nestbed.testing.machine import Machine
from nestbed.testing.station import Member

KIND = b"\x88\xb5"
OVERSIZE = ("-s", "1472")
BACK_SECONDS = 1.0
WAIT_SECONDS = 10.0


def relay_pid(machine: Machine) -> int:
    return int(json.loads((machine.run_dir / "relay.lock").read_bytes())["pid"])


def until(fact: Callable[[], object], seconds: float = WAIT_SECONDS) -> float:
    """How long it took until it was so."""
    begin = time.monotonic()
    while not fact():
        assert time.monotonic() - begin < seconds
        time.sleep(0.01)
    return time.monotonic() - begin


def passes(lab, length: int, number: int) -> bool:
    """Whether a frame of this length gets from the first container to the second."""
    here, there = lab.stations
    frame = there.mac + here.mac + KIND + number.to_bytes(4, "big") + bytes(length - 18)
    here.send(frame)
    return bool(there.expect(frame, 0.05))


def test_oversize_frames_go_by_the_relay_and_nothing_else_does(own_labs) -> None:
    lab = own_labs(2, 2, mtu=1500)
    assert passes(lab, 1472, 0)
    assert passes(lab, 1473, 1)
    assert passes(lab, 1514, 2)
    path = lab.path(0)
    assert path["kind"] == "PATH_KIND_KERNEL"
    assert "1458 bytes go by the relay process" in path["detail"]
    assert lab.nbctl(0, "exec", lab.names[0], "--", "ping", "-c", "3", "-i", "0.1", "-M", "do", *OVERSIZE, "10.5.0.2")
    lab.assert_clean()


def test_killed_relay_leaves_the_fast_path_alone_and_is_back_within_a_second(own_labs) -> None:
    lab = own_labs(2, 2, mtu=1500)
    here, there = lab.stations
    assert passes(lab, 1514, 0)
    time_without: list[float] = []

    def die() -> None:
        os.kill(relay_pid(lab.machines[0]), signal.SIGKILL)
        begin = time.monotonic()
        until(lambda: passes(lab, 1514, random.randrange(1 << 32)))
        time_without.append(time.monotonic() - begin)

    numbers = []
    sender = threading.Thread(
        target=lambda: [here.send(there.mac + here.mac + b"\x88\xb6" + at.to_bytes(4, "big") + bytes(46)) for at in range(20_000)]
    )
    os.kill(relay_pid(lab.machines[0]), signal.SIGKILL)
    sender.start()
    while len(numbers) < 20_000 and (frame := there.receive(5)) is not None:
        if frame[12:14] == b"\x88\xb6":
            numbers.append(int.from_bytes(frame[14:18], "big"))
    sender.join()
    assert numbers == list(range(20_000))
    until(lambda: passes(lab, 1514, random.randrange(1 << 32)))
    die()
    assert time_without[0] < BACK_SECONDS
    for kind in ("relay.lost", "relay.started"):
        lab.await_event(0, kind)
    lab.assert_clean()


def test_killed_daemons_and_relays_come_back_with_all_lans(own_labs) -> None:
    lab = own_labs(2, 2, mtu=1500)
    assert passes(lab, 1514, 0)
    sent = lab.stats(0).sent.frames
    for machine in lab.machines:
        machine.daemon.kill()
        machine.kill_relay()
    assert passes(lab, 100, 1), "the fast path needs neither"
    for machine in lab.machines:
        machine.daemon.start("--underlay", "u0")
    until(lambda: passes(lab, 1514, random.randrange(1 << 32)))
    assert lab.stats(0).sent.frames > sent
    lab.assert_clean()


def test_a_damaged_request_is_written_again(own_labs) -> None:
    lab = own_labs(2, 2, relay="userspace")
    assert passes(lab, 100, 0)
    machine = lab.machines[0]
    for both in (False, True):
        machine.daemon.kill()
        (machine.run_dir / "relay.json").write_bytes(random.randbytes(500))
        if both:
            machine.kill_relay()
            (machine.run_dir / "relay.status.json").write_bytes(b"{")
            (machine.run_dir / "relay.counters").write_bytes(b"short")
        machine.daemon.start("--underlay", "u0", "--relay", "userspace")
        until(lambda: passes(lab, 100, random.randrange(1 << 32)))
        lab.assert_clean()


def test_the_relay_ends_with_the_last_lan(own_labs) -> None:
    lab = own_labs(1, 1)
    pid = relay_pid(lab.machines[0])
    lab.nbctl(0, "rm", "-f", lab.names[0])
    lab.nbctl(0, "lan", "rm", lab.lan)
    until(lambda: not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")


def member_beside(lab, at: int) -> Member:
    """A stock member on a node's own machine."""
    return Member(lab.machines[at].netns_fd, lab.group, lab.segment.address(at))


def test_a_stock_member_on_the_node_s_machine(own_labs) -> None:
    """It hears both containers and both hear it, whatever carries the LAN; frames that need the relay and those that do not."""
    for relay in ("auto", "userspace"):
        lab = own_labs(2, 2, mtu=1500, relay=relay)
        here, there = lab.stations
        member = member_beside(lab, 0)
        stray = bytes.fromhex("025254000001")
        frame = b"\xff" * 6 + stray + KIND + bytes(60)
        member.send(frame)
        assert here.expect(frame), relay
        assert there.expect(frame), relay
        until(lambda machine=lab.machines[0]: b'"has_members": true' in (machine.run_dir / "relay.status.json").read_bytes())
        for length in (60, 1514):
            for number, station in enumerate((here, there)):
                frame = b"\xff" * 6 + station.mac + KIND + bytes([number]) * length
                frame = frame[:length]
                station.send(frame)
                assert member.expect(frame), (relay, length, number)
                # Once: what the fast path carried is not sent again.
                other = (there, here)[number]
                assert other.expect(frame)
                assert frame not in other.drain()
        member.close()
        lab.let_go()


def test_what_does_not_fit_the_socket_buffer_is_counted(own_labs) -> None:
    lab = own_labs(3, 2, relay="userspace")
    pid = relay_pid(lab.machines[1])
    os.kill(pid, signal.SIGSTOP)
    frame = lab.stations[1].mac + bytes.fromhex("025254000001") + KIND
    sent = 30_000
    for _ in range(sent):
        lab.member.send(frame + bytes(1400))
    os.kill(pid, signal.SIGCONT)

    def accounted() -> bool:
        stats = lab.stats(1).received
        return stats.frames + sum(drop.frames for drop in stats.drops) >= sent

    until(accounted)
    assert lab.drops(1)["no-memory"] > 0
    until(lambda: passes(lab, 100, random.randrange(1 << 32)))


def test_what_does_not_fit_the_taps_queue_is_counted(own_labs) -> None:
    lab = own_labs(2, 2, relay="userspace")
    here, there = lab.stations
    pid = relay_pid(lab.machines[0])
    before = lab.stats(0).sent.frames
    os.kill(pid, signal.SIGSTOP)
    sent = 5000
    for _ in range(sent):
        here.send(there.mac + here.mac + KIND + bytes(100))
    os.kill(pid, signal.SIGCONT)

    def accounted() -> bool:
        stats = lab.stats(0).sent
        return stats.frames - before + sum(drop.frames for drop in stats.drops) >= sent

    until(accounted)
    assert sum(drop.frames for drop in lab.stats(0).sent.drops if drop.reason == "no-memory") > 0


def test_garbage_at_line_rate_does_no_harm(own_labs) -> None:
    lab = own_labs(3, 2, relay="userspace")
    pid = relay_pid(lab.machines[1])
    before = resident_kib(pid)
    pieces = [random.randbytes(length) for length in (0, 1, 13, 14, 15, 60, 200, 1514, 1519, 9000, 65_000)]
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        for piece in pieces:
            lab.member.send(piece)
        lab.member.send(random.randbytes(64))
    until(lambda: passes(lab, 100, random.randrange(1 << 32)))
    assert relay_pid(lab.machines[1]) == pid
    assert resident_kib(pid) - before < 30_000
    drops = lab.drops(1)
    assert drops["runt"] > 100
    assert drops["giant"] > 100


def resident_kib(pid: int) -> int:
    return next(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
