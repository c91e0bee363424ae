"""Who may go on at barriers."""

from __future__ import annotations

import pytest

from nestbed.node.agent.barriers import arrival, complete
from nestbed.node.agent.values import Arrival


def waiting(*rows: tuple[str, str, int]) -> list[tuple[str, Arrival]]:
    return [(owner, Arrival(f"{name}.{at}", name, count, float(at), 99.0)) for at, (owner, name, count) in enumerate(rows)]


def gone(*rows: tuple[str, str, int]) -> list[str]:
    return [f"{owner}:{one.id}" for owner, one in complete(waiting(*rows))]


def test_nobody_passes_before_all_came() -> None:
    assert gone(("a", "go", 3), ("b", "go", 3), ("c", "stop", 1)) == ["c:stop.2"]
    assert gone(("a", "go", 3), ("b", "go", 3), ("c", "go", 3)) == ["a:go.0", "b:go.1", "c:go.2"]


def test_of_more_than_were_to_come_the_first_pass_and_the_others_begin_anew() -> None:
    assert gone(*[("a", "go", 2)] * 5) == ["a:go.0", "a:go.1", "a:go.2", "a:go.3"]


def test_the_largest_number_counts() -> None:
    assert gone(("a", "go", 1), ("b", "go", 3)) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"barrier": "go"},
        {"barrier": "go", "count": "0"},
        {"barrier": "go", "count": "-1"},
        {"barrier": "go", "count": "\u0663"},
        {"barrier": "go", "count": "1000000"},
        {"barrier": "../go", "count": "1"},
        {"barrier": "go", "count": "1", "id": ".."},
        {"barrier": "go", "count": "1", "id": "a/b"},
        {"barrier": "go", "count": "1", "timeout": "nan"},
        {"barrier": "go", "count": "1", "timeout": "0"},
        {"barrier": "go", "count": "1", "timeout": "1e3"},
        {"barrier": "go", "count": "1", "timeout": "99999"},
    ],
)
def test_what_cannot_be_an_arrival_is_none(fields: dict[str, str]) -> None:
    assert arrival(fields, 1.0) is None


def test_an_arrival_is_called_like_its_barrier_unless_it_says_otherwise() -> None:
    assert arrival({"barrier": "go", "count": "2", "timeout": "1.5"}, 10.0) == Arrival("go", "go", 2, 10.0, 11.5)
    named = arrival({"barrier": "go", "count": "2", "id": "me.1"}, 10.0)
    assert named is not None
    assert (named.id, named.deadline) == ("me.1", 70.0)
