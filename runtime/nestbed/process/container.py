"""The runtime for process containers: :class:`nestbed.runtime.Runtime` on top of the keeper."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nestbed.errors import CorruptState, NestbedError, Unavailable, WrongState, translated
from nestbed.linux.pidfd import open_process
from nestbed.log import fields
from nestbed.model import Ability, Bundle, FsMode, Kind, ProcessSpec, Resources, Spec
from nestbed.process import bundle as files
from nestbed.process import plan, sandbox
from nestbed.process.abilities import abilities, find_init
from nestbed.process.accounts import NodeAccounts, User, accounts_in, resolve_user
from nestbed.process.audit import audit
from nestbed.process.handle import ProcessContainer
from nestbed.process.hierarchies import Tree, detect
from nestbed.process.keeper_client import KeeperClient, close_all
from nestbed.process.limits import Cgroups, Membership
from nestbed.process.lookup import Lookup
from nestbed.process.masks import Masks
from nestbed.process.parts import Parts
from nestbed.process.ports import Ports
from nestbed.process.protocol import Launch
from nestbed.runtime import Container, Leftover, PortHook, StatusListener

PIDS_DEFAULT = 4096
_KILL_SECONDS = 10.0
_RETRY_FIRST_SECONDS, _RETRY_MAX_SECONDS = 0.05, 5.0
_OPEN_TRIES = 6
_PLANS_MAX = 256
_SEEN_MAX = 64
SECONDS_SEEN = 0.5
"""For how long what was found out for one container holds for the next one like it."""

_NOFILE_SOFT, _NOFILE_HARD = 1024, 524288

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Planned:
    """A spec with the node's default limits filled in, and how it is launched."""

    spec: Spec
    launch: Launch


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found out for a program at a moment of ``time.monotonic``, and that it was there."""

    facts: plan.Facts
    at: float


class ProcessRuntime:
    """See the contract. One per node; everything belongs to the network namespace this process is in."""

    def __init__(
        self,
        *,
        run_dir: Path,
        state_dir: Path,
        node_id: str,
        hidden: Sequence[Path] = (),
        pids_default: int = PIDS_DEFAULT,
        memory_default_bytes: int | None = None,
        port_hook: PortHook | None = None,
    ) -> None:
        """``hidden`` are paths to keep from containers besides these directories and the daemon's code: its configuration and keys.

        ``pids_default`` and ``memory_default_bytes`` limit a container that asks for no limit, where the machine can. ``port_hook`` hears
        of every port.
        """
        self._run_dir = run_dir
        self._bundles_dir = state_dir / "containers"
        self._defaults = Resources(pids=pids_default, memory_bytes=memory_default_bytes)
        self._masks = Masks([run_dir, state_dir, *hidden])
        self._node_id = node_id
        self._port_hook = port_hook
        self._containers: dict[str, ProcessContainer] = {}
        self._plans: dict[str, Planned] = {}
        self._listeners: dict[Kind, StatusListener] = {}
        self._seen: dict[tuple[ProcessSpec, tuple[str, ...]], Seen] = {}
        self._told_masks: tuple[str, ...] | None = None
        self._entries: dict[str, dict[str, Any]] = {}
        self._reopening: asyncio.Task[None] | None = None
        self._is_connecting = False

    @property
    def kind(self) -> Kind:
        """See the contract."""
        return Kind.PROCESS

    async def open(self, listener: StatusListener) -> None:
        """See the contract."""
        with translated(f"making {self._bundles_dir}", path=self._bundles_dir):
            self._bundles_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        tree = Tree(self._node_id, detect())
        tree.open(self._defaults.memory_bytes)
        ports = Ports(self._node_id, self._port_hook)
        ports.open()
        keeper = KeeperClient(run_dir=self._run_dir, bundles_dir=self._bundles_dir, on_event=self._on_event, on_gone=self._on_gone)
        self._tree = tree
        self._listeners[Kind.PROCESS] = listener
        self._parts = Parts(keeper, Cgroups(tree), ports, self._listeners, self._forget)
        try:
            await self._connect(tries=_OPEN_TRIES)
        except BaseException:
            await keeper.aclose()
            ports.close()
            raise

    def listen(self, kind: Kind, listener: StatusListener) -> None:
        """Tell ``listener`` of containers whose spec is of another kind: the sandboxes of another runtime.

        Such a container may also show what is in its own bundle, and has /dev/kvm.
        """
        self._listeners[kind] = listener

    async def aclose(self) -> None:
        """See the contract."""
        if self._reopening is not None:
            self._reopening.cancel()
        await self._parts.keeper.aclose()
        self._parts.ports.close()
        for container in self._containers.values():
            container.let_go()
        self._containers.clear()
        self._tree.close()

    async def probe(self) -> Sequence[Ability]:
        """See the contract."""
        return abilities(self._tree)

    # ---- the keeper

    async def _meet(self) -> None:
        """A keeper is there: tell it what to hide, ask what it has, and give it what is held for its containers."""
        self._told_masks = None
        await self._tell_masks()
        self._entries = (await self._parts.keeper.call("list")).result["containers"]
        for container in list(self._containers.values()):
            try:
                await container.keeper_back(self._entries.get(container.id))
            except Unavailable:
                raise
            except NestbedError as error:
                _logger.warning("container not given to the new keeper", extra=fields(container=container.id, cause=error.message))
        self._parts.keeper_back.set()

    def _on_gone(self) -> None:
        self._parts.keeper_back.clear()
        _logger.warning("keeper gone", extra=fields(containers=len(self._containers)))
        for container in self._containers.values():
            container.keeper_gone()
        if not self._is_connecting:
            self._reopening = asyncio.create_task(self._connect())

    async def _connect(self, *, tries: int = 0) -> None:
        """Get a keeper that knows all containers; 0 ``tries`` is without end.

        Raises:
            Unavailable: there is none after so many tries.
        """
        self._is_connecting = True
        delay = _RETRY_FIRST_SECONDS
        try:
            while not self._parts.keeper_back.is_set():
                try:
                    if not self._parts.keeper.is_open:
                        await self._parts.keeper.open()
                    await self._meet()
                except Unavailable as error:
                    tries -= 1
                    if tries == 0:
                        raise
                    _logger.warning("no keeper yet", extra=fields(cause=error.message))
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, _RETRY_MAX_SECONDS)
        finally:
            self._is_connecting = False
        _logger.info("keeper connected", extra=fields(pid=self._parts.keeper.pid))

    def _on_event(self, event: dict[str, Any], fds: list[int]) -> None:
        if "status" in event:
            # Who has not been taken up yet, or not been given to this keeper, will be found like this.
            self._entries[event["id"]] = event["status"]
        container = self._containers.get(event["id"])
        if container is not None:
            container.on_event(event, fds)
        else:
            close_all(fds)

    async def _tell_masks(self) -> None:
        paths = self._masks.paths(skip_netns=lambda: {container.netns for container in self._containers.values()})
        if paths is not self._told_masks:
            (await self._parts.keeper.call("template", masks=list(paths))).close()
            self._told_masks = paths

    # ---- planning

    async def validate(self, spec: Spec) -> None:
        """See the contract."""
        planned = self._plan(spec, look_for_program=True)
        while len(self._plans) >= _PLANS_MAX:
            del self._plans[next(iter(self._plans))]
        self._plans[spec.id] = planned

    def _plan(self, spec: Spec, *, look_for_program: bool = False) -> Planned:
        spec = replace(spec, resources=self._limited(spec.resources))
        self._parts.cgroups.check(spec.resources)
        hidden = self._masks.paths(skip_netns=lambda: {container.netns for container in self._containers.values()})
        own = "" if spec.kind is Kind.PROCESS else os.path.realpath(self._bundles_dir / spec.id)
        membership = self._parts.cgroups.membership(spec.id, spec.resources)
        seen = None if own else self._seen.get((spec.process, hidden))
        if seen is not None and time.monotonic() - seen.at < SECONDS_SEEN:
            return Planned(spec, plan.launch(spec, replace(seen.facts, membership=membership)))
        with Lookup(spec.process, hidden, own) as lookup:
            facts = replace(self._facts(spec.process, lookup, membership), own=own)
            launch = plan.launch(spec, facts)
            lookup.check_directory(launch["cwd"])
            if look_for_program:
                lookup.check_program(launch["argv"][0], launch["env"], launch["cwd"])
                if not own:
                    self._note_seen(spec.process, hidden, facts)
        return Planned(spec, launch)

    def _facts(self, process: ProcessSpec, lookup: Lookup, membership: Membership) -> plan.Facts:
        capabilities = sandbox.capability_mask(process.cap_add, process.cap_drop)
        return plan.Facts(
            user=self._user(process.user, lookup.root_fd if process.fs is FsMode.ROOTFS else None),
            capabilities=capabilities,
            seccomp=sandbox.publish(self._run_dir, capabilities),
            membership=membership,
            mounts=lookup.mounts(),
            rlimits=_rlimits(),
            init=find_init() if process.init else "",
        )

    def _note_seen(self, process: ProcessSpec, hidden: tuple[str, ...], facts: plan.Facts) -> None:
        """The next one alike, if it comes soon, need not be looked for: should something have gone meanwhile, its start will tell."""
        if len(self._seen) >= _SEEN_MAX:
            self._seen.clear()
        self._seen[process, hidden] = Seen(facts, time.monotonic())

    def _limited(self, asked: Resources) -> Resources:
        tree = self._tree
        pids = asked.pids if asked.pids is not None or not tree.can("pids") else self._defaults.pids
        needs_memory = asked.memory_bytes is None and tree.can("memory") and tree.shared_memory is None
        return replace(asked, pids=pids, memory_bytes=self._defaults.memory_bytes if needs_memory else asked.memory_bytes)

    @staticmethod
    def _user(text: str, root_fd: int | None) -> User:
        return resolve_user(text, NodeAccounts() if root_fd is None else accounts_in(root_fd))

    # ---- containers

    async def create(self, spec: Spec, bundle: Bundle) -> ProcessContainer:
        """See the contract."""
        planned = self._plans.pop(spec.id, None) or self._plan(spec)
        container = ProcessContainer(planned.spec, bundle, self._parts)
        self._containers[spec.id] = container
        try:
            files.make(bundle, planned.launch)
            await self._tell_masks()
            await container.make()
        except BaseException:
            await container.destroy()
            raise
        return container

    async def recover(self, spec: Spec, bundle: Bundle) -> ProcessContainer:
        """See the contract."""
        launch = files.read_launch(bundle)
        spec = replace(spec, resources=self._limited(spec.resources))
        container = ProcessContainer(spec, bundle, self._parts)
        self._containers[spec.id] = container
        try:
            self._renew(spec, bundle, launch)
            await self._take_up(container, bundle)
        except BaseException:
            self._forget(spec.id)
            container.let_go()
            raise
        return container

    def _renew(self, spec: Spec, bundle: Bundle, launch: Launch) -> None:
        """Since a reboot the run directory and the node's id are new ones: bring up to date what a start takes from ``launch.json``."""
        _name_seccomp_again(self._run_dir, launch)
        entry = self._entries.get(spec.id) or files.read_status(bundle)
        joined = self._parts.cgroups.membership(spec.id, spec.resources)
        renewed: Launch = {
            **launch,
            "cgroup2": joined.cgroup2,
            "cgroup2_mount": joined.cgroup2_mount,
            "cgroups": list(joined.cgroups),
        }
        if renewed != launch and (entry is None or entry.get("state") != "running"):
            files.replace_launch(bundle, renewed)

    async def _take_up(self, container: ProcessContainer, bundle: Bundle) -> None:
        """Find out what became of it, however often the keeper dies meanwhile."""
        while True:
            entry = self._entries.get(container.id) or files.read_status(bundle)
            try:
                await container.take_up(_checked(entry, bundle))
            except Unavailable:
                await self._parts.keeper_back.wait()
            else:
                return

    async def discard(self, bundle: Bundle) -> None:
        """See the contract."""
        self._plans.pop(bundle.id, None)
        container = self._containers.get(bundle.id)
        if container is not None:
            await container.destroy()
            return
        await self._parts.insist(lambda: self._kill_stray(bundle.id))
        await self._parts.release(bundle.id)
        if bundle.path.exists():
            for port, owner in self._parts.ports.ours().items():
                if owner == bundle.id:
                    self._parts.ports.unplug(port)
        await self._parts.remove_cgroups(bundle.id)
        files.clear(bundle)

    async def _kill_stray(self, container_id: str) -> None:
        """End what the keeper has of a container that nobody holds here."""
        entry = (await self._parts.keeper.call("list")).result["containers"].get(container_id)
        if entry is None or entry["state"] not in ("running", "restarting"):
            return
        try:
            pidfd = open_process(entry["pid"], entry["start_time"]) if entry["pid"] else -1
        except ProcessLookupError:
            pidfd = -1
        try:
            (await self._parts.call("stop", container_id, grace=0.0)).close()
            (await self._parts.call("signal", container_id, signal=9)).close()
        except WrongState:  # it ended meanwhile
            pass
        finally:
            if pidfd >= 0:
                await _ended(pidfd)

    async def audit(self, containers: Sequence[Container]) -> Sequence[Leftover]:
        """See the contract."""
        await self._parts.ports.settled()
        known = (await self._parts.keeper.call("list")).result["containers"]
        others = [one for one in self._containers.values() if one.kind is not Kind.PROCESS]
        return audit([*others, *(one for one in containers if isinstance(one, ProcessContainer) and one not in others)], self._parts, known)

    def _forget(self, container_id: str) -> None:
        self._containers.pop(container_id, None)
        self._entries.pop(container_id, None)


