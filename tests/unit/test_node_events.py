"""The ring of events and its readers."""

from __future__ import annotations

import asyncio

import pytest

from nestbed.errors import InvalidArgument
from nestbed.node.events import RING_EVENTS, Events


async def sequences(events: Events, **options) -> list[tuple[int, int]]:
    return [(event.sequence, dropped) async for event, dropped in events.watch(**options)]


def publish(events: Events, count: int, kind: str = "a.b") -> None:
    for _ in range(count):
        events.publish(kind, "id", "name", key=1)


async def test_reader_gets_what_comes() -> None:
    events = Events()
    publish(events, 1)
    reader = asyncio.ensure_future(sequences(events))
    await asyncio.sleep(0)
    publish(events, 2)
    events.close()
    assert await reader == [(2, 0), (3, 0)]


async def test_history_and_after() -> None:
    events = Events()
    publish(events, 4)
    events.close()
    assert await sequences(events) == []
    assert await sequences(events, history=True) == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert await sequences(events, after_sequence=3) == [(4, 0)]
    assert await sequences(events, after_sequence=1 << 63) == [(1, 0), (2, 0), (3, 0), (4, 0)]


async def test_types() -> None:
    events = Events()
    publish(events, 1, "lan.created")
    publish(events, 1, "container.created")
    events.close()
    assert await sequences(events, history=True, types=("container.*",)) == [(2, 0)]
    with pytest.raises(InvalidArgument):
        await sequences(events, types=("x" * 1000,))


async def test_slow_reader_is_told_how_many_it_missed() -> None:
    events = Events()
    publish(events, 1)
    reader = events.watch(history=True)
    assert (await anext(reader))[0].sequence == 1
    publish(events, RING_EVENTS + 10)
    event, dropped = await anext(reader)
    assert (event.sequence, dropped) == (12, 10)
    assert (await anext(reader))[1] == 0
    publish(events, 5, "c.d")
    events.close()
    assert (await sequences(events, after_sequence=1, types=("c.*",)))[0] == (RING_EVENTS + 12, 15)
