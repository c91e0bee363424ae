"""What the tests of threats share: a daemon for each module, and attacks, which are functions that run inside a container."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import tempfile
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nestbed.client import Client
from nestbed.testing import inside
from nestbed.testing.machine import Machine
from nestbed.v1 import container_pb2 as api

T = TypeVar("T")

FS_MODES = {
    "host": api.FS_MODE_HOST,
    "host-ro": api.FS_MODE_HOST_RO,
    "overlay": api.FS_MODE_OVERLAY,
    "rootfs": api.FS_MODE_ROOTFS,
}
PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")


@dataclass(frozen=True)
class Result:
    """How a program ended, and what it wrote."""

    code: int
    out: bytes
    err: bytes


class Fort:
    """A machine whose daemon is attacked. Containers are made by its administrator unless ``socket`` says otherwise."""

    def __init__(self, machine: Machine, base: Path) -> None:
        self.machine = machine
        self.base = base
        self._count = 0

    @property
    def log(self) -> list[dict[str, Any]]:
        return self.machine.daemon.log

    def call(self, act: Callable[[Client], Awaitable[T]], *, socket: str = "admin.sock") -> T:
        async def calling() -> T:
            async with Client.connect(f"unix://{self.machine.run_dir}/{socket}") as client:
                return await act(client)

        return asyncio.run(calling())

    def spec(self, *args: str, fs: str = "overlay", mounts: tuple[str, ...] = (), **fields: Any) -> api.ContainerSpec:
        """``mounts`` are ``SOURCE:DESTINATION[:ro]``; of ``fields`` those of ProcessSpec go there."""
        self._count += 1
        process = api.ProcessSpec(args=args, fs_mode=FS_MODES[fs])
        if fs == "rootfs" and "rootfs" not in fields:
            fields["rootfs"] = str(self.rootfs())
            mounts += ("/usr:/usr:ro",)
        for text in mounts:
            source, destination, *rest = text.split(":")
            process.mounts.add(source=source, destination=destination, read_only=rest == ["ro"])
        own = {name: fields.pop(name) for name in list(fields) if name in process.DESCRIPTOR.fields_by_name}
        process.MergeFrom(api.ProcessSpec(**own))
        return api.ContainerSpec(kind=api.CONTAINER_KIND_PROCESS, name=fields.pop("name", f"c{self._count}"), process=process, **fields)

    def rootfs(self, name: str = "rootfs") -> Path:
        """A directory that is a root file system once /usr is mounted in it."""
        root = self.base / name
        if not root.exists():
            (root / "usr").mkdir(parents=True)
            (root / "etc").mkdir()
            (root / "tmp").mkdir()
            for path in Path("/").glob("*"):
                if path.is_symlink() and str(path.readlink()).startswith("usr/"):
                    (root / path.name).symlink_to(path.readlink())
        return root

    def run(self, *args: str, socket: str = "admin.sock", **fields: Any) -> Result:
        """Run a container to its end and remove it."""
        spec = self.spec(*args, **fields)

        async def running(client: Client) -> Result:
            await client.create_container(spec)
            try:
                async with client.attach(api.AttachStart(container=spec.name, run=True)) as session:
                    return await collected(session)
            finally:
                await client.delete_container(spec.name, force=True)

        return self.call(running, socket=socket)

    def start(self, *args: str, socket: str = "admin.sock", **fields: Any) -> str:
        """Start a container that goes on; its name."""
        spec = self.spec(*args, **fields)

        async def starting(client: Client) -> str:
            await client.create_container(spec)
            await client.start_container(spec.name)
            return str(spec.name)

        return self.call(starting, socket=socket)

    def exec(self, container: str, *args: str, **fields: Any) -> Result:
        """Run a further program."""

        async def running(client: Client) -> Result:
            async with client.exec(api.ExecStart(container=container, args=args, **fields)) as session:
                return await collected(session)

        return self.call(running)

    @staticmethod
    def program(attack: Callable[..., Any], *args: object) -> tuple[str, ...]:
        """The arguments of a program that calls ``attack`` and prints what it returns."""
        return (*PYTHON, script(attack, args))

    def inside(self, attack: Callable[..., Any], *args: object, **fields: Any) -> Any:
        """Call ``attack`` as the first program of a new container; what it returns."""
        return answer(self.run(*self.program(attack, *args), **fields))

    def inside_of(self, container: str, attack: Callable[..., Any], *args: object) -> Any:
        """Call ``attack`` in a container that runs; what it returns."""
        return answer(self.exec(container, *self.program(attack, *args)))

    @staticmethod
    def answer(result: Result) -> Any:
        """What the program of an attack printed."""
        return answer(result)

    def logged(self, container: str) -> Any:
        """What the attack that was a container's first program returned."""

        async def logging(client: Client) -> bytes:
            return b"".join([entry.data async for entry in client.logs(container)])

        return json.loads(self.call(logging))

    def script_file(self, interpreter: str) -> Path:
        """A script of this interpreter."""
        path = self.base / "evil-script"
        path.write_text(f"#!{interpreter}\n")
        path.chmod(0o755)
        return path

    def copy_out(self, container: str, path: str, *, socket: str = "admin.sock") -> bytes:
        """A tar archive of what is there."""

        async def copying(client: Client) -> bytes:
            return b"".join([chunk async for chunk in client.copy_from(container, path)])

        return self.call(copying, socket=socket)

    def copy_in(self, container: str, path: str, data: bytes, *, socket: str = "admin.sock") -> None:
        """Unpack a tar archive there."""

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        self.call(lambda client: client.copy_to(container, path, chunks()), socket=socket)

    def container(self, name: str) -> api.Container:
        return self.call(lambda client: client.get_container(name))

    def clear(self) -> None:
        """Remove every container."""

        async def clearing(client: Client) -> None:
            for container in await client.list_containers():
                await client.delete_container(container.id, force=True)

        self.call(clearing)


