"""nestbedd's handle on one virtual machine: the contract's Container, of a sandbox, the agent in the guest, QEMU's monitor and files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nestbed.errors import (
    AlreadyExists,
    Deadline,
    HostLacks,
    NestbedError,
    NotFound,
    ResourceExhausted,
    Unavailable,
    WrongState,
    shown,
)
from nestbed.lanmodel import Nic
from nestbed.log import fields
from nestbed.model import Boot, Bundle, ExecSpec, ExitStatus, Resources, RestartPolicy, Spec, State, Stats, Status
from nestbed.qemu import accounts, command, copying, inside, login, plan, sandbox
from nestbed.qemu.command import Disk, Machine, NicDevice
from nestbed.qemu.files import Files
from nestbed.qemu.guest import Execution, Guest, refused
from nestbed.qemu.inside import Code
from nestbed.qemu.monitor import Monitor
from nestbed.qemu.news import News
from nestbed.qemu.sandbox import Sandbox
from nestbed.refusals import already_running, carry_through, never_started, not_paused, not_running
from nestbed.runtime import Console, StatusListener

_CONSOLE_SECONDS = 1.0
"""How often what the console says is looked at while a guest boots."""

_HOSTS_SECONDS = 2.0
"""How long others wait for one guest to take its hosts file."""

_ALIVE = (State.RUNNING, State.PAUSED, State.RESTARTING)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the machines of one runtime share."""

    news: News
    listener: StatusListener
    forget: Callable[[str], object]
    accelerator: str
    code: Code


