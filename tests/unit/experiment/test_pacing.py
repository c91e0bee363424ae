"""In which steps elements call each other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest

from nestbed.experiment import pacing


def star(lans: int, hosts: int) -> tuple[dict[str, list[str]], list[str]]:
    members = {f"l{lan}": [f"r{lan}", *(f"h{lan}x{host}" for host in range(hosts))] for lan in range(lans)}
    members["core"] = [f"r{lan}" for lan in range(lans)]
    return members, [*members["core"], *(name for names in members.values() for name in names if name[0] == "h"), "alone"]


@pytest.mark.parametrize(("members", "elements"), [star(1, 1), star(5, 9), star(1, 41), star(1, 12), star(1, 99), star(20, 9), star(60, 1)])
def test_each_calls_each_other_once_and_few_entries_are_there_at_a_time(members: Mapping[str, Sequence[str]], elements: list[str]) -> None:
    neighbours = {name: {other for its in members.values() if name in its for other in its} for name in elements}
    steps = pacing.steps(members, elements)
    calls = [(name, other) for step in steps for name, called in step.items() for other in called]
    assert sorted(calls) == sorted(itertools.permutations(elements, 2))
    for step in steps:
        entries = {(name, other) for name, called in step.items() for other in called if other in neighbours[name]}
        assert entries == {(other, name) for name, other in entries}
        assert len(entries) <= pacing.ROOM
        assert len(steps) == 1 or len(step) <= pacing.AT_ONCE
    assert {name for step in steps for name in step} == set(elements)


def test_sparse_networks_take_few_steps() -> None:
    assert len(pacing.steps(*star(5, 9))) == 1
    assert len(pacing.steps(*star(1, 41))) == 6
    assert len(pacing.steps(*star(50, 9))) < 130
