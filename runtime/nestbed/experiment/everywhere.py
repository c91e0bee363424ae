"""A program in many elements of an experiment at once, whatever nodes they are on: what they write comes back as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from nestbed.errors import NestbedError, NotFound
from nestbed.experiment.fleet import Fleet
from nestbed.experiment.plan import Plan, PlannedElement
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import experiment_pb2

AT_ONCE = 32
"""Programs under way at once on each node."""
_AHEAD = 64
"""Pieces of output that wait for a slow reader; then the programs wait."""


async def choose(plan: Plan, fleet: Fleet, labels: Mapping[str, str]) -> list[PlannedElement]:
    """The elements that run and whose containers have the labels, in the order of the file.

    Raises:
        NotFound: none. Unavailable: a node cannot be reached.
    """
    holdings = await fleet.holdings(plan.name)
    for error in holdings.unreachable.values():
        raise error
    wanted = labels.items()
    running = {
        key
        for key, container in holdings.containers.items()
        if container.state == api.CONTAINER_STATE_RUNNING and wanted <= container.spec.labels.items()
    }
    chosen = [planned for planned in plan.elements.values() if (planned.node, planned.name) in running]
    if not chosen:
        raise NotFound(
            f"no element of {plan.name} that runs has these labels",
            reason="ELEMENT_NOT_FOUND",
            remedy=f"see `nbctl status {plan.name}`",
            experiment=plan.name,
        )
    return chosen


async def run(
    fleet: Fleet, elements: Sequence[PlannedElement], start: api.ExecStart
) -> AsyncGenerator[experiment_pb2.ExecInElementsResponse, None]:
    """Run the program of ``start`` in each; output, and how each ended or why it could not be run. Closing it kills those that run."""
    pieces: asyncio.Queue[experiment_pb2.ExecInElementsResponse | None] = asyncio.Queue(_AHEAD)
    gates = {node: asyncio.Semaphore(AT_ONCE) for node in fleet.clients}

    async def one(planned: PlannedElement) -> None:
        own = api.ExecStart()
        own.CopyFrom(start)
        own.container = planned.node_name
        try:
            async with gates[planned.node], fleet.clients[planned.node].exec(own) as session:
                async for stream, data in session.output():
                    await pieces.put(_piece(planned, stdout=data) if stream == 1 else _piece(planned, stderr=data))
                await pieces.put(_piece(planned, exit=session.exit))
        except NestbedError as error:
            await pieces.put(_piece(planned, failure=error.message))

    async def every() -> None:
        try:
            await asyncio.gather(*(one(planned) for planned in elements))
        finally:
            await pieces.put(None)

    work = asyncio.create_task(every())
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


def _piece(planned: PlannedElement, **field: Any) -> experiment_pb2.ExecInElementsResponse:
    return experiment_pb2.ExecInElementsResponse(element=planned.name, **field)
