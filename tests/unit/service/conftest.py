"""A node that serves its API, on a fake runtime and a fake LAN plane."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from nestbed.client import Client
from nestbed.model import Kind
from nestbed.nesting.branches import Branches
from nestbed.nesting.forward import Forward
from nestbed.node.node import Node
from nestbed.node.rundir import RunDirectory
from nestbed.service.admission import Admission
from nestbed.service.authorize import Caller, Role
from nestbed.service.server import ADMIN_SOCKET, OPERATOR_SOCKET, Server, experiments_of, serving
from nestbed.testing.fake import FakeKernel, FakeRuntime
from nestbed.testing.fake_plane import FakePlane
from nestbed.v1 import container_pb2 as api


@dataclass
class Site:
    """A node that can serve; ``folder`` is its run directory."""

    node: Node
    kernel: FakeKernel
    plane: FakePlane
    folder: Path

    @contextlib.asynccontextmanager
    async def bare(self, *, role: Role = Role.ADMIN, admission: Admission | None = None) -> AsyncIterator[aio.Channel]:
        """A server without a gate, whose every caller has ``role``, and a channel to it."""
        experiments = experiments_of(self.node, self.folder)
        forward = Forward(Branches(self.node))
        server = Server(self.node, forward, lambda _: Caller(role, "somebody"), experiments, has_reflection=True, admission=admission)
        target = f"unix:{self.folder / 'bare.sock'}"
        server.grpc.add_insecure_port(target)
        await server.grpc.start()
        try:
            async with aio.insecure_channel(target) as channel:
                yield channel
        finally:
            await server.stop(0)


@contextlib.asynccontextmanager
async def open_site(folder: Path, *kinds: Kind) -> AsyncIterator[Site]:
    """A site of its own, for containers of these kinds."""
    kernel = FakeKernel()
    plane = FakePlane(kernel)
    with RunDirectory.claim(folder / "run", folder / "state") as claim:
        node = Node(
            name="here",
            run_dir=claim.run_dir,
            state_dir=claim.state_dir,
            runtimes={kind: FakeRuntime(kernel, kind) for kind in kinds},
            plane=plane,
            node_id=claim.node_id,
        )
        await node.open()
        try:
            yield Site(node, kernel, plane, claim.run_dir)
        finally:
            await node.aclose()
            await kernel.aclose()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path, Kind.PROCESS) as site:
        yield site


@pytest.fixture
def new_site() -> Callable[..., contextlib.AbstractAsyncContextManager[Site]]:
    """For tests with several nodes."""
    return open_site


@pytest.fixture
async def served(site: Site) -> AsyncIterator[Site]:
    async with serving(site.node, site.folder):
        yield site


@pytest.fixture
async def admin(served: Site) -> AsyncIterator[Client]:
    async with Client.connect(f"unix://{served.folder / ADMIN_SOCKET}") as client:
        yield client


@pytest.fixture
async def operator(served: Site) -> AsyncIterator[Client]:
    async with Client.connect(f"unix://{served.folder / OPERATOR_SOCKET}") as client:
        yield client


@pytest.fixture
def program() -> Callable[..., api.ContainerSpec]:
    """A spec that runs the arguments; keywords are fields of it, or of its process."""

    def make(*args: str, **fields: Any) -> api.ContainerSpec:
        process = {name: fields.pop(name) for name in ("stdin", "fs_mode") if name in fields}
        return api.ContainerSpec(kind=api.CONTAINER_KIND_PROCESS, process=api.ProcessSpec(args=args, **process), **fields)

    return make


@pytest.fixture
def running(program: Callable[..., api.ContainerSpec]) -> Callable[..., Awaitable[str]]:
    """Makes and starts a container; gives its id."""

    async def run(client: Client, *args: str, **fields: Any) -> str:
        made = await client.create_container(program(*args, **fields))
        await client.start_container(made.id)
        return made.id

    return run
