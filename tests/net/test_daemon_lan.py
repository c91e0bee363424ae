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


def carriers(machine: Machine, container: str) -> list[str]:
    return nbctl(machine, "exec", container, "--", "sh", "-c", "cat /sys/class/net/eth*/carrier").split()


def test_cables_are_plugged_in_and_out(machine, daemon) -> None:
    """Without its cable a NIC has no carrier and nothing passes; addresses and routes stay. It is so after any restart."""
    nbctl(machine, "lan", "create", "lan0", "--subnet", "10.5.0.0/24", "--subnet6", "fd00:5::/64")
    for name in ("web", "client"):
        nbctl(machine, "run", "process", "-d", "--name", name, "--lan", "lan0", "--", "sleep", "1000")
    ping = ("exec", "client", "--", "ping", "-c1", "-W1", "web")
    assert "1 received" in nbctl(machine, *ping)
    assert nbctl(machine, "lan", "down", "--port", "web:eth0") == "web:eth0 on lan0 is down\n"
    assert nbctl(machine, "lan", "down", "lan0", "--port", "web") == "web:eth0 on lan0 is down\n"
    daemon.kill()
    daemon.start()
    assert carriers(machine, "web") == ["0"]
    assert machine.nbctl(*ping).returncode == 1
    nbctl(machine, "stop", "-t", "0", "web")
    nbctl(machine, "start", "web")
    assert carriers(machine, "web") == ["0"]
    nbctl(machine, "lan", "up", "--port", "web")
    assert carriers(machine, "web") == ["1"]
    assert "1 received" in nbctl(machine, *ping)
    assert "1 received" in nbctl(machine, "exec", "client", "--", "ping", "-6", "-c1", "-W1", "web")
    assert len(nbctl(machine, "lan", "down", "lan0").splitlines()) == 2
    nbctl(machine, "run", "process", "-d", "--name", "late", "--lan", "lan0", "--", "sleep", "1000")
    assert [carriers(machine, name) for name in ("web", "client", "late")] == [["0"]] * 3
    assert len(nbctl(machine, "lan", "up", "lan0").splitlines()) == 3
    assert "1 received" in nbctl(machine, "exec", "late", "--", "ping", "-c1", "-W1", "web")
    assert json.loads(nbctl(machine, "inspect", "late"))["nics"][0]["is_down"] is False
    assert "names no container" in machine.nbctl("lan", "down", "--port", ":eth0").stderr
    assert "nothing is named" in machine.nbctl("lan", "down").stderr
    assert "has no NIC eth7" in machine.nbctl("lan", "down", "--port", "web:eth7").stderr
    nbctl(machine, "audit")


def test_the_node_answers_for_none_of_its_own_addresses(machine, daemon) -> None:
    nbctl(machine, "lan", "create", "lan0", "--subnet", "10.5.0.0/24")
    machine.run("ip", "address", "add", "10.5.0.200/32", "dev", "lo")
    nbctl(machine, "run", "process", "-d", "--name", "web", "--lan", "lan0", "--", "sleep", "1000")
    assert machine.nbctl("exec", "web", "--", "ping", "-c1", "-W1", "10.5.0.200").returncode == 1
    assert "lladdr" not in nbctl(machine, "exec", "web", "--", "ip", "neigh", "show", "10.5.0.200")
