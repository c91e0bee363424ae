"""Streams are closed by those who read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


async def ticks(interval_seconds: float) -> AsyncIterator[None]:
    """Now, and then at every interval, as far as the reader keeps up with it; without an interval (0) once."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        yield
        if not interval_seconds:
            return
        due = max(due + interval_seconds, loop.time())
        await asyncio.sleep(due - loop.time())


@asynccontextmanager
async def closing(source: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """``source`` for the block, closed at its end if it can be: whatever it holds is let go at once, not when it is collected."""
    try:
        yield source
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()
