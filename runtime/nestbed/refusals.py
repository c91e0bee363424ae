"""What every runtime refuses because of the state a container is in, in the same words; and how its start outlives who asked for it."""

from __future__ import annotations

import asyncio

from nestbed.errors import WrongState


def already_running(container_id: str) -> WrongState:
    """It must not run for that."""
    return WrongState(f"container {container_id} runs already", reason="ALREADY_RUNNING", remedy="stop it first", container=container_id)


def not_running(container_id: str) -> WrongState:
    """It must run for that."""
    return WrongState(f"container {container_id} does not run", reason="NOT_RUNNING", remedy="start it", container=container_id)


def never_started(container_id: str) -> WrongState:
    """It must have run for that."""
    return WrongState(f"container {container_id} was never started", reason="NEVER_STARTED", remedy="start it", container=container_id)


def not_paused(container_id: str) -> WrongState:
    """It must be paused for that."""
    return WrongState(f"container {container_id} is not paused", reason="NOT_PAUSED", remedy="pause it first", container=container_id)


async def carry_through(start: asyncio.Task[None]) -> None:
    """Wait for a start. A caller who gives up leaves it to come to its end, and the status to tell how that was."""
    start.add_done_callback(_noted)
    await asyncio.shield(start)


def _noted(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
