"""A LAN of two machines, watched from one of them: captured, counted between the machines, and in the metrics."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestbed.testing.machine import Machine
from nestbed.testing.segment import Segment, checked

NBCTL = str(Path(sys.executable).parent / "nbctl")


@pytest.fixture
def pair(tmp_path: Path, owned_cgroups: set[str]) -> Iterator[Segment]:
    """Two machines that share lan0, with the containers c1 and c2."""
    segment = Segment(tmp_path, 2)
    try:
        segment.start()
        for number, machine in enumerate(segment.machines, 1):
            checked(machine.nbctl("lan", "create", "lan0", "--group", "239.1.2.3:5000"))
            nic = f"lan0,ip=10.5.0.{number}/24"
            checked(machine.nbctl("run", "process", "-d", "--name", f"c{number}", "--lan", nic, "--", "sleep", "1000"))
        yield segment
    finally:
        segment.close()
        owned_cgroups.update(f"nestbed-{machine.node_id}" for machine in segment.machines)


def stats(machine: Machine) -> dict[str, dict[str, int]]:
    """Frames that lan0 exchanged with other machines, by way and class."""
    (lan,) = json.loads(machine.nbctl("lan", "stats", "-o", "json", "lan0").stdout)
    return {way: {count["name"]: count["frames"] for count in lan[way]["classes"]} for way in ("received", "sent")}


def test_what_comes_from_another_machine_is_captured_and_counted(pair: Segment) -> None:
    first, second = pair.machines
    before = stats(second)
    argv = (NBCTL, "-H", second.address, "capture", "lan0", "-w", "-", "-f", "icmp", "-c", "6")
    capture = second.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert capture.stdout is not None
    head = capture.stdout.read(4)
    checked(first.nbctl("exec", "c1", "--", "ping", "-c", "3", "-i", "0.05", "-q", "10.5.0.2"))
    rest, _ = capture.communicate(timeout=10)
    read = subprocess.run(["tshark", "-n", "-r", "-", "-T", "fields", "-e", "ip.src"], input=head + rest, capture_output=True, check=True)
    assert sorted(read.stdout.decode().split()) == ["10.5.0.1"] * 3 + ["10.5.0.2"] * 3
    after = stats(second)
    assert after["received"]["icmp"] - before["received"]["icmp"] >= 3
    assert after["sent"]["icmp"] - before["sent"]["icmp"] >= 3
    lines = second.nbctl("node", "metrics").stdout.splitlines()
    labels = 'lan="lan0",direction="received",class="icmp"'
    assert f"nestbed_lan_class_frames_total{{{labels}}} {after['received']['icmp']}" in lines
    assert 'nestbed_node_ability{ability="underlay-u0"} 1' in lines


def test_counters_outlive_the_daemon(pair: Segment) -> None:
    first, second = pair.machines
    checked(first.nbctl("exec", "c1", "--", "ping", "-c", "5", "-i", "0.05", "-q", "10.5.0.2"))
    before = stats(second)
    second.daemon.kill()
    checked(first.nbctl("exec", "c1", "--", "ping", "-c", "5", "-i", "0.05", "-q", "10.5.0.2"))
    second.daemon.start("--underlay", "u0")
    after = stats(second)
    assert after["received"]["icmp"] - before["received"]["icmp"] >= 5
    (container,) = json.loads(second.nbctl("stats", "--no-stream", "-o", "json", "c2").stdout)
    counted = {count["name"]: count["frames"] for count in container["nics"][0]["rx_classes"]}
    assert counted["icmp"] >= 10
