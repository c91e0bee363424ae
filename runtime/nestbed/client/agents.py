"""The part of the client that is about the agent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from grpc import aio

from nestbed.v1 import agent_pb2 as api
from nestbed.v1.agent_pb2_grpc import AgentServiceStub

Response = TypeVar("Response")


class AgentCalls:
    """With ``experiment`` names are those of its elements, on all its nodes. ``Client`` gives the two ways to call."""

    _agents: AgentServiceStub

    async def _call(self, method: Callable[..., Awaitable[Response]], request: object, *, seconds: float | None = -1.0) -> Response:
        raise NotImplementedError

    def _stream(self, call: aio.UnaryStreamCall[Any, Response]) -> AsyncGenerator[Response, None]:
        raise NotImplementedError

    async def list_agents(
        self, names: Iterable[str] = (), *, experiment: str = "", labels: Mapping[str, str] | None = None
    ) -> list[api.Agent]:
        """What is known of the containers that match: what they reported last, what was lost, who waits at barriers."""
        request = api.ListAgentsRequest(experiment=experiment, names=names, labels=labels or {})
        return list((await self._call(self._agents.ListAgents, request)).agents)

    async def reports(
        self, container: str, *, experiment: str = "", follow: bool = False, tail: int | None = None
    ) -> AsyncGenerator[api.Report, None]:
        """What a container's programs reported, the last ``tail`` of it, then new ones if ``follow``."""
        request = api.WatchReportsRequest(experiment=experiment, container=container, follow=follow, tail=tail)
        async for response in self._stream(self._agents.WatchReports(request)):
            for report in response.reports:
                yield report

    async def traffic(
        self, experiment: str, names: Iterable[str] = (), *, interval_seconds: float | None = None
    ) -> AsyncGenerator[api.WatchTrafficResponse, None]:
        """Frames of an experiment's elements: once, or every ``interval_seconds``."""
        request = api.WatchTrafficRequest(experiment=experiment, names=names)
        if interval_seconds is not None:
            request.interval.FromNanoseconds(round(interval_seconds * 1e9))
        async for response in self._stream(self._agents.WatchTraffic(request)):
            yield response

    async def tell(self, container: str, text: str, *, experiment: str = "") -> None:
        """Add a line to the orders of a container; of an experiment's elements ``container`` may be a glob."""
        await self._call(self._agents.Tell, api.TellRequest(experiment=experiment, container=container, text=text))

    async def release(self, container: str, arrivals: Iterable[str]) -> list[str]:
        """Let those go on who wait at barriers; the ids of those who did."""
        request = api.ReleaseRequest(container=container, arrivals=arrivals)
        return list((await self._call(self._agents.Release, request)).arrivals)
