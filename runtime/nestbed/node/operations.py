"""Changes that are carried through: a caller who goes away does not leave a thing half changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

from nestbed.errors import NestbedError
from nestbed.log import fields

T = TypeVar("T")
_logger = logging.getLogger(__name__)


class Operations:
    """The changes under way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, change: Coroutine[Any, Any, T]) -> T:
        """The change's result. If this call is cancelled, the change goes on to its end."""
        task = self._begin(change)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(report)
            raise

    def spawn(self, change: Coroutine[Any, Any, object]) -> None:
        """Begin a change that nobody waits for; its failure is logged."""
        self._begin(change).add_done_callback(report)

    async def settle(self, seconds: float) -> None:
        """Wait until the changes now under way have ended, for at most ``seconds``."""
        tasks: Collection[asyncio.Task[Any]] = tuple(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def aclose(self, seconds: float) -> None:
        """As :meth:`settle`, then cancel what still goes on and wait for that."""
        await self.settle(seconds)
        left = tuple(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _begin(self, change: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(change)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def report(task: asyncio.Task[Any]) -> None:
    """Log how a task failed whose result nobody takes: its done callback."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, NestbedError):
        _logger.warning("a change that nobody waited for failed", extra=fields(reason=error.reason, cause=error.message))
    elif error is not None:
        _logger.error("a change that nobody waited for failed", exc_info=error)
