"""Comparing what a node has on record with what is there. Changes nothing."""

from __future__ import annotations

import asyncio

from nestbed.node.parts import Parts
from nestbed.runtime import Leftover

_SETTLE_SECONDS = (0.05, 0.2, 0.8, 2.0)
"""How long a difference must last to count: the kernel takes a network namespace down some time after it was let go of, and says
nothing when it is done; and a change under way is a difference until it ends."""


async def audit(parts: Parts) -> tuple[list[Leftover], int]:
    """The differences that last, and how many objects were compared."""
    found, objects = await _compare(parts)
    for seconds in _SETTLE_SECONDS:
        if not found:
            break
        await asyncio.gather(asyncio.sleep(seconds), parts.operations.settle(seconds))
        again, objects = await _compare(parts)
        found = [leftover for leftover in found if leftover in again]
    return found, objects


async def _compare(parts: Parts) -> tuple[list[Leftover], int]:
    lans = [segment.lan for segment in parts.registry.segments.values()]
    found = list(await parts.plane.audit(lans))
    control = parts.registry.control
    found += await parts.plane.audit_control(control.lan if control is not None and control.size else None)
    underlay = parts.registry.underlay
    found += await parts.plane.audit_nested(underlay.lan if underlay is not None and underlay.size else None)
    objects = len(lans)
    for kind, runtime in parts.runtimes.items():
        containers = [held.container for held in parts.registry if held.container is not None and held.spec.kind is kind]
        found += await runtime.audit(containers)
        objects += sum(len(container.objects()) for container in containers)
    recorded = {held.spec.id for held in parts.registry}
    bundles = set(parts.store.container_ids())
    found += [Leftover("extra", "bundle", name, "of no container") for name in sorted(bundles - recorded)]
    found += [Leftover("missing", "bundle", name) for name in sorted(recorded - bundles)]
    found += [Leftover("extra", "file", str(path), "no record") for path in parts.store.strangers()]
    return found, objects + len(bundles)
