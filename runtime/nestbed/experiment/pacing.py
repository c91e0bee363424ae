"""In which steps `verify` has elements call each other, so that a kernel's table of neighbours does not overflow. Pure.

One table, with one limit (net.ipv4.neigh.default.gc_thresh3 and its sibling of IPv6, see arp(7)), holds what all network namespaces of a
kernel know of their neighbours, and each call leaves an entry at both ends. So of many elements only some call at a time, each calls those
that call it meanwhile, and all of them forget their neighbours before the next ones call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

AT_ONCE = 24
"""Elements that call each other in a step: they have 24 * 23 entries at most."""
ROOM = 600
"""Entries that are made without steps: a good half of what an unchanged kernel takes, 1024."""

Step = Mapping[str, Sequence[str]]
"""The elements that call, and whom."""


def steps(members: Mapping[str, Sequence[str]], elements: Sequence[str]) -> list[Step]:
    """Steps in which each of ``elements`` calls each other one, once; ``members`` are those of each LAN.

    There is one step if that leaves ROOM entries at most. Else each has AT_ONCE elements at most; of two neighbours each calls the other in
    the same step, and who is none is called in the caller's first one.
    """
    neighbours: dict[str, set[str]] = {name: set() for name in elements}
    for names in members.values():
        for name in names:
            neighbours[name] |= set(names) - {name}
    if sum(map(len, neighbours.values())) <= ROOM:
        return [{name: [other for other in elements if other != name] for name in elements}]
    return list(_paced(neighbours, elements))


def _paced(neighbours: Mapping[str, set[str]], elements: Sequence[str]) -> Iterator[Step]:
    half = AT_ONCE // 2
    groups = [elements[at : at + half] for at in range(0, len(elements), half)]
    begun: set[str] = set()
    for pair in _meetings(groups, neighbours):
        step: dict[str, list[str]] = {}
        callers = dict.fromkeys(name for group in pair for name in group)
        for group in pair:
            for name in group:
                is_first = name not in begun
                met = () if is_first else group
                called = [other for other in callers if other in neighbours[name] and other not in met]
                if is_first:
                    called += [other for other in elements if other != name and other not in neighbours[name]]
                if called or is_first:
                    step[name] = called
        begun.update(callers)
        yield step


def _meetings(groups: Sequence[Sequence[str]], neighbours: Mapping[str, set[str]]) -> Iterator[tuple[Sequence[str], ...]]:
    """Pairs of groups with neighbours in each other, then groups that have none elsewhere."""
    alone = set(range(len(groups)))
    for (one, first), (two, second) in combinations(enumerate(groups), 2):
        if any(neighbours[name].intersection(second) for name in first):
            alone -= {one, two}
            yield first, second
    for number in sorted(alone):
        yield (groups[number],)
