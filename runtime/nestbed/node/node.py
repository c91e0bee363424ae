"""The node: every container and LAN on this machine by name. What the service calls.

A ``ref`` is an id, a name, or a beginning of an id that no other has. Everything raises ``nestbed.errors``, whatever a client sends.
Changes are carried through even if the caller goes away. What gives an async iterator is used with ``async for``, without ``await``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from nestbed import __version__
from nestbed.errors import NotFound, WrongState
from nestbed.lan.contract import LanPlane
from nestbed.lanmodel import (
    CaptureRequest,
    Direction,
    ImpairmentChange,
    Lan,
    LanImpairment,
    LanMember,
    LanRequest,
    LanStats,
    LanView,
    Nic,
    NicSpec,
)
from nestbed.model import Change, ContainerRequest, ContainerView, Event, ExecSpec, ExitStatus, Kind, NestedNode, NodeInfo, State, Stats
from nestbed.node import audit, bounds, logs, nested, traffic, update
from nestbed.node.agent.agent import Agent
from nestbed.node.agent.values import AgentView, Report
from nestbed.node.authority import Authority
from nestbed.node.control import ControlNetwork
from nestbed.node.elsewhere import MembersElsewhere
from nestbed.node.events import Events
from nestbed.node.hostsfiles import HostsFiles
from nestbed.node.images import Images
from nestbed.node.impairments import Impairments
from nestbed.node.lans import Lans
from nestbed.node.lifecycle import Lifecycle
from nestbed.node.links import Links
from nestbed.node.names import Selection, chosen
from nestbed.node.operations import Operations
from nestbed.node.parts import Parts, present, unsupported
from nestbed.node.privilege import check_entry
from nestbed.node.registry import Held, Registry
from nestbed.node.segment import Segment
from nestbed.node.store import Store
from nestbed.node.underlay import NestedUnderlay
from nestbed.runlog import Entry
from nestbed.runtime import Console, Execution, FileAccess, Leftover, Runtime

_CLOSE_SECONDS = 5.0
_RUNS = (State.RUNNING, State.PAUSED)


class Node:
    """One daemon's containers and LANs.

    The run and state directories are claimed (``nestbed.node.rundir``) before it is made and until it is closed. ``runtimes`` and
    ``plane`` are opened and closed by it.
    """

    def __init__(
        self,
        *,
        name: str,
        run_dir: Path,
        state_dir: Path,
        runtimes: Mapping[Kind, Runtime],
        plane: LanPlane,
        node_id: str,
        file_systems: tuple[str, ...] = (),
        control_subnet: str = "",
        may_be_element: bool = False,
    ) -> None:
        """``file_systems`` are the testbed's: an administrator's virtual machines share those that exist. ``control_subnet`` is that of the
        control network; empty: one is chosen. ``may_be_element``: the machine itself may be a member of LANs.
        """
        self._name = name
        self._run_dir = run_dir
        self._state_dir = state_dir
        self._node_id = node_id
        self._started_at = time.time()
        registry = Registry(control_subnet)
        authority = Authority(state_dir / "authority", name)
        store, hosts = Store(state_dir), HostsFiles(registry)
        self._parts = Parts(registry, store, Events(), Operations(), hosts, plane, runtimes, authority, file_systems, may_be_element)
        self._impairments = Impairments(self._parts)
        control = ControlNetwork(registry, plane, node_id, control_subnet)
        self._agent = Agent(self._parts)
        self._underlay = NestedUnderlay(registry, plane, node_id)
        self._lifecycle = Lifecycle(self._parts, self._impairments, control, self._underlay, self._agent)
        self._links = Links(self._parts)
        self._lans = Lans(self._parts, self._impairments, self._links)
        self._elsewhere = MembersElsewhere(self._parts)
        self.images = Images(self._parts)
        """Its images."""
        self._watch = logs.LogWatch()
        self._closing = contextlib.AsyncExitStack()

    # ------------------------------------------------------------ the node itself

    async def open(self) -> None:
        """Take up everything an earlier daemon left: what runs is untouched, what was half made or half removed is removed.

        After an error nothing is open.
        """
        parts = self._parts
        async with contextlib.AsyncExitStack() as stack:
            parts.store.open()
            stack.callback(parts.store.close)
            self._watch.open()
            stack.callback(self._watch.close)
            self._agent.open()
            stack.push_async_callback(self._agent.aclose)
            await parts.plane.open(self._on_plane)
            stack.push_async_callback(parts.plane.aclose)
            for runtime in parts.runtimes.values():
                await runtime.open(self._lifecycle.on_status)
                stack.push_async_callback(runtime.aclose)
            stack.push_async_callback(parts.operations.aclose, _CLOSE_SECONDS)
            stack.callback(parts.events.close)
            self._lans.read_records()
            held = await self._lifecycle.read_records()
            self._elsewhere.read_records([one.spec.id for one in held if nested.is_node(one)])
            await self._underlay.take_up()
            await self._lans.take_up()
            await self._lifecycle.take_up(held)
            await parts.plane.sweep_ports()
            for one in held:
                parts.hosts.changed(one.spec.nics)
            parts.hosts.start()
            stack.push_async_callback(parts.hosts.aclose)
            self._closing = stack.pop_all()

    async def aclose(self) -> None:
        """Let go of everything without ending any container or LAN; changes under way get some seconds. Idempotent."""
        await self._closing.aclose()

    @property
    def state_dir(self) -> Path:
        """The claimed state directory."""
        return self._state_dir

    @property
    def authority(self) -> Authority:
        """What signs the certificates of the nodes inside, and this node's own for them."""
        return self._parts.authority

    def nested(self) -> list[NestedNode]:
        """The nodes inside virtual machines of this one, oldest first."""
        return [nested.view(held) for held in self._parts.registry if nested.is_node(held)]

    def has_nested(self, container_id: str) -> bool:
        """Whether there is a container of this id with a node inside."""
        held = self._parts.registry.get(container_id)
        return held is not None and nested.is_node(held)

    def find_nested(self, ref: str) -> NestedNode:
        """The node inside one machine.

        Raises:
            NotFound, InvalidArgument: no container, or several. WrongState: it is no node (reason NOT_A_NODE).
        """
        return nested.view(nested.check_node(self._find(ref)))

    @property
    def elsewhere(self) -> MembersElsewhere:
        """The members of this node's LANs on nodes inside."""
        return self._elsewhere

    def when_lans_change(self, listener: Callable[[set[str]], None]) -> None:
        """Have ``listener`` told of the ids of LANs whose members change, from now on."""
        self._parts.hosts.listeners.append(listener)

    async def extend_lan(self, lan: Lan, members: Sequence[LanMember]) -> LanView:
        """Have a LAN of the node outside on this one, too: the same id, name, group, subnets and MTU, and these members elsewhere. Its
        addresses are handed out there. Again, it brings members and impairments up to date. A LAN of the name and group that is there
        already is the same segment, and stays what it is.

        Raises:
            AlreadyExists: the name or the group is another LAN's. HostLacks: this node has no underlay. InvalidArgument.
        """
        return self._lan_view(await self._parts.operations.run(self._lans.extend(lan, members)))

    def publish(self, kind: str, object_id: str, name: str, /, **attributes: object) -> None:
        """Tell those who watch of something that happened to what is not the node's own, such as an experiment."""
        self._parts.events.publish(kind, object_id, name, **attributes)

    async def info(self, *, with_abilities: bool = True) -> NodeInfo:
        """What this node is, and what its machine can and cannot do; some of that takes seconds to find out."""
        parts = self._parts
        abilities = [*parts.plane.abilities()] if with_abilities else []
        for runtime in parts.runtimes.values() if with_abilities else ():
            abilities += await runtime.probe()
        return NodeInfo(
            name=self._name,
            id=self._node_id,
            version=__version__,
            kernel=os.uname().release,
            cpus=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            run_dir=str(self._run_dir),
            state_dir=str(self._state_dir),
            containers=len(parts.registry),
            containers_running=sum(held.status.state in _RUNS for held in parts.registry),
            lans=len(parts.registry.segments),
            started_at=self._started_at,
            kinds=tuple(parts.runtimes),
            abilities=tuple(abilities),
            underlays=tuple(underlay.name for underlay in parts.plane.underlays()),
            last_event=parts.events.last,
            may_be_element=parts.may_be_element,
        )

    def watch(self, *, after_sequence: int = 0, types: Sequence[str] = (), history: bool = False) -> AsyncIterator[tuple[Event, int]]:
        """Events, each with how many were dropped before it because this reader was slow; see ``Events.watch``."""
        return self._parts.events.watch(after_sequence=after_sequence, types=types, history=history)

    async def audit(self) -> tuple[list[Leftover], int]:
        """The lasting differences between records and kernel, and how many objects were compared."""
        return await audit.audit(self._parts)

    # ------------------------------------------------------------ containers

    async def create_container(
        self, request: ContainerRequest, *, request_id: str = "", start: bool = False, wait: bool = True, admin: bool
    ) -> ContainerView:
        """Make a container: CREATED, its NICs plugged. With a ``request_id`` that is known, the container it made.

        With ``start`` it is RUNNING, unless it has ended already. One that cannot be started is removed again. ``wait`` is as of
        :meth:`start`.

        Raises:
            InvalidArgument, AlreadyExists, NotFound, PermissionDenied, Unsupported, HostLacks, ResourceExhausted: nothing was made.
        """
        held = await self._parts.operations.run(self._lifecycle.create(request, request_id, start=start, wait=wait, admin=admin))
        return held.view()

    def container(self, ref: str) -> ContainerView:
        """One container.

        Raises:
            NotFound: none. InvalidArgument: several ids begin like that.
        """
        return self._find(ref).view()

    def containers(
        self, *, names: Sequence[str] = (), labels: Sequence[tuple[str, str]] = (), states: Sequence[State] = ()
    ) -> list[ContainerView]:
        """Those whose name matches one of the globs ``names`` (or whose id begins with one), that have all the ``labels`` and are in one
        of the ``states``; empty is all. Oldest first.

        Raises:
            InvalidArgument: globs or labels that cannot be.
        """
        bounds.check_labels(labels)
        selection = Selection(names, labels)
        chosen = (held for held in self._parts.registry if selection.takes(held.spec.id, held.spec.name, held.spec.labels))
        return [view for held in chosen if (view := held.view()).status.state in (states or State)]

    async def start(self, ref: str, *, wait: bool = True) -> ContainerView:
        """CREATED or STOPPED -> RUNNING. A container that removes itself also does so when it cannot start.

        Without ``wait`` a virtual machine only boots when this returns (STARTING); what becomes of it is told by its status and by events.

        Raises:
            as ``Container.start``.
        """
        held = self._find(ref)
        await self._parts.operations.run(self._lifecycle.start(held, wait=wait))
        return held.view()

    async def stop(self, ref: str, grace_seconds: float) -> ContainerView:
        """Ask it to end, make it end after the grace. Idempotent. A later ``stop``, ``kill`` or forced ``delete`` comes first."""
        bounds.check_grace(grace_seconds)
        held = self._find(ref)
        await self._parts.operations.run(self._lifecycle.stop(held, grace_seconds))
        return held.view()

    async def kill(self, ref: str, signal: int) -> ContainerView:
        """Send a signal to its first process, also while a ``stop`` waits.

        Raises:
            WrongState: it does not run.
        """
        bounds.check_signal(signal)
        held = self._find(ref)
        await self._parts.operations.run(self._lifecycle.kill(held, signal))
        return held.view()

    async def pause(self, ref: str) -> ContainerView:
        """RUNNING -> PAUSED.

        Raises:
            WrongState: it does not run. Unsupported: its kind cannot.
        """
        held = self._find(ref)
        await self._parts.operations.run(self._lifecycle.freeze(held, pause=True))
        return held.view()

    async def resume(self, ref: str) -> ContainerView:
        """PAUSED -> RUNNING.

        Raises:
            WrongState: it is not paused. Unsupported: its kind cannot.
        """
        held = self._find(ref)
        await self._parts.operations.run(self._lifecycle.freeze(held, pause=False))
        return held.view()

    async def wait(self, ref: str) -> ExitStatus:
        """How it ended, once it stopped for good; also of one that has just removed itself.

        Raises:
            WrongState: it was never started.
        """
        try:
            held = self._find(ref)
        except NotFound:
            remembered = self._parts.registry.remembered_exit(ref)
            if remembered is None:
                raise
            return remembered
        return await present(held).wait()

    async def exec(self, ref: str, spec: ExecSpec, *, admin: bool) -> Execution:
        """Run a further program inside. The caller closes what it gets.

        Raises:
            PermissionDenied: it is privileged and the caller is not admin. Others as ``Container.exec``.
        """
        bounds.check_exec(spec)
        held = self._find(ref)
        self._check_entry(held, admin=admin, doing="run programs in")
        return await present(held).exec(spec)

    async def attach(self, ref: str, *, run: bool, stdin: bool, admin: bool) -> Console:
        """The streams of its first program; with ``run`` it is started once they are connected. The caller closes what it gets.

        Raises:
            PermissionDenied: ``stdin`` is asked for, it is privileged and the caller is not admin.
            WrongState: it has stopped and is not to be run (reason NOT_RUNNING). Others as ``start``.
        """
        held = self._find(ref)
        if stdin:
            self._check_entry(held, admin=admin, doing="write to")
        container = present(held)
        if container.status.state is State.STOPPED and not run:
            raise WrongState(
                f"container {held.spec.name} has stopped",
                reason="NOT_RUNNING",
                remedy=f"start it, or see what it wrote: nbctl logs {held.spec.name}",
                container=held.spec.name,
            )
        console = await container.console()
        if run:
            try:
                await self.start(held.spec.id)
            except BaseException:
                await console.aclose()
                raise
        return console

    async def logs(
        self, ref: str, *, follow: bool = False, since: float | None = None, tail: int | None = None
    ) -> AsyncIterator[Sequence[Entry]]:
        """What its program wrote, in batches: from the time ``since`` on, of the last ``tail`` lines; None is all.

        With ``follow`` also what it writes from now on, until it has stopped or is gone.

        Raises:
            NotFound, InvalidArgument.
        """
        selection = logs.Selection(since, tail).check()
        held = self._find(ref)
        if not follow:
            async for batch in logs.read(held.bundle.path, selection):
                yield batch
            return
        wake = asyncio.Event()
        held.wakers.add(wake)
        try:
            async for batch in logs.follow(held.bundle.path, selection, self._watch, wake, lambda: _has_ended(held)):
                yield batch
        finally:
            held.wakers.discard(wake)

    async def stats(self, names: Sequence[str]) -> list[tuple[ContainerView, Stats]]:
        """What the containers use now: those of the refs and globs ``names``, without any all that run.

        Raises:
            NotFound: a name that is no glob means no container.
        """
        found = []
        registry = self._parts.registry
        running = (held for held in registry if held.status.state in _RUNS)
        for held in chosen(names, registry, find=registry.find, name_of=lambda held: held.spec.name) if names else running:
            with contextlib.suppress(NotFound, WrongState):  # it went meanwhile
                used = await traffic.add_classes(self._parts, held.spec.interfaces, await present(held).stats())
                found.append((held.view(), used))
        return found

    async def update(self, ref: str, change: Change, *, admin: bool) -> ContainerView:
        """Change limits, restart policy or name: all of it or nothing.

        Raises:
            PermissionDenied: it is privileged and the caller is not admin. AlreadyExists: the name is taken.
            InvalidArgument, HostLacks, Unsupported.
        """
        held = self._find(ref)
        self._check_entry(held, admin=admin, doing="change")
        await self._parts.operations.run(update.update(self._parts, held, bounds.check_change(change)))
        return held.view()

    async def delete(self, ref: str, *, force: bool) -> None:
        """Remove it with everything it has. With ``force`` also while it runs.

        Raises:
            WrongState: it runs (reason CONTAINER_RUNNING).
        """
        await self._parts.operations.run(self._lifecycle.delete(self._find(ref), force=force))

    async def archive(self, ref: str, path: str, *, admin: bool) -> AsyncIterator[bytes]:
        """A tar stream of a path inside.

        Raises:
            PermissionDenied: it is privileged (so its files may be the node's) and the caller is not admin.
            NotFound, InvalidArgument, Unsupported.
        """
        bounds.check_path("the path", path)
        held = self._find(ref)
        self._check_entry(held, admin=admin, doing="copy out of")
        async for chunk in await self._files(held).archive(path):
            yield chunk

    async def extract(self, ref: str, path: str, chunks: AsyncIterator[bytes], *, admin: bool) -> None:
        """Unpack a tar stream into a directory inside.

        Raises:
            PermissionDenied: it is privileged and the caller is not admin. NotFound, InvalidArgument, Unsupported.
        """
        bounds.check_path("the path", path)
        held = self._find(ref)
        self._check_entry(held, admin=admin, doing="copy into")
        await self._files(held).extract(path, chunks)

    # ------------------------------------------------------------ the agent

    def agents(self, *, names: Sequence[str] = (), labels: Sequence[tuple[str, str]] = ()) -> list[AgentView]:
        """What the agent knows of the containers that are selected, as :meth:`containers` selects.

        Raises:
            InvalidArgument: globs or labels that cannot be.
        """
        bounds.check_labels(labels)
        selection = Selection(names, labels)
        return [self._agent.view(held) for held in self._parts.registry if selection.takes(held.spec.id, held.spec.name, held.spec.labels)]

    async def tell(self, ref: str, text: str, *, admin: bool) -> None:
        """Add a line to a container's orders.

        Raises:
            PermissionDenied: it is privileged and the caller is not admin. InvalidArgument, WrongState.
        """
        held = self._find(ref)
        self._check_entry(held, admin=admin, doing="tell something to")
        await self._agent.tell(held, text)

    async def reports(self, ref: str, *, tail: int | None = None, follow: bool = False) -> AsyncIterator[Sequence[Report]]:
        """What a container's programs reported and is kept, the last ``tail`` of it, in batches; with ``follow`` also what they report from
        now on, until it is gone.

        Raises:
            NotFound.
        """
        async for batch in self._agent.reports(self._find(ref), tail=tail, follow=follow):
            yield batch

    def release(self, ref: str, arrival_ids: Sequence[str]) -> list[str]:
        """Let those who wait at barriers with these ids go on: the ids of those who did wait.

        Raises:
            NotFound.
        """
        return self._agent.release(self._find(ref), arrival_ids)

    # ------------------------------------------------------------ LANs

    async def create_lan(self, request: LanRequest, *, request_id: str = "") -> LanView:
        """Make a LAN. With a ``request_id`` that is known, the LAN it made.

        Raises:
            InvalidArgument, AlreadyExists, HostLacks: nothing was made.
        """
        return self._lan_view(await self._parts.operations.run(self._lans.create(request, request_id)))

    def lan(self, ref: str) -> LanView:
        """One LAN, by id or name.

        Raises:
            NotFound: none.
        """
        return self._lan_view(self._parts.registry.find_lan(ref))

    def lans(self, *, names: Sequence[str] = (), labels: Sequence[tuple[str, str]] = ()) -> list[LanView]:
        """Those whose name matches one of the globs (or whose id begins with one) and that have all the labels. Oldest first.

        Raises:
            InvalidArgument: globs or labels that cannot be.
        """
        bounds.check_labels(labels)
        selection = Selection(names, labels)
        segments = self._parts.registry.segments.values()
        return [self._lan_view(one) for one in segments if selection.takes(one.lan.id, one.lan.name, one.lan.labels)]

    async def delete_lan(self, ref: str) -> None:
        """Remove a LAN.

        Raises:
            WrongState: it has members (reason LAN_HAS_MEMBERS). NotFound: none.
        """
        await self._parts.operations.run(self._lans.delete(ref))

    async def connect(self, ref: str, spec: NicSpec) -> Nic:
        """Give a container a NIC on ``spec.lan``, whether it runs or not.

        Raises:
            NotFound, InvalidArgument, AlreadyExists, ResourceExhausted, HostLacks: nothing was made.
        """
        return await self._parts.operations.run(self._lans.connect(self._find(ref), spec))

    async def disconnect(self, ref: str, lan: str, nic_name: str) -> None:
        """Take the NIC ``nic_name`` on the LAN away, or all NICs on it if that is empty.

        Raises:
            NotFound: no such container, LAN or NIC.
        """
        await self._parts.operations.run(self._lans.disconnect(self._find(ref), lan, nic_name))

    async def set_link(self, lan: str = "", *, container: str = "", nic_name: str = "", up: bool) -> list[LanMember]:
        """Plug cables in or out: of all NICs on a LAN and of those that join it later; of a container's on it; or, without a LAN, of all
        that a container has. Gives those NICs as they are now. Idempotent.

        Raises:
            InvalidArgument: neither is named. NotFound. Nothing has changed then.
        """
        return await self._parts.operations.run(self._links.set(lan, container, nic_name, up=up))

    async def set_impairment(
        self, lan: str, change: ImpairmentChange, *, container: str = "", nic_name: str = "", direction: Direction = Direction.BOTH
    ) -> LanImpairment:
        """Change what is done to frames on a LAN as a whole, or at the ports a container has there; what ``change`` does not name stays.

        Raises:
            InvalidArgument: values that cannot be, or a direction of a whole LAN. NotFound. HostLacks: this machine cannot do it.
            Nothing has changed then.
        """
        return await self._parts.operations.run(self._impairments.change(lan, container, nic_name, direction, change))

    async def reset_impairment(
        self, lan: str, *, container: str = "", nic_name: str = "", direction: Direction = Direction.BOTH
    ) -> LanImpairment:
        """Take off what is done to frames at the ports a container has on a LAN; without a container, at all ports and on the whole LAN.

        Raises:
            InvalidArgument, NotFound.
        """
        return await self._parts.operations.run(self._impairments.reset(lan, container, nic_name, direction))

    async def impairments(self, *, lan: str = "", container: str = "", nic_name: str = "") -> list[LanImpairment]:
        """What is done to frames, and what came of it: on a LAN or all, at all ports or those of a container.

        Raises:
            NotFound.
        """
        return await self._impairments.list(lan, container, nic_name)

    async def lan_stats(self, names: Sequence[str]) -> list[LanStats]:
        """The counters of the LANs of the refs and globs ``names``, of all without any.

        Raises:
            NotFound: a name that is no glob means no LAN.
        """
        registry = self._parts.registry
        lans = chosen(names or ["*"], registry.segments.values(), find=registry.find_lan, name_of=lambda segment: segment.lan.name)
        return await traffic.lan_stats(self._parts, lans)

    async def capture(self, request: CaptureRequest, *, lan: str = "", container: str = "", nic_name: str = "") -> AsyncIterator[bytes]:
        """A pcapng file of the frames on a LAN, or of a container's NIC (its only one without a name); see ``LanPlane.capture``.

        Raises:
            InvalidArgument: not exactly one of LAN and container, or bounds or a filter that cannot be. NotFound, HostLacks.
        """
        bounds.check_capture(request, lan=lan, container=container, nic_name=nic_name)
        if lan:
            source = await traffic.capture_lan(self._parts, self._parts.registry.find_lan(lan), request)
        else:
            source = await traffic.capture_nic(self._parts, self._find(container), nic_name, request)
        async with contextlib.aclosing(source):
            async for piece in source:
                yield piece

    # ------------------------------------------------------------ steps

    def _on_plane(self, kind: str, lan_id: str, attributes: Mapping[str, str]) -> None:
        segment = self._parts.registry.segments.get(lan_id)
        if segment is None:
            self._parts.events.publish(kind, lan_id, "", **attributes)
            return
        ports = {member.nic.port: f"{member.container}:{member.nic.name}" for member in segment.members}
        self._parts.events.publish(kind, lan_id, segment.lan.name, **{key: ports.get(value, value) for key, value in attributes.items()})

    def _lan_view(self, segment: Segment) -> LanView:
        lan, plane = segment.lan, self._parts.plane
        return LanView(lan, (*segment.members, *segment.elsewhere()), tuple(plane.paths(lan)), frozenset(plane.cut(lan)))

    def _find(self, ref: str) -> Held:
        return self._parts.registry.find(ref)

    def _files(self, held: Held) -> FileAccess:
        container = present(held)
        if not isinstance(container, FileAccess):
            raise unsupported(held.spec, "which cannot be copied from or to")
        return container

    def _check_entry(self, held: Held, *, admin: bool, doing: str) -> None:
        check_entry(held.spec.name, privileged=held.record.privileged, admin=admin, doing=doing)


def _has_ended(held: Held) -> bool:
    return held.is_gone or held.status.state is State.STOPPED
