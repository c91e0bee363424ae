"""The part of the client that is about images."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Any, TypeVar, cast

from grpc import aio

from nestbed.client.address import Address
from nestbed.client.uploads import upload
from nestbed.v1 import image_pb2 as api
from nestbed.v1.image_pb2_grpc import ImageServiceStub

Response = TypeVar("Response")


class ImageCalls:
    """Images are named by name. ``Client`` gives the two ways to call."""

    _address: Address
    _images: ImageServiceStub

    async def _call(self, method: Callable[..., Awaitable[Response]], request: object, *, seconds: float | None = -1.0) -> Response:
        raise NotImplementedError

    def _stream(self, call: aio.UnaryStreamCall[Any, Response]) -> AsyncGenerator[Response, None]:
        raise NotImplementedError

    async def list_images(self) -> list[api.Image]:
        """All images of the node, by name."""
        return list((await self._call(self._images.ListImages, api.ListImagesRequest())).images)

    async def get_image(self, image: str) -> api.Image:
        """One image."""
        return (await self._call(self._images.GetImage, api.GetImageRequest(image=image))).image

    async def import_image(self, name: str, disk_format: api.DiskFormat.ValueType, chunks: AsyncIterable[bytes]) -> api.Image:
        """Make an image of the bytes of a file of that format."""
        call = cast("Any", self._images.ImportImage)()
        start = api.ImportImageStart(name=name, format=disk_format)
        return cast("api.ImportImageResponse", await upload(call, api.ImportImageRequest, start, chunks, self._address.diagnose)).image

    async def build_image(self, recipe: str, name: str = "", *, fresh: bool = False) -> AsyncGenerator[api.BuildImageResponse, None]:
        """Build an image by a recipe; steps as they come, the image last. A reader that stops ends the build."""
        async for response in self._stream(self._images.BuildImage(api.BuildImageRequest(recipe=recipe, name=name, fresh=fresh))):
            yield response

    async def delete_image(self, image: str) -> None:
        """Remove an image."""
        await self._call(self._images.DeleteImage, api.DeleteImageRequest(image=image))
