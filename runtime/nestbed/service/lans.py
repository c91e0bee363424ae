"""LanService: each method converts, calls the node, converts back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from nestbed.lanmodel import LanView
from nestbed.nesting import naming
from nestbed.nesting.branches import Branch
from nestbed.nesting.forward import Forward
from nestbed.node.node import Node
from nestbed.service import convert, present
from nestbed.service.authorize import caller
from nestbed.service.pages import Place, page
from nestbed.service.streams import closing, ticks
from nestbed.v1 import lan_pb2 as api
from nestbed.v1.lan_pb2_grpc import LanServiceServicer

LIST = "/nestbed.v1.LanService/ListLans"
STATS = "/nestbed.v1.LanService/WatchLanStats"


class Lans(LanServiceServicer):
    """The LANs of one node; every method's meaning stands in ``lan.proto``."""

    def __init__(self, node: Node, forward: Forward) -> None:
        self._node = node
        self._forward = forward

    async def CreateLan(self, request: api.CreateLanRequest, context: Any) -> api.CreateLanResponse:
        view = await self._node.create_lan(convert.lan_request(request), request_id=request.request_id)
        return api.CreateLanResponse(lan=present.lan(view))

    async def ExtendLan(self, request: api.ExtendLanRequest, context: Any) -> api.ExtendLanResponse:
        view = await self._node.extend_lan(*convert.extension(request.lan))
        return api.ExtendLanResponse(lan=present.lan(view))

    async def GetLan(self, request: api.GetLanRequest, context: Any) -> api.GetLanResponse:
        return api.GetLanResponse(lan=present.lan(self._node.lan(request.lan)))

    async def ListLans(self, request: api.ListLansRequest, context: Any) -> api.ListLansResponse:
        if naming.SEPARATOR in request.page_token:
            found_inside = await self._forward.page(LIST, request, api.ListLansResponse(), caller().role.label)
            if not request.names:  # this node's own are listed already
                for index in reversed([index for index, lan in enumerate(found_inside.lans) if lan.outside]):
                    del found_inside.lans[index]
            return found_inside
        names, labels = naming.own_share(request.names), convert.pairs(request.labels)
        found = [] if names is None else self._node.lans(names=tuple(names), labels=labels)
        lans, token = page(found, size=request.page_size, token=request.page_token, place=_place, present=present.lan)
        return api.ListLansResponse(lans=lans, next_page_token=token or self._forward.next_page(request.names))

    async def DeleteLan(self, request: api.DeleteLanRequest, context: Any) -> api.DeleteLanResponse:
        await self._node.delete_lan(request.lan)
        return api.DeleteLanResponse()

    async def ConnectLan(self, request: api.ConnectLanRequest, context: Any) -> api.ConnectLanResponse:
        nic = await self._node.connect(request.container, convert.nic_spec(request.nic))
        return api.ConnectLanResponse(nic=present.nic(nic))

    async def SetLink(self, request: api.SetLinkRequest, context: Any) -> api.SetLinkResponse:
        members = await self._node.set_link(request.lan, container=request.container, nic_name=request.nic, up=request.up)
        return api.SetLinkResponse(members=[present.member(each) for each in members])

    async def SetImpairment(self, request: api.SetImpairmentRequest, context: Any) -> api.SetImpairmentResponse:
        container, nic_name, direction = convert.ports(request)
        change = convert.impairment_change(request.impairment)
        told = await self._node.set_impairment(request.lan, change, container=container, nic_name=nic_name, direction=direction)
        return api.SetImpairmentResponse(impairment=present.lan_impairment(told))

    async def ResetImpairment(self, request: api.ResetImpairmentRequest, context: Any) -> api.ResetImpairmentResponse:
        container, nic_name, direction = convert.ports(request)
        told = await self._node.reset_impairment(request.lan, container=container, nic_name=nic_name, direction=direction)
        return api.ResetImpairmentResponse(impairment=present.lan_impairment(told))

    async def ListImpairments(self, request: api.ListImpairmentsRequest, context: Any) -> api.ListImpairmentsResponse:
        told = await self._node.impairments(lan=request.lan, container=request.container, nic_name=request.nic)
        return api.ListImpairmentsResponse(impairments=[present.lan_impairment(each) for each in told])

    async def WatchLanStats(self, request: api.WatchLanStatsRequest, context: Any) -> AsyncIterator[api.WatchLanStatsResponse]:
        names = naming.own_share(request.lans)
        async for _ in ticks(convert.interval(request)):
            found = [] if names is None else await self._node.lan_stats(tuple(names))
            response = api.WatchLanStatsResponse(stats=[present.lan_stats(each) for each in found])
            answers, _ = await self._forward.gather(
                STATS, partial(_stats_inside, request), caller().role.label, must_answer=bool(request.lans)
            )
            for branch, answer in answers:
                response.stats.extend(naming.prefix(answer, branch.name, branch.id).stats)
            yield response

    async def Capture(self, request: api.CaptureRequest, context: Any) -> AsyncIterator[api.CaptureResponse]:
        wanted = convert.capture_request(request)
        source = self._node.capture(wanted, lan=request.lan, container=request.container, nic_name=request.nic)
        async with closing(source) as pieces:
            async for piece in pieces:
                yield api.CaptureResponse(data=piece)

    async def DisconnectLan(self, request: api.DisconnectLanRequest, context: Any) -> api.DisconnectLanResponse:
        await self._node.disconnect(request.container, request.lan, request.nic)
        return api.DisconnectLanResponse()


def _stats_inside(request: api.WatchLanStatsRequest, branch: Branch) -> api.WatchLanStatsRequest | None:
    """What a node inside is asked for of ``request``."""
    names = naming.share_of(request.lans, branch.name, branch.id)
    return None if names is None else api.WatchLanStatsRequest(lans=names)


def _place(view: LanView) -> Place:
    return view.lan.created_at, view.lan.id
