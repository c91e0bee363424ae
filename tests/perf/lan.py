"""How fast LANs between machines are, beside the kernel's own tunnel and others, in one run.

Run through ``hack/bench lan``. Two machines (namespaces with a daemon each) are joined by a veth pair; every contender has a station of its
own on each, and all are measured in turn, several times, so that what the machine does meanwhile falls on all of them. Figures are
medians. TCP by iperf3; 64-byte frames by ``flood.c``, counted where they arrive; round trips by ping. ``--json FILE`` writes the figures
for programs. Nothing gates on them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nestbed.testing.machine import Machine
from nestbed.testing.segment import checked
from nestbed.testing.station import entered

HERE = Path(__file__).parent
UNDERLAY_MTU = 1600
MODES = {"super-frames kept": "on", "underlay segments": "off"}
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
    source_interface: str = "eth0"
    target_interface: str = "eth0"
    figures: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, value: float) -> None:
        self.figures.setdefault(what, []).append(value)

    def median(self, what: str) -> float | None:
        return statistics.median(self.figures[what]) if what in self.figures else None


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
    return Contender("vde_switch, one machine", False, *paths, "10.74.0.2", *taps)


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
    return Contender("Python, stock sockets", True, *paths, "10.75.0.2", "yt0", "yt1")


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


def gbps(contender: Contender, seconds: float, address: str = "") -> float:
    """Received by TCP, Gbit/s."""
    argv = ["nsenter", f"--net={contender.target}", "--", "iperf3", "-s", "-1", "-p", "5201"]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: "5201" in inside(contender.target, "ss", "-Hltn", "sport", "=", ":5201"))
        out = inside(contender.source, "iperf3", "-c", address or contender.address, "-p", "5201", "-t", str(seconds), "-O", "0.5", "-J")
        server.wait(10)
    finally:
        server.kill()
        server.wait()
    return float(json.loads(out)["end"]["sum_received"]["bits_per_second"]) / 1e9


def received(namespace: str, interfaces: list[str]) -> int:
    """Frames that arrived at interfaces."""
    with entered(namespace):
        text = Path("/proc/thread-self/net/dev").read_text()
    counts = {name.strip(): int(rest.split()[1]) for name, _, rest in (line.partition(":") for line in text.splitlines()[2:])}
    return sum(counts[interface] for interface in interfaces)


def macs(namespace: str, interfaces: list[str]) -> list[str]:
    return [link["address"] for name in interfaces for link in json.loads(inside(namespace, "ip", "-j", "link", "show", "dev", name))]


def frames(contender: Contender, flood: Path, seconds: int, links: tuple[list[str], list[str]] | None = None) -> tuple[float, float]:
    """Frames a second that arrive, and that are sent. The kernel's ways of switching learn first where the station is."""
    sources, targets = links or ([contender.source_interface], [contender.target_interface])
    begin, at = received(contender.target, targets), time.monotonic()
    argv = [str(flood), ",".join(sources), ",".join(macs(contender.target, targets)), str(seconds)]
    sent = int(inside(contender.source, *argv))
    took = time.monotonic() - at
    return (received(contender.target, targets) - begin) / took, sent / took


def round_trip_us(contender: Contender, count: int) -> float:
    """The median round trip."""
    out = inside(contender.source, "ping", "-c", str(count), "-i", "0.002", contender.address)
    return statistics.median(float(found) * 1000 for found in re.findall(r"time=([\d.]+) ms", out))


