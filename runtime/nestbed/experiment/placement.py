"""Placing elements on nodes: fixed ones first, the others packed, balanced, or so that few LANs lie between nodes. Deterministic."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nestbed.errors import InvalidArgument
from nestbed.experiment.ptopo import CapacityWords, NodeWords, Ptopo
from nestbed.experiment.ranges import expand
from nestbed.experiment.source import Path, Source, nearest_remedy
from nestbed.experiment.topology import Element, Topology

SEED = 2011
_ROUNDS = 4


@dataclass(slots=True)
class Site:
    """A node while it is filled."""

    name: str
    words: NodeWords
    path: Path
    number: int
    elements: int = 0
    qemu: int = 0
    cpus: float = 0.0
    memory: int = 0

    def takes(self, element: Element) -> bool:
        """Whether it may hold the element at all."""
        return element.words.kind in self.words.kinds

    def has_room(self, element: Element) -> bool:
        """Whether it can hold the element beside what it holds."""
        room, limits = self.words.capacity, element.words.limits
        return (
            (room.elements is None or self.elements < room.elements)
            and (room.qemu is None or element.words.kind != "qemu" or self.qemu < room.qemu)
            and (room.cpus is None or self.cpus + (limits.cpus or 0.0) <= room.cpus + 1e-9)
            and (room.memory is None or self.memory + (limits.memory or 0) <= room.memory)
        )

    def add(self, element: Element, sign: int = 1) -> None:
        """Hold the element, or with ``sign`` -1 no longer."""
        limits = element.words.limits
        self.elements += sign
        self.qemu += sign * (element.words.kind == "qemu")
        self.cpus += sign * (limits.cpus or 0.0)
        self.memory += sign * (limits.memory or 0)

    def load(self) -> float:
        """How full it is, 0 to 1; without bounds, less than any that has some, by number of elements."""
        return max(
            _share(self.elements, self.words.capacity.elements),
            _share(self.qemu, self.words.capacity.qemu),
            _share(self.cpus, self.words.capacity.cpus),
            _share(self.memory, self.words.capacity.memory),
            self.elements * 1e-9,
        )


def _share(used: float, room: float | None) -> float:
    return used / room if room else 0.0


@dataclass(slots=True)
class _Task:
    topology: Topology
    source: Source
    sites: list[Site]
    where: dict[str, Mapping[str, str]] = field(default_factory=dict)
    placed: dict[str, Site] = field(default_factory=dict)

    def fits(self, site: Site, element: Element) -> bool:
        wanted = self.where.get(element.name)
        return (
            site.takes(element)
            and (wanted is None or all(site.words.labels.get(key) == value for key, value in wanted.items()))
            and site.has_room(element)
        )

    def put(self, site: Site, element: Element) -> None:
        site.add(element)
        self.placed[element.name] = site

    def move(self, site: Site, element: Element) -> None:
        self.placed[element.name].add(element, -1)
        self.put(site, element)


def place(topology: Topology, ptopo: Ptopo, source: Source) -> dict[str, str]:
    """The node of each element, by name.

    Raises:
        InvalidArgument: a rule that names nobody, or elements that do not fit; with file, line and column of the ptopo.
    """
    task = _Task(topology, source, _sites(ptopo, source))
    _read_rules(task, ptopo)
    _check_nodes(task)
    rest = [element for element in topology.elements.values() if element.name not in task.placed]
    if rest and ptopo.placement.strategy == "min-cut" and len(task.sites) > 1:
        _min_cut(task, rest)
    elif ptopo.placement.strategy == "balanced":
        _balanced(task, rest)
    else:
        _packed(task, rest)
    return {name: task.placed[name].name for name in topology.elements}


def _sites(ptopo: Ptopo, source: Source) -> list[Site]:
    found: dict[str, Site] = {}
    for key, words in ptopo.nodes.items():
        for name, _ in expand(key):
            if name in found:
                raise source.mistake(("nodes", key), f"node {name} is declared twice", reason="DUPLICATE_NAME", remedy="rename one")
            found[name] = Site(name, words, ("nodes", key), len(found))
    if not found:
        raise source.mistake(("nodes",), "there is no node", reason="NO_NODES", remedy="declare one, or give no ptopo for the node asked")
    return list(found.values())


def _read_rules(task: _Task, ptopo: Ptopo) -> None:
    by_name = {site.name: site for site in task.sites}
    for key, labels in ptopo.placement.where.items():
        for element in _elements(task, ("placement", "where", key), key):
            task.where[element.name] = labels
    for key, node in ptopo.placement.fixed.items():
        path = ("placement", "fixed", key)
        site = by_name.get(node)
        if site is None:
            raise task.source.mistake(
                path, f"there is no node {node}", reason="NO_SUCH_NODE", remedy=nearest_remedy(node, by_name), node=node
            )
        for element in _elements(task, path, key):
            if element.name in task.placed:
                raise task.source.mistake(path, f"{element.name} is fixed twice", reason="DUPLICATE_NAME", remedy="leave one out")
            if not task.fits(site, element):
                raise _no_room(task, element, path, f"node {node} cannot hold {element.name}, which is fixed to it", [site])
            task.put(site, element)
    for element in task.topology.elements.values():
        if element.words.kind == "machine" and element.name not in task.placed and len(task.sites) > 1:
            raise task.source.mistake(
                ("placement",),
                f"{element.name} is a machine, and no rule says which",
                reason="MACHINE_NOT_FIXED",
                remedy=f"write placement: fixed: {element.name}: NODE in the ptopo",
                element=element.name,
            )


def _elements(task: _Task, path: Path, pattern: str) -> Iterable[Element]:
    for name, _ in expand(pattern):
        element = task.topology.elements.get(name)
        if element is None:
            raise task.source.mistake(
                path,
                f"{task.topology.name} has no element {name}",
                reason="NO_SUCH_ELEMENT",
                remedy=nearest_remedy(name, task.topology.elements),
                element=name,
            )
        yield element


def _check_nodes(task: _Task) -> None:
    names = {site.name for site in task.sites}
    inside = {site.name for site in task.sites if site.words.vm is not None}
    for site in task.sites:
        if site.words.vm is not None and (site.words.vm.host not in names or site.words.vm.host == site.name):
            raise task.source.mistake(
                (*site.path, "vm", "on"),
                f"there is no node {site.words.vm.host} for the virtual machine {site.name}",
                reason="NO_SUCH_NODE",
                remedy=nearest_remedy(site.words.vm.host, names - {site.name}),
            )
        if site.words.vm is not None and site.words.vm.host in inside:
            raise task.source.mistake(
                (*site.path, "vm", "on"),
                f"node {site.name} would be a virtual machine in {site.words.vm.host}, which is one itself",
                reason="TOO_DEEP",
                remedy="name the node that runs that one",
                node=site.name,
            )


def _packed(task: _Task, elements: Sequence[Element]) -> None:
    for element in elements:
        site = next((site for site in task.sites if task.fits(site, element)), None)
        if site is None:
            raise _no_room(task, element, ("nodes",), f"no node has room for {element.name}", task.sites)
        task.put(site, element)


def _balanced(task: _Task, elements: Sequence[Element]) -> None:
    heap = [(site.load(), site.number) for site in task.sites]
    heapq.heapify(heap)
    for element in elements:
        aside = []
        while heap:
            entry = heapq.heappop(heap)
            site = task.sites[entry[1]]
            if task.fits(site, element):
                task.put(site, element)
                heapq.heappush(heap, (site.load(), site.number))
                break
            aside.append(entry)
        else:
            raise _no_room(task, element, ("nodes",), f"no node has room for {element.name}", task.sites)
        for entry in aside:
            heapq.heappush(heap, entry)


def _min_cut(task: _Task, elements: Sequence[Element]) -> None:
    """METIS parts the graph of elements and LANs; what it puts where there is no room goes where most of its LANs' members are."""
    parts = _metis(task)
    late: list[Element] = []
    order = _parts_to_sites(task, parts)
    for element in elements:
        site = order[parts[element.name]]
        if task.fits(site, element):
            task.put(site, element)
        else:
            late.append(element)
    on_lan = {name: [0] * len(task.sites) for name in task.topology.lans}
    for name, site in task.placed.items():
        for nic in task.topology.elements[name].nics:
            on_lan[nic.lan][site.number] += 1
    for element in late:
        fitting = [site for site in task.sites if task.fits(site, element)]
        if not fitting:
            raise _no_room(task, element, ("nodes",), f"no node has room for {element.name}", task.sites)
        best = max(fitting, key=lambda site: (sum(on_lan[nic.lan][site.number] for nic in element.nics), -site.load(), -site.number))
        task.put(best, element)
        for nic in element.nics:
            on_lan[nic.lan][best.number] += 1
    _refine(task, elements, on_lan)


