"""Several machines for tests, joined by an underlay: a switch in a namespace of its own, and ``u0``, ``u1``... on each machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nestbed.testing.machine import Machine


class Switch:
    """An Ethernet switch of its own. It lives as long as this object is open, and the ports with it."""

    def __init__(self, base: Path, name: str, *, mtu: int = 1600) -> None:
        self.name = name
        self.mtu = mtu
        self._space = Machine(name, base)
        self._ports = 0
        self._ip("link", "add", "dev", "switch", "mtu", str(mtu), "type", "bridge", "mcast_snooping", "0")
        self._ip("link", "set", "switch", "up")

    def plug(self, machine: Machine, interface: str, address: str) -> str:
        """Give the machine an interface at the switch; the name of its port."""
        port = f"{machine.name[:8]}-{self._ports}"
        self._ports += 1
        peer = ("type", "veth", "peer", "name", interface, "mtu", str(self.mtu), "netns", f"/proc/{os.getpid()}/fd/{machine.netns_fd}")
        self._ip("link", "add", "dev", port, "mtu", str(self.mtu), *peer)
        self._ip("link", "set", port, "master", "switch", "up")
        for argv in (("addr", "add", address, "dev", interface), ("link", "set", interface, "up"), ("link", "set", "lo", "up")):
            checked(machine.run("ip", *argv))
        return port

    def set_port(self, port: str, *, up: bool) -> None:
        """Pull the cable out of the port, or plug it in again."""
        self._ip("link", "set", port, "up" if up else "down")

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the switch's namespace."""
        return self._space.run(*argv)

    def popen(self, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program in the switch's namespace; ``options`` as of Popen."""
        return self._space.popen(argv, **options)

    def close(self) -> None:
        """Let it go, and every port."""
        self._space.close()

    def _ip(self, *argv: str) -> None:
        checked(self._space.run("ip", *argv))


class Segment:
    """Machines ``m1``, ``m2``... at one switch, with the addresses 192.168.77.1, .2... on ``u0``; no daemon runs yet."""

    def __init__(self, base: Path, count: int, *, mtu: int = 1600) -> None:
        self.switch = Switch(base / "switch", "switch", mtu=mtu)
        self.machines = [Machine(f"m{number}", base / f"m{number}") for number in range(1, count + 1)]
        self.ports = [self.switch.plug(machine, "u0", f"{self.address(at)}/24") for at, machine in enumerate(self.machines)]

    def address(self, at: int) -> str:
        """The underlay address of machine number ``at``, from 0."""
        return f"192.168.77.{at + 1}"

    def start(self, *options: str) -> None:
        """Start a daemon on every machine, with ``u0`` as its underlay."""
        for machine in self.machines:
            machine.daemon.start("--underlay", "u0", *options)

    def close(self) -> None:
        """End the daemons and let everything go."""
        for machine in self.machines:
            machine.close()
        self.switch.close()


def checked(result: subprocess.CompletedProcess[str]) -> str:
    """What the program printed.

    Raises:
        AssertionError: it failed.
    """
    if result.returncode != 0:
        raise AssertionError(f"{result.args}: {result.stderr or result.stdout}")
    return result.stdout
