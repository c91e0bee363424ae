"""gRPC's servers: one per role behind the node's unix sockets, one for all TCP addresses."""

from __future__ import annotations

import asyncio
import errno
import grp
import logging
import os
import resource
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from nestbed.errors import AlreadyExists, InvalidArgument, NestbedError, translated
from nestbed.experiment.experiments import Experiments
from nestbed.experiment.fleet import connector
from nestbed.linux import mount
from nestbed.log import fields
from nestbed.nesting.branches import Branches
from nestbed.nesting.forward import Forward
from nestbed.node.node import Node
from nestbed.service.admission import Admission
from nestbed.service.agents import Agents
from nestbed.service.authorize import Role
from nestbed.service.containers import Containers
from nestbed.service.experiments import ExperimentCalls
from nestbed.service.extension import Extensions
from nestbed.service.gate import Gate, connections_max
from nestbed.service.health import Health
from nestbed.service.identity import Identify, behind_gate, by_certificate
from nestbed.service.images import ImageCalls
from nestbed.service.interceptor import Guard
from nestbed.service.lans import Lans
from nestbed.service.node import NodeInformation
from nestbed.v1 import agent_pb2_grpc, container_pb2_grpc, experiment_pb2_grpc, image_pb2_grpc, lan_pb2_grpc, node_pb2_grpc

logger = logging.getLogger(__name__)

SERVICES = tuple(f"nestbed.v1.{noun}Service" for noun in ("Agent", "Container", "Experiment", "Image", "Lan", "Node"))
HEALTH_SERVICE = "grpc.health.v1.Health"

ADMIN_SOCKET = "admin.sock"
OPERATOR_SOCKET = "nestbed.sock"
OPERATOR_GROUP = "nestbed"

STOP_SECONDS = 10.0
"""How long short calls may take to end when the daemon stops."""

_PENDING = 65_536
_OPTIONS: Sequence[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_metadata_size", 16 * 1024),
    # gRPC drops calls at random beyond these (1000 and 3000 unless set); admission answers long before.
    ("grpc.server.max_pending_requests", _PENDING),
    ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING),
    ("grpc.max_concurrent_streams", _PENDING // 4),
    # A second daemon on the same port must fail, not share it.
    ("grpc.so_reuseport", 0),
    # A TCP peer whose machine vanished is noticed within a minute; clients may ask as often.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
]


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for mutual TLS, PEM."""

    cert: Path
    key: Path
    client_ca: Path


@dataclass(frozen=True, slots=True)
class Listen:
    """A TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _CallersGone(logging.Filter):
    """Keeps out what gRPC logs, with a traceback, when a caller has gone before its answer: that is no fault of anybody's."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], aio.InternalError))


_CALLERS_GONE = _CallersGone()


class Server:
    """One grpc.aio server of the node with its own admission; every caller is told apart by ``identify``."""

    def __init__(
        self,
        node: Node,
        forward: Forward,
        identify: Identify,
        experiments: Experiments,
        *,
        has_reflection: bool,
        admission: Admission | None = None,
    ) -> None:
        logging.getLogger("grpc._cython.cygrpc").addFilter(_CALLERS_GONE)
        self._guard = Guard(identify, admission or Admission(), forward)
        self._health = Health(SERVICES)
        self.grpc: Any = aio.server(interceptors=(self._guard,), options=_OPTIONS)
        agent_pb2_grpc.add_AgentServiceServicer_to_server(Agents(node, forward, experiments), self.grpc)
        container_pb2_grpc.add_ContainerServiceServicer_to_server(Containers(node, forward), self.grpc)
        experiment_pb2_grpc.add_ExperimentServiceServicer_to_server(ExperimentCalls(experiments), self.grpc)
        image_pb2_grpc.add_ImageServiceServicer_to_server(ImageCalls(node), self.grpc)
        lan_pb2_grpc.add_LanServiceServicer_to_server(Lans(node, forward), self.grpc)
        node_pb2_grpc.add_NodeServiceServicer_to_server(NodeInformation(node, forward), self.grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        if has_reflection:
            reflection.enable_server_reflection((*SERVICES, HEALTH_SERVICE, reflection.SERVICE_NAME), self.grpc)

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End streams and waits at once, let short calls end within ``seconds``, then cancel those, too."""
        self._health.stop()
        self._guard.drain()
        await self.grpc.stop(seconds)


