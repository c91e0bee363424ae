"""nestbedd's handle on one process container: the contract's Container, made of the keeper, cgroups, ports and the bundle."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from nestbed import agentdir
from nestbed.errors import AlreadyExists, Busy, NestbedError, Unavailable, WrongState, translated
from nestbed.lanmodel import Nic, NicStats
from nestbed.linux.path import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from nestbed.linux.pidfd import exit_information, open_process
from nestbed.linux.rtnl import Rtnl
from nestbed.model import Bundle, ExecSpec, ExitStatus, Kind, Resources, RestartPolicy, Spec, State, Stats, Status
from nestbed.process import bundle as files
from nestbed.process import plan, transfer
from nestbed.process.console import ProcessConsole
from nestbed.process.dialogue import Dialogue
from nestbed.process.execution import ProcessExecution
from nestbed.process.keeper_client import KeeperError, close_all
from nestbed.process.parts import Parts, no_nic, owes_restart, status_of, translated_refusal
from nestbed.process.ports import check_apart, routes_of
from nestbed.refusals import already_running, carry_through, never_started, not_paused, not_running

_ALIVE = (State.RUNNING, State.PAUSED, State.RESTARTING)
_KILL_SECONDS = 10.0


class ProcessContainer:
    """See the contract. Owns descriptors of the network namespace, the first process and its streams while there are any."""

    def __init__(self, spec: Spec, bundle: Bundle, parts: Parts) -> None:
        self._spec = spec
        self._bundle = bundle
        self._parts = parts
        self._status = Status(State.CREATED)
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._nics = {nic.name: nic for nic in spec.interfaces}
        self._resources = spec.resources
        self._restart = spec.restart
        self._netns_fd = -1
        self._starting: asyncio.Task[None] | None = None
        self._early: list[dict[str, Any]] = []
        self._deferred: list[tuple[dict[str, Any], list[int]]] | None = None
        """What a new keeper told before it was given what is kept for it; None when it has been."""
        self._dialogue = Dialogue(spec, bundle, parts, status=lambda: self._status, settled=self._settled)

    @property
    def id(self) -> str:
        """See the contract."""
        return self._spec.id

    @property
    def status(self) -> Status:
        """See the contract."""
        return self._status

    @property
    def kind(self) -> Kind:
        """The kind of its spec: whose sandbox it is."""
        return self._spec.kind

    @property
    def ports(self) -> frozenset[str]:
        """The node's ends of the NICs it has in the kernel now."""
        return frozenset(nic.port for nic in self._nics.values()) if self._netns_fd >= 0 else frozenset()

    @property
    def netns(self) -> int:
        """The inode number of its own network namespace, or 0."""
        return os.fstat(self._netns_fd).st_ino if self._netns_fd >= 0 and not self._is_machine else 0

    @property
    def _is_machine(self) -> bool:
        return self._spec.process.machine

    def is_alive(self) -> bool:
        """Whether its first process runs, as the kernel tells."""
        return self._dialogue.is_alive()

    # ---- making and taking up

    async def make(self) -> None:
        """Make what it has in the kernel: cgroups, network namespace, NICs. What is there already is kept.

        ``launch.json`` must be written. After an error :meth:`destroy` it.
        """
        self._parts.cgroups.create(self.id, self._resources)
        await self._join_network(is_new=True)

    async def _join_network(self, *, is_new: bool) -> None:
        """Get its network namespace from the keeper, and plug the NICs that are not in it, or were only half made."""
        reply = await self._parts.call("prepare", self.id, machine=self._is_machine)
        netns_fd, netlink = reply.fds
        self._close_netns()
        self._netns_fd = netns_fd
        inside = Rtnl(socket.socket(fileno=netlink))
        try:
            there = set() if is_new else {link.name for link in inside.links()}
            for nic in self._nics.values():
                if nic.name in there and self._parts.ports.is_whole(nic.port):
                    self._parts.ports.take_up(nic)
                else:
                    self._plug(nic, inside)
        finally:
            inside.close()

    def _plug(self, nic: Nic, inside: Rtnl) -> None:
        routes = routes_of(nic, self._spec.routes, self._spec.gateway)
        if self._is_machine:
            self._parts.ports.unplug(nic.port)
            check_apart(inside, nic, routes, self._nics)
        self._parts.ports.plug(self.id, nic, routes, self._netns_fd, inside)

    async def take_up(self, entry: dict[str, Any] | None) -> None:
        """Recover it: ``entry`` is what the keeper tells of it, or left in the bundle, None if it never heard of it."""
        self._status = Status(State.CREATED) if entry is None else status_of(entry)
        if entry is not None and self._status.state is State.RUNNING:
            await self._take_up_running(entry)
            return
        if self._parts.cgroups.is_frozen(self.id):  # it ended while it was paused, or about to be
            self._parts.cgroups.thaw(self.id)
        if self._status.state is State.RESTARTING:
            await self._join_network(is_new=False)
        elif self._status.state is State.CREATED:
            self._parts.cgroups.create(self.id, self._resources)
            await self._join_network(is_new=False)
        elif entry is not None and owes_restart(entry, self._restart):
            await self._start_again()
        else:  # a start that the daemon did not live to carry out may have left something with the keeper
            (await self._parts.call("release", self.id)).close()
            self._unplug_from_machine()

    async def _take_up_running(self, entry: dict[str, Any]) -> None:
        await self._follow(entry)
        await self._join_network(is_new=False)
        if self._status.state is State.STOPPED:  # it ended meanwhile, and that network is a new one
            (await self._parts.call("release", self.id)).close()
            self._let_network_go()
        elif self._parts.cgroups.is_frozen(self.id):
            self._status = dataclasses.replace(self._status, state=State.PAUSED)

    async def _follow(self, entry: dict[str, Any]) -> None:
        """Hold the process that runs, and its terminal."""
        try:
            pidfd = open_process(entry["pid"], entry["start_time"])
        except ProcessLookupError:  # it ends right now; the keeper will tell
            pidfd = -1
        fds = [pidfd] if pidfd >= 0 else []
        if fds and self._spec.process.tty:
            fds += (await self._parts.call("stdin", self.id)).fds
        if self._status.state is State.STOPPED:  # it ended meanwhile
            close_all(fds)
        else:
            self._dialogue.begin(fds)

    async def _start_again(self) -> None:
        """A start that the policy owes; if it fails, the status says so.

        Raises:
            Unavailable: the keeper went away; it is still owed.
        """
        try:
            await self._begin()
        except Unavailable:
            raise
        except NestbedError:
            return

    # ---- status

    def _set(self, status: Status) -> None:
        if status == self._status:
            return
        self._status = status
        news, self._news = self._news, asyncio.get_running_loop().create_future()
        news.set_result(None)
        self._parts.listeners[self.kind](self.id, status)

    async def _until(self, *states: State) -> None:
        while self._status.state not in states:
            await asyncio.shield(self._news)

    async def _settled(self) -> None:
        if self._starting is not None:
            await asyncio.wait([self._starting])

    def on_event(self, event: dict[str, Any], fds: list[int]) -> None:
        """What the keeper tells of this container; the descriptors are owned."""
        kind = event["event"]
        if self._deferred is not None and "status" in event:
            self._deferred.append((event, fds))
            return
        if kind == "exec_exited":
            self._dialogue.exec_ended(event["exec_id"], event["code"], event["signal"], time.time())
        elif kind == "log_lost":
            self._set(dataclasses.replace(self._status, log_bytes_lost=event["bytes"]))
        elif kind == "exited" and self._starting is not None:
            # It ended before its start was heard of here.
            self._early.append(event["status"])
        elif kind == "exited":
            self._on_exit(event["status"])
        elif kind == "started":
            self._dialogue.begin(fds)
            self._set(status_of(event["status"]))
        close_all(fds)

    def _on_exit(self, entry: dict[str, Any]) -> None:
        self._dialogue.end()
        if self._status.state is State.PAUSED:
            # Its next program would never begin.
            self._parts.cgroups.thaw(self.id)
        if entry["state"] == "stopped":
            self._let_network_go()
        self._set(status_of(entry))

    def _let_network_go(self) -> None:
        if self._netns_fd >= 0:
            self._unplug_from_machine()
            self._parts.ports.let_go(self.ports)
            self._close_netns()

    def _unplug_from_machine(self) -> None:
        """NICs of the machine go with no namespace."""
        for nic in self._nics.values() if self._is_machine else ():
            self._parts.ports.unplug(nic.port)

    def _close_netns(self) -> None:
        if self._netns_fd >= 0:
            os.close(self._netns_fd)
            self._netns_fd = -1

    def let_go(self) -> None:
        """Close what it holds: the end of nestbedd, not of the container."""
        self._drop_deferred()
        self._dialogue.end()
        self._close_netns()

    # ---- when the keeper died

    def keeper_gone(self) -> None:
        """There is no keeper for a moment. What the next one tells of it counts once that one has been given what is kept for it."""
        self._dialogue.keeper_gone()
        self._drop_deferred()
        if self._status.state in (State.RUNNING, State.PAUSED):
            self._deferred = []

    def _drop_deferred(self) -> None:
        for _, fds in self._deferred or ():
            close_all(fds)
        self._deferred = None

    async def keeper_back(self, entry: dict[str, Any] | None) -> None:
        """A new keeper is there, which tells ``entry`` of it, or nothing: give it what was kept for it.

        Raises:
            Unavailable: it went away again; to be repeated with the next one.
        """
        try:
            await self._give_back(entry)
        except Unavailable:
            raise
        except NestbedError:
            self._catch_up()
            raise
        self._catch_up()

    def _catch_up(self) -> None:
        deferred, self._deferred = self._deferred or (), None
        for event, fds in deferred:
            self.on_event(event, fds)

    async def _give_back(self, entry: dict[str, Any] | None) -> None:
        state = self._status.state
        if state in (State.CREATED, State.STOPPED, State.RESTARTING) and entry is not None and entry["state"] == "running":
            # The keeper died before it could tell that a start had succeeded.
            self._set(status_of(entry))
            await self._follow(entry)
            return
        if state is State.STOPPED:
            self._let_network_go()  # of a start that the keeper did not live to carry out
        if self._netns_fd < 0:
            return
        await self._dialogue.keeper_back()
        pidfd, wait_status = self._dialogue.pidfd, None
        if pidfd >= 0 and not self._dialogue.is_alive():
            wait_status = exit_information(pidfd)
        fds = [self._netns_fd, *self._dialogue.kept]
        entry = (await self._parts.call("adopt", self.id, fds=fds, wait_status=wait_status)).result["status"]
        if state is not self._status.state or state is State.CREATED or self._deferred:
            return
        if state is not State.RESTARTING and owes_restart(entry, self._restart):
            self._dialogue.end()
            self._set(dataclasses.replace(status_of(entry), state=State.RESTARTING))
        if self._status.state is State.RESTARTING:
            await self._restart_owed()
        else:
            self._adopted(entry)

    async def _restart_owed(self) -> None:
        """Do what the keeper that died was about to do."""
        waiting = self._status
        self._status = dataclasses.replace(waiting, state=State.STOPPED)
        try:
            await self._start_again()
        except Unavailable:
            self._status = waiting
            raise

    def _adopted(self, entry: dict[str, Any]) -> None:
        if entry["state"] != "running":
            self._on_exit(entry)
        elif self._status.state is not State.PAUSED:
            self._set(status_of(entry))

    # ---- start, stop

    async def start(self) -> None:
        """See the contract."""
        # A keeper that does not know this one yet would give it another network namespace.
        await self._parts.keeper_back.wait()
        await self._begin()

    async def _begin(self) -> None:
        if self._starting is not None or self._status.state in _ALIVE:
            raise already_running(self.id)
        self._starting = asyncio.create_task(self._start())
        # The keeper does not stop half-way.
        await carry_through(self._starting)

    async def _start(self) -> None:
        before = self._status
        try:
            if self._netns_fd < 0:
                await self.make()
            reply = await self._parts.keeper.call("start", id=self.id)
            self._dialogue.begin(reply.fds)
            self._set(status_of(reply.result["status"]))
        except KeeperError as error:
            refusal = translated_refusal(error, self.id, self._spec.process.args[0])
            if before.state is State.STOPPED:
                (await self._parts.call("release", self.id)).close()
                self._let_network_go()
            self._set(dataclasses.replace(before, exit=ExitStatus(reason="start-failed", message=refusal.message, at=time.time())))
            raise refusal from error
        finally:
            self._starting = None
            early, self._early = self._early, []
            for entry in early:
                self._on_exit(entry)

    async def stop(self, grace_seconds: float) -> None:
        """See the contract."""
        # Before a new keeper has been given what is kept, it may have ended without being known to have.
        await self._parts.keeper_back.wait()
        if self._status.state not in _ALIVE:
            return
        try:
            (await self._parts.call("stop", self.id, grace=grace_seconds)).close()
        except WrongState:  # it ended a moment ago
            return
        if self._status.state is State.PAUSED:
            await self.resume()
        await self._until(State.STOPPED, State.CREATED)

    async def kill(self, signal: int) -> None:
        """See the contract."""
        if self._status.state not in (State.RUNNING, State.PAUSED):
            raise not_running(self.id)
        (await self._parts.call("signal", self.id, signal=signal)).close()

    async def wait(self) -> ExitStatus:
        """See the contract."""
        await self._settled()
        if self._status.state is State.CREATED:
            raise never_started(self.id)
        await self._until(State.STOPPED)
        return self._status.exit or ExitStatus(reason="unknown")

    async def pause(self) -> None:
        """See the contract."""
        if self._status.state is not State.RUNNING:
            raise not_running(self.id)
        await asyncio.to_thread(self._parts.cgroups.freeze, self.id)
        if self._status.state is not State.RUNNING:  # it ended meanwhile
            self._parts.cgroups.thaw(self.id)
            raise not_running(self.id)
        self._set(dataclasses.replace(self._status, state=State.PAUSED))

    async def resume(self) -> None:
        """See the contract."""
        if self._status.state is not State.PAUSED:
            raise not_paused(self.id)
        self._parts.cgroups.thaw(self.id)
        self._set(dataclasses.replace(self._status, state=State.RUNNING))

    async def update(self, resources: Resources, restart: RestartPolicy) -> None:
        """See the contract."""
        launch = files.read_launch(self._bundle)
        if self._status.state is State.STOPPED:
            self._parts.cgroups.create(self.id, self._resources)
        self._parts.cgroups.update(self.id, resources, before=self._resources)
        launch["restart"] = plan.restart(restart)
        launch["cgroups"] = list(self._parts.cgroups.membership(self.id, resources).cgroups)
        files.replace_launch(self._bundle, launch)
        if self._status.state is not State.STOPPED:
            (await self._parts.call("restart_policy", self.id, mode=restart.mode.value, max_retries=restart.max_retries)).close()
        self._resources, self._restart = resources, restart

    async def destroy(self) -> None:
        """See the contract."""
        await self._settled()
        if files.holds_anything(self._bundle):
            if self._status.state in _ALIVE:
                await self._end()
            await self._parts.release(self.id)
            await self._parts.remove_cgroups(self.id)
            files.clear(self._bundle)
        self._dialogue.end()
        self._let_network_go()
        self._parts.forget(self.id)
        if self._status.state is not State.STOPPED:
            self._set(dataclasses.replace(self._status, state=State.STOPPED, pid=0))

    async def _end(self) -> None:
        """Kill everything in it and wait until it is STOPPED."""
        was_paused = self._status.state is State.PAUSED
        for operation, argument in (("stop", {"grace": 0.0}), ("signal", {"signal": int(signal.SIGKILL)})):
            try:
                (await self._parts.insist(partial(self._parts.call, operation, self.id, **argument))).close()
            except WrongState:  # it ended meanwhile
                break
        if was_paused:
            self._parts.cgroups.thaw(self.id)
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                await self._until(State.STOPPED)
        except TimeoutError as error:
            self._parts.cgroups.kill(self.id)
            raise Busy(f"container {self.id} does not end", reason="DOES_NOT_END", remedy="try again", container=self.id) from error

    # ---- programs

    async def exec(self, spec: ExecSpec) -> ProcessExecution:
        """See the contract."""
        return await self._dialogue.exec(spec)

    async def console(self) -> ProcessConsole:
        """See the contract."""
        return await self._dialogue.console()

    # ---- network, files, figures

    async def plug(self, nic: Nic) -> None:
        """See the contract."""
        if nic.name in self._nics:
            raise AlreadyExists(f"container {self.id} has an interface {nic.name}", reason="NIC_EXISTS", container=self.id, nic=nic.name)
        inside = await self._netlink_if_there()
        if inside is not None:
            with contextlib.closing(inside):
                self._plug(nic, inside)
        self._nics[nic.name] = nic

    async def unplug(self, name: str) -> None:
        """See the contract."""
        nic = self._nics.get(name)
        if nic is None:
            raise no_nic(self.id, name)
        self._parts.ports.unplug(nic.port)
        del self._nics[name]

    async def set_link(self, name: str, *, up: bool) -> None:
        """See the contract."""
        nic = self._nics.get(name)
        if nic is None:
            raise no_nic(self.id, name)
        self._nics[name] = dataclasses.replace(nic, is_down=not up)
        if self._netns_fd >= 0:
            self._parts.ports.set_link(nic.port, up=up)

    async def _netlink_if_there(self) -> Rtnl | None:
        """A socket inside its network namespace; None if it has none (any more)."""
        if self._netns_fd < 0:
            return None
        try:
            reply = await self._parts.call("netlink", self.id)
        except WrongState:
            return None
        inside = Rtnl(socket.socket(fileno=reply.fds.pop()))
        if self._netns_fd < 0:  # it ended meanwhile
            inside.close()
            return None
        return inside

    async def update_hosts(self, text: str) -> None:
        """See the contract."""
        files.write_hosts(self._bundle, text)

    async def stats(self) -> Stats:
        """See the contract."""
        return dataclasses.replace(self._parts.cgroups.usage(self.id), nics=await self._nic_stats())

    async def _nic_stats(self) -> tuple[NicStats, ...]:
        inside = await self._netlink_if_there()
        if inside is None:
            return ()
        with contextlib.closing(inside):
            counters = {counted.name: counted for counted in inside.counters()}
        known = [(nic, counters[nic.name]) for nic in self._nics.values() if nic.name in counters]
        return tuple(
            NicStats(nic.name, nic.lan, of.rx_frames, of.rx_bytes, of.rx_drops, of.tx_frames, of.tx_bytes, of.tx_drops) for nic, of in known
        )

    async def archive(self, path: str) -> AsyncIterator[bytes]:
        """See the contract."""
        return await transfer.archive(self._dialogue.open_root(), path)

    async def extract(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        """See the contract."""
        await transfer.extract(self._dialogue.open_root(), path, chunks)

    def open_agent(self) -> int:
        """See the contract."""
        root_fd = self._dialogue.open_root()
        flags = os.O_PATH | os.O_DIRECTORY
        try:
            with translated(f"opening the agent's directory of container {self.id}", container=self.id):
                return openat2(root_fd, agentdir.DIRECTORY, flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
        finally:
            os.close(root_fd)

    def objects(self) -> Sequence[str]:
        """See the contract."""
        found = [f"cgroup:{name}" for name in self._parts.cgroups.objects(self.id)]
        found += [f"link:{port}" for port in sorted(self.ports)]
        if self._status.state in (State.RUNNING, State.PAUSED):
            found.append(f"process:{self._status.pid}")
        return found
