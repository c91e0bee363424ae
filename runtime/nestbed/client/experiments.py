"""The part of the client that is about experiments."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from grpc import aio

from nestbed.v1 import container_pb2
from nestbed.v1 import experiment_pb2 as api
from nestbed.v1.experiment_pb2_grpc import ExperimentServiceStub

Response = TypeVar("Response")


class ExperimentCalls:
    """Files are pairs of name and text. ``Client`` gives the two ways to call."""

    _experiments: ExperimentServiceStub

    async def _call(self, method: Callable[..., Awaitable[Response]], request: object, *, seconds: float | None = -1.0) -> Response:
        raise NotImplementedError

    def _stream(self, call: aio.UnaryStreamCall[Any, Response]) -> AsyncGenerator[Response, None]:
        raise NotImplementedError

    async def up(
        self,
        vtopo: tuple[str, str],
        ptopo: tuple[str, str] | None = None,
        *,
        sources: Mapping[str, bytes] | None = None,
        keep: bool = False,
    ) -> AsyncGenerator[api.UpResponse, None]:
        """Bring an experiment up; steps as they come, the experiment last. ``sources`` are the files that the vtopo names."""
        request = api.UpRequest(vtopo=_file(vtopo), ptopo=_file(ptopo) if ptopo else None, keep=keep, sources=_sources(sources))
        async for response in self._stream(self._experiments.Up(request)):
            yield response

    async def down(self, experiment: str, *, force: bool = False) -> AsyncGenerator[api.DownResponse, None]:
        """Remove an experiment; steps as they come, the experiment last."""
        async for response in self._stream(self._experiments.Down(api.DownRequest(experiment=experiment, force=force))):
            yield response

    async def get_experiment(self, experiment: str) -> api.Experiment:
        """How an experiment is now, with its elements."""
        return (await self._call(self._experiments.GetExperiment, api.GetExperimentRequest(experiment=experiment))).experiment

    async def list_experiments(self) -> list[api.Experiment]:
        """All experiments of the node, without their elements."""
        return list((await self._call(self._experiments.ListExperiments, api.ListExperimentsRequest())).experiments)

    async def diff_experiment(
        self, vtopo: tuple[str, str], ptopo: tuple[str, str] | None = None, *, sources: Mapping[str, bytes] | None = None
    ) -> list[api.Change]:
        """What ``up`` would change."""
        request = api.DiffExperimentRequest(vtopo=_file(vtopo), ptopo=_file(ptopo) if ptopo else None, sources=_sources(sources))
        return list((await self._call(self._experiments.DiffExperiment, request)).changes)

    async def wait_experiment(self, experiment: str) -> api.Experiment:
        """The experiment, when nothing is under way with it. Waits without limit."""
        request = api.WaitExperimentRequest(experiment=experiment)
        return (await self._call(self._experiments.WaitExperiment, request, seconds=None)).experiment

    async def exec_in_elements(
        self, name: str, start: container_pb2.ExecStart, *, labels: Mapping[str, str] | None = None
    ) -> AsyncGenerator[api.ExecInElementsResponse, None]:
        """Run a program in all elements that run and have the labels, on all nodes; what comes of each as it comes."""
        request = api.ExecInElementsRequest(experiment=name, labels=labels or {}, start=start)
        async for response in self._stream(self._experiments.ExecInElements(request)):
            yield response

    async def set_links(self, name: str, links: Iterable[str], *, up: bool) -> list[api.Link]:
        """Plug cables in or out: of a LAN, of an element, or ELEMENT:LAN."""
        request = api.SetLinksRequest(experiment=name, links=links, up=up)
        return list((await self._call(self._experiments.SetLinks, request)).links)

    async def verify_experiment(self, experiment: str) -> api.VerifyExperimentResponse:
        """What is seen from inside every element. Waits without limit."""
        request = api.VerifyExperimentRequest(experiment=experiment)
        return await self._call(self._experiments.VerifyExperiment, request, seconds=None)


def _file(file: tuple[str, str]) -> api.TopologyFile:
    return api.TopologyFile(name=file[0], text=file[1])


def _sources(sources: Mapping[str, bytes] | None) -> list[api.SourceFile]:
    return [api.SourceFile(path=path, content=content) for path, content in (sources or {}).items()]