async def _ended(pidfd: int) -> None:
    """Wait until a process has ended; ``pidfd`` is owned."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(pidfd, done.set)
    try:
        async with asyncio.timeout(_KILL_SECONDS):
            await done.wait()
    except TimeoutError:
        return
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _rlimits() -> tuple[tuple[int, int, int], ...]:
    """No core dumps (a limit of 1 stops those through a pipe to a program of the node, too: core(5)), and the usual number of files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = _NOFILE_HARD if most == resource.RLIM_INFINITY else min(most, _NOFILE_HARD)
    return (resource.RLIMIT_CORE, 1, 1), (resource.RLIMIT_NOFILE, min(_NOFILE_SOFT, hard), hard)


def _name_seccomp_again(run_dir: Path, launch: Launch) -> None:
    """The run directory may be a new one since the container was made: its program must be there for the next start."""
    if launch["seccomp"] and not (run_dir / launch["seccomp"]).exists():
        sandbox.publish(run_dir, launch["caps"])


def _checked(entry: dict[str, Any] | None, bundle: Bundle) -> dict[str, Any] | None:
    """``entry``, if it is what a keeper writes."""
    wanted = {"state", "pid", "start_time", "started_at", "exit", "restarts", "log_bytes_lost", "stop_asked"}
    if entry is not None and not wanted <= entry.keys():
        raise CorruptState(f"status.json of container {bundle.id} cannot be understood", reason="CORRUPT_BUNDLE", container=bundle.id)
    return entry
