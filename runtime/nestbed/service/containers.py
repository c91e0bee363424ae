"""ContainerService: each method converts, calls the node, converts back. Exec and Attach stand in ``terminals``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from nestbed.model import ContainerView
from nestbed.nesting import naming
from nestbed.nesting.branches import Branch
from nestbed.nesting.forward import Forward
from nestbed.node.node import Node
from nestbed.service import convert, present, terminals, uploads
from nestbed.service.authorize import caller
from nestbed.service.pages import Place, page
from nestbed.service.streams import closing, ticks
from nestbed.v1 import container_pb2 as api
from nestbed.v1.container_pb2_grpc import ContainerServiceServicer

LIST = "/nestbed.v1.ContainerService/ListContainers"
STATS = "/nestbed.v1.ContainerService/GetStats"
COPY_RESPONSE_BYTES = 256 * 1024


class Containers(ContainerServiceServicer):
    """The containers of one node; every method's meaning stands in ``container.proto``."""

    def __init__(self, node: Node, forward: Forward) -> None:
        self._node = node
        self._forward = forward

    async def CreateContainer(self, request: api.CreateContainerRequest, context: Any) -> api.CreateContainerResponse:
        admin = caller().is_admin
        wanted = convert.container_request(request.spec, admin=admin)
        view = await self._node.create_container(
            wanted, request_id=request.request_id, start=request.start, wait=not request.no_wait, admin=admin
        )
        return api.CreateContainerResponse(container=present.container(view))

    async def GetContainer(self, request: api.GetContainerRequest, context: Any) -> api.GetContainerResponse:
        return api.GetContainerResponse(container=present.container(self._node.container(request.container)))

    async def ListContainers(self, request: api.ListContainersRequest, context: Any) -> api.ListContainersResponse:
        if naming.SEPARATOR in request.page_token:
            return await self._forward.page(LIST, request, api.ListContainersResponse(), caller().role.label)
        states = convert.states(request.states)
        names, labels = naming.own_share(request.names), convert.pairs(request.labels)
        found = [] if names is None else self._node.containers(names=tuple(names), labels=labels, states=states)
        containers, token = page(found, size=request.page_size, token=request.page_token, place=_place, present=present.container)
        return api.ListContainersResponse(containers=containers, next_page_token=token or self._forward.next_page(request.names))

    async def StartContainer(self, request: api.StartContainerRequest, context: Any) -> api.StartContainerResponse:
        view = await self._node.start(request.container, wait=not request.no_wait)
        return api.StartContainerResponse(container=present.container(view))

    async def StopContainer(self, request: api.StopContainerRequest, context: Any) -> api.StopContainerResponse:
        view = await self._node.stop(request.container, convert.grace_seconds(request))
        return api.StopContainerResponse(container=present.container(view))

    async def KillContainer(self, request: api.KillContainerRequest, context: Any) -> api.KillContainerResponse:
        await self._node.kill(request.container, convert.signal(request.signal))
        return api.KillContainerResponse()

    async def PauseContainer(self, request: api.PauseContainerRequest, context: Any) -> api.PauseContainerResponse:
        return api.PauseContainerResponse(container=present.container(await self._node.pause(request.container)))

    async def ResumeContainer(self, request: api.ResumeContainerRequest, context: Any) -> api.ResumeContainerResponse:
        return api.ResumeContainerResponse(container=present.container(await self._node.resume(request.container)))

    async def WaitContainer(self, request: api.WaitContainerRequest, context: Any) -> api.WaitContainerResponse:
        return api.WaitContainerResponse(exit=present.exit_status(await self._node.wait(request.container)))

    async def Exec(self, requests: AsyncIterator[api.ExecRequest], context: Any) -> None:  # type: ignore[override]
        await terminals.execute(self._node, requests, context)

    async def Attach(self, requests: AsyncIterator[api.AttachRequest], context: Any) -> None:  # type: ignore[override]
        await terminals.attach(self._node, requests, context)

    async def GetLogs(self, request: api.GetLogsRequest, context: Any) -> AsyncIterator[api.GetLogsResponse]:
        source = self._node.logs(request.container, follow=request.follow, since=convert.since(request), tail=convert.tail(request))
        async with closing(source) as batches:
            async for entries in batches:
                for response in present.logs(entries):
                    yield response

    async def GetStats(self, request: api.GetStatsRequest, context: Any) -> AsyncIterator[api.GetStatsResponse]:
        names = naming.own_share(request.containers)
        async for _ in ticks(convert.interval(request)):
            found = [] if names is None else await self._node.stats(tuple(names))
            response = api.GetStatsResponse(stats=[present.stats(view, used) for view, used in found])
            answers, _ = await self._forward.gather(
                STATS, partial(_stats_inside, request), caller().role.label, must_answer=bool(request.containers)
            )
            for branch, answer in answers:
                response.stats.extend(naming.prefix(answer, branch.name, branch.id).stats)
            yield response

    async def UpdateContainer(self, request: api.UpdateContainerRequest, context: Any) -> api.UpdateContainerResponse:
        view = await self._node.update(request.container, convert.change(request), admin=caller().is_admin)
        return api.UpdateContainerResponse(container=present.container(view))

    async def DeleteContainer(self, request: api.DeleteContainerRequest, context: Any) -> api.DeleteContainerResponse:
        await self._node.delete(request.container, force=request.force)
        return api.DeleteContainerResponse()

    async def CopyFrom(self, request: api.CopyFromRequest, context: Any) -> AsyncIterator[api.CopyFromResponse]:
        async with closing(self._node.archive(request.container, request.path, admin=caller().is_admin)) as chunks:
            async for chunk in chunks:
                for begin in range(0, len(chunk), COPY_RESPONSE_BYTES):
                    yield api.CopyFromResponse(data=chunk[begin : begin + COPY_RESPONSE_BYTES])

    async def CopyTo(self, requests: AsyncIterator[api.CopyToRequest], context: Any) -> api.CopyToResponse:
        start = await uploads.started(requests)
        async with uploads.upload(requests) as data:
            await self._node.extract(start.container, start.path, data, admin=caller().is_admin)
        return api.CopyToResponse()


def _stats_inside(request: api.GetStatsRequest, branch: Branch) -> api.GetStatsRequest | None:
    """What a node inside is asked for of ``request``."""
    names = naming.share_of(request.containers, branch.name, branch.id)
    return None if names is None else api.GetStatsRequest(containers=names)


def _place(view: ContainerView) -> Place:
    return view.spec.created_at, view.spec.id
