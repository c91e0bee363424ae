"""Record against kernel: what process containers should have, and what there is of this node's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nestbed.model import State
from nestbed.process.handle import ProcessContainer
from nestbed.process.parts import Parts
from nestbed.runtime import Leftover


def audit(containers: Sequence[ProcessContainer], parts: Parts, known: Mapping[str, Mapping[str, Any]]) -> list[Leftover]:
    """The differences; ``known`` is what the keeper has. Read-only."""
    ids = {container.id for container in containers}
    return [*_links(containers, parts), *_cgroups(containers, parts), *_processes(containers, known, ids)]


def _links(containers: Sequence[ProcessContainer], parts: Parts) -> Iterator[Leftover]:
    wanted = {port: container.id for container in containers for port in container.ports}
    found = parts.ports.ours()
    for port, owner in sorted(found.items()):
        if wanted.get(port) != owner:
            yield Leftover("extra", "link", port, f"of container {owner}")
    for port, owner in sorted(wanted.items()):
        if port not in found:
            yield Leftover("missing", "link", port, f"of container {owner}")


def _cgroups(containers: Sequence[ProcessContainer], parts: Parts) -> Iterator[Leftover]:
    wanted = {container.id: container.status.state for container in containers}
    for hierarchy, owner in sorted(parts.cgroups.listing()):
        if owner not in wanted:
            yield Leftover("extra", "cgroup", f"{hierarchy}/{parts.cgroups.tree.base}/{owner}")
    for owner, state in wanted.items():
        if state is not State.STOPPED and not parts.cgroups.objects(owner) and parts.cgroups.tree.version != "none":
            yield Leftover("missing", "cgroup", f"{parts.cgroups.tree.base}/{owner}")


def _processes(containers: Sequence[ProcessContainer], known: Mapping[str, Mapping[str, Any]], ids: set[str]) -> Iterator[Leftover]:
    for owner, entry in sorted(known.items()):
        if owner not in ids and entry["state"] in ("running", "restarting"):
            yield Leftover("extra", "process", str(entry["pid"]), f"of container {owner}")
    for container in containers:
        if container.status.state in (State.RUNNING, State.PAUSED) and not container.is_alive():
            yield Leftover("missing", "process", str(container.status.pid), f"of container {container.id}")