def generator_alone(ground: Ground, flood: Path, seconds: int) -> float:
    """What the generator sends if nobody does anything with it: into a veth whose far end has no station."""
    path = f"/proc/{os.getpid()}/fd/{ground.space('g1').netns_fd}"
    inside(path, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far")
    for name in ("eth0", "far"):
        inside(path, "ip", "link", "set", name, "up")
    return int(inside(path, str(flood), "eth0", "02:00:00:00:00:99", str(seconds))) / seconds


def many_lans(ground: Ground, count: int) -> tuple[Contender, tuple[list[str], list[str]]]:
    """A container on each machine that is on so many LANs; its interfaces."""
    stations = []
    for number, machine in enumerate(ground.machines, 1):
        words: list[str] = []
        for lan in range(count):
            checked(machine.nbctl("lan", "create", f"many{lan}", "--group", f"239.77.1.{lan + 1}:5001"))
            words += ["--lan", f"many{lan},ip=10.80.{lan}.{number}/24"]
        checked(machine.nbctl("run", "process", "-d", "--name", f"many{number}", *words, "--", "sleep", "86400"))
        stations.append(namespace_of(machine, f"many{number}"))
    interfaces = [f"eth{lan}" for lan in range(count)]
    contender = Contender(f"nestbed, {count} LANs", True, *stations, f"10.80.{count - 1}.2", interfaces[-1], interfaces[-1])
    return contender, (interfaces, interfaces)


def warm(contender: Contender) -> None:
    """Let everybody know where everybody is."""
    inside(contender.target, "ping", "-c", "2", "-i", "0.1", "-W", "2", contender.address[:-1] + "1")


def measure(options: argparse.Namespace, ground: Ground, flood: Path) -> dict[str, Any]:
    makers = [nestbed, vxlan, bare_bridge, vde, floor, oversize, relay_alone]
    contenders = [maker(ground) for maker in makers]
    mine = contenders[0]
    for contender in contenders:
        warm(contender)
    alone = generator_alone(ground, flood, options.seconds)
    for run in range(options.runs):
        for mode, switch in MODES.items():
            ground.set_mode(switch)
            for contender in contenders:
                if contender.crosses or switch == "on":
                    contender.note(f"tcp {mode}", gbps(contender, options.seconds))
                    print(f"{run} {mode} {contender.name}: {contender.figures[f'tcp {mode}'][-1]:.2f} Gbit/s", file=sys.stderr)
        ground.set_mode("on")
        for contender in contenders:
            arrived, sent = frames(contender, flood, options.seconds)
            contender.note("frames", arrived)
            contender.note("sent", sent)
            contender.note("rtt", round_trip_us(contender, options.pings))
            print(f"{run} {contender.name}: {arrived:.0f} of {sent:.0f} frames/s, {contender.figures['rtt'][-1]:.0f} us", file=sys.stderr)
    many, links = many_lans(ground, options.lans)
    warm(many)
    for _ in range(options.runs):
        many.note(f"tcp {next(iter(MODES))}", gbps(many, options.seconds))
        mine.note("tcp beside many", gbps(mine, options.seconds))
        many.note("frames", frames(many, flood, options.seconds, links)[0])
        mine.note("frames beside many", frames(mine, flood, options.seconds)[0])
    return {
        "generator_alone_fps": alone,
        "contenders": [
            {"name": one.name, "runs": one.figures, "median": {what: one.median(what) for what in one.figures}}
            for one in (*contenders, many)
        ],
    }


def ratios(result: dict[str, Any]) -> list[tuple[str, float, str]]:
    """What is to be reached: name, value, goal."""
    by_name = {one["name"]: one["median"] for one in result["contenders"]}
    mine, tunnel, bridge = by_name["nestbed"], by_name["kernel VXLAN, multicast"], by_name["bare bridge, one machine"]
    switch = by_name["vde_switch, one machine"]
    many = next(median for name, median in by_name.items() if name.endswith(" LANs"))
    kept, cut = (f"tcp {mode}" for mode in MODES)
    return [
        ("TCP over VXLAN's, super-frames kept", mine[kept] / tunnel[kept], ">= 1.0"),
        ("TCP over VXLAN's, underlay segments", mine[cut] / tunnel[cut], ">= 1.0"),
        ("frames/s over VXLAN's", mine["frames"] / tunnel["frames"], ">= 1.0"),
        ("TCP over VDE's", mine[kept] / switch[kept], ">= 8"),
        ("frames/s over VDE's", mine["frames"] / switch["frames"], ">= 8"),
        ("TCP by the relay process alone, Gbit/s", by_name["nestbed, relay process alone"][kept], ">= 0.3"),
        ("TCP of oversize frames, Gbit/s", by_name["nestbed, oversize"][kept], ">= 0.3"),
        ("round trip added, over VXLAN's", (mine["rtt"] - bridge["rtt"]) / (tunnel["rtt"] - bridge["rtt"]), "<= 1.0"),
        ("TCP on one of many LANs over one alone", many[kept] / mine["tcp beside many"], ">= 0.9"),
        ("frames/s on many LANs over one alone", many["frames"] / mine["frames beside many"], ">= 0.9"),
    ]


def show(result: dict[str, Any]) -> None:
    kept, cut = (f"tcp {mode}" for mode in MODES)
    print(f"{'':28}{'TCP Gbit/s':>12}{'TCP Gbit/s':>12}{'64-byte':>12}{'round trip':>12}")
    print(f"{'':28}{'kept':>12}{'segments':>12}{'frames/s':>12}{'us':>12}")
    for one in result["contenders"]:
        median = one["median"]
        cells = [
            ("{:.2f}", median.get(kept)),
            ("{:.2f}", median.get(cut)),
            ("{:,.0f}", median.get("frames")),
            ("{:.0f}", median.get("rtt")),
        ]
        print(f"{one['name']:28}" + "".join(f"{'' if value is None else form.format(value):>12}" for form, value in cells))
    print(f"{'the generator alone':28}{'':24}{result['generator_alone_fps']:>12,.0f}")
    print()
    for name, value, goal in ratios(result):
        print(f"{name:44}{value:>8.2f}   {goal}")


@contextlib.contextmanager
def ground(base: Path) -> Iterator[Ground]:
    with contextlib.ExitStack() as stack:
        yield Ground(base, stack)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="hack/bench lan", description="LANs between two machines, beside the kernel's VXLAN and others.")
    parser.add_argument("--runs", type=int, default=3, help="runs, whose medians are shown (%(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="length of each measurement (%(default)s)")
    parser.add_argument("--pings", type=int, default=500, help="round trips in each run (%(default)s)")
    parser.add_argument("--lans", type=int, default=64, help="how many LANs are many (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("hack/bench lan needs root: it makes namespaces\nrun it as root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="nestbed-bench-") as directory:
        base = Path(directory)
        flood = base / "flood"
        subprocess.run(["gcc", "-O2", "-o", flood, HERE / "flood.c"], check=True)
        with ground(base) as made:
            result = measure(options, made, flood)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
