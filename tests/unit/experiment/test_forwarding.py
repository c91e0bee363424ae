"""What verify expects of each pair: followed through the planned routes, there and back."""

from __future__ import annotations

import pytest

from nestbed.experiment import plan
from nestbed.experiment.forwarding import Expected, Forwarding

LINE = """\
experiment: line
lans: {left: {}, middle: {delay: 5ms, mtu: 1400}, right: {delay: 1ms}}
elements:
  a: {nics: [left]}
  r1: {nics: [left, middle]}
  r2: {nics: [middle, right]}
  b: {nics: [right]}
"""
# left 10.0.0.0/24: a .1, r1 .2; middle 10.0.1.0/24: r1 .1, r2 .2; right 10.0.2.0/24: r2 .1, b .2


@pytest.mark.parametrize(
    ("source", "address", "expected"),
    [
        ("a", "10.0.0.2", Expected(64, 1500, neighbour=True)),
        ("a", "10.0.1.1", Expected(64, 1500, neighbour=True)),
        ("a", "10.0.1.2", Expected(63, 1400, 10_000)),
        ("a", "10.0.2.2", Expected(62, 1400, 12_000)),
        ("b", "10.0.0.1", Expected(62, 1400, 12_000)),
        ("r1", "10.0.2.1", Expected(64, 1400, 10_000, neighbour=True)),
    ],
)
def test_answers(source: str, address: str, expected: Expected) -> None:
    assert Forwarding(plan.make((LINE, "v"))).expected(source, address) == expected


@pytest.mark.parametrize(
    ("change", "source", "address", "answers"),
    [
        (("r1: {", "r1: {forward: no, "), "a", "10.0.2.2", False),
        (("r1: {", "r1: {forward: no, "), "a", "10.0.0.2", True),
        (("experiment: line", "experiment: line\nrouting: none"), "a", "10.0.1.2", False),
        (("experiment: line", "experiment: line\nrouting: none"), "r1", "10.0.1.2", True),
        # There, and not back: only `a` has a route.
        (("experiment: line\n", "experiment: line\nrouting: manual\n"), "a", "10.0.1.2", False),
    ],
)
def test_what_does_not_answer(change: tuple[str, str], source: str, address: str, answers: bool) -> None:
    text = LINE.replace(*change).replace(
        "a: {nics: [left]}", "a: {nics: [left], routes: [{to: default, via: r1}]}" if "manual" in change[1] else "a: {nics: [left]}"
    )
    assert (Forwarding(plan.make((text, "v"))).expected(source, address) is not None) == answers


def test_routes_in_a_circle_end() -> None:
    text = (
        LINE.replace("experiment: line", "experiment: line\nrouting: manual")
        .replace("r1: {nics", "r1: {routes: [{to: right, via: r2}], nics")
        .replace("r2: {nics", "r2: {routes: [{to: 10.0.9.0/24, via: r1}], nics")
    )
    assert Forwarding(plan.make((text, "v"))).expected("r2", "10.0.2.2") is not None
    assert Forwarding(plan.make((text, "v"))).expected("b", "10.0.0.1") is None
