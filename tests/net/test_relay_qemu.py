"""A stock QEMU as a member of a LAN: its ``-netdev socket,mcast=`` joined by a hub to a socket of the test, which stands for the guest."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestbed.testing.machine import Machine

QEMU = "qemu-system-x86_64"
KIND = b"\x88\xb5"
WAIT_SECONDS = 5.0


class Guest:
    """What a guest behind QEMU's network card sees."""

    def __init__(self, machine: Machine, base: Path, group: str, address: str, *, is_dgram: bool) -> None:
        self.mac = bytes.fromhex("525400123456")
        near, far = base / "near", base / "far"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(near))
        self._socket.settimeout(WAIT_SECONDS)
        host, _, port = group.partition(":")
        member = f"socket,id=wire,mcast={group},localaddr={address}"
        if is_dgram:
            ends = f"remote.type=inet,remote.host={host},remote.port={port},local.type=inet,local.host={address},local.port={port}"
            member = f"dgram,id=wire,{ends}"
        words = [QEMU, "-M", "none", "-nodefaults", "-display", "none", "-no-user-config", "-monitor", "none"]
        words += ["-netdev", member, "-netdev", f"dgram,id=guest,local.type=unix,local.path={far},remote.type=unix,remote.path={near}"]
        words += ["-netdev", "hubport,id=h0,hubid=0,netdev=wire", "-netdev", "hubport,id=h1,hubid=0,netdev=guest"]
        self._process = machine.popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._far = str(far)
        self._await(far, comes_back=not is_dgram)

    def _await(self, far: Path, *, comes_back: bool) -> None:
        """Until QEMU takes frames; to a group, they come back to itself, as stock members know."""
        hello = b"\xff" * 6 + self.mac + KIND + bytes(46)
        self._socket.settimeout(0.05)
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                raise AssertionError(self._process.stderr.read().decode())
            if not far.exists():
                time.sleep(0.01)
                continue
            with contextlib.suppress(OSError):
                self._socket.sendto(hello, str(far))
                if not comes_back or self._socket.recv(70_000) == hello:
                    break
        self._socket.settimeout(WAIT_SECONDS)

    def send(self, frame: bytes) -> None:
        self._socket.sendto(frame, self._far)

    def expect(self, frame: bytes) -> bool:
        """Whether it arrives; others before it are passed over."""
        with contextlib.suppress(TimeoutError):
            while self._socket.recv(70_000) != frame:
                pass
            return True
        return False

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._socket.close()


@contextlib.contextmanager
def guest(machine: Machine, base: Path, group: str, address: str, *, is_dgram: bool = False) -> Iterator[Guest]:
    one = Guest(machine, base, group, address, is_dgram=is_dgram)
    try:
        yield one
    finally:
        one.close()


FRAMES = {
    "arp": b"\x08\x06" + bytes.fromhex("0001080006040001") + bytes(38),
    "ipv4": b"\x08\x00" + bytes.fromhex("4500002e0000000040fd") + bytes(36),
    "ipv6": b"\x86\xdd" + bytes.fromhex("60000000001a3b40") + bytes(58),
    "vlan": b"\x81\x00\x00\x07" + KIND + bytes(60),
    "full": KIND + bytes(1500),
    "jumbo": KIND + bytes(9000),
}


@pytest.mark.parametrize("relay", ["auto", "userspace"])
@pytest.mark.parametrize("at", [0, 2], ids=["on-a-nodes-machine", "on-another-machine"])
def test_stock_qemu_is_a_member(own_labs, tmp_path: Path, relay: str, at: int) -> None:
    if shutil.which(QEMU) is None:
        pytest.skip("there is no QEMU")
    lab = own_labs(3, 2, "--mtu", "9000", mtu=1600, relay=relay)
    with guest(lab.segment.machines[at], tmp_path, lab.group, lab.segment.address(at)) as stock:
        for name, rest in FRAMES.items():
            for number, station in enumerate(lab.stations):
                for destination in (station.mac, b"\xff" * 6, bytes.fromhex("01005e010203")):
                    stock.send(frame := destination + stock.mac + rest)
                    assert station.expect(frame), (name, number)
                for destination in (stock.mac, b"\xff" * 6, bytes.fromhex("01005e010203")):
                    station.send(frame := destination + station.mac + rest)
                    assert stock.expect(frame), (name, number)
    assert lab.drops(1).get("loop", 0) == 0


@pytest.mark.parametrize("relay", ["auto", "userspace"])
def test_a_guest_of_stock_qemu_is_heard(own_labs, relay: str) -> None:
    """A machine that boots from the network: the ROM of its card asks for an address, on both nodes' containers."""
    if shutil.which(QEMU) is None:
        pytest.skip("there is no QEMU")
    lab = own_labs(3, 2, relay=relay)
    member = f"socket,id=wire,mcast={lab.group},localaddr={lab.segment.address(2)}"
    words = [QEMU, "-M", "pc", "-m", "64", "-nodefaults", "-display", "none", "-no-user-config", "-boot", "n"]
    words += ["-device", "e1000,netdev=wire", "-netdev", member]
    guest_mac, discover = bytes.fromhex("525400123456"), bytes.fromhex("00440043")
    process = lab.segment.machines[2].popen(words, stdin=subprocess.DEVNULL)
    try:
        for station in lab.stations:
            deadline = time.monotonic() + 6 * WAIT_SECONDS
            while (frame := station.receive(WAIT_SECONDS)) is None or (frame[6:12], frame[34:38]) != (guest_mac, discover):
                assert time.monotonic() < deadline
            assert frame[:6] == b"\xff" * 6
    finally:
        process.kill()
        process.wait()


def test_stock_qemu_is_a_peer(own_labs, tmp_path: Path) -> None:
    """``-netdev dgram`` by unicast, as one of a LAN's peers."""
    if shutil.which(QEMU) is None:
        pytest.skip("there is no QEMU")
    lab = own_labs(2, 1, "--peer", "192.168.77.2", relay="userspace")
    station = lab.stations[0]
    lab.member.close()
    machine = lab.segment.machines[1]
    address = f"{lab.segment.address(0)}:5000"
    with guest(machine, tmp_path, address, lab.segment.address(1), is_dgram=True) as stock:
        stock.send(frame := station.mac + stock.mac + FRAMES["ipv4"])
        assert station.expect(frame)
        station.send(frame := stock.mac + station.mac + FRAMES["full"])
        assert stock.expect(frame)
