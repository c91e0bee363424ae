"""A virtual topology with every range, name and address resolved: what of an experiment is seen from inside.

The same file gives the same topology on every machine: LANs and elements keep the file's order, subnets and addresses are handed out
lowest first, MACs are derived from names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from nestbed.errors import shown
from nestbed.experiment.ranges import HERE, expand, fill
from nestbed.experiment.source import Path, Source, nearest_remedy
from nestbed.experiment.vtopo import ElementWords, Impairing, LanWords, Vtopo
from nestbed.lan.addressing import PORTS_MAX, derived_mac

Words = TypeVar("Words")

ELEMENTS_MAX = 100_000
MACHINE_NIC = "exp"
"""How the names of NICs of a machine begin, which has some already."""
FS_MODES = ("host", "host-ro", "overlay", "rootfs")


@dataclass(frozen=True, slots=True)
class TopoNic:
    """An interface of an element. ``addresses`` are in CIDR form."""

    lan: str
    name: str
    mac: str
    addresses: tuple[str, ...]
    to: Impairing
    from_: Impairing
    path: Path


@dataclass(frozen=True, slots=True)
class TopoLan:
    """A LAN. ``subnet`` and ``subnet6`` are empty if it has none."""

    name: str
    words: LanWords
    path: Path
    subnet: str = ""
    subnet6: str = ""


@dataclass(frozen=True, slots=True)
class Element:
    """A member. ``number`` is what ``{n}`` stands for in its words."""

    name: str
    words: ElementWords
    nics: tuple[TopoNic, ...]
    path: Path
    number: str = ""
    after: tuple[str, ...] = ()

    @property
    def forwards(self) -> bool:
        """Whether it forwards packets between its LANs."""
        return len(self.nics) > 1 and self.words.kind != "machine" if self.words.forward is None else self.words.forward


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole virtual topology; ``vtopo`` holds what concerns all of it."""

    vtopo: Vtopo
    source: Source
    lans: dict[str, TopoLan] = field(default_factory=dict)
    elements: dict[str, Element] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.vtopo.experiment

    def members(self) -> dict[str, list[tuple[Element, int]]]:
        """Who is on each LAN, by name: elements and the numbers of their NICs, in order."""
        found: dict[str, list[tuple[Element, int]]] = {name: [] for name in self.lans}
        for element in self.elements.values():
            for index, nic in enumerate(element.nics):
                found[nic.lan].append((element, index))
        return found


def resolve(vtopo: Vtopo, source: Source) -> Topology:
    """The topology without addresses: ranges expanded, every name checked. See ``nestbed.experiment.addresses`` for the rest.

    Raises:
        InvalidArgument: a dangling or doubled name, or numbers that cannot be; with file, line and column.
    """
    lans = {name: TopoLan(name, words, path) for name, _, words, path in _expanded(vtopo.lans, "lans", source)}
    rows = _expanded(vtopo.elements, "elements", source)
    names = {name for name, *_ in rows}
    cache: dict[Path, tuple[str, ...]] = {}
    elements = {}
    for name, number, words, path in rows:
        if path not in cache or any(HERE in pattern for pattern in words.after):
            cache[path] = _after(words, number, names, path, source)
        after = tuple(other for other in cache[path] if other != name)
        elements[name] = Element(name, words, _nics(name, number, words, lans, path, source), path, number, after)
    topology = Topology(vtopo, source, lans, elements)
    _check_words(topology)
    _check_order(topology)
    _check_members(topology)
    return topology


def _expanded(given: Mapping[str, Words], what: str, source: Source) -> list[tuple[str, str, Words, Path]]:
    found: dict[str, tuple[str, str, Words, Path]] = {}
    for key, words in given.items():
        path: Path = (what, key)
        for name, number in expand(key):
            if name in found:
                line = source.place(found[name][3])[0]
                raise source.mistake(
                    path, f"{name} is declared twice", reason="DUPLICATE_NAME", remedy=f"it is in line {line} already", name=name
                )
            found[name] = (name, number, words, path)
            if len(found) > ELEMENTS_MAX:
                raise source.mistake(path, f"there are more than {ELEMENTS_MAX} {what}", reason="TOO_MANY", remedy="declare fewer")
    return list(found.values())


