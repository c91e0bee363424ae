"""The client: one method per call of the API, requests unwrapped, failures raised as ``nestbed.errors``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from nestbed.client import address as addresses
from nestbed.client.agents import AgentCalls
from nestbed.client.experiments import ExperimentCalls
from nestbed.client.images import ImageCalls
from nestbed.client.session import Session
from nestbed.client.status import from_rpc
from nestbed.client.uploads import upload
from nestbed.errors import translated
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import lan_pb2, node_pb2, traffic_pb2
from nestbed.v1.agent_pb2_grpc import AgentServiceStub
from nestbed.v1.container_pb2_grpc import ContainerServiceStub
from nestbed.v1.experiment_pb2_grpc import ExperimentServiceStub
from nestbed.v1.image_pb2_grpc import ImageServiceStub
from nestbed.v1.lan_pb2_grpc import LanServiceStub
from nestbed.v1.node_pb2_grpc import NodeServiceStub

Response = TypeVar("Response")

CALL_SECONDS = 120.0
"""How long a call that should answer at once may take, unless ``connect`` is told otherwise."""
START_SECONDS = 600.0
"""The same for one that starts a container: a machine boots for minutes where machines are emulated in one another."""

_OPTIONS = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
    # A new client tries anew; gRPC would have it wait out what another one of this process met at the same address.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


class Client(AgentCalls, ExperimentCalls, ImageCalls):
    """A connection to one node. Containers are named by id, name or unique prefix of an id; LANs by id or name.

    Use it in one event loop, from any number of tasks. Every method raises ``nestbed.errors`` with reason and remedy: those of the
    node, Unavailable or PermissionDenied (reason NO_NODE) if it cannot be reached, Deadline if it does not answer in time.
    """

    def __init__(self, channel: aio.Channel, address: addresses.Address, *, call_seconds: float, resources: ExitStack) -> None:
        self._channel = channel
        self._address = address
        self._call_seconds = call_seconds
        self._start_seconds = START_SECONDS if call_seconds == CALL_SECONDS else call_seconds
        self._resources = resources
        self._agents = AgentServiceStub(channel)
        self._containers = ContainerServiceStub(channel)
        self._lans = LanServiceStub(channel)
        self._node = NodeServiceStub(channel)
        self._experiments = ExperimentServiceStub(channel)
        self._images = ImageServiceStub(channel)

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        tls_ca: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        call_seconds: float = CALL_SECONDS,
    ) -> Self:
        """A client of the node at ``unix:///PATH`` or ``tcp://HOST:PORT``; it connects with the first call. Needs a running loop.

        Raises:
            InvalidArgument: not an address, or TLS files are missing for TCP.
            NotFound, PermissionDenied: a TLS file cannot be read.
        """
        where = addresses.parse(address)
        with ExitStack() as resources:
            target = where.target(resources)
            if where.host:
                channel = aio.secure_channel(target, _credentials(tls_ca, tls_cert, tls_key), options=_OPTIONS)
            else:
                channel = aio.insecure_channel(target, options=_OPTIONS)
            return cls(channel, where, call_seconds=call_seconds, resources=resources.pop_all())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the connection and every call on it. Idempotent."""
        await self._channel.close(None)
        self._resources.close()

    # ------------------------------------------------------------ containers

    async def create_container(
        self, spec: api.ContainerSpec, *, request_id: str = "", start: bool = False, wait: bool = True
    ) -> api.Container:
        """Make a container, state CREATED. The same ``request_id`` and spec give the same container again.

        With ``start`` also run its program, in the same call; one that cannot be started is removed again. ``wait`` is as of
        :meth:`start_container`.
        """
        request = api.CreateContainerRequest(spec=spec, request_id=request_id, start=start, no_wait=not wait)
        return (await self._call(self._containers.CreateContainer, request, seconds=self._start_seconds)).container

    async def get_container(self, container: str) -> api.Container:
        """One container."""
        return (await self._call(self._containers.GetContainer, api.GetContainerRequest(container=container))).container

    async def list_containers(
        self,
        *,
        names: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        states: Iterable[api.ContainerState.ValueType] = (),
        unreachable: list[node_pb2.NodeFault] | None = None,
    ) -> list[api.Container]:
        """All containers that match (names are globs or prefixes of ids), oldest first, however many pages it takes; then those of the
        nodes inside virtual machines. Those nodes that could not be asked are added to ``unreachable``.
        """
        request = api.ListContainersRequest(page_size=1000, names=names, labels=labels or {}, states=states)
        found: list[api.Container] = []
        while True:
            page = await self._call(self._containers.ListContainers, request)
            found.extend(page.containers)
            if unreachable is not None:
                unreachable.extend(page.unreachable)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def start_container(self, container: str, *, wait: bool = True) -> api.Container:
        """Run its program; answers when it has been executed, or without ``wait`` as soon as a virtual machine boots."""
        request = api.StartContainerRequest(container=container, no_wait=not wait)
        return (await self._call(self._containers.StartContainer, request, seconds=self._start_seconds)).container

    async def stop_container(self, container: str, *, grace_seconds: float | None = None) -> api.Container:
        """Ask the program to end, and after the grace (10 s unless given) end it."""
        request = api.StopContainerRequest(container=container, grace=None if grace_seconds is None else _duration(grace_seconds))
        seconds = self._call_seconds + (10.0 if grace_seconds is None else grace_seconds)
        return (await self._call(self._containers.StopContainer, request, seconds=seconds)).container

    async def kill_container(self, container: str, *, signal: int = 0) -> None:
        """Send a signal (SIGKILL if 0) to its first process."""
        await self._call(self._containers.KillContainer, api.KillContainerRequest(container=container, signal=signal))

    async def pause_container(self, container: str) -> api.Container:
        """Freeze all its processes."""
        return (await self._call(self._containers.PauseContainer, api.PauseContainerRequest(container=container))).container

    async def resume_container(self, container: str) -> api.Container:
        """Thaw it."""
        return (await self._call(self._containers.ResumeContainer, api.ResumeContainerRequest(container=container))).container

    async def wait_container(self, container: str) -> api.ExitStatus:
        """Its exit status, when it has stopped for good. Waits without limit."""
        return (await self._call(self._containers.WaitContainer, api.WaitContainerRequest(container=container), seconds=None)).exit

    def exec(self, start: api.ExecStart) -> Session:
        """A session that runs a further program inside; open it with ``async with``."""
        return Session(cast("Any", self._containers.Exec)(), api.ExecRequest, start, self._address.diagnose)

    def attach(self, start: api.AttachStart) -> Session:
        """A session with the container's first program; with ``start.run`` the container is started, no output is missed."""
        return Session(cast("Any", self._containers.Attach)(), api.AttachRequest, start, self._address.diagnose)

    async def logs(
        self, container: str, *, follow: bool = False, since: float | None = None, tail: int | None = None
    ) -> AsyncGenerator[api.LogEntry, None]:
        """What the program wrote, from ``since`` (seconds since the epoch) on, the last ``tail`` lines, then new ones if ``follow``."""
        request = api.GetLogsRequest(container=container, follow=follow, since=None if since is None else _timestamp(since), tail=tail)
        async for response in self._stream(self._containers.GetLogs(request)):
            for entry in response.entries:
                yield entry

    async def stats(
        self, containers: Iterable[str] = (), *, interval_seconds: float | None = None
    ) -> AsyncGenerator[api.GetStatsResponse, None]:
        """Use of resources: once, or every ``interval_seconds``."""
        request = api.GetStatsRequest(containers=containers, interval=None if interval_seconds is None else _duration(interval_seconds))
        async for response in self._stream(self._containers.GetStats(request)):
            yield response

    async def update_container(
        self,
        container: str,
        *,
        resources: api.Resources | None = None,
        restart: api.RestartPolicy | None = None,
        name: str = "",
    ) -> api.Container:
        """Change limits, restart policy or name; what is not given stays."""
        request = api.UpdateContainerRequest(container=container, resources=resources, restart=restart, name=name)
        return (await self._call(self._containers.UpdateContainer, request)).container

    async def delete_container(self, container: str, *, force: bool = False) -> None:
        """Remove it and all it has; a running one only with ``force``."""
        await self._call(self._containers.DeleteContainer, api.DeleteContainerRequest(container=container, force=force))

    async def copy_from(self, container: str, path: str) -> AsyncGenerator[bytes, None]:
        """A tar archive of ``path`` inside, in pieces."""
        async for response in self._stream(self._containers.CopyFrom(api.CopyFromRequest(container=container, path=path))):
            yield response.data

    async def copy_to(self, container: str, path: str, chunks: AsyncIterable[bytes]) -> None:
        """Unpack the tar archive in ``chunks`` into the directory ``path`` inside."""
        call = cast("Any", self._containers.CopyTo)()
        await upload(call, api.CopyToRequest, api.CopyToStart(container=container, path=path), chunks, self._address.diagnose)

    # ------------------------------------------------------------ LANs

    async def create_lan(
        self,
        name: str,
        *,
        subnet: str = "",
        subnet6: str = "",
        mtu: int = 0,
        labels: Mapping[str, str] | None = None,
        group: str = "",
        peers: Iterable[str] = (),
        ttl: int = 0,
        local: bool = False,
        request_id: str = "",
    ) -> lan_pb2.Lan:
        """Make a LAN. The same ``request_id`` and content give the same LAN again."""
        request = lan_pb2.CreateLanRequest(
            name=name,
            subnet=subnet,
            subnet6=subnet6,
            mtu=mtu,
            labels=labels or {},
            group=group,
            peers=peers,
            ttl=ttl,
            local=local,
            request_id=request_id,
        )
        return (await self._call(self._lans.CreateLan, request)).lan

    async def get_lan(self, lan: str) -> lan_pb2.Lan:
        """One LAN and its members."""
        return (await self._call(self._lans.GetLan, lan_pb2.GetLanRequest(lan=lan))).lan

    async def list_lans(self, *, names: Iterable[str] = (), labels: Mapping[str, str] | None = None) -> list[lan_pb2.Lan]:
        """All LANs that match, oldest first, however many pages it takes."""
        request = lan_pb2.ListLansRequest(page_size=1000, names=names, labels=labels or {})
        found: list[lan_pb2.Lan] = []
        while True:
            page = await self._call(self._lans.ListLans, request)
            found.extend(page.lans)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def delete_lan(self, lan: str) -> None:
        """Remove a LAN that has no members."""
        await self._call(self._lans.DeleteLan, lan_pb2.DeleteLanRequest(lan=lan))

    async def connect_lan(self, container: str, nic: api.NicSpec) -> api.Nic:
        """Give a container, running or not, a NIC; ``nic.lan`` names the LAN."""
        return (await self._call(self._lans.ConnectLan, lan_pb2.ConnectLanRequest(container=container, nic=nic))).nic

    async def disconnect_lan(self, container: str, lan: str, *, nic: str = "") -> None:
        """Take the container's NICs on the LAN away, or the one named ``nic``."""
        await self._call(self._lans.DisconnectLan, lan_pb2.DisconnectLanRequest(container=container, lan=lan, nic=nic))

    async def set_link(self, lan: str = "", *, container: str = "", nic: str = "", up: bool) -> list[lan_pb2.LanMember]:
        """Plug cables in or out: of all NICs on the LAN, those that join later too; of a container's on it; or of all a container has."""
        request = lan_pb2.SetLinkRequest(lan=lan, container=container, nic=nic, up=up)
        return list((await self._call(self._lans.SetLink, request)).members)

    async def set_impairment(
        self,
        lan: str,
        impairment: traffic_pb2.Impairment,
        *,
        container: str = "",
        nic: str = "",
        direction: lan_pb2.Direction.ValueType = lan_pb2.DIRECTION_BOTH,
    ) -> lan_pb2.LanImpairment:
        """Change what is done to frames: on the LAN as a whole, or at the container's ports on it. Absent fields keep what was."""
        request = lan_pb2.SetImpairmentRequest(lan=lan, container=container, nic=nic, direction=direction, impairment=impairment)
        return (await self._call(self._lans.SetImpairment, request)).impairment

    async def reset_impairment(
        self, lan: str, *, container: str = "", nic: str = "", direction: lan_pb2.Direction.ValueType = lan_pb2.DIRECTION_BOTH
    ) -> lan_pb2.LanImpairment:
        """Take off what is done to frames: at the container's ports on the LAN, or everywhere on it."""
        request = lan_pb2.ResetImpairmentRequest(lan=lan, container=container, nic=nic, direction=direction)
        return (await self._call(self._lans.ResetImpairment, request)).impairment

    async def impairments(self, lan: str = "", *, container: str = "", nic: str = "") -> list[lan_pb2.LanImpairment]:
        """What is done to frames and what came of it, on one LAN or all."""
        request = lan_pb2.ListImpairmentsRequest(lan=lan, container=container, nic=nic)
        return list((await self._call(self._lans.ListImpairments, request)).impairments)

    async def lan_stats(
        self, lans: Iterable[str] = (), *, interval_seconds: float | None = None
    ) -> AsyncGenerator[lan_pb2.WatchLanStatsResponse, None]:
        """Counters of LANs (ids, names, globs; all without any): once, or every ``interval_seconds``."""
        request = lan_pb2.WatchLanStatsRequest(lans=lans, interval=None if interval_seconds is None else _duration(interval_seconds))
        async for response in self._stream(self._lans.WatchLanStats(request)):
            yield response

    async def capture(self, request: lan_pb2.CaptureRequest) -> AsyncGenerator[bytes, None]:
        """A pcapng file of the frames on a LAN or at a container's NIC, in pieces as they come."""
        async for response in self._stream(self._lans.Capture(request)):
            yield response.data

    # ------------------------------------------------------------ node

    async def info(self, *, with_abilities: bool = True, node: str = "") -> node_pb2.NodeInfo:
        """What the node, or the one inside the virtual machine ``node``, is and what its kernel can do; some of the latter takes seconds
        to find out.
        """
        return (await self._call(self._node.GetInfo, node_pb2.GetInfoRequest(no_abilities=not with_abilities, node=node))).info

    async def nodes(self) -> list[node_pb2.NodeEntry]:
        """The node and those inside its virtual machines, to any depth, each before those inside it."""
        return list((await self._call(self._node.ListNodes, node_pb2.ListNodesRequest())).nodes)

    async def events(
        self, *, after_sequence: int = 0, types: Sequence[str] = (), history: bool = False
    ) -> AsyncGenerator[node_pb2.WatchEventsResponse, None]:
        """What happens, from now or from an event on. Ends only by an error or when the reader stops."""
        request = node_pb2.WatchEventsRequest(after_sequence=after_sequence, types=types, history=history)
        async for response in self._stream(self._node.WatchEvents(request)):
            yield response

    async def audit(self, *, node: str = "") -> node_pb2.AuditResponse:
        """Differences between the records and the kernel of the node and those inside it; only of one inside with ``node``."""
        return await self._call(self._node.Audit, node_pb2.AuditRequest(node=node))

    async def metrics(self, *, node: str = "") -> str:
        """The counters of the node, or one inside, its containers and LANs in Prometheus' text format."""
        return (await self._call(self._node.GetMetrics, node_pb2.GetMetricsRequest(node=node))).text

    # ------------------------------------------------------------ calling

    async def _call(self, method: Callable[..., Awaitable[Response]], request: object, *, seconds: float | None = -1.0) -> Response:
        """One answer; ``seconds`` None waits without limit, negative as long as the client's calls may take."""
        try:
            return await method(request, timeout=self._call_seconds if seconds is not None and seconds < 0 else seconds)
        except aio.AioRpcError as error:
            raise await from_rpc(error, self._address.diagnose) from error

    async def _stream(self, call: aio.UnaryStreamCall[Any, Response]) -> AsyncGenerator[Response, None]:
        """The answers of a streaming call; it is cancelled when the reader stops."""
        try:
            async for response in call:
                yield response
        except aio.AioRpcError as error:
            raise await from_rpc(error, self._address.diagnose) from error
        finally:
            call.cancel()


def _credentials(ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials:
    if ca is None or cert is None or key is None:
        raise addresses.needs_tls()
    with translated("reading the TLS files"):
        return grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), cert.read_bytes())


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _timestamp(at: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(at * 1e9))
    return stamp
