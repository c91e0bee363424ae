"""AgentService: each method calls the node, or with an experiment its experiments, and converts what they say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from nestbed.experiment.experiments import Experiments
from nestbed.nesting import naming
from nestbed.nesting.branches import Branch
from nestbed.nesting.forward import Forward
from nestbed.node.agent.agent import ELEMENT_LABEL, EXPERIMENT_LABEL
from nestbed.node.agent.values import AgentView, Report
from nestbed.node.node import Node
from nestbed.service import convert, present
from nestbed.service.authorize import caller
from nestbed.service.streams import closing, ticks
from nestbed.v1 import agent_pb2 as api
from nestbed.v1 import container_pb2
from nestbed.v1.agent_pb2_grpc import AgentServiceServicer

LIST = "/nestbed.v1.AgentService/ListAgents"
_STATES = {state: container_pb2.ContainerState.ValueType(number) for number, state in convert.STATES.items()}


class Agents(AgentServiceServicer):
    """The agent of one node; every method's meaning stands in ``agent.proto``."""

    def __init__(self, node: Node, forward: Forward, experiments: Experiments) -> None:
        self._node = node
        self._forward = forward
        self._experiments = experiments

    async def ListAgents(self, request: api.ListAgentsRequest, context: Any) -> api.ListAgentsResponse:
        if request.experiment:
            return api.ListAgentsResponse(agents=await self._experiments.agents(request.experiment, tuple(request.names)))
        names, labels = naming.own_share(request.names), convert.pairs(request.labels)
        found = [] if names is None else self._node.agents(names=tuple(names), labels=labels)
        response = api.ListAgentsResponse(agents=[_agent(each) for each in found])
        answers, _ = await self._forward.gather(LIST, partial(_inside, request), caller().role.label)
        for branch, answer in answers:
            response.agents.extend(naming.prefix(answer, branch.name, branch.id).agents)
        return response

    async def WatchReports(self, request: api.WatchReportsRequest, context: Any) -> AsyncIterator[api.WatchReportsResponse]:
        tail = request.tail if request.HasField("tail") else None
        if request.experiment:
            source = self._experiments.reports(request.experiment, request.container, tail=tail, follow=request.follow)
            async with closing(source) as found:
                async for report in found:
                    yield api.WatchReportsResponse(reports=[report])
            return
        async with closing(self._node.reports(request.container, tail=tail, follow=request.follow)) as batches:
            async for batch in batches:
                yield api.WatchReportsResponse(reports=[_report(each) for each in batch])

    async def WatchTraffic(self, request: api.WatchTrafficRequest, context: Any) -> AsyncIterator[api.WatchTrafficResponse]:
        async for _ in ticks(convert.interval(request)):
            yield api.WatchTrafficResponse(stats=await self._experiments.traffic(request.experiment, tuple(request.names)))

    async def Tell(self, request: api.TellRequest, context: Any) -> api.TellResponse:
        admin = caller().is_admin
        if request.experiment:
            await self._experiments.tell(request.experiment, request.container, request.text, admin=admin)
        else:
            await self._node.tell(request.container, request.text, admin=admin)
        return api.TellResponse()

    async def Release(self, request: api.ReleaseRequest, context: Any) -> api.ReleaseResponse:
        return api.ReleaseResponse(arrivals=self._node.release(request.container, tuple(request.arrivals)))


def _inside(request: api.ListAgentsRequest, branch: Branch) -> api.ListAgentsRequest | None:
    """What the node inside is asked; None for nothing."""
    names = naming.share_of(request.names, branch.name, branch.id)
    return None if names is None else api.ListAgentsRequest(names=names, labels=request.labels)


def _agent(view: AgentView) -> api.Agent:
    labels = dict(view.spec.labels)
    return api.Agent(
        id=view.spec.id,
        name=view.spec.name,
        experiment=labels.get(EXPERIMENT_LABEL, ""),
        element=labels.get(ELEMENT_LABEL, ""),
        state=_STATES[view.state],
        last=None if view.last is None else _report(view.last),
        fields=dict(view.fields),
        lost=dict(view.lost),
        arrivals=[
            api.Arrival(
                id=each.id,
                barrier=each.barrier,
                count=each.count,
                time=present.timestamp(each.at),
                deadline=present.timestamp(each.deadline),
            )
            for each in view.arrivals
        ],
    )


def _report(report: Report) -> api.Report:
    return api.Report(number=report.number, time=present.timestamp(report.at), fields=dict(report.fields), file=report.file)
