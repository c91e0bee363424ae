"""A runtime on trial: what a contract suite needs around it."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import secrets
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from nestbed import runlog
from nestbed.lanmodel import Nic
from nestbed.model import Bundle, FsMode, Kind, ProcessSpec, Spec, Status
from nestbed.runtime import Console, Container, Runtime

SLEEP = ("sleep", "1000")
RECORD = "record.json"


class Bench:
    """A runtime on trial, with bundles in ``containers``. An async context manager.

    ``make_runtime`` gives a runtime that has not been opened and finds what an earlier one of the same bench made; ``make_nic(container
    id, number)`` a NIC on a LAN that exists.
    """

    memory_bytes = 64 << 20
    """A limit that a container of this runtime can have."""

    def __init__(self, make_runtime: Callable[[], Runtime], containers: Path, make_nic: Callable[[str, int], Nic]) -> None:
        self.statuses: dict[str, list[Status]] = {}
        self.nic = make_nic
        self._make_runtime = make_runtime
        self._containers = containers
        self._runtime: Runtime | None = None
        self._made: dict[str, Container] = {}
        self._news = asyncio.Event()

    @property
    def runtime(self) -> Runtime:
        """The runtime that is open."""
        assert self._runtime is not None
        return self._runtime

    async def __aenter__(self) -> Bench:
        await self.restart()
        return self

    async def __aexit__(self, *_: object) -> None:
        for container in tuple(self._made.values()):
            await container.destroy()
        await self.runtime.aclose()

    async def restart(self) -> None:
        """What a new daemon does after the old one ended."""
        if self._runtime is not None:
            await self._runtime.aclose()
        self._runtime = self._make_runtime()
        await self._runtime.open(self._on_status)

    def bundle(self) -> Bundle:
        """A new bundle with the node's record in it."""
        path = self._containers / secrets.token_hex(6)
        path.mkdir(mode=0o700)
        (path / RECORD).write_text("{}")
        return Bundle(path)

    def spec(self, bundle: Bundle, *args: str, **changes: Any) -> Spec:
        """A spec for the bundle; ``changes`` are fields of Spec or of ProcessSpec."""
        process = {field.name: changes.pop(field.name) for field in dataclasses.fields(ProcessSpec) if field.name in changes}
        spec = ProcessSpec(**{"args": args or SLEEP, "fs": FsMode.OVERLAY, **process})
        return Spec(**{"id": bundle.id, "name": f"c-{bundle.id}", "kind": Kind.PROCESS, "hostname": "host", "process": spec, **changes})

    async def create(self, *args: str, **changes: Any) -> Container:
        """A container that runs ``args`` (SLEEP)."""
        bundle = self.bundle()
        container = await self.runtime.create(self.spec(bundle, *args, **changes), bundle)
        self._made[container.id] = container
        return container

    async def start(self, *args: str, **changes: Any) -> Container:
        """The same, running."""
        container = await self.create(*args, **changes)
        await container.start()
        return container

    async def recover(self, container: Container, *args: str, **changes: Any) -> Container:
        """The container as a new runtime sees it, of a spec as ``create`` was given."""
        bundle = self.bundle_of(container)
        self._made[bundle.id] = again = await self.runtime.recover(self.spec(bundle, *args, **changes), bundle)
        return again

    def bundle_of(self, container: Container) -> Bundle:
        """Where the container was made."""
        return Bundle(self._containers / container.id)

    async def until(self, container: Container, is_so: Callable[[Status], bool]) -> Status:
        """Wait until the listener was told of a status, or the container has one, of which ``is_so``; that status."""
        while True:
            self._news.clear()
            seen: list[Status] = [*self.statuses.get(container.id, ()), container.status]
            for status in seen:
                if is_so(status):
                    return status
            await self._news.wait()

    async def assert_nothing_left(self) -> None:
        """Every container is gone, and the kernel has nothing of the runtime's."""
        assert list(await self.runtime.audit([])) == []

    def _on_status(self, container_id: str, status: Status) -> None:
        self.statuses.setdefault(container_id, []).append(status)
        self._news.set()


async def said(console: Console) -> tuple[bytes, bytes]:
    """All that comes out of a console, by stream."""
    streams = {1: bytearray(), 2: bytearray()}
    async for output in console.output():
        streams[output.stream] += output.data
    return bytes(streams[1]), bytes(streams[2])


async def heard(console: Console, text: bytes) -> None:
    """Read until ``text`` came out."""
    seen = b""
    async for output in console.output():
        seen += output.data
        if text in seen:
            return
    raise AssertionError(f"{text!r} never came, only {seen!r}")


def logged(bench: Bench, container: Container) -> bytes:
    """What stands in the container's log, all of it well formed."""
    lines = (bench.bundle_of(container).path / "log").read_bytes().splitlines(keepends=True)
    entries = [entry for line in lines if (entry := runlog.decode(line)) is not None]
    assert len(entries) == len(lines)
    return b"".join(entry.data for entry in entries)


def tar_of(name: str, content: bytes) -> bytes:
    """A tar stream with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    """``data`` in pieces."""
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]
