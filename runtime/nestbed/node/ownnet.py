"""A network of the node's own: there while a container is on it. No file says so; the records of those containers name it, before it is
made.
"""

from __future__ import annotations

import abc
import asyncio
import logging
from typing import ClassVar

from nestbed.errors import NestbedError
from nestbed.lan.contract import LanPlane
from nestbed.log import fields
from nestbed.node.registry import Registry
from nestbed.node.segment import Segment

_logger = logging.getLogger(__name__)


class OwnNetwork(abc.ABC):
    """Makes and removes one such network; who is on it is in its segment, which the registry has."""

    called: ClassVar[str]
    """What the log calls it."""

    def __init__(self, registry: Registry, plane: LanPlane, node_id: str) -> None:
        self._registry = registry
        self._plane = plane
        self._node_id = node_id
        self._changing = asyncio.Lock()

    @property
    @abc.abstractmethod
    def _segment(self) -> Segment | None:
        """Who is on it; None if nobody ever was."""

    @abc.abstractmethod
    def _forget(self) -> None:
        """Have the registry know no segment of it."""

    @abc.abstractmethod
    async def _make(self, segment: Segment) -> None:
        """Have the LAN plane make what is missing."""

    @abc.abstractmethod
    async def _remove(self) -> None:
        """Have the LAN plane remove what is there."""

    async def ensure(self) -> None:
        """Make it, if somebody is to be on it. Idempotent.

        Raises:
            AlreadyExists, HostLacks: it cannot be had.
        """
        async with self._changing:
            segment = self._segment
            if segment is not None and segment.size:
                await self._make(segment)

    async def settle(self) -> None:
        """Remove it, unless somebody is on it. Idempotent; a failure is logged, and found by the next daemon."""
        async with self._changing:
            segment = self._segment
            if segment is not None and segment.size:
                return
            self._forget()
            try:
                await self._remove()
            except NestbedError as error:
                _logger.warning("%s not removed", self.called, extra=fields(reason=error.reason, cause=error.message))

    async def take_up(self) -> None:
        """Make what is missing of it, or remove it: every record has been read."""
        try:
            await self.ensure()
        except NestbedError as error:
            _logger.exception("%s not taken up", self.called, extra=fields(reason=error.reason, cause=error.message))
        await self.settle()
