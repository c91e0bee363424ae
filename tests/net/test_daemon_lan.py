"""A real daemon, its LANs and its containers, as far as the node is concerned: names, addresses, hosts files, records."""

from __future__ import annotations

import json

from nestbed.testing.machine import Machine


def nbctl(machine: Machine, *args: str) -> str:
    result = machine.nbctl(*args)
    assert result.returncode == 0, f"{args}: {result.stderr}{machine.daemon.log[-5:]}"
    return result.stdout


def test_members_reach_each_other_by_name(machine, daemon) -> None:
    nbctl(machine, "lan", "create", "lan0", "--subnet", "10.5.0.0/24", "--subnet6", "fd00:5::/64")
    nbctl(machine, "run", "process", "-d", "--name", "web", "--lan", "lan0", "--", "sleep", "1000")
    shown = nbctl(machine, "run", "process", "--rm", "--name", "client", "--lan", "lan0", "--", "ping", "-c", "1", "-W", "2", "web")
    assert "1 received" in shown
    hosts = nbctl(machine, "exec", "web", "--", "cat", "/etc/hosts")
    assert "10.5.0.1\tweb web-lan0" in hosts
    assert "fd00:5::1\tweb web-lan0" in hosts


def test_everything_survives_the_daemon(machine, daemon) -> None:
    nbctl(machine, "lan", "create", "lan0", "--subnet", "10.5.0.0/24")
    nbctl(machine, "run", "process", "-d", "--name", "web", "--lan", "lan0", "--", "sh", "-c", "echo up; sleep 1000")
    before = json.loads(nbctl(machine, "-o", "json", "inspect", "web"))
    daemon.kill()
    daemon.start()
    assert json.loads(nbctl(machine, "-o", "json", "inspect", "web")) == before
    assert nbctl(machine, "logs", "web") == "up\n"
    assert "1 received" in nbctl(machine, "run", "process", "--rm", "--lan", "lan0", "--", "ping", "-c", "1", "-W", "2", "web")
    nbctl(machine, "rm", "-f", "web")
    nbctl(machine, "lan", "rm", "lan0")
    assert machine.nbctl("audit").returncode == 0


def test_link_local_addresses_can_be_used_at_once(machine, daemon) -> None:
    nbctl(machine, "lan", "create", "lan0")
    for _ in range(3):
        shown = nbctl(machine, "run", "process", "--rm", "--lan", "lan0", "--", "ip", "-6", "address", "show", "dev", "eth0")
        assert "fe80:" in shown
        assert "tentative" not in shown