def _nics(name: str, number: str, words: ElementWords, lans: Mapping[str, TopoLan], path: Path, source: Source) -> tuple[TopoNic, ...]:
    nics: list[TopoNic] = []
    taken = {nic.name for nic in words.nics if nic.name}
    prefix = MACHINE_NIC if words.kind == "machine" else "eth"
    free = (f"{prefix}{index}" for index in range(1 << 16))
    ordinals: dict[str, int] = {}
    for index, nic in enumerate(words.nics):
        here = (*path, "nics", index)
        for lan, _ in expand(fill(nic.lan, number)):
            if lan not in lans:
                raise source.mistake(
                    (*here, "lan"),
                    f"element {name} is on LAN {lan}, which is not declared",
                    reason="NO_SUCH_LAN",
                    remedy=nearest_remedy(lan, lans),
                    element=name,
                    lan=lan,
                )
            interface = nic.name or next(one for one in free if one not in taken)
            if any(other.name == interface for other in nics):
                raise source.mistake(
                    (*here, "name"), f"element {name} has two interfaces {interface}", reason="DUPLICATE_NAME", remedy="give another name"
                )
            mac = nic.mac or derived_mac(lan, name, ordinals.get(lan, 0))
            ordinals[lan] = ordinals.get(lan, 0) + 1
            addresses = tuple(fill(text, number) for text in nic.addresses)
            nics.append(TopoNic(lan, interface, mac, addresses, nic.to, nic.from_, here))
    return tuple(nics)


def _after(words: ElementWords, number: str, names: set[str], path: Path, source: Source) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for index, pattern in enumerate(words.after):
        for name, _ in expand(fill(pattern, number)):
            if name not in names:
                raise source.mistake(
                    (*path, "after", index),
                    f"{path[-1]} starts after {name}, which is no element",
                    reason="NO_SUCH_ELEMENT",
                    remedy=nearest_remedy(name, sorted(names)),
                    element=name,
                )
            found[name] = None
    return tuple(found)


def _check_words(topology: Topology) -> None:
    for key, words in topology.vtopo.elements.items():
        found = _conflict(words, topology.vtopo.routing)
        if found:
            at, fault = found
            raise topology.source.mistake(("elements", key, at), fault, reason="CONFLICTING_WORDS", remedy="leave one of them out")


def _conflict(words: ElementWords, routing: str) -> tuple[str, str] | None:
    conflicts = (
        (words.command and words.startup, "startup", "an element with `command` has no `startup`"),
        (words.ready.ended and not words.command, "ready", "an element without `command` never ends"),
        (words.image and words.kind != "qemu", "image", f"an element of kind {words.kind} has no image"),
        (words.compat and words.kind != "qemu", "compat", f"an element of kind {words.kind} has no boot files"),
        (words.compat and words.user not in ("", "root", "0"), "compat", "only root writes boot files into an element"),
        (words.kind == "machine" and words.sysctls, "sysctls", "an element that is a machine has no sysctls of its own"),
        (words.kind == "machine" and words.forward, "forward", "an element that is a machine forwards nothing"),
        (words.kind == "machine" and words.control, "control", "an element that is a machine has a control interface already"),
        (words.routes and routing == "none", "routes", "there are no routes with `routing: none`"),
        (words.fs and words.kind == "qemu", "fs", f"an element of kind {words.kind} has file systems of its own"),
        (words.fs and words.fs.partition("=")[0] not in FS_MODES, "fs", f"fs cannot be {shown(words.fs)}"),
    )
    return next(((at, fault) for is_so, at, fault in conflicts if is_so), None)


def _check_order(topology: Topology) -> None:
    """No element may wait for itself. Iterative: chains may be long."""
    done: set[str] = set()
    for first in topology.elements.values():
        trail: dict[str, int] = {}
        stack = [first.name]
        while stack:
            name = stack[-1]
            after = topology.elements[name].after
            at = trail.setdefault(name, 0)
            if name in done or at >= len(after):
                done.add(name)
                trail.pop(name, None)
                stack.pop()
                continue
            trail[name] += 1
            following = after[at]
            if following in trail:
                raise topology.source.mistake(
                    (*topology.elements[name].path, "after"),
                    f"{name} starts after {following}, which starts after {name}",
                    reason="CIRCULAR_ORDER",
                    remedy="leave one of the two out",
                )
            if following not in done:
                stack.append(following)


def _check_members(topology: Topology) -> None:
    for name, members in topology.members().items():
        path = topology.lans[name].path
        if len(members) > PORTS_MAX:
            raise topology.source.mistake(
                path, f"LAN {name} has {len(members)} members, more than {PORTS_MAX}", reason="TOO_MANY_MEMBERS", remedy="use several LANs"
            )
        macs: dict[str, str] = {}
        for element, index in members:
            nic = element.nics[index]
            other = macs.get(nic.mac)
            macs[nic.mac] = element.name
            if other is not None:
                raise topology.source.mistake(
                    nic.path,
                    f"{element.name} and {other} have the MAC {nic.mac} on LAN {name}",
                    reason="MAC_CLASH",
                    remedy="give each another MAC, or none to have it derived",
                    mac=nic.mac,
                )
