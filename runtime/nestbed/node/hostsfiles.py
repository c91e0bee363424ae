"""Keeping the ``/etc/hosts`` of every container up to date with the members of its LANs.

A change on a LAN concerns all its members. Changes are gathered for a moment and written by one task in the background, which gives
way to everything else between files and takes at most a thirtieth of the time: a thousand members are some 40 MB to write. A
container's own file is complete before it starts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import cast

from nestbed.errors import NestbedError
from nestbed.lan.hosts import hosts_text, own_lines
from nestbed.lanmodel import Nic
from nestbed.log import fields
from nestbed.model import Spec, State
from nestbed.node.operations import report
from nestbed.node.registry import Held, Registry
from nestbed.runtime import HostsAware

GATHER_SECONDS = 0.05
_REST_FACTOR = 29
_AT_ONCE = 16
_IDLE = (State.CREATING, State.CREATED, State.STOPPED, State.DELETING)

_logger = logging.getLogger(__name__)


@cache
def _is_aware(kind: type) -> bool:
    """Whether containers of this class have a hosts file. (To ask an object costs as much as writing its file.)"""
    return issubclass(kind, HostsAware)


class HostsFiles:
    """The files of one node's containers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._changed: set[str] = set()
        self.listeners: list[Callable[[set[str]], None]] = []
        """Told at once of the ids of LANs whose members changed."""
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write in the background. Called once."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(report)

    async def aclose(self) -> None:
        """Write no more; the next daemon writes what is missing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def changed(self, nics: Iterable[Nic]) -> None:
        """NICs came, went, or have another name: tell the other members of their LANs soon."""
        self.lans_changed({nic.lan_id for nic in nics})

    def lans_changed(self, lan_ids: set[str]) -> None:
        """Members of these LANs came, went, or have another name, here or elsewhere."""
        self._changed |= lan_ids
        if self._changed:
            self._news.set()
        if lan_ids:
            for listener in self.listeners:
                listener(lan_ids)

    async def refresh(self, held: Held) -> None:
        """Make the container's own file complete now, unless it is."""
        container, versions = held.container, self._versions(held.spec)
        if held.hosts_seen == versions or container is None or not _is_aware(type(container)):
            return
        held.hosts_seen = versions
        try:
            await cast(HostsAware, container).update_hosts(self._text(held.spec))
        except NestbedError:
            held.hosts_seen = None
            raise

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._news.clear()
            began = time.monotonic()
            await self._write()
            await asyncio.sleep(_REST_FACTOR * (time.monotonic() - began))

    async def _write(self) -> None:
        lan_ids, self._changed = self._changed, set()
        for number, container_id in enumerate(self._members(lan_ids), 1):
            held = self._registry.get(container_id)
            # The others get theirs when they start.
            if held is not None and held.status.state not in _IDLE:
                await self._refresh_quietly(held)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)

    def _members(self, lan_ids: Iterable[str]) -> list[str]:
        segments = [self._registry.segments[lan_id] for lan_id in lan_ids if lan_id in self._registry.segments]
        return list(dict.fromkeys(container_id for segment in segments for container_id in segment.member_ids()))

    async def _refresh_quietly(self, held: Held) -> None:
        try:
            await self.refresh(held)
        except NestbedError as error:
            if not held.is_gone:
                _logger.warning("hosts file not written", extra=fields(container=held.spec.id, reason=error.reason, cause=error.message))

    def _versions(self, spec: Spec) -> tuple[tuple[str, int], ...]:
        if spec.hosts:
            return ()
        segments = self._registry.segments
        return tuple((nic.lan_id, segments[nic.lan_id].version) for nic in spec.nics if nic.lan_id in segments)

    def _text(self, spec: Spec) -> str:
        if spec.hosts:
            return hosts_text(spec.hosts, ())
        segments = self._registry.segments
        lan_ids = dict.fromkeys(nic.lan_id for nic in spec.nics)
        others = (segments[lan_id].hosts_of_others(spec.name) for lan_id in lan_ids if lan_id in segments)
        return hosts_text(own_lines(spec.name, spec.hostname, spec.nics), others)
