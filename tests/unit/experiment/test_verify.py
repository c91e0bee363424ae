"""What verify asks for and calls a deviation, worked out without any element."""

from __future__ import annotations

from typing import Any

import pytest

from nestbed.experiment import flows, plan, probe
from nestbed.experiment.deviations import Overflow, is_in_time
from nestbed.experiment.flows import Flow
from nestbed.experiment.forwarding import Expected, Forwarding

LINE = """\
experiment: line
pool6: fd00::/48
lans: {left: {}, right: {delay: 10ms, jitter: 2ms, loss: 10%, duplicate: 1%, rate: 10Mbit, mtu: 1400}}
elements:
  a: {nics: [left]}
  r: {nics: [left, right]}
  b: {nics: [{lan: right, to: {delay: 5ms, rate: 1Mbit}, from: {loss: 50%}}]}
  c: {nics: [right]}
"""


def test_what_is_done_to_each_direction_of_a_nic_counts() -> None:
    found = Forwarding(plan.make((LINE, "v"))).expected("a", "10.0.1.2")
    assert found is not None
    assert (found.ttl, found.path_mtu, found.delay_us, found.jitter_us, found.rate_bps) == (63, 1400, 25_000, 4_000, 1_000_000)
    assert found.loss == pytest.approx(1 - 0.9 * 0.9 * 0.5)
    assert found.copies == pytest.approx(1.01**2, rel=0.001)
    assert not found.neighbour


def test_ipv6_is_followed_too() -> None:
    forwarding = Forwarding(plan.make((LINE, "v")))
    assert forwarding.expected("a", "fd00:0:0:1::3") == forwarding.expected("a", "10.0.1.3")
    still = LINE.replace("experiment: line", "experiment: line\nrouting: none")
    assert Forwarding(plan.make((still, "v"))).expected("a", "fd00:0:0:1::3") is None


def test_every_port_carries_flows_both_ways() -> None:
    made = plan.make((LINE, "v"))
    forwarding = Forwarding(made)
    addresses = {one.name: [a.partition("/")[0] for nic in one.element.nics for a in nic.addresses] for one in made.elements.values()}
    expected = {
        name: {address: forwarding.expected(name, address) for other, its in addresses.items() if other != name for address in its}
        for name in made.elements
    }
    chosen = flows.choose(made, expected)
    assert [(flow.element, flow.lan, flow.address, flow.is_declared) for flow in chosen] == [
        ("a", "left", "10.0.0.2", False),
        ("r", "right", "10.0.1.2", True),
        ("b", "right", "10.0.1.3", True),
        ("c", "right", "10.0.1.1", True),
    ]


def flow(**want: Any) -> Flow:
    return Flow("a", "left", "10.0.0.2", Expected(64, 1500, **want))


@pytest.mark.parametrize("rate", [1_000, 20_000, 64_000, 1_000_000, 10_000_000, 100_000_000, 200_000_000, 10_000_000_000])
def test_flows_end_in_time_and_tell_the_rate(rate: int) -> None:
    asked = flows.request(flow(rate_bps=rate), again=True)
    assert asked["calls"] * asked["gap"] <= 5.8
    assert asked["packets"] * asked["pace"] <= 5.8
    assert 64 <= asked["size"] <= 1500
    if 64_000 <= rate <= flows.RATE_MAX_BPS:
        assert asked["packets"] * (asked["size"] + 14) > asked["skip"] + 10 * (asked["size"] + 14)


