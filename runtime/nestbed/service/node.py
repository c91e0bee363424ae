"""NodeService: each method calls the node and converts what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from nestbed.model import State
from nestbed.nesting import naming
from nestbed.nesting.forward import Forward
from nestbed.node.node import Node
from nestbed.service import metrics, nodes, present
from nestbed.service.authorize import caller
from nestbed.service.streams import closing
from nestbed.v1 import node_pb2 as api
from nestbed.v1.node_pb2_grpc import NodeServiceServicer

AUDIT = "/nestbed.v1.NodeService/Audit"
NODES = "/nestbed.v1.NodeService/ListNodes"


class NodeInformation(NodeServiceServicer):
    """One node; every method's meaning stands in ``node.proto``."""

    def __init__(self, node: Node, forward: Forward) -> None:
        self._node = node
        self._forward = forward

    async def GetInfo(self, request: api.GetInfoRequest, context: Any) -> api.GetInfoResponse:
        info = await self._node.info(with_abilities=not request.no_abilities)
        return api.GetInfoResponse(info=present.node_info(info, role=caller().role.label))

    async def WatchEvents(self, request: api.WatchEventsRequest, context: Any) -> AsyncIterator[api.WatchEventsResponse]:
        source = self._node.watch(after_sequence=request.after_sequence, types=tuple(request.types), history=request.history)
        async with closing(source) as events:
            async for event, dropped in events:
                yield api.WatchEventsResponse(event=present.event(event), dropped=dropped)

    async def Audit(self, request: api.AuditRequest, context: Any) -> api.AuditResponse:
        found, objects = await self._node.audit()
        response = api.AuditResponse(leftovers=present.leftovers(found), objects=objects)
        answers, faults = await self._forward.gather(AUDIT, lambda _: api.AuditRequest(), caller().role.label)
        for branch, answer in answers:
            response.MergeFrom(naming.prefix(answer, branch.name, branch.id))
            response.objects = objects = objects + answer.objects
        response.unreachable.extend(fault for fault in faults if fault.state != api.NODE_STATE_STOPPED)
        return response

    async def ListNodes(self, request: api.ListNodesRequest, context: Any) -> api.ListNodesResponse:
        info = present.node_info(await self._node.info(with_abilities=False), role=caller().role.label)
        own = api.NodeEntry(name=info.name, state=api.NODE_STATE_READY, node=True)
        answers, faults = await self._forward.gather(NODES, lambda _: api.ListNodesRequest(), caller().role.label)
        inside = nodes.inside(self._node.nested(), answers, faults)
        return api.ListNodesResponse(nodes=[nodes.filled(own, info), *inside, *nodes.machines(self._node.containers())])

    async def GetMetrics(self, request: api.GetMetricsRequest, context: Any) -> api.GetMetricsResponse:
        states: Counter[State] = Counter(view.status.state for view in self._node.containers())
        used, lans = await self._node.stats(()), await self._node.lan_stats(())
        return api.GetMetricsResponse(text=present.text(metrics.text(await self._node.info(), used, states, lans)))
