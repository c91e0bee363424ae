"""What the agent knows: reports, and who waits at barriers."""

from __future__ import annotations

from dataclasses import dataclass

from nestbed.model import Spec, State


@dataclass(frozen=True, slots=True)
class Arrival:
    """Somebody waits at a barrier until ``count`` have come, or until ``deadline``. ``id`` is unique in its container."""

    id: str
    barrier: str
    count: int
    at: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a program in a container reported. ``number`` rises by one with each report of the container, over all its runs."""

    number: int
    at: float
    fields: tuple[tuple[str, str], ...]
    file: str = ""
    """Name of the file that was dropped; empty for a line."""


@dataclass(frozen=True, slots=True)
class AgentView:
    """A container as the agent knows it. ``fields`` are the latest value of each key since its run began; ``lost`` counts by reason."""

    spec: Spec
    state: State
    last: Report | None
    fields: tuple[tuple[str, str], ...]
    lost: tuple[tuple[str, int], ...]
    arrivals: tuple[Arrival, ...]
