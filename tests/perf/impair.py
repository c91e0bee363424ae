"""How true impairments are, from inside containers: rates of TCP and UDP, loss, delay; and what one container more costs.

Run through ``hack/bench impair``. A daemon in a network namespace of its own, two process containers on a LAN, iperf3 and ping in them.
Nothing gates on the figures; ``--json FILE`` writes them for programs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nestbed.testing.machine import Machine

FULL_FRAME = 1514
TCP_PAYLOAD, UDP_PAYLOAD = 1448, 1472
RATES = {"1mbit": 1e6, "10mbit": 1e7, "100mbit": 1e8, "1gbit": 1e9}


def nbctl(machine: Machine, *args: str, timeout_seconds: float = 60.0) -> str:
    """What nbctl prints; its failure ends the run."""
    words = (str(Path(sys.executable).parent / "nbctl"), "-H", machine.address, *args)
    result = machine.run(*words, timeout_seconds=timeout_seconds)
    if result.returncode:
        raise SystemExit(f"nbctl {' '.join(args)}: {result.stderr}")
    return result.stdout


def iperf(machine: Machine, seconds: float, *options: str) -> dict[str, Any]:
    """The end of iperf3's report from ``one`` to ``two``."""
    words = ("exec", "one", "--", "iperf3", "-c", "two", "-J", "-t", str(seconds), *options)
    report: dict[str, Any] = json.loads(nbctl(machine, *words, timeout_seconds=seconds + 30))["end"]
    return report


def tcp_bps(machine: Machine, seconds: float) -> float:
    """TCP as frames on the wire, without the first seconds."""
    end = iperf(machine, seconds, "-O", "2")
    return float(end["sum_received"]["bits_per_second"]) * FULL_FRAME / TCP_PAYLOAD


def udp_bps(machine: Machine, seconds: float, rate: float) -> float:
    """UDP, sent at 1.5 times the rate, as frames on the wire."""
    end = iperf(machine, seconds, "-u", "-b", str(int(rate * 1.5)), "-l", str(UDP_PAYLOAD), "-O", "1")
    return float(end["sum_received"]["bits_per_second"]) * FULL_FRAME / UDP_PAYLOAD


def round_trip_ms(machine: Machine, count: int) -> dict[str, float]:
    """Round trips of ping, 100 a second."""
    shown = nbctl(machine, "exec", "one", "--", "ping", "-c", str(count), "-i", "0.01", "-W", "5", "two")
    times = sorted(float(line.partition("time=")[2].split()[0]) for line in shown.splitlines()[2:] if "time=" in line)
    return {"median": statistics.median(times), "p99": times[len(times) * 99 // 100], "lost": count - 1 - len(times)}


def measure(machine: Machine, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    found: dict[str, Any] = {"tcp": {}, "udp": {}, "delay": {}}
    for text, rate in RATES.items():
        nbctl(machine, "lan", "impair", "lan0", "--port", "one", "--from", "--rate", text)
        found["tcp"][text] = tcp_bps(machine, options.seconds) / rate
        found["udp"][text] = udp_bps(machine, options.seconds, rate) / rate
    nbctl(machine, "lan", "impair", "reset", "lan0")
    found["round_trip_ms"] = round_trip_ms(machine, 100)
    for text in ("1ms", "10ms", "50ms"):
        nbctl(machine, "lan", "impair", "lan0", "--delay", text)
        found["delay"][text] = round_trip_ms(machine, 200)
    found["tcp_gbps_at_50ms"] = float(iperf(machine, options.seconds, "-O", "2")["sum_received"]["bits_per_second"]) / 1e9
    nbctl(machine, "lan", "impair", "reset", "lan0")
    return found


def show(found: dict[str, Any]) -> None:
    """As a table."""
    print(f"{'rate':<10} {'TCP':>8} {'UDP':>8}   (measured / asked for)")
    for text in RATES:
        print(f"{text:<10} {found['tcp'][text]:>8.3f} {found['udp'][text]:>8.3f}")
    print(f"round trip without delay: {found['round_trip_ms']['median']:.2f} ms")
    for text, trip in found["delay"].items():
        print(f"LAN delay {text}: round trip median {trip['median']:.2f} ms, p99 {trip['p99']:.2f} ms")
    print(f"TCP with a LAN delay of 50 ms: {found['tcp_gbps_at_50ms']:.2f} Gbit/s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure how true impairments are.")
    parser.add_argument("--seconds", type=int, default=4, help="length of one run of iperf3")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nestbed-bench-") as base:
        machine = Machine("bench", Path(base))
        try:
            machine.daemon.start()
            nbctl(machine, "lan", "create", "lan0", "--subnet", "10.5.0.0/24")
            nbctl(machine, "run", "process", "-d", "--name", "two", "--lan", "lan0", "--", "iperf3", "-s")
            nbctl(machine, "run", "process", "-d", "--name", "one", "--lan", "lan0", "--", "sleep", "100000")
            time.sleep(0.5)
            found = measure(machine, options)
        finally:
            machine.close()
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
