"""What a real daemon refuses about LANs between machines and their impairments: with a reason, a remedy, and nothing made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestbed.testing.machine import Machine
from nestbed.testing.segment import Segment, checked

GROUP = "239.1.2.3:5000"
CREATE = ("lan", "create", "lan9")


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Iterator[Machine]:
    """A machine at an underlay, whose LAN lan0 has the group GROUP and lan1 peers; the container web is on lan0."""
    segment = Segment(tmp_path_factory.mktemp("input"), 1)
    (machine,) = segment.machines
    try:
        segment.start()
        checked(machine.nbctl("lan", "create", "lan0", "--group", GROUP, "--subnet", "10.5.0.0/24"))
        checked(machine.nbctl("lan", "create", "lan1", "--group", "239.1.2.4:6000", "--peer", "192.168.77.9"))
        checked(machine.nbctl("create", "process", "--name", "web", "--lan", "lan0", "--", "true"))
        yield machine
        assert json.loads(machine.nbctl("-o", "json", "audit").stdout)["leftovers"] == []
    finally:
        segment.close()


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ((*CREATE, "--group", GROUP), 1, f"LAN lan0 of this node has the group {GROUP} already"),
        ((*CREATE, "--group", "239.9.9.9:6000", "--peer", "192.168.77.9"), 1, "LAN lan1 of this node has the port of 239.9.9.9:6000"),
        ((*CREATE, "--group", "192.0.2.1:5000"), 1, "the group 192.0.2.1:5000 does not begin with an IPv4 multicast address"),
        ((*CREATE, "--group", "224.0.0.251:5353"), 1, "the group 224.0.0.251:5353 lies in 224.0.0.0/24"),
        ((*CREATE, "--group", "239.1.2.3"), 1, "the group 239.1.2.3 is not ADDRESS:PORT"),
        ((*CREATE, "--group", "239.1.2.3:0"), 1, "the group 239.1.2.3:0 does not end with a port"),
        ((*CREATE, "--group", "239.1.2.3:70000"), 1, "the group 239.1.2.3:70000 does not end with a port"),
        ((*CREATE, "--group", "[ff02::1]:5000"), 1, "the group [ff02::1]:5000 does not begin with"),
        ((*CREATE, "--peer", "192.168.77.1"), 1, "the peer 192.168.77.1 is this node's own address"),
        ((*CREATE, "--peer", "239.1.2.3"), 1, "the peer 239.1.2.3 is not unicast"),
        ((*CREATE, "--peer", "fd00::1"), 1, "the peer fd00::1 is no IPv4 address"),
        ((*CREATE, "--peer", "node2"), 1, "the peer node2 is no IPv4 address"),
        ((*CREATE, "--mtu", "65500"), 1, "an MTU of 65500 is more than fits a datagram"),
        ((*CREATE, "--mtu", "67"), 1, "an MTU of 67 is outside of 68"),
        ((*CREATE, "--local", "--group", "239.1.2.5:5000"), 1, "a LAN that stays on its node cannot have a group"),
        ((*CREATE, "--ttl", "256"), 2, "'256' is not a number that fits here"),
        (("lan", "impair", "lan0", "--rate", "0"), 2, "a rate of 0 would let nothing pass"),
        (("lan", "impair", "lan0", "--rate", "1bit"), 1, "the rate of 1 bit/s is not between"),
        (("lan", "impair", "lan0", "--rate", "10"), 2, "'10' is not a rate"),
        (("lan", "impair", "lan0", "--loss", "101%"), 1, "the loss of 101 % is not between"),
        (("lan", "impair", "lan0", "--loss", "-1%"), 2, "expected one argument"),
        (("lan", "impair", "lan0", "--corrupt", "200%"), 1, "the corrupt of 200 % is not between"),
        (("lan", "impair", "lan0", "--delay", "61s"), 1, "the delay of 61000000 us is not between"),
        (("lan", "impair", "lan0", "--jitter", "1ms"), 1, "the jitter of 1000 us is not between"),
        (("lan", "impair", "lan0", "--reorder", "1%"), 1, "the reorder of 1 % needs a delay"),
        (("lan", "impair", "lan0", "--to", "--delay", "5ms"), 1, "LAN lan0 as a whole has no direction"),
        (("lan", "impair", "lan0", "--port", "mail", "--delay", "5ms"), 1, "there is no container mail"),
        (("lan", "impair", "lan0", "--port", "web:eth9", "--delay", "5ms"), 1, "container web has no NIC eth9 on LAN lan0"),
        (("lan", "impair", "lan1", "--port", "web", "--delay", "5ms"), 1, "container web has no NIC on LAN lan1"),
        (("lan", "impair", "lan9", "--delay", "5ms"), 1, "there is no LAN lan9"),
        (("run", "process", "--rm", "--lan", "lan0,loss=101%", "--", "true"), 125, "the loss of 101 % is not between"),
        (("run", "process", "--rm", "--lan", "lan0,rate=0", "--", "true"), 2, "a rate of 0 would let nothing pass"),
        (("lan", "stats", "lan9"), 1, "there is no LAN lan9"),
        (("lan", "stats", "--interval", "1ms"), 2, "the interval is too short"),
    ],
)
def test_refused(node: Machine, line: tuple[str, ...], code: int, said: str) -> None:
    before = node.nbctl("lan", "ls", "-o", "name").stdout
    result = node.nbctl(*line)
    assert result.returncode == code, result
    assert result.stdout == ""
    cause, remedy = result.stderr.splitlines()
    assert said in cause
    assert remedy.startswith("remedy: ")
    assert node.nbctl("lan", "ls", "-o", "name").stdout == before
    assert " none" in node.nbctl("lan", "impair", "show", "lan0").stdout


@pytest.mark.parametrize(
    ("spoil", "underlay", "said"),
    [
        ((), "u9", "the underlay u9: it does not exist"),
        (("ip", "address", "flush", "dev", "u0"), "u0", "the underlay u0: it has no IPv4 address"),
        (("ip", "link", "set", "dev", "u0", "multicast", "off"), "u0", "the underlay u0: it carries no multicast"),
        (("ip", "link", "set", "dev", "u0", "mtu", "500"), "u0", "the underlay u0: it has an MTU of 500"),
    ],
)
def test_underlay_that_cannot_carry_lans(tmp_path: Path, owned_cgroups: set[str], spoil: tuple[str, ...], underlay: str, said: str) -> None:
    segment = Segment(tmp_path, 1)
    (machine,) = segment.machines
    try:
        if spoil:
            checked(machine.run(*spoil))
        machine.daemon.start("--underlay", underlay)
        for line in (CREATE, (*CREATE, "--group", GROUP)):
            result = machine.nbctl(*line)
            assert (result.returncode, said in result.stderr, "\nremedy: " in result.stderr) == (1, True, True), result
        assert machine.nbctl("lan", "create", "alone", "--local").returncode == 0
        found = [ability for ability in json.loads(machine.nbctl("info", "-o", "json").stdout)["abilities"] if not ability["available"]]
        (ability,) = [ability for ability in found if ability["name"] == f"underlay-{underlay}"]
        assert ability["detail"]
        assert ability["consequence"]
        assert json.loads(machine.nbctl("-o", "json", "audit").stdout)["leftovers"] == []
    finally:
        segment.close()
        owned_cgroups.add(f"nestbed-{machine.node_id}")


def test_node_without_underlays_keeps_lans_to_itself(machine: Machine, daemon) -> None:
    for option in (("--group", GROUP), ("--peer", "192.0.2.1")):
        result = machine.nbctl(*CREATE, *option)
        assert (result.returncode, "this node has no underlay" in result.stderr) == (1, True)
    checked(machine.nbctl("lan", "create", "lan0"))
    assert json.loads(machine.nbctl("lan", "inspect", "lan0").stdout)["group"] == ""


def test_lan_outlives_what_the_daemon_was_told_of_underlays(tmp_path: Path, owned_cgroups: set[str]) -> None:
    segment = Segment(tmp_path, 1)
    (machine,) = segment.machines
    try:
        segment.start()
        checked(machine.nbctl("lan", "create", "lan0", "--group", GROUP, "--subnet", "10.5.0.0/24"))
        checked(machine.nbctl("run", "process", "-d", "--name", "web", "--lan", "lan0", "--", "sleep", "1000"))
        for options, underlay, kind in (
            ((), "", "DOWN"),
            (("--underlay", "u0", "--relay", "userspace"), "u0", "USERSPACE"),
            (("--underlay", "u0"), "u0", "KERNEL"),
        ):
            machine.daemon.kill()
            machine.daemon.start(*options)
            shown = json.loads(machine.nbctl("lan", "inspect", "lan0").stdout)
            assert shown["group"] == GROUP
            (path,) = shown["paths"]
            assert (path["underlay"], path["kind"]) == (underlay, f"PATH_KIND_{kind}"), path
            assert bool(path["detail"]) is (kind != "KERNEL")
        assert "1 received" in machine.nbctl("run", "process", "--rm", "--lan", "lan0", "--", "ping", "-c", "1", "web").stdout
        assert json.loads(machine.nbctl("-o", "json", "audit").stdout)["leftovers"] == []
    finally:
        segment.close()
        owned_cgroups.add(f"nestbed-{machine.node_id}")
