"""How fast LANs between machines are, beside the kernel's own tunnel and others, in one run.

Run through ``hack/bench lan``. Two machines (namespaces with a daemon each) are joined by a veth pair; every contender has a station of its
own on each. TCP by iperf3; 64-byte frames by ``flood.c``, counted where they arrive while it sends; round trips by ping.

Every run measures all contenders shortly after each other, in turn from the first and from the last, and what is compared is compared
within a run: what the machine does meanwhile falls on both. The kernel's tunnel, which is the measure, is then measured in turn with
nestbed alone, more often. Figures are medians over the runs, ratios the medians of the runs' ratios, with the least and the largest beside
them. ``--json FILE`` writes everything for programs. Nothing gates on it.
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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import (
    Contender,
    Ground,
    bare_bridge,
    end,
    floor,
    inside,
    many_lans,
    nestbed,
    oversize,
    relay_alone,
    vde,
    vxlan,
    wait_for,
)

from nestbed.testing.station import entered

HERE = Path(__file__).parent
MODES = {"super-frames kept": "on", "underlay segments": "off"}
KEPT, CUT = (f"tcp {mode}" for mode in MODES)
SETTLE_SECONDS = 0.2
FLOOD_SECONDS_MAX = 60
"""Should nobody end it."""


def gbps(contender: Contender, seconds: float, address: str = "") -> float:
    """Received by TCP, Gbit/s."""
    argv = ["nsenter", f"--net={contender.target}", "--", "iperf3", "-s", "-1", "-p", "5201"]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: "5201" in inside(contender.target, "ss", "-Hltn", "sport", "=", ":5201"))
        out = inside(contender.source, "iperf3", "-c", address or contender.address, "-p", "5201", "-t", str(seconds), "-J")
        server.wait(10)
    finally:
        server.kill()
        server.wait()
    return float(json.loads(out)["end"]["sum_received"]["bits_per_second"]) / 1e9


def counters(namespace: str, interfaces: Iterable[str]) -> tuple[int, int]:
    """Frames that arrived at interfaces, and that left by them."""
    with entered(namespace):
        text = Path("/proc/thread-self/net/dev").read_text()
    numbers = {name.strip(): rest.split() for name, _, rest in (line.partition(":") for line in text.splitlines()[2:])}
    return sum(int(numbers[name][1]) for name in interfaces), sum(int(numbers[name][9]) for name in interfaces)


def macs(namespace: str, interfaces: Iterable[str]) -> list[str]:
    return [link["address"] for name in interfaces for link in json.loads(inside(namespace, "ip", "-j", "link", "show", "dev", name))]


@contextlib.contextmanager
def flooding(flood: Path, namespace: str, interfaces: Sequence[str], targets: Sequence[str]) -> Iterator[None]:
    """Send frames for the block. Opening and closing the generator's sockets takes the kernel a while, which does not count."""
    argv = ["nsenter", f"--net={namespace}", "--", str(flood), ",".join(interfaces), ",".join(targets), str(FLOOD_SECONDS_MAX)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(SETTLE_SECONDS)
        yield
    finally:
        end(process)


def frames(contender: Contender, flood: Path, seconds: float) -> tuple[float, float]:
    """Frames a second that arrive, and that are sent. The kernel's ways of switching learn first where the station is."""
    one, other = (contender.source, contender.source_interfaces), (contender.target, contender.target_interfaces)
    with flooding(flood, *one, macs(*other)):
        sent, arrived, at = counters(*one)[1], counters(*other)[0], time.monotonic()
        time.sleep(seconds)
        sent, arrived, took = counters(*one)[1] - sent, counters(*other)[0] - arrived, time.monotonic() - at
    return arrived / took, sent / took


def round_trip_us(contender: Contender, count: int) -> float:
    """The median round trip."""
    out = inside(contender.source, "ping", "-c", str(count), "-i", "0.002", contender.address)
    return statistics.median(float(found) * 1000 for found in re.findall(r"time=([\d.]+) ms", out))


def generator_alone(ground: Ground, flood: Path, seconds: float) -> float:
    """What the generator sends if nobody does anything with it: into a veth whose far end has no station."""
    path = f"/proc/{os.getpid()}/fd/{ground.space('g1').netns_fd}"
    inside(path, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far")
    for name in ("eth0", "far"):
        inside(path, "ip", "link", "set", name, "up")
    with flooding(flood, path, ["eth0"], ["02:00:00:00:00:99"]):
        sent, at = counters(path, ["eth0"])[1], time.monotonic()
        time.sleep(seconds)
        return (counters(path, ["eth0"])[1] - sent) / (time.monotonic() - at)


def warm(contender: Contender) -> None:
    """Let everybody know where everybody is."""
    inside(contender.target, "ping", "-c", "2", "-i", "0.1", "-W", "2", contender.address[:-1] + "1")


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_once(options: argparse.Namespace, ground: Ground, flood: Path, contenders: Sequence[Contender]) -> None:
    """Each contender once, in the order given."""
    for mode, switch in MODES.items():
        ground.set_mode(switch)
        for one in contenders:
            if one.crosses or switch == "on":
                one.note(f"tcp {mode}", gbps(one, options.seconds))
                told(f"{mode} {one.name}: {one.figures[f'tcp {mode}'][-1]:.2f} Gbit/s")
    ground.set_mode("on")
    for one in contenders:
        arrived, sent = frames(one, flood, options.seconds)
        one.note("frames", arrived)
        one.note("sent", sent)
        one.note("rtt", round_trip_us(one, options.pings))
        told(f"{one.name}: {arrived:.0f} of {sent:.0f} frames/s, {one.figures['rtt'][-1]:.0f} us")


def compare(options: argparse.Namespace, ground: Ground, flood: Path, pair: Sequence[Contender]) -> None:
    """Two of them in turn, and nobody else."""
    for number in range(options.rounds):
        order = pair[:: -1 if number % 2 else 1]
        for mode, switch in MODES.items():
            ground.set_mode(switch)
            for one in order:
                one.note(f"alone tcp {mode}", gbps(one, options.seconds))
        ground.set_mode("on")
        for one in order:
            one.note("alone frames", frames(one, flood, options.seconds)[0])
            one.note("alone rtt", round_trip_us(one, options.pings))
        told(f"round {number + 1}: " + ", ".join(f"{one.name} {one.figures[f'alone {KEPT}'][-1]:.2f} Gbit/s" for one in pair))


def measure(options: argparse.Namespace, ground: Ground, flood: Path) -> dict[str, Any]:
    makers = [nestbed, vxlan, bare_bridge, vde, floor, oversize, relay_alone]
    contenders = [maker(ground) for maker in makers]
    mine = contenders[0]
    for contender in contenders:
        warm(contender)
    alone = generator_alone(ground, flood, options.seconds)
    load = [os.getloadavg()[0]]
    for run in range(options.runs):
        told(f"run {run + 1} of {options.runs}")
        run_once(options, ground, flood, contenders[:: -1 if run % 2 else 1])
        load.append(os.getloadavg()[0])
    compare(options, ground, flood, contenders[:2])
    load.append(os.getloadavg()[0])
    many = many_lans(ground, options.lans)
    for run in range(options.runs):
        for one in (many, mine)[:: -1 if run % 2 else 1]:
            one.note("tcp of many", gbps(one, options.seconds))
            one.note("frames of many", frames(one, flood, options.seconds)[0])
            told(f"{one.name}: {one.figures['tcp of many'][-1]:.2f} Gbit/s, {one.figures['frames of many'][-1]:.0f} frames/s")
    return {
        "generator_alone_fps": alone,
        "load": load,
        "contenders": [{"name": one.name, "runs": one.figures} for one in (*contenders, many)],
    }


@dataclass(frozen=True)
class Ratio:
    """What is to be reached, run by run."""

    name: str
    values: list[float]
    goal: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def over(one: dict[str, list[float]], other: dict[str, list[float]], what: str) -> list[float]:
    return [mine / theirs for mine, theirs in zip(one[what], other[what], strict=True)]


def ratios(result: dict[str, Any]) -> list[Ratio]:
    """What is to be reached."""
    by_name = {one["name"]: one["runs"] for one in result["contenders"]}
    mine, tunnel, bridge = by_name["nestbed"], by_name["kernel VXLAN, multicast"], by_name["bare bridge, one machine"]
    switch = by_name["vde_switch, one machine"]
    many = next(runs for name, runs in by_name.items() if name.endswith(" LANs"))
    return [
        Ratio("TCP over VXLAN's, super-frames kept", over(mine, tunnel, f"alone {KEPT}"), ">= 1.0"),
        Ratio("TCP over VXLAN's, underlay segments", over(mine, tunnel, f"alone {CUT}"), ">= 1.0"),
        Ratio("frames/s over VXLAN's", over(mine, tunnel, "alone frames"), ">= 1.0"),
        Ratio("TCP over VDE's", over(mine, switch, KEPT), ">= 8"),
        Ratio("  a bare bridge's on one machine", over(bridge, switch, KEPT)),
        Ratio("frames/s over VDE's", over(mine, switch, "frames"), ">= 8"),
        Ratio("  a bare bridge's on one machine", over(bridge, switch, "frames")),
        Ratio("TCP by the relay process alone, Gbit/s", by_name["nestbed, relay process alone"][KEPT], ">= 0.3"),
        Ratio("TCP of oversize frames, Gbit/s", by_name["nestbed, oversize"][KEPT], ">= 0.3"),
        Ratio("round trip over VXLAN's", over(mine, tunnel, "alone rtt"), "<= 1.0"),
        Ratio("TCP on one of many LANs over one alone", over(many, mine, "tcp of many"), ">= 0.9"),
        Ratio("frames/s on many LANs over one alone", over(many, mine, "frames of many"), ">= 0.9"),
    ]


def show(result: dict[str, Any]) -> None:
    print(f"{'':30}{'TCP Gbit/s':>12}{'TCP Gbit/s':>12}{'64-byte':>12}{'round trip':>12}")
    print(f"{'':30}{'kept':>12}{'segments':>12}{'frames/s':>12}{'us':>12}")
    columns = {KEPT: "{:.2f}", CUT: "{:.2f}", "frames": "{:,.0f}", "rtt": "{:.0f}"}
    for one in result["contenders"]:
        runs = one["runs"]
        if KEPT not in runs:  # the many
            runs = {KEPT: runs["tcp of many"], "frames": runs["frames of many"]}
        cells = [form.format(statistics.median(runs[what])) if what in runs else "" for what, form in columns.items()]
        print(f"{one['name']:30}" + "".join(f"{cell:>12}" for cell in cells))
    print(f"{'the generator alone':30}{'':24}{result['generator_alone_fps']:>12,.0f}")
    print()
    print(f"{'':44}{'median':>8}{'least':>8}{'most':>8}   goal")
    for ratio in ratios(result):
        print(f"{ratio.name:44}{ratio.median:>8.2f}{min(ratio.values):>8.2f}{max(ratio.values):>8.2f}   {ratio.goal}".rstrip())
    print(f"\nload average {min(result['load']):.1f} to {max(result['load']):.1f} on {os.cpu_count()} processors")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="hack/bench lan", description="LANs between two machines, beside the kernel's VXLAN and others.")
    parser.add_argument("--runs", type=int, default=3, help="runs, whose medians are shown (%(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="comparisons with the kernel's tunnel alone (%(default)s)")
    parser.add_argument("--seconds", type=int, default=1, help="length of each measurement (%(default)s)")
    parser.add_argument("--pings", type=int, default=300, help="round trips in each run (%(default)s)")
    parser.add_argument("--lans", type=int, default=64, help="how many LANs are many (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("hack/bench lan needs root: it makes namespaces\nrun it as root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="nestbed-bench-") as directory, contextlib.ExitStack() as stack:
        base = Path(directory)
        flood = base / "flood"
        subprocess.run(["gcc", "-O2", "-o", flood, HERE / "flood.c"], check=True)
        result = measure(options, Ground(base, stack), flood)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
