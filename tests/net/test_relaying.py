"""Two machines, one LAN: what a user sees of LANs between machines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nestbed.testing.machine import Machine
from nestbed.testing.segment import Segment, checked

GROUP = "239.1.2.3:5000"


@pytest.fixture(params=["kernel-and-relay", "userspace"])
def pair(request, tmp_path, owned_cgroups) -> Iterator[Segment]:
    segment = Segment(tmp_path, 2)
    try:
        segment.start("--relay", {"userspace": "userspace"}.get(request.param, "auto"))
        yield segment
    finally:
        segment.close()
        owned_cgroups.update(f"nestbed-{machine.node_id}" for machine in segment.machines)


def nbctl(machine: Machine, *args: str) -> str:
    return checked(machine.nbctl(*args))


def join(segment: Segment, *options: str) -> None:
    """A LAN on each machine, and a container ``c1``, ``c2``... on it."""
    for number, machine in enumerate(segment.machines, 1):
        nbctl(machine, "lan", "create", "lan0", "--group", GROUP, *options)
        address = ("--lan", f"lan0,ip=10.5.0.{number}/24,ip=fd00:5::{number}/64")
        nbctl(machine, "run", "process", "-d", "--name", f"c{number}", *address, "--", "sleep", "1000")


def test_containers_of_two_machines_reach_each_other(pair) -> None:
    join(pair)
    first, second = pair.machines
    assert " 3 received" in nbctl(first, "exec", "c1", "--", "ping", "-c", "3", "-i", "0.1", "-W", "2", "10.5.0.2")
    assert " 3 received" in nbctl(second, "exec", "c2", "--", "ping", "-c", "3", "-i", "0.1", "-W", "2", "fd00:5::1")
    for machine in pair.machines:
        assert machine.nbctl("audit").returncode == 0, machine.nbctl("audit").stdout
