"""What the tests of threats share: a daemon for each module, and attacks, which are functions that run inside a container."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
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
from nestbed.testing.segment import Segment, checked
from nestbed.testing.station import Member, Station
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import lan_pb2, node_pb2

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


# ---- LANs of several machines


class Lab:
    """A LAN of the same group on each of ``count`` machines of a segment, with a container on it, and, on the machine after these, a stock
    member.
    """

    _ordinals = itertools.count(1)

    def __init__(self, segment: Segment, count: int, *options: str, unicast: bool = False) -> None:
        number = next(self._ordinals)
        self.segment = segment
        self.machines = segment.machines[:count]
        self.lan, self.group = f"lan{number}", f"239.1.2.{number}:5000"
        self.names = [f"c{number}-{at}" for at in range(1, count + 1)]
        for at, name in enumerate(self.names):
            peers = [word for other in range(count) if other != at for word in ("--peer", segment.address(other))] if unicast else []
            self.nbctl(at, "lan", "create", self.lan, "--group", self.group, *peers, *options)
            address = f"{self.lan},ip=10.5.0.{at + 1}/24,ip=fd00:5::{at + 1}/64"
            self.nbctl(at, "run", "process", "-d", "--name", name, "--lan", address, "--", "sleep", "1000")
        pids = [json.loads(self.nbctl(at, "-o", "json", "inspect", name))["pid"] for at, name in enumerate(self.names)]
        self.namespaces = [f"/proc/{pid}/ns/net" for pid in pids]
        self.stations = [Station(namespace) for namespace in self.namespaces]
        self.member = Member(segment.machines[count].netns_fd, self.group, segment.address(count)) if segment.machines[count:] else None

    def let_go(self) -> None:
        """Close sockets."""
        for one in (*self.stations, *([self.member] if self.member else [])):
            one.close()

    def close(self) -> None:
        """Close sockets and remove LAN and containers."""
        self.let_go()
        for at, name in enumerate(self.names):
            self.nbctl(at, "rm", "-f", name)
            self.nbctl(at, "lan", "rm", self.lan)

    def nbctl(self, at: int, *args: str) -> str:
        return checked(self.machines[at].nbctl(*args))

    def pings(self, at: int, target: str, count: int = 1) -> bool:
        """Whether so many echo requests of a machine's container are all answered."""
        words = ("ping", "-c", str(count), "-i", "0.1", "-W", "1", target)
        return self.machines[at].nbctl("exec", self.names[at], "--", *words).returncode == 0

    def path(self, at: int) -> dict[str, str]:
        """How the LAN uses the first underlay of a machine now."""
        found: dict[str, str] = json.loads(self.nbctl(at, "-o", "json", "lan", "inspect", self.lan))["paths"][0]
        return found

    def stats(self, at: int) -> lan_pb2.LanStats:
        """The LAN's counters on a machine now."""

        async def reading() -> lan_pb2.LanStats:
            async with Client.connect(self.machines[at].address) as client:
                entries = [entry async for response in client.lan_stats([self.lan]) for entry in response.stats]
                return entries[0]

        return asyncio.run(reading())

    def drops(self, at: int) -> dict[str, int]:
        """Drops of what came to a machine from the wire, by reason."""
        return {one.reason: one.frames for one in self.stats(at).received.drops}

    def await_event(self, at: int, kind: str) -> node_pb2.Event:
        """The first event of this type, past ones included, that happened to the LAN, or to all, on a machine."""

        async def waiting() -> node_pb2.Event:
            async with (
                asyncio.timeout(10),
                Client.connect(self.machines[at].address) as client,
                contextlib.aclosing(client.events(types=[kind], history=True)) as events,
            ):
                async for response in events:
                    if response.event.name in (self.lan, ""):
                        return response.event
            raise AssertionError("the events ended")

        return asyncio.run(waiting())

    def assert_clean(self) -> None:
        """Nothing is missing and nothing is too much."""
        for machine in self.machines:
            assert machine.nbctl("audit").returncode == 0, machine.nbctl("audit").stdout


@contextlib.contextmanager
def running_segment(
    count: int,
    daemons: int,
    *,
    mtu: int = 1600,
    relay: str = "auto",
    underlays: Sequence[str] = ("u0",),
    prepare: Callable[[Segment], None] = lambda _: None,
) -> Iterator[Segment]:
    with tempfile.TemporaryDirectory(prefix="nestbed-segment-") as folder:
        segment = Segment(Path(folder), count, mtu=mtu)
        try:
            prepare(segment)
            for at, machine in enumerate(segment.machines[:daemons]):
                machine.daemon.start("--underlay", underlays[at % len(underlays)], "--relay", relay)
            yield segment
        finally:
            segment.close()


@pytest.fixture(scope="module", params=["kernel", "userspace"])
def segment(request: pytest.FixtureRequest) -> Iterator[Segment]:
    """Three machines, the first two with daemons; by the kernel's fast path (and the relay) and by the relay alone."""
    with running_segment(3, 2, relay={"kernel": "auto"}.get(request.param, request.param)) as segment:
        yield segment


@pytest.fixture
def lab(segment: Segment, owned_cgroups: set[str]) -> Iterator[Lab]:
    """Two machines of the module's and a stock member; a LAN for this test alone."""
    lab = Lab(segment, 2)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def module_lab(segment: Segment) -> Iterator[Lab]:
    lab = Lab(segment, 2)
    yield lab
    lab.close()


@pytest.fixture
def shared_lab(module_lab: Lab) -> Lab:
    """As ``lab``, of the whole module."""
    for station in module_lab.stations:
        station.drain()
    return module_lab


@pytest.fixture
def own_labs(owned_cgroups: set[str]) -> Iterator[Callable[..., Lab]]:
    """Makes labs on machines of their own: ``own_labs(machines, daemons, *options of the LANs, **fields of running_segment)``."""
    with contextlib.ExitStack() as stack:

        def make(count: int, daemons: int, *options: str, unicast: bool = False, **fields: Any) -> Lab:
            segment = stack.enter_context(running_segment(count, daemons, **fields))
            stack.callback(lambda: owned_cgroups.update(f"nestbed-{machine.node_id}" for machine in segment.machines))
            lab = Lab(segment, daemons, *options, unicast=unicast)
            stack.callback(lab.let_go)
            return lab

        yield make
