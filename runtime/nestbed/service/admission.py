"""How much at once: a bounded number of calls in flight, a bounded queue before them, bounded long calls, told when beyond.

Short calls (an answer as soon as the node can) share ``running`` places and wait for one in order of arrival. Long calls (streams, waits)
have places of their own, so that they never keep a short one waiting, and are refused at once when those are taken. One Admission
serves one socket: what floods the operator's leaves the administrator's alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from nestbed.errors import Deadline, ResourceExhausted

RUNNING = 64
QUEUED = 8192
QUEUED_BYTES = 64 * 1024 * 1024
QUEUE_SECONDS = 60.0
RUN_SECONDS = 60.0
MACHINE_SECONDS = 600.0
"""How long a call may take that boots a virtual machine; the machine itself has less."""
LONG = 4096
LONG_PER_CALLER = 2048


class Admission:
    """Bounds, and what is under way. Used in one event loop."""

    def __init__(
        self,
        *,
        running: int = RUNNING,
        queued: int = QUEUED,
        queued_bytes: int = QUEUED_BYTES,
        queue_seconds: float = QUEUE_SECONDS,
        run_seconds: float = RUN_SECONDS,
        long: int = LONG,
        long_per_caller: int = LONG_PER_CALLER,
    ) -> None:
        self._places = asyncio.Semaphore(running)
        self._queued_max = queued
        self._queued_bytes_max = queued_bytes
        self._queue_seconds = queue_seconds
        self._run_seconds = run_seconds
        self._long_max = long
        self._long_per_caller_max = long_per_caller
        self._queued = 0
        self._queued_bytes = 0
        self._long: Counter[str] = Counter()

    @asynccontextmanager
    async def short(self, size: Callable[[], int], run_seconds: float | None = None) -> AsyncIterator[None]:
        """A place for a short call; ``size`` gives the bytes its request holds while it waits, ``run_seconds`` how long it may then take,
        if not as all do.

        Raises:
            ResourceExhausted: the queue is full (QUEUE_FULL), or no place came free in time (QUEUE_SLOW).
            Deadline: the call, once it had its place, took too long.
        """
        seconds = run_seconds or self._run_seconds
        if self._places.locked():
            await self._queue(size())
        else:
            await self._places.acquire()
        try:
            async with asyncio.timeout(seconds) as limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Deadline(
                f"the node did not finish the call within {seconds:g} s",
                reason="CALL_SLOW",
                remedy="see in the log of nestbedd what holds it up",
                seconds=seconds,
            ) from error
        finally:
            self._places.release()

    async def _queue(self, size: int) -> None:
        if self._queued >= self._queued_max or self._queued_bytes + size > self._queued_bytes_max:
            raise ResourceExhausted(
                f"{self._queued} calls are waiting for the node, and it queues no more",
                reason="QUEUE_FULL",
                remedy="make fewer calls at a time; this one can be tried again",
                queued=self._queued,
            )
        self._queued += 1
        self._queued_bytes += size
        try:
            async with asyncio.timeout(self._queue_seconds):
                await self._places.acquire()
        except TimeoutError as error:
            raise ResourceExhausted(
                f"the call waited {self._queue_seconds:g} s for its turn",
                reason="QUEUE_SLOW",
                remedy="make fewer calls at a time; this one can be tried again",
                seconds=self._queue_seconds,
            ) from error
        finally:
            self._queued -= 1
            self._queued_bytes -= size

    @contextmanager
    def long(self, caller: str) -> Iterator[None]:
        """A place for a long call of ``caller``.

        Raises:
            ResourceExhausted: the caller (CALLER_STREAMS) or the socket (STREAMS) has too many of them.
        """
        if self._long[caller] >= self._long_per_caller_max:
            raise ResourceExhausted(
                f"{caller} has {self._long_per_caller_max} streams and waits open, and may have no more",
                reason="CALLER_STREAMS",
                remedy="close some, or follow events in one stream instead of waiting for each container",
                caller=caller,
                limit=self._long_per_caller_max,
            )
        if self._long.total() >= self._long_max:
            raise ResourceExhausted(
                f"{self._long_max} streams and waits are open, and the node serves no more",
                reason="STREAMS",
                remedy="try again when others have closed theirs",
                limit=self._long_max,
            )
        self._long[caller] += 1
        try:
            yield
        finally:
            self._long[caller] -= 1
            if not self._long[caller]:
                del self._long[caller]
