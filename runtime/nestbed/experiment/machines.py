"""Nodes that are virtual machines made for an experiment: there before its elements, gone after them, and shown in none of its views.

Such a machine is a container of its host with a node inside; what is on that node is reached by paths through the host. A LAN of the
experiment is the host's, which carries it inside.
"""

from __future__ import annotations

import asyncio
import hashlib

from nestbed.client import Client
from nestbed.errors import Deadline
from nestbed.experiment import requests
from nestbed.experiment.fleet import Fleet, Holdings
from nestbed.experiment.plan import Plan, PlannedNode
from nestbed.experiment.requests import Digests
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import node_pb2

READY_SECONDS = 180.0
ASK_SECONDS = 0.5


async def raise_all(plan: Plan, digests: Digests, fleet: Fleet, holdings: Holdings, run_id: str) -> bool:
    """Have all machines of the plan, as it says, with nodes that answer; whether anything had to be done or waited for.

    One that does not run is made anew: what was on it is lost. Raises:
        NestbedError: one could not be made, or does not answer in time.
    """
    works = [
        _raise(planned, digests.machines[planned.name], fleet, holdings, run_id, plan.name)
        for planned in plan.machines.values()
        if not _is_right(planned, digests.machines[planned.name], holdings) or planned.name in holdings.unreachable
    ]
    await asyncio.gather(*works)
    return bool(works)


def _is_right(planned: PlannedNode, digest: str, holdings: Holdings) -> bool:
    held = holdings.machines.get((planned.host, planned.name))
    return held is not None and held.state == api.CONTAINER_STATE_RUNNING and held.spec.labels[requests.DIGEST] == digest


async def _raise(planned: PlannedNode, digest: str, fleet: Fleet, holdings: Holdings, run_id: str, experiment: str) -> None:
    client = fleet.clients[planned.host]
    if not _is_right(planned, digest, holdings):
        held = holdings.machines.get((planned.host, planned.name))
        if held is not None:
            await client.delete_container(held.id, force=True)
        spec = requests.machine_spec(experiment, planned)
        spec.labels[requests.DIGEST] = digest
        request_id = hashlib.sha256(f"{run_id}/node/{planned.name}".encode()).hexdigest()[:40]
        made = await client.create_container(spec, request_id=request_id)
        if made.state != api.CONTAINER_STATE_RUNNING:
            await client.start_container(planned.node_name)
    await _until_answering(client, planned)


async def _until_answering(client: Client, planned: PlannedNode) -> None:
    detail = ""
    try:
        async with asyncio.timeout(READY_SECONDS):
            while True:
                entry = next((entry for entry in await client.nodes() if entry.name == planned.node_name), None)
                if entry is not None and entry.state == node_pb2.NODE_STATE_READY:
                    return
                detail = entry.detail if entry is not None else "it is not there"
                await asyncio.sleep(ASK_SECONDS)
    except TimeoutError as error:
        raise Deadline(
            f"node {planned.name} did not answer within {READY_SECONDS:g} s: {detail}",
            reason="NODE_NOT_READY",
            remedy="give it more memory or processors (`vm` of the ptopo), or try again",
            node=planned.name,
        ) from error
