"""The images of a node: what machines start from, by name."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from nestbed.errors import Unsupported
from nestbed.imagemodel import DiskFormat, Image
from nestbed.node.names import check_name
from nestbed.node.parts import Parts
from nestbed.runtime import HasImages, ImageStore


class Images:
    """What ``nestbed.runtime.ImageStore`` has, for callers that may send anything. Nothing here is carried through if the caller goes
    away: what is half made is removed.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def all(self) -> list[Image]:
        """All, by name; none where no runtime has images."""
        return [
            image for runtime in self._parts.runtimes.values() if isinstance(runtime, HasImages) for image in runtime.image_store.images()
        ]

    def get(self, name: str) -> Image:
        """One.

        Raises:
            as ``ImageStore.image``; InvalidArgument: it can be no name.
        """
        check_name(name, "image")
        return self._store().image(name)

    async def take(self, name: str, disk_format: DiskFormat, chunks: AsyncIterator[bytes]) -> Image:
        """Import one.

        Raises:
            as ``ImageStore.import_image``; InvalidArgument: it can be no name.
        """
        check_name(name, "image")
        return self._made(await self._store().import_image(name, disk_format, chunks))

    async def build(self, recipe: str, name: str, *, fresh: bool) -> AsyncIterator[str | Image]:
        """Build one: steps, then the image. Without a name it has the recipe's.

        Raises:
            as ``ImageStore.build_image``; InvalidArgument: it can be no name.
        """
        check_name(recipe, "recipe")
        check_name(name or recipe, "image")
        async with contextlib.aclosing(self._store().build_image(recipe, name or recipe, fresh=fresh)) as steps:
            async for step in steps:
                yield self._made(step) if isinstance(step, Image) else step

    async def delete(self, name: str) -> None:
        """Remove one.

        Raises:
            as ``ImageStore.delete_image``.
        """
        check_name(name, "image")
        await self._parts.operations.run(self._store().delete_image(name))
        self._parts.events.publish("image.deleted", "", name)

    def _made(self, image: Image) -> Image:
        self._parts.events.publish("image.created", "", image.name, origin=image.origin.value)
        return image

    def _store(self) -> ImageStore:
        for runtime in self._parts.runtimes.values():
            if isinstance(runtime, HasImages):
                return runtime.image_store
        raise Unsupported("this node runs no virtual machines", reason="NO_RUNTIME", remedy="see `nbctl info` for the kinds it runs")
