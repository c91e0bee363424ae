"""Impairments through nbctl and a real daemon: at creation, changed, kept through stops and deaths, taken off."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nestbed.testing.machine import Machine


def nbctl(machine: Machine, *args: str) -> str:
    result = machine.nbctl(*args)
    assert result.returncode == 0, f"{args}: {result.stderr}{machine.daemon.log[-5:]}"
    return result.stdout


def run(machine: Machine, name: str, lan: str = "lan0") -> None:
    nbctl(machine, "run", "process", "-d", "--name", name, "--lan", lan, "--", "sleep", "1000")


def round_trip_ms(machine: Machine, source: str, target: str) -> float:
    """The median of seven, once both know each other's MAC."""
    shown = nbctl(machine, "exec", source, "--", "ping", "-c", "8", "-i", "0.02", "-W", "3", target)
    times = sorted(float(line.partition("time=")[2].split()[0]) for line in shown.splitlines()[2:] if "time=" in line)
    return times[len(times) // 2]


def in_force(machine: Machine, lan: str = "lan0") -> dict[str, Any]:
    told = json.loads(nbctl(machine, "-o", "json", "lan", "impair", "show", lan))
    return {port["member"]["container"]: port for port in told["ports"]}


@pytest.fixture
def lan0(machine: Machine, daemon: object) -> Machine:
    nbctl(machine, "lan", "create", "lan0", "--subnet", "10.5.0.0/24")
    return machine


def test_delay_of_a_lan_is_one_way_and_later_members_have_it(lan0: Machine) -> None:
    run(lan0, "one")
    nbctl(lan0, "lan", "impair", "lan0", "--delay", "20ms")
    run(lan0, "two")
    assert 40 <= round_trip_ms(lan0, "one", "two") <= 55
    shown = in_force(lan0)
    assert {name: port["in_force_to"]["delay_us"] for name, port in shown.items()} == {"one": 10000, "two": 10000}
    nbctl(lan0, "lan", "impair", "reset", "lan0")
    assert round_trip_ms(lan0, "one", "two") < 5
    assert lan0.nbctl("audit").returncode == 0


def test_what_is_not_named_stays(lan0: Machine) -> None:
    run(lan0, "one", "lan0,delay=5ms,rate=10mbit")
    nbctl(lan0, "lan", "impair", "lan0", "--port", "one:eth0", "--to", "--loss", "1%")
    port = in_force(lan0)["one"]
    assert (port["in_force_to"]["delay_us"], port["in_force_to"]["rate_bps"], port["in_force_to"]["loss"]) == (5000, 10_000_000, 0.01)
    assert (port["in_force_from"]["delay_us"], port["in_force_from"]["loss"]) == (5000, 0)
    nbctl(lan0, "lan", "impair", "lan0", "--port", "one", "--both", "--rate", "none")
    port = in_force(lan0)["one"]
    assert (port["in_force_to"]["delay_us"], port["in_force_to"]["rate_bps"], port["in_force_to"]["loss"]) == (5000, 0, 0.01)


def test_it_outlives_stops_and_daemons(lan0: Machine) -> None:
    run(lan0, "one", "lan0,delay=10ms")
    run(lan0, "two")
    assert 20 <= round_trip_ms(lan0, "two", "one") <= 30  # ms; the upper bound is for busy machines
    lan0.daemon.kill()
    lan0.daemon.start()
    assert 20 <= round_trip_ms(lan0, "two", "one") <= 30
    assert lan0.nbctl("audit").returncode == 0
    nbctl(lan0, "stop", "-t", "0", "one")
    assert lan0.nbctl("audit").returncode == 0
    nbctl(lan0, "start", "one")
    assert 20 <= round_trip_ms(lan0, "two", "one") <= 30
    nbctl(lan0, "rm", "-f", "one")
    lan0.daemon.kill()
    lan0.daemon.start()
    assert lan0.nbctl("audit").returncode == 0


def test_counters_outlive_the_daemon(lan0: Machine) -> None:
    run(lan0, "one")
    run(lan0, "two")
    round_trip_ms(lan0, "one", "two")

    def sent() -> dict[str, Any]:
        (lan,) = json.loads(nbctl(lan0, "-o", "json", "lan", "stats", "lan0"))
        return next(port["tx"] for port in lan["ports"] if port["container"] == "one")

    before = sent()
    assert int(before["frames"]) >= 8
    lan0.daemon.kill()
    lan0.daemon.start()
    after = sent()
    assert int(after["frames"]) >= int(before["frames"])
    assert int(after["frames"]) < int(before["frames"]) + 20


@pytest.mark.parametrize(
    "option", [("--loss", "101%"), ("--rate", "0"), ("--rate", "10bit"), ("--delay", "61s"), ("--jitter", "5ms"), ("--reorder", "5%")]
)
def test_nonsense_is_refused_with_a_remedy(lan0: Machine, option: tuple[str, str]) -> None:
    run(lan0, "one")
    for where in ((), ("--port", "one")):
        refused = lan0.nbctl("lan", "impair", "lan0", *where, *option)
        assert refused.returncode != 0
        assert "remedy" in refused.stderr
    assert in_force(lan0)["one"].get("achieved_to") is None
    unknown = lan0.nbctl("lan", "impair", "lan0", "--port", "nobody", "--loss", "1%")
    assert unknown.returncode != 0
    assert "nobody" in unknown.stderr
