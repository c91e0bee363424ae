"""Who is measured by ``hack/bench lan``: pairs of stations that reach each other in some way, on two machines joined by a veth pair."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nestbed.testing.machine import Machine
from nestbed.testing.segment import checked

UNDERLAY_MTU = 1600
FLOOR = """
import fcntl, os, select, socket, struct, sys
group, port, address, name = sys.argv[1], int(sys.argv[2]), socket.inet_aton(sys.argv[3]), sys.argv[4]
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
sock.bind((group, port))
sock.setsockopt(0, socket.IP_MULTICAST_IF, address)
sock.setsockopt(0, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + address)
own = sys.argv[3]
print("ready", flush=True)
while True:
    for one in select.select([tap, sock], [], [])[0]:
        if one is tap:
            sock.sendto(os.read(tap, 65536), (group, port))
        else:
            frame, (sender, _) = sock.recvfrom(65536)
            if sender != own:
                os.write(tap, frame)
"""


@dataclass
class Contender:
    """Two stations that reach each other in some way. ``crosses`` the underlay, or stays on one machine."""

    name: str
    crosses: bool
    source: str
    target: str
    address: str
    source_interfaces: tuple[str, ...] = ("eth0",)
    target_interfaces: tuple[str, ...] = ("eth0",)
    figures: dict[str, list[float]] = field(default_factory=dict)
    """By what was measured, the value of each run."""

    def note(self, what: str, value: float) -> None:
        self.figures.setdefault(what, []).append(value)


def inside(namespace: str, *argv: str) -> str:
    """Run a program in a network namespace."""
    return checked(subprocess.run(["nsenter", f"--net={namespace}", "--", *argv], check=False, capture_output=True, text=True, timeout=60))


class Ground:
    """The two machines and whatever is made on them."""

    def __init__(self, base: Path, stack: contextlib.ExitStack) -> None:
        self.base, self.stack = base, stack
        self.machines, self.ends = self.joined("m")

    def joined(self, name: str) -> tuple[list[Machine], list[str]]:
        """Two machines with an underlay between them, and the paths of their namespaces."""
        machines = [self.space(f"{name}{number}") for number in (1, 2)]
        ends = [f"/proc/{os.getpid()}/fd/{machine.netns_fd}" for machine in machines]
        pair = ("link", "add", "u0", "mtu", str(UNDERLAY_MTU), "type", "veth", "peer", "name", "u0", "mtu", str(UNDERLAY_MTU))
        inside(ends[0], "ip", *pair, "netns", ends[1])
        for number, end in enumerate(ends, 1):
            inside(end, "ip", "addr", "add", f"192.168.77.{number}/24", "dev", "u0")
            inside(end, "ip", "link", "set", "lo", "up")
            inside(end, "ip", "link", "set", "u0", "up")
        return machines, ends

    def space(self, name: str) -> Machine:
        machine = Machine(name, self.base / name)
        self.stack.callback(machine.close)
        return machine

    def station(self, name: str, at: int, bridge: str, address: str) -> str:
        """A namespace with ``eth0`` at a bridge of a machine; its path."""
        path = f"/proc/{os.getpid()}/fd/{self.space(name).netns_fd}"
        inside(self.ends[at], "ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", path)
        inside(self.ends[at], "ip", "link", "set", name, "master", bridge, "up")
        self.settle(path, "eth0", address)
        return path

    def bridge(self, name: str, at: int) -> None:
        settings = ("mcast_snooping", "0", "stp_state", "0", "forward_delay", "0")
        inside(self.ends[at], "ip", "link", "add", "dev", name, "mtu", "1500", "type", "bridge", *settings)
        inside(self.ends[at], "ip", "link", "set", name, "up")

    def settle(self, path: str, interface: str, address: str) -> None:
        inside(path, "sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{interface}/disable_ipv6")
        inside(path, "ip", "addr", "add", f"{address}/24", "dev", interface)
        inside(path, "ip", "link", "set", interface, "mtu", "1500", "up")
        inside(path, "ip", "link", "set", "lo", "up")

    def set_mode(self, switch: str) -> None:
        """Whether the underlay takes super-frames of tunnels, or has them cut."""
        for end in self.ends:
            inside(end, "ethtool", "-K", "u0", "tx-udp_tnl-segmentation", switch, "tx-udp_tnl-csum-segmentation", switch)


def nestbed(ground: Ground) -> Contender:
    for machine in ground.machines:
        machine.daemon.start("--underlay", "u0")
    return Contender("nestbed", True, *containers(ground.machines, "lan0", "239.77.0.1:5000", "10.71.0"), "10.71.0.2")


def containers(machines: list[Machine], lan: str, group: str, net: str, *options: str) -> list[str]:
    """A LAN with a container on each machine; their namespaces."""
    namespaces = []
    for number, machine in enumerate(machines, 1):
        checked(machine.nbctl("lan", "create", lan, "--group", group, *options))
        words = ("--name", f"{lan}-{number}", "--lan", f"{lan},ip={net}.{number}/24")
        checked(machine.nbctl("run", "process", "-d", *words, "--", "sleep", "86400"))
        namespaces.append(namespace_of(machine, f"{lan}-{number}"))
    return namespaces


def oversize(ground: Ground) -> Contender:
    """Full frames do not fit the underlay: the relay process carries them, each in two fragments."""
    namespaces = containers(ground.machines, "large", "239.77.0.2:5000", "10.76.0", "--mtu", str(UNDERLAY_MTU))
    return Contender("nestbed, oversize", True, *namespaces, "10.76.0.2")


def relay_alone(ground: Ground) -> Contender:
    """As on a kernel without BPF."""
    machines, _ = ground.joined("r")
    for machine in machines:
        machine.daemon.start("--underlay", "u0", "--relay", "userspace")
    return Contender("nestbed, relay process alone", True, *containers(machines, "slow", "239.77.0.3:5000", "10.77.0"), "10.77.0.2")


def namespace_of(machine: Machine, container: str) -> str:
    return f"/proc/{json.loads(checked(machine.nbctl('-o', 'json', 'inspect', container)))['pid']}/ns/net"


def bare_bridge(ground: Ground) -> Contender:
    ground.bridge("bbr", 0)
    return Contender("bare bridge, one machine", False, *(ground.station(f"b{n}", 0, "bbr", f"10.72.0.{n}") for n in (1, 2)), "10.72.0.2")


def vxlan(ground: Ground) -> Contender:
    stations = []
    for at, end in enumerate(ground.ends):
        ground.bridge("vbr", at)
        tunnel = ("type", "vxlan", "id", "77", "group", "239.77.9.9", "dev", "u0", "dstport", "4789")
        inside(end, "ip", "link", "add", "vx0", "mtu", "1500", *tunnel)
        inside(end, "ip", "link", "set", "vx0", "master", "vbr", "up")
        stations.append(ground.station(f"x{at + 1}", at, "vbr", f"10.73.0.{at + 1}"))
    return Contender("kernel VXLAN, multicast", True, *stations, "10.73.0.2")


def vde(ground: Ground) -> Contender:
    taps, paths = ("vt1", "vt2"), []
    argv = ["vde_switch", "-s", str(ground.base / "vde"), *(word for tap in taps for word in ("-tap", tap))]
    process = ground.machines[0].popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ground.stack.callback(end, process)
    for number, tap in enumerate(taps, 1):
        path = f"/proc/{os.getpid()}/fd/{ground.space(f'v{number}').netns_fd}"
        wait_for(lambda tap=tap: ground.machines[0].run("ip", "link", "show", "dev", tap).returncode == 0)  # type: ignore[misc]
        inside(ground.ends[0], "ip", "link", "set", tap, "netns", path)
        ground.settle(path, tap, f"10.74.0.{number}")
        paths.append(path)
    return Contender("vde_switch, one machine", False, *paths, "10.74.0.2", taps[:1], taps[1:])


def floor(ground: Ground) -> Contender:
    paths = []
    for at, machine in enumerate(ground.machines):
        argv = (sys.executable, "-c", FLOOR, "239.77.8.8", "5008", f"192.168.77.{at + 1}", f"yt{at}")
        process = machine.popen(argv, stdout=subprocess.PIPE)
        ground.stack.callback(end, process)
        assert process.stdout is not None
        process.stdout.readline()
        path = f"/proc/{os.getpid()}/fd/{ground.space(f'y{at}').netns_fd}"
        inside(ground.ends[at], "ip", "link", "set", f"yt{at}", "netns", path)
        ground.settle(path, f"yt{at}", f"10.75.0.{at + 1}")
        paths.append(path)
    return Contender("Python, stock sockets", True, *paths, "10.75.0.2", ("yt0",), ("yt1",))


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def wait_for(predicate: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not predicate():
        if time.monotonic() > deadline:
            raise SystemExit("what was started did not come up")
        time.sleep(0.01)


def many_lans(ground: Ground, count: int) -> Contender:
    """A container on each machine that is on so many LANs; TCP is measured on the last of them."""
    stations = []
    for number, machine in enumerate(ground.machines, 1):
        words: list[str] = []
        for lan in range(count):
            checked(machine.nbctl("lan", "create", f"many{lan}", "--group", f"239.77.1.{lan + 1}:5001"))
            words += ["--lan", f"many{lan},ip=10.80.{lan}.{number}/24"]
        checked(machine.nbctl("run", "process", "-d", "--name", f"many{number}", *words, "--", "sleep", "86400"))
        stations.append(namespace_of(machine, f"many{number}"))
    interfaces = tuple(f"eth{lan}" for lan in range(count))
    contender = Contender(f"nestbed, {count} LANs", True, *stations, f"10.80.{count - 1}.2", interfaces, interfaces)
    for lan in range(count):
        inside(contender.target, "ping", "-c", "1", "-W", "2", f"10.80.{lan}.1")
    return contender
