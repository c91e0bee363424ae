"""What moves frames: descriptors that are ready are served in turn, a bounded batch each, and delayed frames are released on time.

Nothing here sleeps or waits but for all descriptors together.
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable
from typing import Protocol

from nestbed.linux.timerfd import Timer

EARLY_NS = 20_000
"""A frame is released up to so much too early, if the relay is awake anyway: less than it takes to be woken once more."""


class Queue(Protocol):
    """Where delayed frames come from and go to."""

    def release(self, frame: bytes, arrived_ns: int, now_ns: int) -> None:
        """Its time has come."""
        ...


class Engine:
    """epoll, and a queue of frames ordered by the time of their release."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], object]] = {}
        self._hasty: set[int] = set()
        self._queue: list[tuple[int, int, Queue, int, bytes]] = []
        self._count = 0
        self._timer = Timer()
        self._armed_ns = 0
        self._epoll.register(self._timer.fd, select.EPOLLIN | select.EPOLLET)

    def watch(self, fd: int, handler: Callable[[], object], *, is_hasty: bool = False) -> None:
        """Call ``handler`` when ``fd`` can be read; hasty ones before others. It must return after a bounded batch."""
        self._handlers[fd] = handler
        if is_hasty:
            self._hasty.add(fd)
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """End that. Call it before the descriptor is closed."""
        del self._handlers[fd]
        self._hasty.discard(fd)
        self._epoll.unregister(fd)

    def delay(self, due_ns: int, queue: Queue, arrived_ns: int, frame: bytes) -> None:
        """Have ``queue`` release the frame at this time of CLOCK_MONOTONIC; frames of one time in the order of these calls."""
        self._count += 1
        heapq.heappush(self._queue, (due_ns, self._count, queue, arrived_ns, frame))

    def step(self, until: float) -> None:
        """Wait for something, at most until this time of the monotonic clock, and do it."""
        self._arm()
        ready = self._epoll.poll(max(until - time.monotonic(), 0))
        if self._hasty and len(ready) > 1:
            ready.sort(key=self._is_patient)
        self._release()
        for fd, _ in ready:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()
            if self._queue:
                self._release()

    def _is_patient(self, event: tuple[int, int]) -> bool:
        return event[0] not in self._hasty

    def _arm(self) -> None:
        due_ns = self._queue[0][0] if self._queue else 0
        if due_ns != self._armed_ns:
            self._timer.set(due_ns)
            self._armed_ns = due_ns

    def _release(self) -> None:
        queue, now_ns = self._queue, time.monotonic_ns()
        while queue and queue[0][0] <= now_ns + EARLY_NS:
            _, _, leg, arrived_ns, frame = heapq.heappop(queue)
            now_ns = time.monotonic_ns()
            leg.release(frame, arrived_ns, now_ns)
