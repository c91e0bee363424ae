"""What happens on a node, for those who watch: a ring of the latest events that any number of readers go through.

A reader has no queue of its own, only its place in the ring: a slow or dead one costs nothing, loses the oldest events, and is
told how many.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from nestbed.model import Event
from nestbed.node.names import matcher

RING_EVENTS = 4096


class Events:
    """The ring. For one event loop."""

    def __init__(self) -> None:
        self._ring: list[Event] = []
        self._last = 0
        self._news = asyncio.Event()
        self._is_closed = False

    @property
    def last(self) -> int:
        """The sequence number of the latest event; 0 before the first."""
        return self._last

    def publish(self, kind: str, object_id: str, name: str, /, **attributes: object) -> None:
        """Add an event of type ``kind`` (``noun.verb``) that happens now."""
        self._last += 1
        shown = tuple((key, str(value)) for key, value in attributes.items())
        event = Event(self._last, time.time(), kind, object_id, name, shown)
        if len(self._ring) < RING_EVENTS:
            self._ring.append(event)
        else:
            self._ring[(self._last - 1) % RING_EVENTS] = event
        self._wake()

    def close(self) -> None:
        """End all readers once they have read what there is."""
        self._is_closed = True
        self._wake()

    async def watch(self, *, after_sequence: int = 0, types: Sequence[str] = (), history: bool = False) -> AsyncIterator[tuple[Event, int]]:
        """Events as they come, each with the number of those that were dropped just before it because the reader was slow.

        Begins after ``after_sequence`` if that is not 0, with what the ring still holds if ``history`` (or if the number is of an
        earlier daemon's life), else from now on. ``types`` are globs; none is all.

        Raises:
            InvalidArgument: too many or too long globs.
        """
        is_wanted = matcher(types)
        oldest = self._last - len(self._ring) + 1
        place = self._last + 1
        if 0 < after_sequence <= self._last:
            place = after_sequence + 1
        elif history or after_sequence > 0:
            place = oldest
        dropped = 0
        while True:
            news = self._news
            while place <= self._last:
                oldest = self._last - len(self._ring) + 1
                if place < oldest:
                    dropped, place = dropped + oldest - place, oldest
                event = self._ring[(place - 1) % RING_EVENTS]
                place += 1
                if is_wanted(event.type):
                    yield event, dropped
                    dropped = 0
            if self._is_closed:
                return
            await news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
