"""ImageService: each method converts, calls the node's images, converts back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nestbed.imagemodel import Image
from nestbed.node.node import Node
from nestbed.service import convert, present, uploads
from nestbed.service.streams import closing
from nestbed.v1 import image_pb2 as api
from nestbed.v1.image_pb2_grpc import ImageServiceServicer


class ImageCalls(ImageServiceServicer):
    """The images of one node; every method's meaning stands in ``image.proto``."""

    def __init__(self, node: Node) -> None:
        self._images = node.images

    async def ListImages(self, request: api.ListImagesRequest, context: Any) -> api.ListImagesResponse:
        return api.ListImagesResponse(images=map(present.image, self._images.all()))

    async def GetImage(self, request: api.GetImageRequest, context: Any) -> api.GetImageResponse:
        return api.GetImageResponse(image=present.image(self._images.get(request.image)))

    async def ImportImage(self, requests: AsyncIterator[api.ImportImageRequest], context: Any) -> api.ImportImageResponse:
        start = await uploads.started(requests)
        async with uploads.upload(requests) as data:
            image = await self._images.take(start.name, convert.disk_format(start), data)
        return api.ImportImageResponse(image=present.image(image))

    async def BuildImage(self, request: api.BuildImageRequest, context: Any) -> AsyncIterator[api.BuildImageResponse]:
        async with closing(self._images.build(request.recipe, request.name, fresh=request.fresh)) as steps:
            async for step in steps:
                yield api.BuildImageResponse(image=present.image(step)) if isinstance(step, Image) else api.BuildImageResponse(step=step)

    async def DeleteImage(self, request: api.DeleteImageRequest, context: Any) -> api.DeleteImageResponse:
        await self._images.delete(request.image)
        return api.DeleteImageResponse()
