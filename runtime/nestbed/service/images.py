"""ImageService: each method converts, calls the node's images, converts back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from nestbed.errors import InvalidArgument, NestbedError
from nestbed.imagemodel import Image
from nestbed.node.node import Node
from nestbed.service import convert, present
from nestbed.service.streams import closing
from nestbed.service.terminals import start_expected
from nestbed.v1 import image_pb2 as api
from nestbed.v1.image_pb2_grpc import ImageServiceServicer

_DRAIN_SECONDS = 10.0


class ImageCalls(ImageServiceServicer):
    """The images of one node; every method's meaning stands in ``image.proto``."""

    def __init__(self, node: Node) -> None:
        self._images = node.images

    async def ListImages(self, request: api.ListImagesRequest, context: Any) -> api.ListImagesResponse:
        return api.ListImagesResponse(images=map(present.image, self._images.all()))

    async def GetImage(self, request: api.GetImageRequest, context: Any) -> api.GetImageResponse:
        return api.GetImageResponse(image=present.image(self._images.get(request.image)))

    async def ImportImage(self, requests: AsyncIterator[api.ImportImageRequest], context: Any) -> api.ImportImageResponse:
        first = await anext(requests, None)
        if first is None or not first.HasField("start"):
            raise start_expected()
        try:
            image = await self._images.take(first.start.name, convert.disk_format(first.start), _data(requests))
        except NestbedError:
            await _drain(requests)
            raise
        return api.ImportImageResponse(image=present.image(image))

    async def BuildImage(self, request: api.BuildImageRequest, context: Any) -> AsyncIterator[api.BuildImageResponse]:
        async with closing(self._images.build(request.recipe, request.name, fresh=request.fresh)) as steps:
            async for step in steps:
                yield api.BuildImageResponse(image=present.image(step)) if isinstance(step, Image) else api.BuildImageResponse(step=step)

    async def DeleteImage(self, request: api.DeleteImageRequest, context: Any) -> api.DeleteImageResponse:
        await self._images.delete(request.image)
        return api.DeleteImageResponse()


async def _drain(requests: AsyncIterator[api.ImportImageRequest]) -> None:
    """Read what still comes: to a client of gRPC in Python whose write meets the end of its call, the reason for that end is lost."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in requests:
                pass


async def _data(requests: AsyncIterator[api.ImportImageRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("input") != "data":
            raise InvalidArgument("only data may follow `start`", reason="BAD_STREAM", remedy="send one `start`, then `data`")
        yield request.data
