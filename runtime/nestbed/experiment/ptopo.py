"""The words of a ptopo file: the nodes that hold an experiment, and how its elements are placed on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nestbed.experiment.source import Source
from nestbed.experiment.vtopo import KINDS, NAME, NAMES, SIZE
from nestbed.experiment.words import POSITIVE, TEXT, ListOf, MapOf, OneOf, Record, Scalar, load, whole, word

STRATEGIES = ("packed", "balanced", "min-cut")
LOCAL = "local"


def _address(text: str) -> str:
    if text == LOCAL or text.startswith(("unix:///", "tcp://")):
        return text
    raise ValueError("is none of local, unix:///PATH, tcp://HOST:PORT")


@dataclass(frozen=True, slots=True)
class CapacityWords:
    """What a node can hold. What is left out is without bound."""

    elements: int | None = word(whole(0, 1_000_000), "elements of any kind", None)
    qemu: int | None = word(whole(0, 100_000), "elements of kind qemu", None)
    cpus: float | None = word(POSITIVE, "sum of the elements' `limits: cpus`", None)
    memory: int | None = word(SIZE, "sum of the elements' `limits: memory`", None)


@dataclass(frozen=True, slots=True)
class VmWords:
    """A node that is a virtual machine on another node. It is part of no experiment."""

    host: str = word(NAME, "the node that runs it", key="on")
    cpus: float = word(POSITIVE, "processors", 1.0)
    memory: int = word(SIZE, "memory", 1 << 30)


@dataclass(frozen=True, slots=True)
class NodeWords:
    """A machine that runs nestbedd."""

    address: str = word(
        Scalar("local, unix:///PATH or tcp://HOST:PORT", _address, {"type": "string"}),
        "where its nestbedd is; local is the one asked",
        LOCAL,
    )
    capacity: CapacityWords = word(Record(CapacityWords), "what it can hold", CapacityWords())
    kinds: tuple[str, ...] = word(ListOf(OneOf(KINDS)), "kinds of elements it takes", KINDS)
    labels: dict[str, str] = word(MapOf(TEXT, TEXT), "labels that `where` asks for", {})
    underlays: tuple[str, ...] = word(ListOf(TEXT), "interfaces that carry LANs to other nodes, for the record", ())
    vm: VmWords | None = word(Record(VmWords), "it is a virtual machine to be made", None)


@dataclass(frozen=True, slots=True)
class PlacementWords:
    """Which element goes where."""

    strategy: str = word(
        OneOf(STRATEGIES), "packed: as few nodes as hold them; balanced: evenly; min-cut: few LANs between nodes", "packed"
    )
    fixed: dict[str, str] = word(MapOf(NAME, NAMES), "node of an element, or of a range of elements", {})
    where: dict[str, dict[str, str]] = word(MapOf(MapOf(TEXT, TEXT), NAMES), "labels that the node of an element must have", {})


@dataclass(frozen=True, slots=True)
class Ptopo:
    """A physical topology: nodes, and where elements are placed on them."""

    nodes: dict[str, NodeWords] = word(MapOf(Record(NodeWords), NAMES), "nodes by name; a name may be a range")
    placement: PlacementWords = word(Record(PlacementWords), "where elements go", PlacementWords())


def read(text: str, name: str) -> tuple[Ptopo, Source]:
    """The ptopo file ``name`` with this content, and where its words stand. Only words are checked here.

    Raises:
        InvalidArgument: with file, line and column.
    """
    found: tuple[Any, Source] = load(text, name, Ptopo)
    return found


def only_local() -> tuple[Ptopo, Source]:
    """What is meant when no ptopo is given: the node that is asked holds everything."""
    return Ptopo(nodes={LOCAL: NodeWords()}), Source("(no ptopo)")