class QemuContainer:
    """See the contract. What runs is the warden in ``inner``; what the guest's program is doing, the warden's ``state`` tells."""

    def __init__(self, spec: Spec, bundle: Bundle, parts: Parts, numbers: dict[str, int], disk: Disk | None = None) -> None:
        self._spec = spec
        self._parts = parts
        self._files = Files(bundle)
        self._disk = disk
        self._nics = {nic.name: nic for nic in spec.interfaces}
        self._numbers = numbers
        self._resources = spec.resources
        self._inner: Sandbox | None = None
        self._guest = Guest(spec.id, self._files.directory)
        self._monitor = Monitor(spec.id, self._files.directory)
        self._status = Status(State.CREATED)
        self._news = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._failed: Status | None = None
        """What it is after a start that failed, until the next one."""
        self._exit: ExitStatus | None = None
        self._watch = parts.news.watch(self._files.directory, self._on_state)
        self._doubtful: set[int] = set()
        """Numbers of NICs that QEMU may have or not."""
        self._following: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def inner(self) -> Sandbox:
        """Its sandbox."""
        assert self._inner is not None
        return self._inner

    @property
    def id(self) -> str:
        """See the contract."""
        return self._spec.id

    @property
    def status(self) -> Status:
        """See the contract."""
        return self._status

    @property
    def node_address(self) -> str:
        """See the contract's Nesting."""
        return inside.address(self._spec)

    # ---- making and taking up

    def made(self, inner: Sandbox) -> None:
        """Its sandbox is there."""
        self._inner = inner
        self._status = self._outer(inner.status)

    async def take_up(self) -> None:
        """Recover what an earlier nestbedd left: go on with a pause that was cut short, end a start that failed."""
        if self._status.state is not State.RUNNING:
            return
        self._follow_boot()
        if self._files.state().what == "failed":
            return
        try:
            await self._monitor.execute("cont")
            await self._complete_nics()
            await self._show_links(only_down=False)
        except NestbedError as error:
            _logger.warning("machine not taken up whole", extra=fields(container=self.id, cause=error.message))

    async def _complete_nics(self) -> None:
        """Plug in the NICs that it should have and has not, and take away those it should not have: a daemon died on the way."""
        there = await self._monitor.devices()
        wanted = {self._device(nic).id: nic for nic in self._nics.values()}
        for device in sorted(there - wanted.keys()):
            await self._monitor.remove_device(device)
        for device in sorted(wanted.keys() - there):
            with contextlib.suppress(HostLacks):
                await self._monitor.execute("netdev_del", {"id": f"{device}-net"})
            await self._plug_in(wanted[device], self._device(wanted[device]))
        self._numbers = {name: number for name, number in self._numbers.items() if name in self._nics}
        self.write_plan()

    def let_go(self) -> None:
        """Close what it holds: the end of nestbedd, not of the machine."""
        self._parts.news.unwatch(self._watch)
        for task in (*self._tasks, *([self._starting] if self._starting is not None else [])):
            task.cancel()

    async def aclose(self) -> None:
        """The same, and wait until it is closed."""
        self.let_go()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._guest.aclose()

    def write_plan(self) -> None:
        """Write what the next start, ours or one by the restart policy, goes by."""
        spec = self._spec
        devices = [(nic.name, self._device(nic)) for nic in self._nics.values()]
        machine = Machine(
            name=spec.name,
            memory_mib=(self._resources.memory_bytes or plan.MEMORY_DEFAULT_BYTES) >> 20,
            vcpus=plan.vcpus_of(self._resources.cpus),
            accelerator=self._parts.accelerator,
            nics=tuple(device for _, device in devices),
            shares=len(spec.process.mounts),
            append=spec.qemu.append if spec.qemu is not None else "",
            disk=self._disk,
        )
        process = spec.process
        warden = plan.warden(
            uid=plan.uid_of(self.id),
            machine=machine,
            taps=devices,
            has_program=bool(process.args),
            has_input=bool(process.args) and (process.stdin or process.tty),
        )
        self._files.write_numbers(self._numbers)
        users = accounts.frames_of() if self._disk is not None else b""
        beside = login.program(spec, self._files.host_key()) if login.is_possible(spec) else b""
        self._files.write("program", plan.program(spec, list(self._nics.values()), self._files.hosts(), users + self._inside(), beside))
        self._files.write("plan", warden)

    def _inside(self) -> bytes:
        """What starts the node in the guest, if there is to be one."""
        return inside.program(self._spec, self._parts.code, self._files.credentials()) if inside.is_node(self._spec) else b""

    def _device(self, nic: Nic) -> NicDevice:
        if nic.name not in self._numbers:
            free = set(range(command.SLOTS)) - set(self._numbers.values())
            if not free and nic != self._spec.control:
                raise ResourceExhausted(
                    f"container {self.id} has {command.SLOTS} NICs, as many as a virtual machine takes",
                    reason="TOO_MANY_NICS",
                    remedy="spread them over two containers",
                    container=self.id,
                    limit=command.SLOTS,
                )
            self._numbers[nic.name] = command.CONTROL if nic == self._spec.control else min(free)
        return NicDevice(self._numbers[nic.name], nic.mac, nic.mtu)

    # ---- status

    def on_inner(self, status: Status) -> None:
        """The sandbox's status changed."""
        if self._starting is None:
            self._set(self._outer(status))
        self._news.set()

    def _on_state(self) -> None:
        """The warden wrote its state."""
        self._news.set()
        if self._starting is not None:
            self._show_boot()
        elif self._inner is not None:
            self._set(self._outer(self.inner.status))
            self._follow_boot()

    def _show_boot(self) -> None:
        """Tell how far a start has come."""
        boot = plan.boot_of(self._files.state())
        if boot not in (None, Boot.READY):
            self._set(replace(self._status, boot=boot, console=self._files.console_tail(1)))

    def _follow_boot(self) -> None:
        """Follow a boot that no :meth:`start` follows: one by the restart policy, or of an earlier daemon."""
        if self._following is None and self._files.state().what in (*plan.UNDER_WAY, "failed"):
            self._following = self._later(self._finish_boot())

    async def _finish_boot(self) -> None:
        try:
            await self._boot()
            await self._show_links(only_down=True)
        except NestbedError as error:
            # That it hangs, or cannot be set up, is final; one that ended is the restart policy's.
            if isinstance(error, Deadline) or self._files.state().what == "failed":
                ended = ExitStatus(reason="start-failed", message=error.message, at=time.time())
                self._failed = replace(self._status, state=State.STOPPED, pid=0, exit=ended, boot=None, console="")
                with contextlib.suppress(NestbedError):
                    await self.inner.stop(0.0)
        finally:
            self._following = None
            self._set(self._outer(self.inner.status))

    def _later(self, doing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _outer(self, inner: Status) -> Status:
        """The machine's status of its sandbox's."""
        if self._failed is not None and inner.state not in _ALIVE:
            return self._failed
        boot = plan.boot_of(self._files.state()) if inner.state in (State.RUNNING, State.PAUSED) else None
        status = replace(inner, exit=self._ended(inner.exit), boot=boot)
        return replace(status, console=self._files.console_tail(1)) if status.is_booting else status

    def _ended(self, inner: ExitStatus | None) -> ExitStatus | None:
        """How the guest's program ended, of how the warden ended; remembered, because the next run writes another state."""
        if inner is None or (self._exit is not None and self._exit.at == inner.at):
            return self._exit if inner is not None else None
        word = self._files.state()
        ended = inner
        if inner.signal is None and inner.reason == "exited":
            if word.what == "signaled" and inner.code == 128 + word.number:
                ended = replace(inner, code=None, signal=word.number, reason="signaled")
            elif word.what == "lost":
                ended = replace(inner, code=None, signal=None, reason="unknown", message=word.rest)
            elif word.what == "off":
                ended = replace(inner, message="the guest switched itself off")
        self._exit = ended
        return ended

    def _set(self, status: Status) -> None:
        if status != self._status:
            self._status = status
            self._parts.listener(self.id, status)
        self._news.set()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._news.clear()
            await self._news.wait()

    # ---- start, stop

    async def start(self) -> None:
        """See the contract."""
        if self._starting is not None or self.inner.status.state in _ALIVE:
            raise already_running(self.id)
        self._starting = asyncio.create_task(self._start())
        await carry_through(self._starting)

    async def _start(self) -> None:
        before = self._status
        try:
            self.write_plan()
            self._files.forget_state()
            await self.inner.start()
            running = replace(self.inner.status, state=State.RUNNING, exit=None, boot=Boot.READY)
            await self._boot()
            await self._show_links(only_down=True)
        except NestbedError as error:
            self._failed = replace(before, exit=ExitStatus(reason="start-failed", message=error.message, at=time.time()))
            with contextlib.suppress(NestbedError):
                await self.inner.stop(0.0)
            raise
        else:
            self._failed = None
            self._set(running)
        finally:
            self._starting = None
            self._set(self._outer(self.inner.status))

    async def _boot(self) -> None:
        """Wait until the guest's program runs, or ran.

        Raises:
            NotFound, InvalidArgument, HostLacks: it does not. Deadline: the guest hangs.
        """

        def is_settled() -> bool:
            return self._files.state().what not in ("none", *plan.UNDER_WAY) or self.inner.status.state is not State.RUNNING

        seconds = plan.boot_seconds_of(self._spec)
        try:
            async with asyncio.timeout(seconds):
                while not is_settled():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_CONSOLE_SECONDS):
                            await self._until(is_settled)
                    if self._starting is not None:
                        self._show_boot()
        except TimeoutError as error:
            said = self._files.console_tail()
            raise Deadline(
                f"the virtual machine of container {self.id} did not come up in {seconds:g} s; its console said last: {said or 'nothing'}",
                reason="BOOT_STALLED",
                remedy="see its console log, give it more memory, or more time with --boot-timeout",
                container=self.id,
                seconds=seconds,
                console=said,
            ) from error
        word = self._files.state()
        if word.what == "failed":
            raise refused(word.number, word.rest, self.id, self._program())
        if word.what in ("started", "exited", "signaled"):
            return
        why = word.rest or "QEMU ended before the guest was up"
        raise HostLacks(
            f"the virtual machine of container {self.id} did not come up: {why}; its console said last: {self._files.console_tail()}",
            reason="BOOT_FAILED",
            remedy="give it more memory, or see its console log",
            container=self.id,
            cause=why,
            console=self._files.console_tail(),
        )

    def _program(self) -> ExecSpec | None:
        return ExecSpec(self._spec.process.args) if self._spec.process.args else None

    async def _settled(self) -> None:
        if self._starting is not None:
            await asyncio.wait([self._starting])

    async def stop(self, grace_seconds: float) -> None:
        """See the contract."""
        if self._status.state is State.PAUSED and grace_seconds > 0:
            await self.resume()
        await self.inner.stop(grace_seconds)
        await self._settled()
        self._set(self._outer(self.inner.status))

    async def kill(self, signal: int) -> None:
        """See the contract."""
        if self._status.state not in (State.RUNNING, State.PAUSED) and self._starting is None:
            raise not_running(self.id)
        await self.inner.kill(signal)

    async def wait(self) -> ExitStatus:
        """See the contract."""
        await self._settled()
        if self._status.state is State.CREATED:
            raise never_started(self.id)
        while self._status.state is not State.STOPPED:
            await self.inner.wait()
            self._set(self._outer(self.inner.status))
        return self._status.exit or ExitStatus(reason="unknown")

    async def pause(self) -> None:
        """See the contract. First the guest's clock stops, then all of QEMU."""
        self._check_running()
        await self._monitor.execute("stop")
        await self.inner.pause()

    async def resume(self) -> None:
        """See the contract."""
        if self._status.state is not State.PAUSED:
            raise not_paused(self.id)
        await self.inner.resume()
        await self._monitor.execute("cont")
        await self._show_links(only_down=False)
        await self._tell_hosts()

    async def update(self, resources: Resources, restart: RestartPolicy) -> None:
        """See the contract. Processors and memory of the guest change with its next start; a limit never cuts into what it has now."""
        plan.check_resources(resources)
        limits = sandbox.resources_of(resources)
        if self.inner.status.state in _ALIVE:
            limits = replace(limits, memory_bytes=max(limits.memory_bytes or 0, sandbox.resources_of(self._resources).memory_bytes or 0))
        await self.inner.update(limits, restart)
        self._resources = resources
        self.write_plan()

    async def destroy(self) -> None:
        """See the contract."""
        self._parts.news.unwatch(self._watch)
        await self._guest.aclose()
        await self.inner.destroy()
        await self._settled()
        for task in self._tasks:
            task.cancel()
        self._parts.forget(self.id)
        if self._status.state is not State.STOPPED:
            self._set(replace(self._status, state=State.STOPPED, pid=0))

    # ---- programs

    async def exec(self, spec: ExecSpec) -> Execution:
        """See the contract."""
        self._check_running()
        process = self._spec.process
        hostname = self._spec.hostname or self._spec.name
        env = dict((("PATH", plan.PATH), ("HOSTNAME", hostname), *process.env, *spec.env))
        cwd, user = spec.cwd or process.cwd, spec.user or process.user
        return await self._guest.run(replace(spec, env=tuple(env.items()), cwd=cwd, user=user, stdin=spec.stdin or spec.tty))

    async def console(self) -> Console:
        """See the contract."""
        return await self.inner.console()

    async def archive(self, path: str) -> AsyncIterator[bytes]:
        """See the contract."""
        self._check_running()
        return await copying.archive(self._guest.run, path)

    async def extract(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        """See the contract."""
        self._check_running()
        await copying.extract(self._guest.run, path, chunks)

    # ---- network, files, figures

    async def plug(self, nic: Nic) -> None:
        """See the contract."""
        if nic.name in self._nics:
            raise AlreadyExists(f"container {self.id} has an interface {nic.name}", reason="NIC_EXISTS", container=self.id, nic=nic.name)
        device = self._device(nic)
        self._check_not_paused()
        try:
            self._files.write_numbers(self._numbers)
            await self.inner.plug(sandbox.nic_of(nic))
            if self._status.state is State.RUNNING:
                await self._plug_in(nic, device)
            self._nics[nic.name] = nic
            self.write_plan()
        except BaseException as error:
            self._nics.pop(nic.name, None)
            await self._unplugged(nic.name, is_silent=isinstance(error, Deadline))
            raise

    async def _plug_in(self, nic: Nic, device: NicDevice) -> None:
        await self._in_sandbox("tap", nic.name, device.tap, str(plan.uid_of(self.id)))
        if device.number in self._doubtful:
            with contextlib.suppress(HostLacks):
                await self._monitor.remove_device(device.id)
            with contextlib.suppress(HostLacks):
                await self._monitor.execute("netdev_del", {"id": f"{device.id}-net"})
            self._doubtful.discard(device.number)
        await self._monitor.execute("netdev_add", command.nic_backend(device))
        await self._monitor.execute("device_add", command.nic_device(device))
        if nic.is_down:
            await self._show_link(nic)
        await self._guest.ask(lambda channel: plan.nic_frame(channel, nic, self._spec))

    async def _unplugged(self, name: str, *, is_silent: bool = False) -> None:
        """Take away what of a NIC is there. A QEMU that ``is_silent`` may do later what it was told: that is undone once it answers."""
        device = NicDevice(self._numbers[name], "", 0)
        if is_silent:
            self._doubtful.add(device.number)
        elif self._status.state is State.RUNNING:
            # What is not there, because it was never made or the machine ends just now, is not missed.
            with contextlib.suppress(HostLacks, Unavailable, WrongState):
                await self._monitor.remove_device(device.id)
            with contextlib.suppress(HostLacks, Unavailable, WrongState):
                await self._monitor.execute("netdev_del", {"id": f"{device.id}-net"})
            with contextlib.suppress(HostLacks, Unavailable, WrongState):
                await self._in_sandbox("untap", device.tap)
        with contextlib.suppress(NotFound):
            await self.inner.unplug(name)
        del self._numbers[name]

    async def _in_sandbox(self, *words: str) -> None:
        """Have the warden do something in the sandbox's network namespace."""
        execution = await self.inner.exec(ExecSpec((sandbox.WARDEN, *words)))
        said = b"".join([piece.data async for piece in execution.output()])
        ended = await execution.wait()
        await execution.aclose()
        if ended.code != 0:
            why = said.decode(errors="replace").strip()
            raise HostLacks(
                f"container {self.id}: {' '.join(words[:2])}: {why}",
                reason="TAP_FAILED",
                remedy="see what `nbctl info` says this kernel lacks",
                container=self.id,
                cause=why,
            )

    async def unplug(self, name: str) -> None:
        """See the contract."""
        if name not in self._nics:
            raise self._no_nic(name)
        self._check_not_paused()
        await self._unplugged(name)
        del self._nics[name]
        self.write_plan()

    async def set_link(self, name: str, *, up: bool) -> None:
        """See the contract."""
        if name not in self._nics:
            raise self._no_nic(name)
        await self.inner.set_link(name, up=up)
        self._nics[name] = replace(self._nics[name], is_down=not up)
        if self._status.state is State.RUNNING:
            await self._show_link(self._nics[name])

    async def _show_link(self, nic: Nic) -> None:
        """Have the guest see whether the cable is plugged in."""
        await self._monitor.execute("set_link", {"name": self._device(nic).id, "up": not nic.is_down})

    async def _show_links(self, *, only_down: bool) -> None:
        """The same for all NICs, or for those without a cable: QEMU begins with all plugged in."""
        for nic in self._nics.values():
            if nic.is_down or not only_down:
                with contextlib.suppress(Unavailable):  # it ends just now
                    await self._show_link(nic)

    async def update_hosts(self, text: str) -> None:
        """See the contract."""
        if text.encode() == self._files.hosts():
            return
        self._files.write("hosts", text.encode())
        self.write_plan()
        await self._tell_hosts()

    async def _tell_hosts(self) -> None:
        if self._status.state is not State.RUNNING or self._starting is not None:
            return
        task = self._later(self._write_hosts())
        await asyncio.wait([task], timeout=_HOSTS_SECONDS)

    async def _write_hosts(self) -> None:
        hosts = self._files.hosts()
        try:
            await self._guest.ask(lambda channel: plan.hosts_frame(channel, hosts))
        except NestbedError as error:
            _logger.warning("hosts file not written in the guest", extra=fields(container=self.id, cause=error.message))

    async def stats(self) -> Stats:
        """See the contract. The memory is what the machine takes on the node, its limit what the guest has."""
        used = await self.inner.stats()
        limit = used.memory_limit_bytes
        if limit is not None:
            limit = min(limit, self._resources.memory_bytes or plan.MEMORY_DEFAULT_BYTES)
        return replace(used, memory_limit_bytes=limit)

    def objects(self) -> Sequence[str]:
        """See the contract."""
        return self.inner.objects()

    # ---- checks

    def _no_nic(self, name: str) -> NotFound:
        return NotFound(f"container {self.id} has no interface {shown(name)}", reason="NIC_NOT_FOUND", container=self.id, nic=shown(name))

    def _check_running(self) -> None:
        self._check_not_paused()
        if self._starting is not None:
            remedy = "wait until it is ready; `nbctl ps` shows how far it is"
            raise WrongState(f"container {self.id} still boots", reason="BOOTING", remedy=remedy, container=self.id)
        if self._status.state is not State.RUNNING:
            raise not_running(self.id)

    def _check_not_paused(self) -> None:
        if self._status.state is State.PAUSED:
            raise WrongState(f"container {self.id} is paused", reason="PAUSED", remedy="resume it first", container=self.id)
