"""Making, following, removing and taking up containers: what the node does around the runtime's part of it."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace

from nestbed.errors import CorruptState, NestbedError, WrongState
from nestbed.log import fields
from nestbed.model import ContainerRequest, ExitStatus, Kind, Mount, ProcessSpec, Spec, State, Status
from nestbed.node import machine, privilege, requests, wiring
from nestbed.node.agent.agent import Agent
from nestbed.node.bounds import check_container, check_request_id
from nestbed.node.control import ControlNetwork, is_wanted
from nestbed.node.impairments import Impairments
from nestbed.node.parts import Parts, unsupported
from nestbed.node.registry import Held
from nestbed.node.store import Record
from nestbed.node.underlay import NestedUnderlay
from nestbed.runtime import Pausable

_logger = logging.getLogger(__name__)
_AT_REST = (State.CREATED, State.STOPPED)


class Lifecycle:
    """The containers of one node, from being made to being removed."""

    def __init__(self, parts: Parts, impairments: Impairments, control: ControlNetwork, underlay: NestedUnderlay, agent: Agent) -> None:
        self._parts = parts
        self._impairments = impairments
        self._control = control
        self._underlay = underlay
        self._agent = agent

    # ------------------------------------------------------------ make

    async def create(self, request: ContainerRequest, request_id: str, *, start: bool, wait: bool, admin: bool) -> Held:
        """Make a container, or find the one that the same request made. See ``Node.create_container``."""
        held, is_new = await self._make(request, request_id, admin=admin)
        if start:
            try:
                await self.start(held, only_new=True, wait=wait)
            except NestbedError:
                if is_new:
                    with contextlib.suppress(NestbedError):
                        await self.delete(held, force=True)
                raise
        return held

    async def _make(self, request: ContainerRequest, request_id: str, *, admin: bool) -> tuple[Held, bool]:
        """The container, and whether this call made it."""
        check_request_id(request_id)
        request = check_container(request)
        privilege.check_creation(request.process, request.qemu, admin=admin)
        digest = requests.digest(request, request_id)
        while (found := self._parts.registry.of_request(request_id)) is not None:
            requests.check_same(request_id, found.record.request_digest, digest)
            await found.made.wait()
            if not found.is_gone:
                return found, False
        runtime = self._parts.runtime(request.kind)
        if request.kind is Kind.QEMU and admin:
            request = replace(request, process=_with_testbed(request.process, self._parts.file_systems))
        machine.check(request, self._parts.registry, is_permitted=self._parts.may_be_element)
        spec = self._plan(request)
        record = Record(spec, request_id, digest, privileged=bool(privilege.reasons(spec.process, spec.qemu)))
        held = Held(record, self._parts.store.bundle(spec.id))
        self._parts.registry.add(held)
        try:
            async with held.changing(State.CREATING):
                await runtime.validate(spec)
                self._parts.store.make_bundle(record)
                if spec.qemu is not None and spec.qemu.node:
                    self._parts.authority.issue(held.bundle.path, spec.id)
                await self._impairments.prepare(spec.nics)
                await self._control.ensure()
                await self._underlay.ensure()
                held.container = await runtime.create(spec, held.bundle)
                self._parts.store.mark_made(spec.id)
        except BaseException:
            await self._abandon(held)
            raise
        finally:
            held.made.set()
        self._parts.hosts.changed(spec.nics)
        self._parts.events.publish("container.created", spec.id, spec.name, kind=spec.kind.value)
        return held, True

    def _plan(self, request: ContainerRequest) -> Spec:
        registry = self._parts.registry
        container_id = registry.new_id()
        name = request.name or f"{request.kind.value}-{container_id[:6]}"
        registry.check_name_free(name)
        owner = wiring.Owner(container_id, name)
        nics = registry.wire(owner, request.nics, wiring.next_hops(request.gateway, request.routes))
        try:
            gateway, routes = wiring.check_routes(request.gateway, request.routes, nics)
            owner = replace(owner, nics=nics)
            underlay = self._underlay.assign(owner) if request.qemu is not None and request.qemu.node else None
        except NestbedError:
            registry.unwire(owner, nics)
            raise
        try:
            on_control = self._control.assign(owner) if is_wanted(request) else None
        except NestbedError:
            registry.unwire(owner, nics)
            registry.leave_underlay(underlay)
            raise
        return Spec(
            id=container_id,
            name=name,
            kind=request.kind,
            process=request.process,
            hostname=request.hostname or name,
            labels=request.labels,
            resources=request.resources,
            restart=request.restart,
            nics=nics,
            routes=routes,
            gateway=gateway,
            hosts=request.hosts,
            auto_remove=request.auto_remove,
            qemu=request.qemu,
            created_at=time.time(),
            control=on_control,
            underlay=underlay,
        )

    async def _abandon(self, held: Held) -> None:
        """Remove what a failed creation made; a failure leaves a record from which the next daemon does it."""
        container, held.container = held.container, None
        held.doing = State.DELETING
        try:
            if container is not None:
                await container.destroy()
            elif held.bundle.path.exists():
                await self._parts.runtime(held.spec.kind).discard(held.bundle)
            self._parts.store.remove_bundle(held.spec.id)
        except NestbedError as error:
            _logger.warning(
                "half-made container not removed", extra=fields(container=held.spec.id, reason=error.reason, cause=error.message)
            )
        finally:
            await self._impairments.forget(held.spec.nics)
            await self._drop(held)

    # ------------------------------------------------------------ start

    async def start(self, held: Held, *, only_new: bool = False, wait: bool = True) -> None:
        """Start a container; ``only_new`` leaves one alone that was started before. See ``Node.start``."""
        async with held.changing(State.STARTING):
            container = await self._parts.container(held)
            if only_new and container.status.state is not State.CREATED:
                return
            try:
                await self._parts.hosts.refresh(held)
                await held.start(container, wait=wait)
            except NestbedError:
                if container.status.state is not State.RUNNING:
                    self.remove_if_wanted(held)
                raise

    # ------------------------------------------------------------ stop, pause

    async def stop(self, held: Held, grace_seconds: float) -> None:
        """Ask a container to end, make it end after the grace. See ``Node.stop``."""
        held.interrupt()
        async with held.changing(State.STOPPING):
            container = await self._parts.container(held)
            is_finished = await held.stop(container, grace_seconds)
        if not is_finished:
            await container.wait()

    async def kill(self, held: Held, signal: int) -> None:
        """Send a signal to its first process. See ``Node.kill``."""
        held.interrupt()
        async with held.changing():
            await (await self._parts.container(held)).kill(signal)

    async def freeze(self, held: Held, *, pause: bool) -> None:
        """Pause it, or let it go on. See ``Node.pause`` and ``Node.resume``."""
        async with held.changing():
            container = await self._parts.container(held)
            if not isinstance(container, Pausable):
                raise unsupported(held.spec, "which cannot be paused")
            await (container.pause() if pause else container.resume())

    # ------------------------------------------------------------ follow

    def on_status(self, container_id: str, status: Status) -> None:
        """The runtimes' StatusListener: publish what happened, wake who waits, remove what removes itself."""
        held = self._parts.registry.get(container_id)
        if held is None:
            return
        before, held.last = held.last, status
        for kind, attributes in _happenings(before, status):
            self._parts.events.publish(kind, container_id, held.spec.name, **attributes)
        self._agent.follow(held, status)
        held.wake()
        has_failed = before.is_booting and status.boot is None and status.state in _AT_REST and held.doing is not State.STARTING
        if has_failed or (status.state is State.STOPPED and before.state is not State.STOPPED):
            self.remove_if_wanted(held)

    def remove_if_wanted(self, held: Held) -> None:
        """Begin to remove a container that stopped for good, or could not start, if it was made to be removed then."""
        if held.spec.auto_remove and held.doing is not State.DELETING:
            self._parts.operations.spawn(self._remove_itself(held))

    async def _remove_itself(self, held: Held) -> None:
        if not held.is_gone:
            async with held.changing(State.DELETING):
                await self._remove(held)

    # ------------------------------------------------------------ remove

    async def delete(self, held: Held, *, force: bool) -> None:
        """Remove a container. See ``Node.delete``."""
        _check_at_rest(held, force=force)
        held.interrupt()
        async with held.changing(State.DELETING):
            _check_at_rest(held, force=force)
            await self._remove(held)

    async def _remove(self, held: Held) -> None:
        spec = held.spec
        self._agent.forget(spec.id)
        self._parts.store.unmark_made(spec.id)
        try:
            if held.container is not None:
                await held.container.destroy()
            else:
                await self._parts.runtime(spec.kind).discard(held.bundle)
            self._parts.store.remove_bundle(spec.id)
        except NestbedError:
            self._parts.store.mark_made(spec.id)
            raise
        await self._impairments.forget(spec.nics)
        self._parts.registry.remember_exit(spec, _exit_of(held))
        await self._drop(held)
        self._parts.hosts.changed(spec.nics)
        self._parts.events.publish("container.deleted", spec.id, spec.name)

    # ------------------------------------------------------------ take up

    async def read_records(self) -> list[Held]:
        """Hold every container that is on record, oldest first, on its LANs again; remove the half-made and half-removed."""
        records: list[Record] = []
        for container_id in self._parts.store.container_ids():
            try:
                record = self._parts.store.read(container_id) if self._parts.store.is_made(container_id) else None
            except CorruptState as error:
                await self._lose(container_id, error)
                continue
            if record is None:
                await self._clear(container_id)
            else:
                records.append(record)
        records.sort(key=lambda record: (record.spec.created_at, record.spec.id))
        return [held for record in records if (held := await self._hold(record)) is not None]

    async def take_up(self, held: Sequence[Held]) -> None:
        """Give the containers back to their runtimes, which find out what became of them."""
        await self._control.take_up()
        for one in held:
            await self._take_up(one)

    async def _hold(self, record: Record) -> Held | None:
        held = Held(record, self._parts.store.bundle(record.spec.id))
        held.made.set()
        try:
            self._parts.registry.check_name_free(record.spec.name)
            self._parts.registry.rejoin(record.spec)
        except (NestbedError, ValueError) as error:
            self._parts.registry.unwire(wiring.Owner(record.spec.id, record.spec.name), record.spec.nics)
            self._parts.registry.leave_control(record.spec.control)
            self._parts.registry.leave_underlay(record.spec.underlay)
            await self._lose(record.spec.id, CorruptState(f"the record of container {record.spec.id} makes no sense: {error}"))
            return None
        self._parts.registry.add(held)
        return held

    async def _take_up(self, held: Held) -> None:
        spec = held.spec
        self._agent.recover(held)
        try:
            held.container = await self._parts.runtime(spec.kind).recover(spec, held.bundle)
        except CorruptState as error:
            await self._lose(spec.id, error)
            await self._drop(held)
        except NestbedError as error:
            held.broken = error
            _logger.exception("container not taken up", extra=fields(container=spec.id, reason=error.reason, cause=error.message))
        else:
            held.last = held.container.status
            self._agent.follow(held, held.last)
            if held.last.state is State.STOPPED:
                self.remove_if_wanted(held)

    async def _drop(self, held: Held) -> None:
        """Hold it no longer: nothing of it is there any more."""
        self._parts.registry.drop(held)
        if held.spec.control is not None:
            await self._control.settle()
        if held.spec.underlay is not None:
            await self._underlay.settle()

    async def _lose(self, container_id: str, error: CorruptState) -> None:
        _logger.error("container lost", extra=fields(container=container_id, cause=error.message))
        self._parts.events.publish("container.lost", container_id, "", cause=error.message)
        await self._clear(container_id)

    async def _clear(self, container_id: str) -> None:
        try:
            for runtime in self._parts.runtimes.values():
                await runtime.discard(self._parts.store.bundle(container_id))
            self._parts.store.remove_bundle(container_id)
        except NestbedError as error:
            _logger.exception("bundle not removed", extra=fields(container=container_id, reason=error.reason, cause=error.message))


