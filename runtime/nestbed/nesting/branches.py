"""The nodes inside this node's virtual machines, as it reaches them: a connection for each role, and one that follows what happens there.

What happens on a node inside is told by this node as its own, with paths for names, so whoever watches the outermost node sees all
of them. What is known of a node inside is only what it said; while it does not answer, others are served as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc import aio

from nestbed.client.status import from_rpc
from nestbed.errors import NestbedError, NotFound, Unavailable, WrongState, shown
from nestbed.lanmodel import Nic
from nestbed.log import fields
from nestbed.model import NestedNode
from nestbed.nesting.naming import joined, outside
from nestbed.node.authority import server_name
from nestbed.node.node import Node
from nestbed.v1 import container_pb2, node_pb2
from nestbed.v1.container_pb2_grpc import ContainerServiceStub
from nestbed.v1.node_pb2_grpc import NodeServiceStub

ASK_SECONDS = 5.0
"""How long a node inside may take to answer what is asked of all nodes."""

_BOOT_SECONDS = 1200.0
_SILENT_SECONDS = 1.0
_RETRY_SECONDS = 0.5
_LOOK_SECONDS = 0.1
_OWN_SECONDS = 30.0
_FOLLOWER = "viewer"
_NAMES = ("container",)
_IDS = ("container_id",)
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

_logger = logging.getLogger(__name__)


OnReady = Callable[["Branch"], Awaitable[None]]


class Phase(enum.Enum):
    """How a node inside is; the values are what people are told."""

    STOPPED = "its virtual machine does not run"
    BOOTING = "it has not answered yet"
    READY = "it answers"
    SILENT = "it does not answer any more"


class Branch:
    """One node inside. ``find`` gives what the node outside knows of its machine now."""

    def __init__(self, node: Node, machine: NestedNode, on_ready: OnReady) -> None:
        """``on_ready`` is awaited whenever it begins to answer, before anybody else calls it."""
        self.id = machine.id
        self.machine = machine
        self.phase = Phase.STOPPED
        self._node = node
        self._address = ""
        self._channels: dict[str, aio.Channel] = {}
        self._contents: dict[str, str] = {}
        self._on_ready = on_ready
        self._unseen: set[str] = set()
        self._looking: asyncio.Task[None] | None = None
        self._making = 0
        self._last_event = 0
        self._life = 0.0
        self._run = 0.0
        self._news = asyncio.Event()
        self._settled = asyncio.Event()
        self._task = asyncio.create_task(self._follow(), name=f"branch-{machine.id}")

    @property
    def name(self) -> str:
        """The machine's name now."""
        return self.machine.name

    @property
    def is_ready(self) -> bool:
        """Whether it answers."""
        return self.phase is Phase.READY

    def look_again(self, machine: NestedNode) -> None:
        """Something happened to the machine."""
        before, self.machine = self.machine, machine
        if machine.name != before.name:
            self._node.elsewhere.show(self.id)
        self._news.set()

    async def aclose(self) -> None:
        """Let go of it; it runs on."""
        tasks = [task for task in (self._task, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._disconnect()

    async def gone(self) -> None:
        """Its machine is no more."""
        await self.aclose()
        self._lose()
        self._node.elsewhere.forget(self.id)

    # ---- calling it

    async def ready(self) -> None:
        """Return once it answers; one that boots is waited for.

        Raises:
            WrongState: its machine does not run (reason NODE_STOPPED). Unavailable: it does not answer (NODE_SILENT).
        """
        if self.phase is Phase.STOPPED and self.machine.is_running:
            self.phase = Phase.BOOTING
        seconds = _BOOT_SECONDS if self.phase is Phase.BOOTING else _SILENT_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.phase in (Phase.BOOTING, Phase.SILENT):
                    self._settled.clear()
                    await self._settled.wait()
        if self.phase is Phase.STOPPED:
            raise WrongState(
                f"node {self.name} does not run",
                reason="NODE_STOPPED",
                remedy=f"start its virtual machine: nbctl start {self.name}",
                node=self.name,
            )
        if self.phase is not Phase.READY:
            raise self.silent()

    def silent(self) -> NestbedError:
        """The error for one that does not answer."""
        return Unavailable(
            f"node {self.name} does not answer",
            reason="NODE_SILENT",
            remedy=f"see its console, and whether it boots: nbctl node ls; else restart its virtual machine {self.name}",
            node=self.name,
        )

    def channel(self, role: str) -> aio.Channel:
        """A connection on which calls have ``role``; of this object."""
        found = self._channels.get(role)
        if found is None:
            authority, name = self._node.authority, server_name(self.id)
            pair = authority.caller(role)
            credentials = grpc.ssl_channel_credentials(authority.certificate(), pair.key, pair.cert)
            options = [*_OPTIONS, ("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
            found = self._channels[role] = aio.secure_channel(f"dns:///{self._address}", credentials, options=options)
        return found

    async def ask(self, path: str, request: Any, role: str) -> Any:
        """The answer to one request that is about that node alone; names in it are as that node gives them.

        Raises:
            what it says. Unavailable: it says nothing.
        """
        method: Any = descriptor_pool.Default().FindMethodByName(path.strip("/").replace("/", "."))
        response = message_factory.GetMessageClass(method.output_type)
        call = self.channel(role).unary_unary(path, request_serializer=_serialized, response_deserializer=response.FromString)
        try:
            return await call(request, timeout=_OWN_SECONDS)
        except aio.AioRpcError as error:
            told = await from_rpc(error, self.silent)
            raise told if told.reason == "NODE_SILENT" else outside(told, self.name) from error

    # ---- what is on it

    @contextlib.contextmanager
    def making(self) -> Iterator[Callable[[Any], None]]:
        """A container is being made there by this node; what is given is told the answer, so that nobody need ask for it."""
        self._making += 1

        def made(answer: Any) -> None:
            self._unseen.discard(answer.container.id)

        try:
            yield made
        finally:
            self._making -= 1
            if self._unseen:
                self._look()

    def look_at(self, container: str) -> None:
        """A container there has other NICs than before, or is new: find out soon."""
        self._unseen.add(container)
        if not self._making:
            self._look()

    def _look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._see())

    async def _see(self) -> None:
        await asyncio.sleep(_LOOK_SECONDS)
        while self._unseen and not self._making:
            request = container_pb2.GetContainerRequest(container=self._unseen.pop())
            try:
                container = (await ContainerServiceStub(self.channel(_FOLLOWER)).GetContainer(request, timeout=ASK_SECONDS)).container
            except aio.AioRpcError:  # it went meanwhile, or the node is silent: it tells all again
                continue
            self._node.elsewhere.settle(self.id, container.name, container.id, [nic_of(nic) for nic in container.nics])

    # ---- following it

    async def _follow(self) -> None:
        while True:
            self._news.clear()
            machine = self.machine
            if machine.started_at != self._run or not machine.is_running:
                self._lose()
                if self._run or not machine.is_running:  # else it runs on from before this daemon
                    self._node.elsewhere.forget(self.id)
                self._run = machine.started_at
                self._enter(Phase.BOOTING if machine.is_running else Phase.STOPPED)
            if machine.is_running and machine.address:
                if machine.address != self._address:
                    await self._disconnect()
                    self._address = machine.address
                if await self._is_open():
                    await self._listen()
            seconds = _RETRY_SECONDS if machine.is_running else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._news.wait()

    async def _is_open(self) -> bool:
        """Whether anybody listens there: to find that out by a call costs more than an emulated node has to spare."""
        host, _, port = self._address.rpartition(":")
        with socket.socket() as knocking:
            knocking.setblocking(False)
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    await asyncio.get_running_loop().sock_connect(knocking, (host, int(port)))
            except OSError:  # which a timeout is, too
                return False
        return True

    async def _listen(self) -> None:
        """Follow it as long as it answers and its machine runs on."""
        telling = asyncio.create_task(self._tell())
        news = asyncio.create_task(self._news.wait())
        try:
            while True:
                await asyncio.wait((telling, news), return_when=asyncio.FIRST_COMPLETED)
                if telling.done() or not self.machine.is_running or self.machine.started_at != self._run:
                    break
                self._news.clear()
                news = asyncio.create_task(self._news.wait())
        finally:
            for task in (telling, news):
                task.cancel()
            results = await asyncio.gather(telling, news, return_exceptions=True)
        if isinstance(results[0], Exception) and not isinstance(results[0], NestbedError):
            _logger.error("node inside not followed", exc_info=results[0], extra=fields(container=self.id))
        if self.phase is Phase.READY:
            _logger.warning("node inside is silent", extra=fields(container=self.id, cause=str(results[0])))
            self._enter(Phase.SILENT)

    async def _tell(self) -> None:
        try:
            channel = self.channel(_FOLLOWER)
            asked = NodeServiceStub(channel).GetInfo(node_pb2.GetInfoRequest(no_abilities=True), timeout=ASK_SECONDS)
            info = (await asked).info
            life = info.start_time.ToNanoseconds() / 1e9
            is_new = life != self._life
            if not self._life:
                self._last_event = info.last_event
            elif is_new:
                self._last_event = 0
            self._life = life
            await self._list(channel)
            await self._on_ready(self)
            if self.phase is not Phase.READY:
                self._node.publish("node.ready", self.id, self.name, version=info.version)
                self._enter(Phase.READY)
            request = node_pb2.WatchEventsRequest(after_sequence=self._last_event, history=True)
            async for response in NodeServiceStub(channel).WatchEvents(request):
                self._happened(response.event)
        except aio.AioRpcError as error:
            raise await from_rpc(error, self.silent) from error

    async def _list(self, channel: aio.Channel) -> None:
        """Find out what is on it, to tell of its loss."""
        found: list[Any] = []
        request = container_pb2.ListContainersRequest(page_size=1000)
        while True:
            page = await ContainerServiceStub(channel).ListContainers(request, timeout=ASK_SECONDS)
            found += page.containers
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        self._contents = {container.id: container.name for container in found}
        self._node.elsewhere.reconcile(self.id, ((one.id, one.name, [nic_of(nic) for nic in one.nics]) for one in found))

    def _happened(self, event: Any) -> None:
        self._last_event = event.sequence
        if event.type in ("container.created", "container.renamed"):
            self._contents[event.id] = event.name
            self.look_at(event.id)
        elif event.type in ("container.deleted", "container.lost"):
            self._contents.pop(event.id, None)
            self._unseen.discard(event.id)
            self._node.elsewhere.drop(self.id, event.id)
        elif event.type in ("lan.connected", "lan.disconnected"):
            self.look_at(event.attributes["container_id"])
        attributes: dict[str, object] = dict(event.attributes)
        attributes.update({key: joined(self.name, event.attributes[key]) for key in _NAMES if event.attributes.get(key)})
        attributes.update({key: joined(self.id, event.attributes[key]) for key in _IDS if event.attributes.get(key)})
        self._node.publish(event.type, joined(self.id, event.id), joined(self.name, event.name), **attributes)

    def _lose(self) -> None:
        """All that was on it is gone."""
        contents, self._contents = self._contents, {}
        self._life = 0.0
        for container_id, name in contents.items():
            cause = f"the virtual machine {self.name} ended"
            self._node.publish("container.lost", joined(self.id, container_id), joined(self.name, name), cause=cause)

    def _enter(self, phase: Phase) -> None:
        if phase is Phase.SILENT:
            self._node.publish("node.silent", self.id, self.name)
        self.phase = phase
        self._settled.set()

    async def _disconnect(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close(None)


def nic_of(nic: Any) -> Nic:
    """A NIC that a node inside told of."""
    return Nic(nic.lan, "", nic.name, nic.mac, tuple(nic.addresses), nic.mtu, "", "")


def _serialized(request: Any) -> bytes:
    return bytes(request.SerializeToString())


async def _nobody(_: Branch) -> None:
    """Nobody wants to know."""


class Branches:
    """All of them. ``open`` before use; in the event loop of the node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._branches: dict[str, Branch] = {}
        self._on_ready: OnReady = _nobody
        self._leaving: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Follow the nodes that there are, and those that come."""
        self._sync()
        self._task = asyncio.create_task(self._watch(), name="branches")

    def when_ready(self, listener: OnReady) -> None:
        """Await ``listener`` whenever a node begins to answer, before anybody else calls it. Before :meth:`open`."""
        self._on_ready = listener

    async def aclose(self) -> None:
        """Let go of all. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, *self._leaving, return_exceptions=True)
        for branch in self._branches.values():
            await branch.aclose()
        self._branches.clear()

    def all(self) -> list[Branch]:
        """As the node has them, oldest first."""
        self._sync()
        return [self._branches[machine.id] for machine in self._node.nested()]

    async def reach(self, ref: str) -> Branch:
        """The node inside a machine, once it answers.

        Raises:
            as ``Node.find_nested`` and ``Branch.ready``.
        """
        try:
            machine = self._node.find_nested(ref)
        except NotFound as error:
            raise _no_node(ref) from error
        branch = self._branches.get(machine.id)
        if branch is None or branch.machine != machine:
            self._sync()
            branch = self._branches.get(machine.id)
        if branch is None:
            raise _no_node(machine.name)
        await branch.ready()
        return branch

    async def _watch(self) -> None:
        async for event, lost in self._node.watch(types=("container.*",)):
            # To look at all containers for each one that comes would make the thousandth slow.
            if lost or event.id in self._branches or self._node.has_nested(event.id):
                self._sync()

    def _sync(self) -> None:
        """Have a branch for each node, and tell those whose machine changed."""
        machines = {machine.id: machine for machine in self._node.nested()}
        for branch_id in self._branches.keys() - machines.keys():
            leaving = asyncio.create_task(self._branches.pop(branch_id).gone())
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
        for machine in machines.values():
            branch = self._branches.get(machine.id)
            if branch is None:
                self._branches[machine.id] = Branch(self._node, machine, self._on_ready)
            elif branch.machine != machine:
                branch.look_again(machine)


def _no_node(name: str) -> NotFound:
    return NotFound(
        f"there is no node {shown(name)}",
        reason="NODE_NOT_FOUND",
        remedy="see `nbctl node ls`; what stands before a / is a node's name, and no name has a / of its own",
        node=shown(name),
    )
