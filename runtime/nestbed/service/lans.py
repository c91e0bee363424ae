"""LanService: each method converts, calls the node, converts back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nestbed.lanmodel import LanView
from nestbed.node.node import Node
from nestbed.service import convert, present
from nestbed.service.pages import Place, page
from nestbed.service.streams import closing, ticks
from nestbed.v1 import lan_pb2 as api
from nestbed.v1.lan_pb2_grpc import LanServiceServicer


class Lans(LanServiceServicer):
    """The LANs of one node; every method's meaning stands in ``lan.proto``."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def CreateLan(self, request: api.CreateLanRequest, context: Any) -> api.CreateLanResponse:
        view = await self._node.create_lan(convert.lan_request(request), request_id=request.request_id)
        return api.CreateLanResponse(lan=present.lan(view))

    async def GetLan(self, request: api.GetLanRequest, context: Any) -> api.GetLanResponse:
        return api.GetLanResponse(lan=present.lan(self._node.lan(request.lan)))

    async def ListLans(self, request: api.ListLansRequest, context: Any) -> api.ListLansResponse:
        found = self._node.lans(names=tuple(request.names), labels=convert.pairs(request.labels))
        lans, token = page(found, size=request.page_size, token=request.page_token, place=_place, present=present.lan)
        return api.ListLansResponse(lans=lans, next_page_token=token)

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
        async for _ in ticks(convert.interval(request)):
            found = await self._node.lan_stats(tuple(request.lans))
            yield api.WatchLanStatsResponse(stats=[present.lan_stats(each) for each in found])

    async def Capture(self, request: api.CaptureRequest, context: Any) -> AsyncIterator[api.CaptureResponse]:
        wanted = convert.capture_request(request)
        source = self._node.capture(wanted, lan=request.lan, container=request.container, nic_name=request.nic)
        async with closing(source) as pieces:
            async for piece in pieces:
                yield api.CaptureResponse(data=piece)

    async def DisconnectLan(self, request: api.DisconnectLanRequest, context: Any) -> api.DisconnectLanResponse:
        await self._node.disconnect(request.container, request.lan, request.nic)
        return api.DisconnectLanResponse()


def _place(view: LanView) -> Place:
    return view.lan.created_at, view.lan.id
