"""Images through the API: the client, gRPC, the node, and the real room in which images are kept."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from nestbed.client import Client
from nestbed.errors import (
    AlreadyExists,
    InvalidArgument,
    NestbedError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unsupported,
)
from nestbed.imagemodel import DiskFormat
from nestbed.model import Kind
from nestbed.node.node import Node
from nestbed.node.rundir import RunDirectory
from nestbed.qemu import images
from nestbed.qemu.images import ImageRoom
from nestbed.runtime import Leftover
from nestbed.service.authorize import Caller, Role, authorize
from nestbed.service.server import ADMIN_SOCKET, OPERATOR_SOCKET, serving
from nestbed.testing.fake import FakeKernel, FakeRuntime
from nestbed.testing.fake_plane import FakePlane
from nestbed.v1 import image_pb2 as api

RAW, QCOW2 = api.DISK_FORMAT_RAW, api.DISK_FORMAT_QCOW2
DISK = b"\0" * 512 + b"disk" * 128 + b"\0" * (5 << 20)
"""A raw disk of several pieces, with a long run of zeros."""


class MachineRuntime(FakeRuntime):
    """A runtime of nothing real but its images."""

    def __init__(self, kernel: FakeKernel, directory: Path) -> None:
        super().__init__(kernel, Kind.QEMU)
        self.image_store = ImageRoom(directory)

    async def audit(self, containers: Sequence[object]) -> Sequence[Leftover]:
        return [*await super().audit(containers), *self.image_store.audit()]


class House:
    """A node with images, started and ended as a test wants."""

    def __init__(self, base: Path) -> None:
        self.run_dir, self.state_dir = base / "run", base / "state"
        self.directory = self.state_dir / "vm/images"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Client]:
        kernel = FakeKernel()
        with RunDirectory.claim(self.run_dir, self.state_dir) as claim:
            runtime = MachineRuntime(kernel, self.directory)
            runtime.image_store.open()
            node = Node(
                name="here",
                run_dir=claim.run_dir,
                state_dir=claim.state_dir,
                runtimes={Kind.QEMU: runtime},
                plane=FakePlane(kernel),
                node_id=claim.node_id,
            )
            await node.open()
            try:
                async with serving(node, claim.run_dir), Client.connect(f"unix://{claim.run_dir / ADMIN_SOCKET}") as client:
                    yield client
            finally:
                await node.aclose()
                await kernel.aclose()

    def left(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
async def client(house: House) -> AsyncIterator[Client]:
    async with house.serving() as client:
        yield client


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


async def test_an_image_lives_its_life(client: Client, house: House) -> None:
    assert [image.name for image in await client.list_images()] == ["host"]
    made = await client.import_image("stock", RAW, pieces(DISK))
    assert (made.origin, made.format, made.boot) == (api.IMAGE_ORIGIN_IMPORTED, RAW, api.BOOT_WAY_FIRMWARE)
    assert (made.disk_bytes, made.sha256) == (len(DISK), hashlib.sha256(DISK).hexdigest())
    assert 0 < made.stored_bytes < len(DISK)
    assert (house.directory / "stock/disk").read_bytes() == DISK
    assert await client.get_image("stock") == made
    assert [image.name for image in await client.list_images()] == ["host", "stock"]
    assert list((await client.audit()).leftovers) == []
    await client.delete_image("stock")
    assert house.left() == []
    with pytest.raises(NotFound):
        await client.get_image("stock")


async def test_what_happens_is_told(client: Client) -> None:
    await client.import_image("stock", RAW, pieces(DISK))
    await client.delete_image("stock")
    seen = []
    async with contextlib.aclosing(client.events(types=["image.*"], history=True)) as events:
        async for response in events:
            seen.append((response.event.type, response.event.name))
            if len(seen) == 2:
                break
    assert seen == [("image.created", "stock"), ("image.deleted", "stock")]


@pytest.mark.parametrize(
    ("name", "disk_format", "data", "kind", "reason"),
    [
        ("a", RAW, DISK[:-1], InvalidArgument, "BAD_DISK_SIZE"),
        ("a", RAW, b"", InvalidArgument, "BAD_DISK_SIZE"),
        ("a", RAW, b"KDMV" + bytes(508), InvalidArgument, "NOT_RAW"),
        ("a", QCOW2, DISK, InvalidArgument, "NOT_QCOW2"),
        ("a", api.DISK_FORMAT_UNSPECIFIED, DISK, InvalidArgument, "BAD_ENUM"),
        ("../a", RAW, DISK, InvalidArgument, "BAD_NAME"),
        ("", RAW, DISK, InvalidArgument, "BAD_NAME"),
        ("host", RAW, DISK, AlreadyExists, "IMAGE_EXISTS"),
    ],
)
async def test_what_cannot_be_an_image_leaves_nothing(
    client: Client, house: House, name: str, disk_format: api.DiskFormat.ValueType, data: bytes, kind: type[NestbedError], reason: str
) -> None:
    with pytest.raises(kind) as caught:
        await client.import_image(name, disk_format, pieces(data))
    assert caught.value.reason == reason
    assert house.left() == []


async def test_a_name_is_given_once(client: Client, house: House) -> None:
    await client.import_image("stock", RAW, pieces(DISK))
    with pytest.raises(AlreadyExists):
        await client.import_image("stock", RAW, pieces(DISK))
    assert house.left() == ["stock"]


async def test_an_import_that_is_broken_off_leaves_nothing(client: Client, house: House) -> None:
    going = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield DISK
        going.set()
        await asyncio.Event().wait()

    importing = asyncio.ensure_future(client.import_image("stock", RAW, endless()))
    await going.wait()
    importing.cancel()
    await asyncio.gather(importing, return_exceptions=True)
    while True:
        with contextlib.suppress(AlreadyExists):  # the node has not noticed yet
            await client.import_image("stock", RAW, pieces(DISK))
            break
    assert house.left() == ["stock"]


async def test_an_import_that_stalls_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "IDLE_SECONDS", 0.02)
    room = ImageRoom(tmp_path)

    async def stalling() -> AsyncIterator[bytes]:
        yield DISK
        await asyncio.Event().wait()

    with pytest.raises(NestbedError) as caught:
        await room.import_image("stock", DiskFormat.RAW, stalling())
    assert caught.value.reason == "IMPORT_STALLED"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("bound", "value", "reason"), [("FILE_BYTES_MAX", 1 << 20, "IMAGE_TOO_LARGE"), ("RESERVE_BYTES", 1 << 60, "NO_SPACE")]
)
async def test_an_import_has_bounds(
    client: Client, house: House, monkeypatch: pytest.MonkeyPatch, bound: str, value: int, reason: str
) -> None:
    monkeypatch.setattr(images, bound, value)
    with pytest.raises(ResourceExhausted) as caught:
        await client.import_image("stock", RAW, pieces(DISK))
    assert caught.value.reason == reason
    assert house.left() == []


async def test_images_outlive_the_daemon_and_what_was_half_made_does_not(house: House) -> None:
    async with house.serving() as client:
        made = await client.import_image("stock", RAW, pieces(DISK))
    for name in (".new-abc", ".gone-abc"):
        (house.directory / name / "tree/etc").mkdir(parents=True)
        (house.directory / name / "disk").write_bytes(DISK)
    async with house.serving() as client:
        assert house.left() == ["stock"]
        assert await client.get_image("stock") == made


async def test_the_audit_names_what_is_no_image(client: Client, house: House) -> None:
    await client.import_image("stock", RAW, pieces(DISK))
    await client.import_image("other", RAW, pieces(DISK))
    (house.directory / "stray").mkdir()
    (house.directory / "stock/disk").unlink()
    (house.directory / "other/record.json").write_text(json.dumps({"version": 99}))
    found = {(one.problem, Path(one.name).relative_to(house.directory).as_posix()) for one in ImageRoom(house.directory).audit()}
    assert found == {("extra", "stray"), ("missing", "stock/disk"), ("extra", "other")}
    with pytest.raises(NestbedError) as caught:
        await client.get_image("other")
    assert caught.value.reason == "CORRUPT_RECORD"
    await client.delete_image("other")
    assert [image.name for image in await client.list_images()] == ["host", "stock"]


@pytest.mark.parametrize(("recipe", "reason"), [("nosuch", "RECIPE_NOT_FOUND"), ("../x", "BAD_NAME"), ("", "BAD_NAME")])
async def test_only_known_recipes_are_built(client: Client, house: House, recipe: str, reason: str) -> None:
    with pytest.raises(NestbedError) as caught:
        async for _ in client.build_image(recipe):
            pass
    assert caught.value.reason == reason
    assert house.left() == []


async def test_the_nodes_own_root_cannot_be_removed(client: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await client.delete_image("host")
    assert caught.value.reason == "HOST_IMAGE"


async def test_a_node_without_machines_has_no_images(admin: Client) -> None:
    assert await admin.list_images() == []
    with pytest.raises(Unsupported):
        await admin.get_image("host")


async def test_operators_bring_images_and_take_them_away(client: Client, house: House) -> None:
    async with Client.connect(f"unix://{house.run_dir / OPERATOR_SOCKET}") as operator:
        await operator.import_image("stock", RAW, pieces(DISK))
        await operator.delete_image("stock")


def test_viewers_only_look() -> None:
    viewer = Caller(Role.VIEWER, "somebody")
    for method in ("ListImages", "GetImage"):
        authorize(f"/nestbed.v1.ImageService/{method}", viewer)
    for method in ("ImportImage", "BuildImage", "DeleteImage"):
        with pytest.raises(PermissionDenied):
            authorize(f"/nestbed.v1.ImageService/{method}", viewer)
