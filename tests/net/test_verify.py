"""`nbctl verify` on real daemons: nothing that is not as the file says goes unnamed, and nothing else is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nestbed.testing.machine import Machine

PAGE = """\
experiment: page
pool6: fd00::/48
lans:
  lan0: {}
  wan: {delay: 10ms, mtu: 1400, rate: 20Mbit, loss: 5%}
  spare: {subnet: none, subnet6: none}
elements:
  one: {nics: [lan0]}
  two: {nics: [lan0]}
  router: {nics: [lan0, wan]}
  far: {nics: [wan, spare]}
  alone: {}
"""


def nbctl(machine: Machine, *args: str) -> str:
    result = machine.nbctl(*args)
    assert result.returncode == 0, f"{args}: {result.stderr}{result.stdout}{machine.daemon.log[-5:]}"
    return result.stdout


def sabotaged(machine: Machine, *saids: str) -> None:
    result = machine.nbctl("verify", "page")
    assert result.returncode == 1
    for said in saids:
        assert said in result.stdout, f"{said}: {result.stdout}"


@pytest.fixture
def page(machine, daemon, tmp_path: Path) -> Machine:
    (tmp_path / "page.yaml").write_text(PAGE)
    nbctl(machine, "up", "-f", str(tmp_path / "page.yaml"))
    return machine


def test_what_is_not_as_the_file_says_is_named(page: Machine) -> None:
    assert nbctl(page, "verify", "page") == "page: 30 calls answered, no deviation\n"
    inside = ("exec", "page.two", "--", "ip", "link", "set", "eth0", "mtu", "1300")
    nbctl(page, *inside)
    nbctl(page, "exec", "page.one", "--", "ip", "address", "add", "10.9.9.9/32", "dev", "eth0")
    nbctl(page, "exec", "page.one", "--", "ip", "route", "add", "192.0.2.0/24", "via", "10.0.0.1")
    nbctl(page, "exec", "page.far", "--", "ip", "route", "del", "10.0.0.0/24")
    nbctl(page, "exec", "page.far", "--", "ip", "-6", "route", "del", "fd00::/64")
    alone = json.loads(nbctl(page, "inspect", "page.alone"))["id"]
    with (page.state_dir / "containers" / alone / "hosts").open("a") as hosts:
        hosts.write("10.1.2.3 control\n")
    nbctl(page, "lan", "create", "control", "--subnet", "192.0.2.0/24")
    nbctl(page, "lan", "connect", "control", "page.alone")
    nbctl(page, "run", "process", "-d", "--name", "eve", "--lan", "page.lan0,ip=10.0.0.66/24", "--", "ping", "-b", "10.0.0.255")
    sabotaged(
        page,
        "two: the interface eth0 is",
        "one: the interface eth0 is",
        "one: the route to 192.0.2.0/24 (10.0.0.1) is too much",
        "far: the route to 10.0.0.0/24 is missing",
        "far: the route to fd00::/64 is missing",
        "far: 10.0.0.1 does not answer",
        "one: fd00:0:0:1::2 does not answer",
        "one: frames came to eth0 from 02:",
        "one: the path MTU to 10.0.0.2 is unknown, not 1500",
        "alone: the name control (",
        "alone: the interface eth0 (",
    )


@pytest.mark.slow
def test_impairments_that_are_not_declared_are_named(page: Machine) -> None:
    nbctl(page, "lan", "impair", "page.lan0", "--port", "page.two", "--to", "--loss", "20%")
    nbctl(page, "lan", "impair", "page.lan0", "--port", "page.router", "--from", "--rate", "10mbit", "--duplicate", "30%")
    nbctl(page, "lan", "impair", "page.wan", "--rate", "10mbit", "--loss", "30%", "--delay", "40ms")
    nbctl(page, "links", "down", "page", "far:spare")
    sabotaged(
        page,
        "calls of 10.0.0.2 on lan0",
        "answers of 10.0.0.3 on lan0",
        "and none is declared",
        "calls of 10.0.1.2 on wan",
        "the rate to 10.0.1.2 on wan and back is ",
        "router: 10.0.1.2 answers after 8",
        "far: the interface eth1 is",
    )


@pytest.mark.slow
def test_three_realisations_cannot_be_told_apart_from_inside(segment, tmp_path: Path) -> None:
    """One machine; two, with the LANs between them; the same two the other way round: the same observation, byte by byte."""
    first, second = segment.machines[:2]
    places = {"one": first, "two": second}
    nodes = "".join(f"  {name}: {{address: 'unix://{machine.run_dir}/admin.sock'}}\n" for name, machine in places.items())
    placements = ["{}", "{one: one, two: two, router: one, far: two, alone: two}", "{one: two, two: one, router: two, far: one}"]
    (tmp_path / "page.yaml").write_text(PAGE)
    seen = []
    for number, fixed in enumerate(placements):
        (tmp_path / "ptopo.yaml").write_text(f"nodes:\n{nodes}placement: {{fixed: {fixed}}}\n")
        nbctl(first, "up", "-f", str(tmp_path / "page.yaml"), "--on", str(tmp_path / "ptopo.yaml"))
        result = first.nbctl("verify", "page", "--save", str(tmp_path / f"{number}.json"))
        assert result.stdout == "page: 30 calls answered, no deviation\n"
        seen.append((tmp_path / f"{number}.json").read_bytes())
        nbctl(first, "down", "page")
    assert seen[0] == seen[1] == seen[2]
    for machine in places.values():
        assert nbctl(machine, "ps", "-a", "-q") == ""
        nbctl(machine, "audit")


@pytest.mark.slow
def test_a_large_lan_does_not_fill_the_kernels_table_of_neighbours(machine, daemon, tmp_path: Path) -> None:
    """Thirty who know all others would be 870 entries; a deviation is told in whatever step it shows, and neighbours are forgotten."""
    path = tmp_path / "crowd.yaml"
    path.write_text("experiment: crowd\nlans: {l: {}}\nelements:\n  'h[1-30]': {nics: [l]}\n")
    nbctl(machine, "up", "-f", str(path))
    assert nbctl(machine, "verify", "crowd") == "crowd: 870 calls answered, no deviation\n"
    assert nbctl(machine, "exec", "crowd.h7", "--", "ip", "neighbour") == ""
    nbctl(machine, "exec", "crowd.h30", "--", "ip", "link", "set", "eth0", "down")
    result = machine.nbctl("verify", "crowd")
    assert all(f"h{number}: 10.0.0.30 does not answer\n" in result.stdout for number in range(1, 30))
    assert "gc_thresh3" not in result.stdout
