"""A node that is a dictionary, and nbctl to talk to it."""

# ruff: noqa: N802 - the API names a servicer's methods

from __future__ import annotations

import io
import os
import queue
import secrets
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from nbctl.__main__ import run
from nestbed.errors import InvalidArgument, NestbedError, NotFound, WrongState
from nestbed.service.status import refusal
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import container_pb2_grpc, image_pb2, image_pb2_grpc, lan_pb2, lan_pb2_grpc, node_pb2, node_pb2_grpc

Reply = Callable[..., Any]


def refused(context: grpc.ServicerContext, error: NestbedError) -> Any:
    ended = refusal(error)
    context.set_trailing_metadata(ended.trailer)
    context.abort(ended.code, ended.message)


class Node:
    """What the fake node has and was asked for."""

    def __init__(self) -> None:
        self.containers: dict[str, api.Container] = {}
        self.lans: dict[str, lan_pb2.Lan] = {}
        self.images: dict[str, image_pb2.Image] = {}
        self.leftovers: list[node_pb2.Leftover] = []
        self.calls: list[Any] = []
        self.files = b""
        self.log: list[api.LogEntry] = []
        self.signals: queue.Queue[int] = queue.Queue()
        self.together: threading.Barrier | None = None
        """Deletions wait here for each other, if it is set."""
        self.busy = 0
        self.most_busy = 0
        self.lock = threading.Lock()
        self.impairment = lan_pb2.LanImpairment()
        self.lan_stats: list[lan_pb2.LanStats] = []
        self.frames: list[bytes] = []
        self.ended = threading.Event()
        """Set when the reader of a capture has gone."""
        self.unreachable: list[node_pb2.NodeFault] = []
        self.ready = threading.Event()
        """Set when a stream of measurements has begun to wait."""

    def add(self, name: str, *, state: api.ContainerState = api.CONTAINER_STATE_RUNNING, **fields: Any) -> api.Container:
        made = api.Container(id=secrets.token_hex(6), name=name, state=state, **fields)
        made.spec.kind = api.CONTAINER_KIND_PROCESS
        made.create_time.GetCurrentTime()
        self.containers[made.id] = made
        return made

    def find(self, ref: str, context: grpc.ServicerContext) -> api.Container:
        for container in list(self.containers.values()):
            if ref in {container.id, container.name}:
                return container
        raise refused(context, NotFound(f"there is no container {ref}", reason="CONTAINER_NOT_FOUND", remedy="see `nbctl ps -a`"))


def program_error(args: list[str]) -> NestbedError | None:
    if args[0] == "missing":
        return NotFound("there is no program missing", reason="PROGRAM_NOT_FOUND", remedy="check the name")
    if args[0] == "notexec":
        return InvalidArgument("notexec cannot be executed", reason="NOT_EXECUTABLE", remedy="check its mode")
    return WrongState("something else failed", remedy="try again") if args[0] == "fails" else None


Program = Callable[[Node, list[str], Iterator[Any], Reply], Iterator[Any]]


def ended(reply: Reply, **status: Any) -> Any:
    return reply(exit=api.ExitStatus(**status))


def say(node: Node, args: list[str], requests: Iterator[Any], reply: Reply) -> Iterator[Any]:
    yield reply(stdout=args[0].encode())
    yield reply(stderr=args[1].encode())
    yield ended(reply, code=0)


