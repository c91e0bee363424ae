"""A runtime in memory that obeys the contract, for tests of everything above it; ``nestbed.testing.fake_plane`` has LANs for it.

What would survive the daemon is in a :class:`FakeKernel`: a new :class:`FakeRuntime` on the same kernel finds it again, one on a new kernel
is the machine after a reboot. :meth:`FakeKernel.fail_next` makes the next call of a method fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Sequence

from nestbed import runlog
from nestbed.errors import AlreadyExists, CorruptState, InvalidArgument, NestbedError, NotFound
from nestbed.lanmodel import Lan, Nic, NicStats
from nestbed.model import Ability, Bundle, ExecSpec, ExitStatus, Kind, Resources, RestartMode, RestartPolicy, Spec, State, Stats, Status
from nestbed.refusals import already_running, never_started, not_paused, not_running
from nestbed.runtime import Leftover, Output, StatusListener
from nestbed.testing.files import FakeFiles
from nestbed.testing.programs import FakeProcess, check_program
from nestbed.testing.streams import FakeConsole, FakeExecution, FakeSink

_RECORD = "fake.json"
_RESTART_SECONDS = 0.005
_REST = (State.CREATED, State.STOPPED)


class FakeKernel:
    """What outlives a daemon: containers with their programs, links, bridges, the control network. Close it at the end of a test."""

    def __init__(self) -> None:
        self.containers: dict[str, FakeContainer] = {}
        self.links: dict[str, str] = {}
        self.bridges: dict[str, str] = {}
        self.control: Lan | None = None
        self._failures: dict[str, list[NestbedError]] = {}
        self.nested: Lan | None = None
        self._pids = itertools.count(1000)

    def fail_next(self, method: str, error: NestbedError, *, times: int = 1) -> None:
        """Make the next ``create``, ``start``, ``plug``, ``destroy``... of any container, or ``bridge``, fail, or so many of them."""
        self._failures[method] = [error] * times

    def check(self, method: str) -> None:
        """Fail if a test wants it."""
        if self._failures.get(method):
            raise self._failures[method].pop()

    def new_pid(self) -> int:
        """A process id that was never given out."""
        return next(self._pids)

    async def aclose(self) -> None:
        """End everything."""
        for container in tuple(self.containers.values()):
            await container.end()


class FakeRuntime:
    """``nestbed.runtime.Runtime`` in memory."""

    def __init__(self, kernel: FakeKernel | None = None, kind: Kind = Kind.PROCESS) -> None:
        self.kernel = kernel or FakeKernel()
        self._kind = kind
        self._listener: StatusListener | None = None

    @property
    def kind(self) -> Kind:
        return self._kind

    async def open(self, listener: StatusListener) -> None:
        self._listener = listener

    async def aclose(self) -> None:
        self._listener = None
        for container in self.kernel.containers.values():
            container.listener = None

    async def probe(self) -> Sequence[Ability]:
        return [Ability("fake", available=True, detail="nothing is real")]

    async def validate(self, spec: Spec) -> None:
        self.kernel.check("validate")
        for mount in spec.process.mounts:
            if not os.access(mount.source, os.F_OK):
                raise NotFound(f"there is no {mount.source}", reason="NOT_FOUND", remedy="check the path", path=mount.source)
        for name in (*spec.process.cap_add, *spec.process.cap_drop):
            if not name.isupper():
                raise InvalidArgument(
                    f"{name!r} is no capability", reason="UNKNOWN_CAPABILITY", remedy="see capabilities(7)", capability=name
                )

    async def create(self, spec: Spec, bundle: Bundle) -> FakeContainer:
        await self.validate(spec)
        self.kernel.check("create")
        container = FakeContainer(self.kernel, spec, bundle)
        container.record()
        await asyncio.sleep(0)
        try:
            for nic in spec.interfaces:
                await container.plug(nic)
        except BaseException:
            await container.destroy()
            raise
        self.kernel.containers[spec.id] = container
        container.listener = self._listener
        return container

    async def recover(self, spec: Spec, bundle: Bundle) -> FakeContainer:
        self.kernel.check("recover")
        try:
            has_run = bool(json.loads((bundle.path / _RECORD).read_bytes())["has_run"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptState(f"the bundle {bundle.id} cannot be read", reason="CORRUPT_BUNDLE", bundle=bundle.id) from error
        container = self.kernel.containers.get(bundle.id)
        if container is None:
            container = self.kernel.containers[bundle.id] = FakeContainer(self.kernel, spec, bundle, has_run=has_run)
        container.listener = self._listener
        container.nics.update({nic.name: nic for nic in spec.interfaces})
        self.kernel.links.update({nic.port: spec.id for nic in spec.interfaces})
        if has_run and container.status.state is State.STOPPED and container.is_rebooted and spec.restart.mode is RestartMode.ALWAYS:
            await container.start()
        return container

    async def discard(self, bundle: Bundle) -> None:
        self.kernel.check("discard")
        container = self.kernel.containers.get(bundle.id)
        if container is not None:
            await container.destroy()
        elif bundle.path.exists():
            _empty(bundle)

    async def audit(self, containers: Sequence[object]) -> Sequence[Leftover]:
        known = [container for container in containers if isinstance(container, FakeContainer)]
        wanted = {nic.port for container in known for nic in container.nics.values()}
        others = {one.id for one in self.kernel.containers.values() if one.kind is not self._kind}
        extra = [Leftover("extra", "link", name) for name, owner in self.kernel.links.items() if name not in wanted and owner not in others]
        missing = [Leftover("missing", "link", name) for name in wanted if name not in self.kernel.links]
        ids = {container.id for container in known}
        strays = (container.id for container in self.kernel.containers.values() if container.kind is self._kind)
        return [*extra, *missing, *(Leftover("extra", "process", name) for name in strays if name not in ids)]


class FakeContainer:
    """``nestbed.runtime.Container`` and all optional abilities, in memory."""

    def __init__(self, kernel: FakeKernel, spec: Spec, bundle: Bundle, *, has_run: bool = False) -> None:
        self.listener: StatusListener | None = None
        self.nics: dict[str, Nic] = {}
        self.hosts = ""
        self.node_address = ""
        self.resources = spec.resources
        self.files = FakeFiles()
        self.is_rebooted = has_run
        self._kernel = kernel
        self._spec = spec
        self._bundle = bundle
        self._restart = spec.restart
        unknown = ExitStatus(reason="unknown", message="the machine was restarted")
        self._status = Status(State.STOPPED, exit=unknown) if has_run else Status(State.CREATED)
        self._has_run = has_run
        self._process: FakeProcess | None = None
        self._executions: list[FakeExecution] = []
        self._sinks: list[FakeSink] = []
        self._supervisor: asyncio.Task[None] | None = None
        self._stop_asked = asyncio.Event()
        self._is_destroyed = False

    @property
    def kind(self) -> Kind:
        """Of the runtime that made it."""
        return self._spec.kind

    @property
    def id(self) -> str:
        return self._spec.id

    @property
    def status(self) -> Status:
        return self._status

    def record(self) -> None:
        """Write what ``recover`` needs into the bundle."""
        (self._bundle.path / _RECORD).write_text(json.dumps({"has_run": self._has_run}))

    async def start(self) -> None:
        if self._is_destroyed or self._status.state not in _REST:
            raise already_running(self.id)
        try:
            self._kernel.check("start")
            check_program(self._spec.process.args)
        except NestbedError as error:
            self._set(exit=ExitStatus(reason="start-failed", message=error.message, at=time.time()))
            raise
        self._stop_asked.clear()
        self._has_run = True
        self.record()
        process = self._spawn()
        self._set(state=State.RUNNING, pid=process.pid, started_at=time.time(), restarts=0, exit=None)
        self._supervisor = asyncio.ensure_future(self._supervise(process))

    async def stop(self, grace_seconds: float) -> None:
        if self._status.state in _REST:
            return
        self._stop_asked.set()
        process = self._process
        if process is not None:
            self._thaw()
            process.signal(signal.SIGTERM)
            await asyncio.wait((process.ended,), timeout=grace_seconds)
            process.signal(signal.SIGKILL)
        await self._settled()

    async def kill(self, number: int) -> None:
        if self._status.state not in (State.RUNNING, State.PAUSED) or self._process is None:
            raise not_running(self.id)
        self._process.signal(number)

    async def wait(self) -> ExitStatus:
        if not self._has_run:
            raise never_started(self.id)
        await self._settled()
        return self._status.exit or ExitStatus(reason="unknown")

    async def exec(self, spec: ExecSpec) -> FakeExecution:
        if self._status.state is not State.RUNNING:
            raise not_running(self.id)
        self._kernel.check("exec")
        check_program(spec.args)
        sink = FakeSink()

        async def write(stream: int, data: bytes) -> None:
            await sink.put(Output(1 if spec.tty else stream, data))

        process = FakeProcess(spec.args, self._kernel.new_pid(), write, spec.stdin, time.time)
        process.ended.add_done_callback(lambda _: sink.end())
        execution = FakeExecution(sink, process)
        self._executions.append(execution)
        return execution

    async def console(self) -> FakeConsole:
        sink = FakeSink()
        if self._is_destroyed:
            sink.end()
        self._sinks = [*(old for old in self._sinks if not old.is_closed), sink]
        return FakeConsole(sink, lambda: self._process)

    async def plug(self, nic: Nic) -> None:
        self._kernel.check("plug")
        if nic.name in self.nics or nic.port in self._kernel.links:
            raise AlreadyExists(f"there is a NIC {nic.name} already", reason="NIC_EXISTS", remedy="choose another name", nic=nic.name)
        self.nics[nic.name] = nic
        self._kernel.links[nic.port] = self.id

    async def unplug(self, name: str) -> None:
        self._kernel.check("unplug")
        nic = self.nics.pop(name, None)
        if nic is None:
            raise NotFound(f"there is no NIC {name}", reason="NIC_NOT_FOUND", remedy="see its NICs", nic=name)
        self._kernel.links.pop(nic.port, None)

    async def set_link(self, name: str, *, up: bool) -> None:
        self._kernel.check("set_link")
        if name not in self.nics:
            raise NotFound(f"there is no NIC {name}", reason="NIC_NOT_FOUND", remedy="see its NICs", nic=name)
        self.nics[name] = dataclasses.replace(self.nics[name], is_down=not up)

    async def stats(self) -> Stats:
        counters = tuple(NicStats(nic.name, nic.lan, 0, 0, 0, 0, 0, 0) for nic in self.nics.values())
        if self._status.state in _REST:
            return Stats(time.time())
        return Stats(time.time(), cpu_seconds=0.0, memory_bytes=4096, memory_limit_bytes=self.resources.memory_bytes, pids=1, nics=counters)

    async def destroy(self) -> None:
        self._kernel.check("destroy")
        await self.end()
        self._is_destroyed = True
        for nic in self.nics.values():
            self._kernel.links.pop(nic.port, None)
        self.nics.clear()
        self._kernel.containers.pop(self.id, None)
        if self._bundle.path.exists():
            _empty(self._bundle)
        for sink in self._sinks:
            sink.end()

    def objects(self) -> Sequence[str]:
        links = [f"link:{nic.port}" for nic in self.nics.values()]
        return [*links, f"process:{self._status.pid}"] if self._status.pid else links

    async def pause(self) -> None:
        if self._status.state is not State.RUNNING or self._process is None:
            raise not_running(self.id)
        self._process.gate.clear()
        self._set(state=State.PAUSED)

    async def resume(self) -> None:
        if self._status.state is not State.PAUSED:
            raise not_paused(self.id)
        self._thaw()

    async def update(self, resources: Resources, restart: RestartPolicy) -> None:
        self._kernel.check("update")
        self.resources, self._restart = resources, restart

    async def update_hosts(self, text: str) -> None:
        self._kernel.check("update_hosts")
        self.hosts = text

    async def archive(self, path: str) -> AsyncIterator[bytes]:
        return self.files.archive(path)

    async def extract(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        await self.files.extract(path, chunks)

    async def end(self) -> None:
        """Kill all its programs and wait until they are gone."""
        self._stop_asked.set()
        for execution in self._executions:
            await execution.aclose()
        if self._process is not None:
            await self._process.close()
        await self._settled()

    def _set(self, **changes: object) -> None:
        self._status = dataclasses.replace(self._status, **changes)  # type: ignore[arg-type]
        if self.listener is not None:
            self.listener(self.id, self._status)

    def _thaw(self) -> None:
        if self._process is not None and self._status.state is State.PAUSED:
            self._process.gate.set()
            self._set(state=State.RUNNING)

    def _spawn(self) -> FakeProcess:
        spec = self._spec.process
        self._process = FakeProcess(spec.args, self._kernel.new_pid(), self._write, spec.stdin or spec.tty, time.time)
        return self._process

    async def _write(self, stream: int, data: bytes) -> None:
        stream = 1 if self._spec.process.tty else stream
        with contextlib.suppress(OSError), (self._bundle.path / "log").open("ab") as log:
            log.write(runlog.encode(time.time(), stream, data))
        for sink in self._sinks:
            await sink.put(Output(stream, data))

    async def _supervise(self, process: FakeProcess) -> None:
        restarts = 0
        while True:
            ended = await process.ended
            for execution in self._executions:
                execution.signal(signal.SIGKILL)
            self._process = None
            if not self._is_to_restart(ended, restarts):
                break
            self._set(state=State.RESTARTING, pid=0, exit=ended)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_asked.wait(), _RESTART_SECONDS)
                break
            restarts += 1
            process = self._spawn()
            self._set(state=State.RUNNING, pid=process.pid, started_at=time.time(), restarts=restarts, exit=None)
        sinks, self._sinks = self._sinks, []
        for sink in sinks:
            sink.end()
        self._set(state=State.STOPPED, pid=0, exit=ended)

    def _is_to_restart(self, ended: ExitStatus, restarts: int) -> bool:
        if self._stop_asked.is_set() or self._restart.mode is RestartMode.NO:
            return False
        if self._restart.mode is RestartMode.ALWAYS:
            return True
        return ended.code != 0 and (self._restart.max_retries == 0 or restarts < self._restart.max_retries)

    async def _settled(self) -> None:
        if self._supervisor is not None:
            await asyncio.shield(self._supervisor)


def _empty(bundle: Bundle) -> None:
    for path in bundle.path.iterdir():
        if path.name == "record.json":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