def _refine(task: _Task, elements: Sequence[Element], on_lan: dict[str, list[int]]) -> None:
    """Move single elements to where more of their neighbours are, as long as that helps and for a bounded number of rounds."""
    for _ in range(_ROUNDS):
        moved = False
        for element in elements:
            here = task.placed[element.name]
            gains = _neighbours(element, on_lan, here)
            for number, gain in sorted(gains.items(), key=lambda item: (-item[1], item[0])):
                site = task.sites[number]
                if gain > gains.get(here.number, 0) and task.fits(site, element):
                    for nic in element.nics:
                        on_lan[nic.lan][here.number] -= 1
                        on_lan[nic.lan][number] += 1
                    task.move(site, element)
                    moved = True
                    break
        if not moved:
            return


def _neighbours(element: Element, on_lan: dict[str, list[int]], here: Site) -> dict[int, int]:
    found: dict[int, int] = {}
    for nic in element.nics:
        for number, count in enumerate(on_lan[nic.lan]):
            others = count - (number == here.number)
            if others:
                found[number] = found.get(number, 0) + others
    return found


def _metis(task: _Task) -> dict[str, int]:
    """The part of each element, 0 to the number of sites - 1. LANs are vertices without weight: a cut edge is a member far from its LAN."""
    import pymetis  # noqa: PLC0415 - only this needs it

    names = list(task.topology.elements)
    numbers = {name: index for index, name in enumerate(names)}
    lans = {name: len(names) + index for index, name in enumerate(task.topology.lans)}
    adjacency: list[list[int]] = [[] for _ in range(len(names) + len(lans))]
    for element in task.topology.elements.values():
        for lan in dict.fromkeys(nic.lan for nic in element.nics):
            adjacency[numbers[element.name]].append(lans[lan])
            adjacency[lans[lan]].append(numbers[element.name])
    starts, targets = [0], []
    for row in adjacency:
        targets += row
        starts.append(len(targets))
    shares = _room_shares(task)
    options = pymetis.Options(seed=SEED)
    weights = [1] * len(names) + [0] * len(lans)
    graph = pymetis.CSRAdjacency(starts, targets)
    _, parts = pymetis.part_graph(len(task.sites), graph, vweights=weights, eweights=[1] * len(targets), tpwgts=shares, options=options)
    return {name: int(parts[index]) for name, index in numbers.items()}


