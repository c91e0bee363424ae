"""The images of a node: ``STATE_DIR/vm/images``, in which a directory is an image.

::

    NAME/record.json              what it is (``nestbed.imagemodel.Image``)
    NAME/disk                     its disk, read-only
    NAME/vmlinuz, lib/            for BootWay.KERNEL: its kernel, and the modules it needs before it has a root
    .new-*                        being made: renamed when it is whole, removed by the next daemon
    .gone-*                       being removed

A machine has hard links to what it started from, so that an image can be deleted at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from nestbed.errors import (
    AlreadyExists,
    Busy,
    CorruptState,
    Deadline,
    InvalidArgument,
    NestbedError,
    NotFound,
    ResourceExhausted,
    shown,
    translated,
)
from nestbed.imagemodel import HOST, BootWay, DiskFormat, Image, ImageOrigin
from nestbed.plain import from_json, to_json
from nestbed.qemu import building, confined, disks, recipes
from nestbed.qemu.recipes import Recipe
from nestbed.runtime import Leftover

DISK = "disk"
RESERVE_BYTES = 64 << 20
"""What an import leaves free on the file system of the state directory: the node's records need it."""
FILE_BYTES_MAX = 256 << 30
IDLE_SECONDS = 60.0
"""How long an import waits for the next bytes."""

_RECORD = "record.json"
_VERSION = 1
_NEW, _GONE = ".new-", ".gone-"
_BATCH_BYTES = 4 << 20
_CHECK_SECONDS = 600.0
_CHECK_SOUND, _CHECK_LEAKS = 0, 3
"""Exit codes of ``qemu-img check``: nothing wrong; clusters that nothing uses."""
_HOST_IMAGE = Image(HOST, ImageOrigin.HOST, BootWay.KERNEL)


class ImageRoom:
    """``nestbed.runtime.ImageStore``. May be used from any number of tasks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names: set[str] = set()
        """Of images that are being made."""
        self._building = False

    def open(self) -> None:
        """Make it ready, and remove what a daemon was making or removing when it was killed."""
        with translated(f"cleaning the directory {self._directory}", path=self._directory):
            self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            for pattern in (f"{_NEW}*", f"{_GONE}*"):
                for path in self._directory.glob(pattern):
                    shutil.rmtree(path)

    # ------------------------------------------------------------ what there is

    def images(self) -> list[Image]:
        """See ``ImageStore``. Those whose record cannot be understood are left out; the audit names them."""
        found = [_HOST_IMAGE]
        for name in self._entries():
            with contextlib.suppress(NestbedError):
                found.append(self.image(name))
        return sorted(found, key=lambda image: image.name)

    def image(self, name: str) -> Image:
        """See ``ImageStore``."""
        if name == HOST:
            return _HOST_IMAGE
        path = self._directory / name / _RECORD
        try:
            data = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(
                f"there is no image {shown(name)}",
                reason="IMAGE_NOT_FOUND",
                remedy="see `nbctl image ls`; build or import it",
                image=shown(name),
            ) from error
        except (OSError, ValueError) as error:
            raise _corrupt(path, error) from error
        if not isinstance(data, dict) or data.get("version") != _VERSION:
            raise _corrupt(path, f"it is not of version {_VERSION}")
        image = from_json(Image, data)
        if image.name != name:
            raise _corrupt(path, "it is of another image")
        return image

    def path(self, name: str) -> Path:
        """The directory of an image that is there."""
        return self._directory / name

    def audit(self) -> list[Leftover]:
        """What is there and no image, nor being made; records without what they tell of."""
        found = []
        for name in self._entries():
            try:
                image = self.image(name)
            except NestbedError as error:
                found.append(Leftover("extra", "file", str(self.path(name)), error.message))
                continue
            wanted = (DISK, "vmlinuz") if image.boot is BootWay.KERNEL else (DISK,)
            missing = [self.path(name) / part for part in wanted if not (self.path(name) / part).is_file()]
            found += [Leftover("missing", "file", str(path), f"of image {name}") for path in missing]
        if not self._names:
            found += [Leftover("extra", "file", str(path), "half made") for path in self._directory.glob(f"{_NEW}*")]
        return found

    def _entries(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._directory) if not name.startswith((_NEW, _GONE)))
        except FileNotFoundError:
            return []

    # ------------------------------------------------------------ making

    @contextlib.contextmanager
    def _making(self, name: str) -> Iterator[Path]:
        """A directory to make an image in; what is in it at the end, unless it was renamed, is removed.

        Raises:
            AlreadyExists: the name is taken.
        """
        if name == HOST or name in self._names or (self._directory / name).exists():
            raise AlreadyExists(
                f"there is an image {name} already",
                reason="IMAGE_EXISTS",
                remedy=f"choose another name, or remove that one: nbctl image rm {name}",
                image=name,
            )
        self._names.add(name)
        try:
            with translated(f"making an image in {self._directory}", path=self._directory):
                new = Path(tempfile.mkdtemp(prefix=_NEW, dir=self._directory))
                new.chmod(0o755)
            try:
                yield new
            finally:
                if new.exists():
                    shutil.rmtree(new)
        finally:
            self._names.discard(name)

    async def _finish(self, new: Path, image: Image) -> Image:
        """Make the image in ``new`` appear."""
        disk = new / DISK
        status = disk.stat()
        image = dataclasses.replace(image, stored_bytes=status.st_blocks * 512, created_at=time.time())

        def publish() -> None:
            os.chown(disk, 0, 0)
            disk.chmod(0o444)
            (new / _RECORD).write_text(json.dumps({"version": _VERSION, **to_json(image)}))
            for path in (disk, new / _RECORD, new):
                _sync(path)
            new.rename(self._directory / image.name)
            _sync(self._directory)

        with translated(f"storing the image {image.name}", image=image.name):
            await asyncio.to_thread(publish)
        return image

    async def import_image(self, name: str, disk_format: DiskFormat, chunks: AsyncIterator[bytes]) -> Image:
        """See ``ImageStore``."""
        with self._making(name) as new:
            fd = os.open(new / DISK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                digest = hashlib.sha256()
                async for batch in _batches(chunks):
                    await asyncio.to_thread(_take, fd, batch, digest)
                file_bytes = os.fstat(fd).st_size
                disk = disks.check(disk_format, os.pread(fd, disks.HEAD_BYTES, 0), file_bytes)
                if disk_format is DiskFormat.QCOW2:
                    await _check_whole(fd)
            finally:
                os.close(fd)
            image = Image(
                name,
                ImageOrigin.IMPORTED,
                BootWay.FIRMWARE,
                format=disk_format,
                disk_bytes=disk.disk_bytes,
                sha256=digest.hexdigest(),
            )
            return await self._finish(new, image)

    async def build_image(self, recipe: str, name: str, *, fresh: bool) -> AsyncGenerator[str | Image, None]:
        """See ``ImageStore``."""
        found = recipes.find(recipe)
        with self._making(name) as new, self._only_build():
            prebuilt = None if fresh else recipes.prebuilt(found)
            if prebuilt is not None:
                yield f"copying what set-up left in {prebuilt}"
                await asyncio.to_thread(building.copy, prebuilt, new)
            else:
                async with aclosing(building.build(found, new)) as steps:
                    async for step in steps:
                        yield step
            yield await self._finish(new, built(found, name))

    @contextlib.contextmanager
    def _only_build(self) -> Iterator[None]:
        if self._building:
            raise Busy("another image is being built", reason="BUILD_RUNNING", remedy="try again when that is done")
        self._building = True
        try:
            yield
        finally:
            self._building = False

    async def delete_image(self, name: str) -> None:
        """See ``ImageStore``."""
        if name == HOST:
            raise InvalidArgument("the node's own root cannot be removed", reason="HOST_IMAGE", remedy="name another image")
        if not (self._directory / name / _RECORD).exists():
            self.image(name)
        gone = Path(tempfile.mktemp(prefix=_GONE, dir=self._directory))  # noqa: S306 - the directory is ours alone
        with translated(f"removing the image {name}", image=name):
            (self._directory / name).rename(gone)
            await asyncio.to_thread(shutil.rmtree, gone)


def built(recipe: Recipe, name: str) -> Image:
    """The image that a recipe makes."""
    return Image(
        name,
        ImageOrigin.BUILT,
        BootWay.KERNEL,
        format=DiskFormat.RAW,
        disk_bytes=recipe.disk_mib << 20,
        recipe=f"{recipe.name}-{recipe.digest}",
    )


async def _batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in larger pieces.

    Raises:
        Deadline: nothing came for a while.
    """
    held = bytearray()
    while True:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise Deadline(
                f"nothing of the image came for {IDLE_SECONDS:.0f} s",
                reason="IMPORT_STALLED",
                remedy="import it again",
                seconds=IDLE_SECONDS,
            ) from error
        if chunk is not None:
            held += chunk
        if len(held) >= _BATCH_BYTES or (chunk is None and held):
            yield bytes(held)
            held.clear()
        if chunk is None:
            return