def write_bytes(node: Node, args: list[str], requests: Iterator[Any], reply: Reply) -> Iterator[Any]:
    for at in range(0, int(args[0]), 1 << 16):
        yield reply(stdout=bytes(range(256)) * (min(1 << 16, int(args[0]) - at) // 256))
    yield ended(reply, code=0)


def cat(node: Node, args: list[str], requests: Iterator[Any], reply: Reply) -> Iterator[Any]:
    for request in requests:
        if request.WhichOneof("input") == "stdin_eof":
            break
        yield reply(stdout=request.stdin)
    yield ended(reply, code=0)


def sizes(node: Node, args: list[str], requests: Iterator[Any], reply: Reply) -> Iterator[Any]:
    """Write each new size of the terminal, end at the key q."""
    yield reply(stdout=b"ready\r\n")
    for request in requests:
        if request.WhichOneof("input") == "resize":
            yield reply(stdout=f"{request.resize.rows}x{request.resize.columns}\r\n".encode())
        if request.stdin.endswith(b"q"):
            break
    yield ended(reply, code=0)


def wait(node: Node, args: list[str], requests: Iterator[Any], reply: Reply) -> Iterator[Any]:
    """Wait for a signal and die of it; with an argument, of SIGKILL only."""
    yield reply(stdout=b"ready\n")
    while True:
        number = node.signals.get(timeout=20)
        yield reply(stdout=f"{number}\n".encode())
        if not args or number == 9:
            yield ended(reply, signal=number, reason="signaled", shell_code=128 + number)
            return


PROGRAMS: dict[str, Program] = {
    "say": say,
    "bytes": write_bytes,
    "cat": cat,
    "sizes": sizes,
    "wait": wait,
    "exit": lambda node, args, requests, reply: iter([ended(reply, code=int(args[0]), shell_code=int(args[0]))]),
    "unknown": lambda node, args, requests, reply: iter([ended(reply, reason="unknown", message="the keeper died", shell_code=255)]),
    "vanish": lambda node, args, requests, reply: iter([]),
}


def play(node: Node, args: Sequence[str], requests: Iterator[Any], reply: Reply) -> Iterator[Any]:
    yield reply(started=True)
    yield from PROGRAMS[args[0]](node, list(args[1:]), requests, reply)


class Containers(container_pb2_grpc.ContainerServiceServicer):
    def __init__(self, node: Node) -> None:
        self.node = node

    def CreateContainer(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        if request.spec.name == "taken":
            refused(context, InvalidArgument("the name is taken", remedy="choose another"))
        if request.start and (error := program_error([*request.spec.process.args, ""])):
            refused(context, error)
        state = api.CONTAINER_STATE_RUNNING if request.start else api.CONTAINER_STATE_CREATED
        made = self.node.add(request.spec.name or "made-up", state=state)
        made.spec.CopyFrom(request.spec)
        return api.CreateContainerResponse(container=made)

    def GetContainer(self, request: Any, context: Any) -> Any:
        return api.GetContainerResponse(container=self.node.find(request.container, context))

    def ListContainers(self, request: Any, context: Any) -> Any:
        found = [item for item in self.node.containers.values() if all(item.spec.labels.get(k) == v for k, v in request.labels.items())]
        at = int(request.page_token or 0)
        end = at + (request.page_size or 500)
        token = str(end) if end < len(found) else ""
        return api.ListContainersResponse(containers=found[at:end], next_page_token=token, unreachable=self.node.unreachable)

    def _change(self, request: Any, context: Any, state: api.ContainerState, response: Reply) -> Any:
        self.node.calls.append(request)
        container = self.node.find(request.container, context)
        if error := program_error([*container.spec.process.args, ""]):
            refused(context, error)
        container.state = state
        return response(container=container)

    def StartContainer(self, request: Any, context: Any) -> Any:
        return self._change(request, context, api.CONTAINER_STATE_RUNNING, api.StartContainerResponse)

    def StopContainer(self, request: Any, context: Any) -> Any:
        return self._change(request, context, api.CONTAINER_STATE_STOPPED, api.StopContainerResponse)

    def PauseContainer(self, request: Any, context: Any) -> Any:
        return self._change(request, context, api.CONTAINER_STATE_PAUSED, api.PauseContainerResponse)

    def ResumeContainer(self, request: Any, context: Any) -> Any:
        return self._change(request, context, api.CONTAINER_STATE_RUNNING, api.ResumeContainerResponse)

    def KillContainer(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        self.node.find(request.container, context)
        self.node.signals.put(request.signal)
        return api.KillContainerResponse()

    def WaitContainer(self, request: Any, context: Any) -> Any:
        self.node.find(request.container, context)
        return api.WaitContainerResponse(exit=api.ExitStatus(signal=9, reason="signaled", shell_code=137))

    def UpdateContainer(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        container = self.node.find(request.container, context)
        container.name = request.name or container.name
        return api.UpdateContainerResponse(container=container)

    def DeleteContainer(self, request: Any, context: Any) -> Any:
        with self.node.lock:
            self.node.busy += 1
            self.node.most_busy = max(self.node.most_busy, self.node.busy)
        if self.node.together:
            self.node.together.wait(20)
        container = self.node.find(request.container, context)
        if container.state == api.CONTAINER_STATE_RUNNING and not request.force:
            self.node.busy -= 1
            refused(context, WrongState(f"{container.name} is running", remedy="stop it first, or use rm -f"))
        with self.node.lock:
            self.node.busy -= 1
            del self.node.containers[container.id]
        return api.DeleteContainerResponse()

    def Exec(self, requests: Any, context: Any) -> Any:
        start = next(requests).start
        self.node.calls.append(start)
        self.node.find(start.container, context)
        if error := program_error(list(start.args)):
            refused(context, error)
        yield from play(self.node, start.args, requests, api.ExecResponse)

    def Attach(self, requests: Any, context: Any) -> Any:
        start = next(requests).start
        self.node.calls.append(start)
        container = self.node.find(start.container, context)
        if error := program_error(list(container.spec.process.args)):
            refused(context, error)
        container.state = api.CONTAINER_STATE_RUNNING
        yield from play(self.node, container.spec.process.args, requests, api.AttachResponse)
        container.state = api.CONTAINER_STATE_STOPPED

    def GetLogs(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        self.node.find(request.container, context)
        yield api.GetLogsResponse(entries=self.node.log)

    def GetStats(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        for number in range(3):
            stats = [api.ContainerStats(id=item.id, name=item.name, cpu_seconds=number * 5) for item in self.node.containers.values()]
            for one in stats:
                one.time.FromSeconds(1767323045 + number * 10)
            yield api.GetStatsResponse(stats=stats)
            if not request.HasField("interval"):
                return
        self.node.ready.set()
        while context.is_active():
            context.add_callback(self.node.ready.set)
            self.node.ready.clear()
            self.node.ready.wait(5)

    def CopyFrom(self, request: Any, context: Any) -> Any:
        files = {
            "/etc": dict.fromkeys(["etc", "etc/hosts", "etc/deep", "etc/deep/b"]),
            "/etc/hosts": {"hosts": None},
            "/tmp": {"tmp": None},
        }
        self.node.find(request.container, context)
        if request.path not in files:
            refused(context, NotFound(f"there is no {request.path}", reason="PATH_NOT_FOUND", remedy="check the path"))
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name in files[request.path]:
                member = tarfile.TarInfo(name)
                member.type = tarfile.DIRTYPE if name in {"etc", "etc/deep", "tmp"} else tarfile.REGTYPE
                member.size = 0 if member.isdir() else len(name)
                member.mode = 0o755
                archive.addfile(member, io.BytesIO(name.encode()))
        for at in range(0, len(packed.getvalue()), 700):
            yield api.CopyFromResponse(data=packed.getvalue()[at : at + 700])

    def CopyTo(self, requests: Any, context: Any) -> Any:
        self.node.calls.append(next(requests).start)
        self.node.files = b"".join(request.data for request in requests)
        return api.CopyToResponse()


class Lans(lan_pb2_grpc.LanServiceServicer):
    def __init__(self, node: Node) -> None:
        self.node = node

    def CreateLan(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        made = lan_pb2.Lan(
            id=secrets.token_hex(6), name=request.name, subnet=request.subnet, mtu=request.mtu or 1500, labels=request.labels
        )
        made.create_time.GetCurrentTime()
        self.node.lans[made.name] = made
        return lan_pb2.CreateLanResponse(lan=made)

    def GetLan(self, request: Any, context: Any) -> Any:
        if request.lan not in self.node.lans:
            refused(context, NotFound(f"there is no LAN {request.lan}", reason="LAN_NOT_FOUND", remedy="see `nbctl lan ls`"))
        return lan_pb2.GetLanResponse(lan=self.node.lans[request.lan])

    def ListLans(self, request: Any, context: Any) -> Any:
        return lan_pb2.ListLansResponse(lans=self.node.lans.values())

    def DeleteLan(self, request: Any, context: Any) -> Any:
        for lan in list(self.node.lans.values()):
            if request.lan in {lan.id, lan.name}:
                del self.node.lans[lan.name]
        return lan_pb2.DeleteLanResponse()

    def ConnectLan(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        return lan_pb2.ConnectLanResponse(
            nic=api.Nic(lan=request.nic.lan, name="eth1", mac="02:00:00:00:00:01", addresses=request.nic.addresses)
        )

    def DisconnectLan(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        return lan_pb2.DisconnectLanResponse()

    def SetImpairment(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        return lan_pb2.SetImpairmentResponse(impairment=self.node.impairment)

    def ResetImpairment(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        return lan_pb2.ResetImpairmentResponse(impairment=self.node.impairment)

    def ListImpairments(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        return lan_pb2.ListImpairmentsResponse(impairments=[self.node.impairment])

    def WatchLanStats(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        yield lan_pb2.WatchLanStatsResponse(stats=self.node.lan_stats)

    def Capture(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        if "nonsense" in request.filter:
            refused(context, InvalidArgument("the filter is none", reason="BAD_FILTER", remedy="see pcap-filter(7)"))
        context.add_callback(self.node.ended.set)
        yield from (lan_pb2.CaptureResponse(data=piece) for piece in self.node.frames)
        if not request.count:
            self.node.ready.set()
            self.node.ended.wait(10)


class Images(image_pb2_grpc.ImageServiceServicer):
    def __init__(self, node: Node) -> None:
        self.node = node

    def ListImages(self, request: Any, context: Any) -> Any:
        return image_pb2.ListImagesResponse(images=self.node.images.values())

    def GetImage(self, request: Any, context: Any) -> Any:
        if request.image not in self.node.images:
            refused(context, NotFound(f"there is no image {request.image}", reason="IMAGE_NOT_FOUND", remedy="see `nbctl image ls`"))
        return image_pb2.GetImageResponse(image=self.node.images[request.image])

    def ImportImage(self, requests: Any, context: Any) -> Any:
        start = next(requests).start
        self.node.calls.append(start)
        if start.name == "broken":
            refused(context, InvalidArgument("the image names a backing file", reason="BACKING_FILE", remedy="convert it"))
        self.node.files = b"".join(request.data for request in requests)
        return image_pb2.ImportImageResponse(image=image_pb2.Image(name=start.name))

    def BuildImage(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        context.add_callback(self.node.ended.set)
        yield image_pb2.BuildImageResponse(step="extracting archives")
        if request.recipe == "slow":
            self.node.ready.set()
            self.node.ended.wait(10)
        if request.recipe != "lost":
            yield image_pb2.BuildImageResponse(image=image_pb2.Image(name=request.name or request.recipe))

    def DeleteImage(self, request: Any, context: Any) -> Any:
        self.node.images.pop(request.image)
        return image_pb2.DeleteImageResponse()


class NodeServicer(node_pb2_grpc.NodeServiceServicer):
    def __init__(self, node: Node) -> None:
        self.node = node

    def GetInfo(self, request: Any, context: Any) -> Any:
        abilities = [
            node_pb2.Ability(name="cgroup-memory", available=True, detail="v1"),
            node_pb2.Ability(name="netem", available=False, detail="no sch_netem", consequence="delay and loss are not offered"),
        ]
        return node_pb2.GetInfoResponse(
            info=node_pb2.NodeInfo(
                name="n1", version="9.9", cpus=2, memory_bytes=1 << 30, kinds=["process"], role="admin", abilities=abilities
            )
        )

    def WatchEvents(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        event = node_pb2.Event(sequence=1, type="container.exited", id="x", name="web\x1b", attributes={"code": "0"})
        event.time.FromSeconds(1767323045)
        yield node_pb2.WatchEventsResponse(event=event, dropped=2)

    def GetMetrics(self, request: Any, context: Any) -> Any:
        return node_pb2.GetMetricsResponse(text="nestbed_lans 1\n")

    def Audit(self, request: Any, context: Any) -> Any:
        return node_pb2.AuditResponse(leftovers=self.node.leftovers, objects=12)


class Served:
    """The fake node on a socket, and nbctl to talk to it."""

    def __init__(self, node: Node, folder: Path, capture: pytest.CaptureFixture[bytes]) -> None:
        self.node = node
        self.host = f"unix://{folder}/n.sock"
        self._capture = capture

    def nbctl(self, *line: str) -> tuple[int, str, str]:
        """Run nbctl in this process; exit code, standard output and error."""
        code, out, err = self.binary(*line)
        return code, out.decode(), err.decode()

    def binary(self, *line: str) -> tuple[int, bytes, bytes]:
        self._capture.readouterr()
        code = run(["-H", self.host, *line])
        sys.stdout.flush()
        out, err = self._capture.readouterr()
        return code, out, err

    def start(self, *line: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start nbctl as a process of its own."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
        return subprocess.Popen([sys.executable, "-m", "nbctl", "-H", self.host, *line], env=environment, start_new_session=True, **options)


@pytest.fixture
def node(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.delenv("NBCTL_OUTPUT", raising=False)
    state = Node()
    server = grpc.server(futures.ThreadPoolExecutor(100))
    container_pb2_grpc.add_ContainerServiceServicer_to_server(Containers(state), server)
    image_pb2_grpc.add_ImageServiceServicer_to_server(Images(state), server)
    lan_pb2_grpc.add_LanServiceServicer_to_server(Lans(state), server)
    node_pb2_grpc.add_NodeServiceServicer_to_server(NodeServicer(state), server)
    served = Served(state, tmp_path, capfdbinary)
    server.add_insecure_port(served.host.replace("unix://", "unix:"))
    server.start()
    yield served
    server.stop(None).wait()
