"""Changing limits, restart policy and name of a container: all of it or nothing."""

from __future__ import annotations

import dataclasses

from nestbed.errors import InvalidArgument
from nestbed.model import Change, Resources, RestartMode, RestartPolicy, Spec
from nestbed.node.parts import Parts, unsupported
from nestbed.node.registry import Held
from nestbed.runtime import Container, Updatable


async def update(parts: Parts, held: Held, change: Change) -> None:
    """Apply a change whose form was checked. See ``Node.update``."""
    async with held.changing():
        container = await parts.container(held)
        before = held.record
        spec = _changed(before.spec, change)
        if spec == before.spec:
            return
        after = dataclasses.replace(before, spec=spec)
        if spec.name != before.spec.name:
            parts.registry.check_name_free(spec.name)
        # The name is taken before anything is awaited.
        parts.registry.rename(held, after)
        try:
            parts.store.write(after)
            await _apply(container, before.spec, spec)
        except BaseException:
            parts.registry.rename(held, before)
            parts.store.write(before)
            raise
        if spec.name != before.spec.name:
            parts.hosts.changed(spec.nics)
            await parts.hosts.refresh(held)
            parts.events.publish("container.renamed", spec.id, spec.name, before=before.spec.name)
        if (spec.resources, spec.restart) != (before.spec.resources, before.spec.restart):
            parts.events.publish("container.updated", spec.id, spec.name)


async def _apply(container: Container, before: Spec, after: Spec) -> None:
    if (after.resources, after.restart) == (before.resources, before.restart):
        return
    if not isinstance(container, Updatable):
        raise unsupported(before, "whose limits cannot change", remedy="remove it and make it anew")
    await container.update(after.resources, after.restart)


def _changed(spec: Spec, change: Change) -> Spec:
    restart = change.restart or spec.restart
    if spec.auto_remove and restart.mode is not RestartMode.NO:
        raise _conflict(spec, restart)
    resources = spec.resources if change.resources is None else _merged(spec.resources, change.resources)
    return dataclasses.replace(spec, name=change.name or spec.name, resources=resources, restart=restart)


def _merged(old: Resources, new: Resources) -> Resources:
    """``new`` where it says something; 0 says "the default", which is None."""
    values = {}
    for field in dataclasses.fields(Resources):
        wanted = getattr(new, field.name)
        values[field.name] = getattr(old, field.name) if wanted is None else wanted or None
    return Resources(**values)


def _conflict(spec: Spec, restart: RestartPolicy) -> InvalidArgument:
    return InvalidArgument(
        f"container {spec.name} is removed when it stops, so it cannot be restarted",
        reason="CONFLICTING_OPTIONS",
        remedy="make it anew without automatic removal",
        container=spec.name,
        mode=restart.mode.value,
    )