def _room_shares(task: _Task) -> list[float]:
    """How much of all elements each site should get: by its capacity, evenly where none is told."""
    rooms = [_relative_room(site.words.capacity) for site in task.sites]
    known = [room for room in rooms if room is not None]
    usual = sum(known) / len(known) if known else 1.0
    filled = [max(usual if room is None else room, 1e-6) for room in rooms]
    return [room / sum(filled) for room in filled]


def _relative_room(capacity: CapacityWords) -> float | None:
    return next((float(room) for room in (capacity.elements, capacity.cpus, capacity.memory, capacity.qemu) if room is not None), None)


def _parts_to_sites(task: _Task, parts: Mapping[str, int]) -> list[Site]:
    """Which site holds which part: where most of a part's elements are fixed, otherwise the part's own number if it is free."""
    votes = [[0] * len(task.sites) for _ in task.sites]
    for name, site in task.placed.items():
        votes[parts[name]][site.number] += 1
    ranked = sorted(
        ((count, part, number) for part, row in enumerate(votes) for number, count in enumerate(row) if count),
        key=lambda entry: (-entry[0], entry[1], entry[2]),
    )
    chosen: dict[int, int] = {}
    for _, part, number in ranked:
        if part not in chosen and number not in chosen.values():
            chosen[part] = number
    free = [number for number in range(len(task.sites)) if number not in chosen.values()]
    for part in range(len(task.sites)):
        if part not in chosen:
            chosen[part] = free.pop(free.index(part)) if part in free else free.pop(0)
    return [task.sites[chosen[part]] for part in range(len(task.sites))]


def _no_room(task: _Task, element: Element, path: Path, message: str, sites: Sequence[Site]) -> InvalidArgument:
    if not any(site.takes(element) for site in sites):
        why = (
            f"none takes elements of kind {element.words.kind}" if len(sites) > 1 else f"it takes no elements of kind {element.words.kind}"
        )
    elif element.name in task.where and not any(
        all(site.words.labels.get(key) == value for key, value in task.where[element.name].items()) for site in sites
    ):
        why = "none has the labels " + ", ".join(f"{key}={value}" for key, value in task.where[element.name].items())
    else:
        why = f"{len(task.placed)} of {len(task.topology.elements)} elements are placed, and the capacities are used up"
    return task.source.mistake(
        path,
        f"{message}: {why}",
        reason="IMPOSSIBLE_PLACEMENT",
        remedy="raise a capacity, add a node, or change the rules",
        element=element.name,
    )
