"""A node over a fake kernel, which can die and come back."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nestbed.model import ContainerRequest, FsMode, Kind, ProcessSpec
from nestbed.node.node import Node
from nestbed.node.rundir import RunDirectory
from nestbed.testing.fake import FakeKernel, FakeRuntime
from nestbed.testing.fake_plane import FakePlane

SLEEP = ("sleep", "1000")


class NodeBench:
    """``node`` is the daemon's part of it, ``kernel`` what outlives a daemon."""

    def __init__(self, base: Path) -> None:
        self.kernel = FakeKernel()
        self.state_dir = base / "state"
        self.run_dir = base / "run"
        self.node: Node

    async def open(self) -> Node:
        self.plane = FakePlane(self.kernel)
        with RunDirectory.claim(self.run_dir, self.state_dir) as claim:
            self.node = Node(
                name="node1",
                run_dir=self.run_dir,
                state_dir=self.state_dir,
                runtimes={Kind.PROCESS: FakeRuntime(self.kernel)},
                plane=self.plane,
                node_id=claim.node_id,
            )
        await self.node.open()
        return self.node

    async def close(self) -> None:
        await self.node.aclose()
        await self.kernel.aclose()

    async def restart(self) -> Node:
        """The daemon ends and a new one begins."""
        await self.node.aclose()
        return await self.open()

    async def reboot(self) -> Node:
        """The machine does."""
        await self.close()
        self.kernel = FakeKernel()
        return await self.open()

    @staticmethod
    def request(*args: str, **changes: Any) -> ContainerRequest:
        """A request to run ``args`` (SLEEP); ``changes`` are fields of ContainerRequest or ProcessSpec."""
        process = {field.name: changes.pop(field.name) for field in dataclasses.fields(ProcessSpec) if field.name in changes}
        spec = ProcessSpec(**{"args": args or SLEEP, "fs": FsMode.OVERLAY, **process})
        return ContainerRequest(**{"kind": Kind.PROCESS, "process": spec, **changes})

    async def create(self, *args: str, **changes: Any) -> str:
        """Make a container; its id."""
        return (await self.node.create_container(self.request(*args, **changes), admin=True)).spec.id

    async def run(self, *args: str, **changes: Any) -> str:
        """Make a container and start it; its id."""
        container_id = await self.create(*args, **changes)
        await self.node.start(container_id)
        return container_id

    async def until(self, kind: str, object_id: str = "") -> dict[str, str]:
        """Wait for an event of this type, about this object, from the beginning on; its attributes."""
        async for event, _ in self.node.watch(types=(kind,), history=True):
            if object_id in ("", event.id):
                return dict(event.attributes)
        raise AssertionError(f"no {kind}")

    def bundles(self) -> list[str]:
        """The names of all bundles."""
        return sorted(path.name for path in (self.state_dir / "containers").iterdir())


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[NodeBench]:
    bench = NodeBench(tmp_path)
    await bench.open()
    yield bench
    await bench.close()


@pytest.fixture
def new_bench() -> type[NodeBench]:
    """For tests that run many of them."""
    return NodeBench


@pytest.fixture
def node(bench: NodeBench) -> Node:
    return bench.node