def _check_at_rest(held: Held, *, force: bool) -> None:
    status = held.last if held.container is None else held.container.status
    if status.is_booting and status.state in _AT_REST:
        status = replace(status, state=State.STARTING)
    if not force and status.state not in (*_AT_REST, State.CREATING):
        raise WrongState(
            f"container {held.spec.name} is {status.state.value}",
            reason="CONTAINER_RUNNING",
            remedy=f"stop it first, or kill and remove it: nbctl rm -f {held.spec.name}",
            container=held.spec.name,
            state=status.state.value,
        )


def _exit_of(held: Held) -> ExitStatus:
    status = held.last if held.container is None else held.container.status
    return status.exit or ExitStatus(reason="unknown")


def _happenings(before: Status, now: Status) -> list[tuple[str, dict[str, object]]]:
    """What led from one status to the other, as types and attributes of events."""
    found: list[tuple[str, dict[str, object]]] = []
    if now.log_bytes_lost > before.log_bytes_lost:
        found.append(("container.log_lost", {"bytes": now.log_bytes_lost}))
    if now.boot is not None and (now.boot, now.console) != (before.boot, before.console):
        found.append(("container.boot", {"phase": now.boot.value, "console": now.console}))
    if before.is_booting and now.boot is None and now.state in _AT_REST and now.exit is not None:
        found.append(("container.boot_failed", {"cause": now.exit.message}))
    if now.state is before.state:
        return found
    if now.state is State.RUNNING:
        if before.state is State.PAUSED:
            found.append(("container.resumed", {}))
        else:
            found.append(("container.started", {"pid": now.pid, "restarts": now.restarts}))
    elif now.state is State.PAUSED:
        found.append(("container.paused", {}))
    elif now.state in (State.STOPPED, State.RESTARTING) and before.state not in (State.CREATING, State.CREATED):
        found.append(("container.exited", _exit_attributes(now)))
    return found


def _exit_attributes(status: Status) -> dict[str, object]:
    ended = status.exit or ExitStatus(reason="unknown")
    attributes: dict[str, object] = {"reason": ended.reason, "restarting": "true" if status.state is State.RESTARTING else "false"}
    if ended.code is not None:
        attributes["code"] = ended.code
    if ended.signal is not None:
        attributes["signal"] = ended.signal
    return attributes


def _with_testbed(process: ProcessSpec, paths: Sequence[str]) -> ProcessSpec:
    """With the testbed's directories that exist at the same place inside, unless something else is there."""
    taken = {mount.destination.rstrip("/") for mount in process.mounts}
    shared = tuple(Mount(path, path) for path in paths if path not in taken and os.path.isdir(path))
    return replace(process, mounts=(*process.mounts, *shared))