@asynccontextmanager
async def serving(node: Node, run_dir: Path, *, listen: Sequence[Listen] = (), tls: Tls | None = None) -> AsyncIterator[tuple[str, ...]]:
    """The node's API at its two sockets in ``run_dir`` and at the TCP addresses, while the block runs; gives the addresses.

    The caller holds the run directory's lock. When the block ends, no new callers come in, short calls end, long ones are ended.

    Raises:
        InvalidArgument: TCP without TLS. AlreadyExists: a port is taken. NestbedError: as the system says.
    """
    async with AsyncExitStack() as stack:
        inner = _inner_folder()
        stack.callback(os.close, inner)
        gates: list[Gate] = []
        servers: list[Server] = []
        experiments = experiments_of(node, run_dir, tls)
        branches = Branches(node)
        extensions = Extensions(node, branches)
        forward = Forward(branches, extensions.around)
        stack.push_async_callback(branches.aclose)
        stack.push_async_callback(extensions.aclose)
        stack.callback(_close, gates)
        stack.push_async_callback(_stop, servers)
        stack.callback(_shut, gates)
        connections = connections_max(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        for door in (_Door(ADMIN_SOCKET, Role.ADMIN, 0o600, 0), _Door(OPERATOR_SOCKET, Role.OPERATOR, 0o660, _operator_group())):
            server = Server(node, forward, behind_gate(door.role), experiments, has_reflection=door.role is not Role.ADMIN)
            server.grpc.add_insecure_port(f"unix:/proc/self/fd/{inner}/{door.role.label}")
            servers.append(server)
            gates.append(
                Gate(
                    run_dir / door.name,
                    mode=door.mode,
                    gid=door.gid,
                    inner=f"/proc/self/fd/{inner}",
                    inner_name=door.role.label,
                    connections_max=connections,
                )
            )
        addresses = [f"unix://{run_dir / ADMIN_SOCKET}", f"unix://{run_dir / OPERATOR_SOCKET}"]
        if listen:
            servers.append(Server(node, forward, by_certificate, experiments, has_reflection=True))
            addresses += _bind_tcp(servers[-1], listen, tls)
        for server in servers:
            await server.grpc.start()
        extensions.open()
        branches.open()
        for gate in gates:  # last: whoever connects is served
            gate.open()
        stack.push_async_callback(experiments.aclose)
        experiments.open()
        yield tuple(addresses)


def experiments_of(node: Node, run_dir: Path, tls: Tls | None = None) -> Experiments:
    """The node's experiments, which call it and other nodes as anybody does."""
    own = connector(
        admin=f"unix://{run_dir / ADMIN_SOCKET}",
        operator=f"unix://{run_dir / OPERATOR_SOCKET}",
        tls=None if tls is None else (tls.client_ca, tls.cert, tls.key),
    )
    return Experiments(node.state_dir / "experiments", own, node.publish)


@dataclass(frozen=True, slots=True)
class _Door:
    name: str
    role: Role
    mode: int
    gid: int


def _shut(gates: Sequence[Gate]) -> None:
    for gate in gates:
        gate.shut()


def _close(gates: Sequence[Gate]) -> None:
    for gate in gates:
        gate.close()


async def _stop(servers: Sequence[Server]) -> None:
    await asyncio.gather(*(server.stop() for server in servers))


def _inner_folder() -> int:
    """A folder for gRPC's own sockets that has no path: in a file system that is mounted nowhere, reached through a descriptor."""
    attributes = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC
    with translated("making the folder of gRPC's sockets"):
        return mount.fsmount("tmpfs", (("mode", "0700"), ("size", "1m"), ("nr_inodes", "1k")), attributes)


def _operator_group() -> int:
    try:
        return grp.getgrnam(OPERATOR_GROUP).gr_gid
    except KeyError:
        logger.info("there is no such group, so only root reaches the operator's socket", extra=fields(group=OPERATOR_GROUP))
        return 0


def _bind_tcp(server: Server, listen: Sequence[Listen], tls: Tls | None) -> list[str]:
    if tls is None:
        raise InvalidArgument(
            "a TCP address is served with mutual TLS only",
            reason="TLS_REQUIRED",
            remedy="give --tls-cert, --tls-key and --tls-client-ca, or no --listen",
        )
    with translated("reading the TLS files"):
        pair = (tls.key.read_bytes(), tls.cert.read_bytes())
        authority = tls.client_ca.read_bytes()
    credentials = grpc.ssl_server_credentials([pair], root_certificates=authority, require_client_auth=True)
    return [f"tcp://{Listen(where.host, _bind(server, where, credentials))}" for where in listen]


def _bind(server: Server, where: Listen, credentials: grpc.ServerCredentials) -> int:
    """Bind and tell the port. gRPC says only that it could not, so the kernel is asked before, and the TLS files are to blame after."""
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise _unbindable(where, error) from error
    try:
        return int(server.grpc.add_secure_port(str(where), credentials))
    except RuntimeError as error:
        raise InvalidArgument(
            f"gRPC cannot serve TLS at {where}",
            reason="BAD_TLS",
            remedy="check that the certificate, its key and the CA are PEM files that belong together",
            address=where,
        ) from error


def _unbindable(where: Listen, error: OSError) -> NestbedError:
    if error.errno == errno.EADDRINUSE:
        return AlreadyExists(
            f"another program listens at {where}", reason="PORT_IN_USE", remedy="stop it, or listen at another port", address=where
        )
    cause = error.strerror or os.strerror(error.errno or 0)
    return InvalidArgument(
        f"cannot listen at {where}: {cause}", reason="BAD_ADDRESS", remedy="give an address of this machine", address=where
    )
