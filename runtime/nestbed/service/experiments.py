"""ExperimentService: each method calls the node's experiments and passes on what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from nestbed.errors import InvalidArgument
from nestbed.experiment.experiments import Experiments
from nestbed.experiment.records import File
from nestbed.service.authorize import caller
from nestbed.service.streams import closing
from nestbed.v1 import experiment_pb2 as api
from nestbed.v1.experiment_pb2_grpc import ExperimentServiceServicer


class ExperimentCalls(ExperimentServiceServicer):
    """The experiments of one node; every method's meaning stands in ``experiment.proto``."""

    def __init__(self, experiments: Experiments) -> None:
        self._experiments = experiments

    async def Up(self, request: api.UpRequest, context: Any) -> AsyncIterator[api.UpResponse]:
        progress = await self._experiments.up(*_files(request), keep=request.keep, admin=caller().is_admin)
        async with closing(progress.follow()) as batches:
            async for steps in batches:
                yield api.UpResponse(progress=steps)
        yield api.UpResponse(experiment=progress.outcome)

    async def Down(self, request: api.DownRequest, context: Any) -> AsyncIterator[api.DownResponse]:
        progress = await self._experiments.down(request.experiment, force=request.force, admin=caller().is_admin)
        async with closing(progress.follow()) as batches:
            async for steps in batches:
                yield api.DownResponse(progress=steps)
        yield api.DownResponse(experiment=progress.outcome)

    async def GetExperiment(self, request: api.GetExperimentRequest, context: Any) -> api.GetExperimentResponse:
        return api.GetExperimentResponse(experiment=await self._experiments.get(request.experiment))

    async def ListExperiments(self, request: api.ListExperimentsRequest, context: Any) -> api.ListExperimentsResponse:
        return api.ListExperimentsResponse(experiments=await self._experiments.all())

    async def DiffExperiment(self, request: api.DiffExperimentRequest, context: Any) -> api.DiffExperimentResponse:
        return api.DiffExperimentResponse(changes=await self._experiments.diff(*_files(request), admin=caller().is_admin))

    async def WaitExperiment(self, request: api.WaitExperimentRequest, context: Any) -> api.WaitExperimentResponse:
        return api.WaitExperimentResponse(experiment=await self._experiments.wait(request.experiment))

    async def ExecInElements(self, request: api.ExecInElementsRequest, context: Any) -> AsyncIterator[api.ExecInElementsResponse]:
        source = self._experiments.exec(request.experiment, request.labels, request.start, admin=caller().is_admin)
        async with closing(source) as pieces:
            async for piece in pieces:
                yield piece

    async def SetLinks(self, request: api.SetLinksRequest, context: Any) -> api.SetLinksResponse:
        links = await self._experiments.set_links(request.experiment, request.links, up=request.up, admin=caller().is_admin)
        return api.SetLinksResponse(links=links)

    async def VerifyExperiment(self, request: api.VerifyExperimentRequest, context: Any) -> api.VerifyExperimentResponse:
        verdict = await self._experiments.verify(request.experiment, admin=caller().is_admin)
        times = [
            api.MeasuredTime(element=element, address=address, milliseconds=milliseconds)
            for element, by_address in verdict.measured.items()
            for address, milliseconds in by_address.items()
        ]
        flows = [api.MeasuredFlow(**dataclasses.asdict(flow)) for flow in verdict.flows]
        return api.VerifyExperimentResponse(observation=verdict.observation, deviations=verdict.deviations, times=times, flows=flows)


def _files(request: api.UpRequest | api.DiffExperimentRequest) -> tuple[File, File | None, dict[str, bytes]]:
    if not request.vtopo.text:
        raise InvalidArgument("there is no virtual topology", reason="NO_VTOPO", remedy="send the text of a vtopo file")
    vtopo = File(request.vtopo.name or "vtopo", request.vtopo.text)
    ptopo = File(request.ptopo.name or "ptopo", request.ptopo.text) if request.HasField("ptopo") else None
    return vtopo, ptopo, {source.path: source.content for source in request.sources}