def _take(fd: int, batch: bytes, digest: Any) -> None:
    """Append to the file; long runs of zeros become holes."""
    with translated("storing the image"):
        free = os.fstatvfs(fd)
        at = os.fstat(fd).st_size
        if free.f_bavail * free.f_frsize < RESERVE_BYTES + len(batch):
            raise ResourceExhausted(
                "the file system of the state directory is full",
                reason="NO_SPACE",
                remedy="free space there: remove images, containers, or what is none of nestbed's",
                free_bytes=free.f_bavail * free.f_frsize,
            )
        if at + len(batch) > FILE_BYTES_MAX:
            raise ResourceExhausted(
                f"the image has more than {FILE_BYTES_MAX} bytes",
                reason="IMAGE_TOO_LARGE",
                remedy="import a smaller one",
                limit=FILE_BYTES_MAX,
            )
        if batch.count(0) == len(batch):
            os.ftruncate(fd, at + len(batch))
        else:
            view = memoryview(batch)
            done = 0
            while done < len(batch):
                done += os.pwrite(fd, view[done:], at + done)
        digest.update(batch)


async def _check_whole(fd: int) -> None:
    """Have all of a qcow2 file looked through, by a program without any right: its header has been found to name nothing else.

    Raises:
        InvalidArgument: it is damaged or cut short (reason IMAGE_CORRUPT).
    """
    os.fchown(fd, confined.NOBODY, confined.NOBODY)  # /proc/self/fd is opened anew, with the rights of who opens
    words = ("qemu-img", "check", "-q", "-f", "qcow2", "/proc/self/fd/0")
    code, text = await confined.said(words, seconds=_CHECK_SECONDS, stdin=fd)
    if code == confined.NOT_FOUND:
        raise confined.missing("qemu-img", "")
    if code not in (_CHECK_SOUND, _CHECK_LEAKS):
        why = shown(text.partition("\n")[0].removeprefix("qemu-img: ").removeprefix("ERROR").lstrip(": ") or f"code {code}")
        raise InvalidArgument(
            f"the image is damaged or cut short: {why}", reason="IMAGE_CORRUPT", remedy="fetch it again, and compare checksums", cause=why
        )


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _corrupt(path: Path, why: object) -> CorruptState:
    return CorruptState(f"the record {path} cannot be understood: {why}", reason="CORRUPT_RECORD", remedy="remove the image", path=path)