async def collected(session: Any) -> Result:
    out = {1: b"", 2: b""}
    async for stream, data in session.output():
        out[stream] += data
    return Result(session.exit.shell_code, out[1], out[2])


def script(attack: Callable[..., Any], args: tuple[object, ...]) -> str:
    """A program that calls the function and prints what it returns."""
    call = f"\nimport json\nprint(json.dumps({attack.__name__}(*json.loads({json.dumps(json.dumps(args))}))))\n"
    return inspect.getsource(inside) + textwrap.dedent(inspect.getsource(attack)) + call


def answer(result: Result) -> Any:
    assert result.code == 0, result.err.decode()
    return json.loads(result.out)


class WalledMachine(Machine):
    """A machine whose daemon has a mount namespace of its own, in which ``mounts`` were made: argument lists for mount(8)."""

    def __init__(self, name: str, base: Path, mounts: Sequence[str]) -> None:
        super().__init__(name, base)
        self._mounts = mounts

    def popen(self, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[bytes]:
        if Path(argv[0]).name == "nestbedd":
            script = "".join(f"mount {words} && " for words in self._mounts) + 'exec "$@"'
            argv = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *argv)
        return super().popen(argv, **options)


@pytest.fixture(scope="module")
def module_fort() -> Iterator[Fort]:
    """What is on this machine: below ``base`` a ``submount``, an ``alias`` of ``base`` by a bind mount, and a ``procfs``."""
    with tempfile.TemporaryDirectory(prefix="nestbed-fort-") as folder:
        base = Path(folder)
        base.chmod(0o755)
        for name in ("submount", "alias", "procfs"):
            (base / name).mkdir()
        for name in ("cert", "key", "ca"):
            (base / f"{name}.pem").write_text(f"the {name}\n")
        mounts = (f"-t tmpfs none {base}/submount", f"--bind {base} {base}/alias", f"-t proc none {base}/procfs")
        machine = WalledMachine("fort", base, mounts)
        try:
            tls = ("--tls-cert", f"{base}/cert.pem", "--tls-key", f"{base}/key.pem", "--tls-client-ca", f"{base}/ca.pem")
            machine.daemon.start("--log-level", "debug", *tls)
            yield Fort(machine, base)
        finally:
            machine.close()
        assert list(Path("/sys/fs/cgroup").glob(f"*/nestbed-{machine.node_id}")) == []


@pytest.fixture
def fort(module_fort: Fort, owned_cgroups: set[str]) -> Iterator[Fort]:
    """The module's daemon; every container is removed after the test."""
    yield module_fort
    module_fort.clear()
