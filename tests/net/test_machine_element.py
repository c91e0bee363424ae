"""The node's own machine as an element: NICs on LANs and programs in its own network, made and undone exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nestbed.testing.machine import Machine

MIXED = """\
experiment: mixed
pool6: fd00::/48
lans: {left: {}, right: {delay: 2ms}}
elements:
  client: {nics: [left]}
  router: {nics: [left, right]}
  target:
    kind: machine
    nics: [right]
    command: exec python3 -m http.server 8080 --bind 10.0.1.2
    ready: {port: 8080}
"""


def nbctl(machine: Machine, *args: str, status: int = 0) -> str:
    result = machine.nbctl(*args)
    assert result.returncode == status, f"{args}: {result.stderr}{result.stdout}{machine.daemon.log[-5:]}"
    return result.stdout + result.stderr


def network(machine: Machine) -> list[str]:
    """What the machine's network is, but for bridges and ports."""
    links = json.loads(machine.run("ip", "-j", "link").stdout)
    own = [link["ifname"] for link in links if not link["ifname"].startswith("nb")]
    sysctls = machine.run("sh", "-c", "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/all/* /proc/sys/net/ipv4/conf/default/*")
    routes = [machine.run("ip", version, "route", "show", "table", "all").stdout for version in ("-4", "-6")]
    return [*own, *routes, sysctls.stdout]


@pytest.fixture
def permitting(machine, daemon) -> Machine:
    daemon.stop()
    daemon.start("--machine-element", "yes")
    return machine


def test_the_machine_is_an_element_and_is_left_as_it_was(permitting: Machine, tmp_path: Path) -> None:
    machine = permitting
    (tmp_path / "mixed.yaml").write_text(MIXED)
    before = network(machine)
    nbctl(machine, "up", "-f", str(tmp_path / "mixed.yaml"))
    assert machine.run("ip", "-4", "-br", "addr", "show", "exp0").stdout.split()[2] == "10.0.1.2/24"
    assert "10.0.0.0/24 via 10.0.1.1 dev exp0" in machine.run("ip", "route").stdout
    assert "200" in nbctl(
        machine, "exec", "mixed.client", "--", "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://target:8080"
    )
    assert nbctl(machine, "exec", "mixed.target", "--", "hostname") == "target\n"
    assert nbctl(machine, "verify", "mixed") == "mixed: 16 calls answered, no deviation\n"
    assert "node local is the element target, too\n" in nbctl(machine, "status", "mixed")
    machine.daemon.kill()
    machine.daemon.start("--machine-element", "yes")
    assert nbctl(machine, "verify", "mixed") == "mixed: 16 calls answered, no deviation\n"
    nbctl(machine, "audit")
    nbctl(machine, "stop", "-t", "0", "mixed.target")
    assert network(machine) == before
    nbctl(machine, "up", "-f", str(tmp_path / "mixed.yaml"))
    assert "exp0" in network(machine)
    pid = json.loads(nbctl(machine, "inspect", "mixed.target"))["pid"]
    machine.daemon.kill()
    machine.run("kill", "-9", str(pid))
    machine.daemon.start("--machine-element", "yes")
    nbctl(machine, "audit")
    assert network(machine) == before
    nbctl(machine, "down", "mixed")
    assert network(machine) == before
    nbctl(machine, "audit")


def test_what_the_machine_cannot_be_is_refused(machine, daemon, tmp_path: Path) -> None:
    (tmp_path / "mixed.yaml").write_text(MIXED)
    up = ("up", "-f", str(tmp_path / "mixed.yaml"))
    assert "target is of kind machine, which node local does not offer" in nbctl(machine, *up, status=1)
    daemon.stop()
    daemon.start("--machine-element", "yes")
    machine.run("ip", "link", "add", "site0", "type", "veth", "peer", "name", "site1")
    machine.run("ip", "link", "set", "site0", "up")
    machine.run("ip", "address", "add", "10.0.0.77/16", "dev", "site0")
    before = network(machine)
    assert "the machine reaches 10.0.0.0/16 by site0" in nbctl(machine, *up, status=1)
    assert network(machine) == before
    assert nbctl(machine, "ps", "-a", "-q") == ""
    (tmp_path / "mixed.yaml").write_text(MIXED + "  other: {kind: machine, nics: [left]}\n")
    assert "target and other would both be the machine local" in nbctl(machine, *up, status=1)
    for words, said in (
        ("sysctls: {net.ipv4.ip_forward: 1}, ", "has no sysctls of its own"),
        ("forward: yes, ", "forwards nothing"),
        ("routes: [{to: default, via: router}], ", "cannot be a container with a default route"),
    ):
        (tmp_path / "mixed.yaml").write_text(MIXED.replace("    kind: machine\n    nics", f"    kind: machine\n    {words[:-2]}\n    nics"))
        assert said in nbctl(machine, *up, status=1)
    assert network(machine) == before
    nbctl(machine, "audit")