@pytest.mark.parametrize(
    ("want", "got", "says"),
    [
        ({}, (400, 400, 0, 1e9), ""),
        ({}, (400, 399, 0, 1e9), ""),
        ({}, (400, 390, 0, 1e9), "2.5 % had no answer, not 0 %"),
        ({}, (400, 400, 1, 1e9), "0.25 % came twice, not 0 %"),
        ({}, (400, 400, 0, 9e6), "9 Mbit/s, and none is declared"),
        ({}, (400, 400, 0, 0), ""),
        ({"loss": 0.1}, (400, 360, 0, 1e9), ""),
        ({"loss": 0.1}, (400, 400, 0, 1e9), "0 % had no answer, not 10 %"),
        ({"loss": 0.1}, (400, 300, 0, 1e9), "25 % had no answer, not 10 %"),
        ({"copies": 1.5}, (400, 400, 200, 1e9), ""),
        ({"copies": 1.5}, (400, 400, 0, 1e9), "0 % came twice, not 50 %"),
        ({"rate_bps": 10_000_000}, (400, 400, 0, 9.7e6), ""),
        ({"rate_bps": 10_000_000}, (400, 400, 0, 12e6), "12 Mbit/s, not 10 Mbit/s"),
        ({"rate_bps": 1_000_000_000}, (400, 400, 0, 3e8), ""),
        ({"rate_bps": 1_000_000_000}, (400, 400, 0, 1e7), "10 Mbit/s, and 1e+03 Mbit/s is declared"),
    ],
)
def test_what_came_of_a_flow(want: dict[str, Any], got: tuple[int, int, int, float], says: str) -> None:
    told = list(flows.deviations(flow(**want), dict(zip(("calls", "answered", "duplicates", "rate"), got, strict=True))))
    assert [says in line for line in told] == ([True] if says else [])


@pytest.mark.parametrize(
    ("seconds", "want", "is_right"),
    [
        (0.004, {}, True),
        (0.006, {}, False),
        (0.020, {"delay_us": 20_000}, True),
        (0.018, {"delay_us": 20_000}, False),
        (0.018, {"delay_us": 20_000, "jitter_us": 4_000}, True),
        (0.000, {"delay_us": 20_000, "reorders": True}, True),
        (0.030, {"delay_us": 20_000}, False),
        (0.200, {"rate_bps": 64_000}, True),
        (0.800, {"rate_bps": 64_000}, False),
    ],
)
def test_answers_in_time(seconds: float, want: dict[str, Any], is_right: bool) -> None:
    assert is_in_time(seconds, flow(**want).want, 10) == is_right


def test_calls_that_failed_while_a_table_was_full_are_told_by_one_line() -> None:
    made = plan.make((LINE.replace("c: {nics", "c: {kind: qemu, nics"), "v"))
    want = Expected(64, 1500)
    full = Overflow([(made.elements["a"], {"full": {"4": 1024}}), (made.elements["c"], {"full": {}})])
    expected: dict[str, Expected | None] = {"10.0.0.2": want, "10.0.1.2": want, "10.0.1.9": None, "fd00::2": want}
    assert full.without(expected, {"10.0.1.2": {}}) == {"10.0.1.2": want, "10.0.1.9": None, "fd00::2": want}
    (line,) = full.lines()
    assert line.startswith("1 calls had no answer while the one table of neighbours that the kernel of node local has was full; ")
    assert line.endswith(": sysctl -w net.ipv4.neigh.default.gc_thresh3=8192")


def test_without_calls_that_failed_a_full_table_is_nothing_to_tell() -> None:
    made = plan.make((LINE, "v"))
    full = Overflow([(made.elements["a"], {"full": {"4": 1024, "6": 1024}})])
    assert full.without({"10.0.0.2": Expected(64, 1500)}, {"10.0.0.2": {}})
    assert list(full.lines()) == []


class Crowd:
    """Answers calls, but for the first few of each address: then the table of neighbours is full."""

    def __init__(self, refused: int) -> None:
        self.refused = refused
        self.replies: dict[int, list[tuple[int, float, float]]] = {}
        self.rounds = 0

    def call(self, address: str) -> int:
        if self.rounds < self.refused and address == "10.0.0.2":
            return -1
        self.replies[len(self.replies) + 1] = [(64, 0.001, 0.0)]
        return len(self.replies)

    def tables(self) -> dict[int, tuple[int, int]]:
        return {4: (1024, min(self.rounds, self.refused))}

    def listen(self, _seconds: float, _wanted: set[int]) -> None:
        self.rounds += 1


def test_a_try_does_not_count_while_the_table_is_full() -> None:
    crowd: Any = Crowd(refused=20)
    found = probe.call_all(crowd, {"10.0.0.2": 1500, "10.0.0.3": 1500}, 0.4, probe.TRIES)
    assert found["10.0.0.2"]["ttl"] == 64
    assert crowd.rounds <= 22
