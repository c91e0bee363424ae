"""nbctl against a node that is a dictionary: what is printed, what is asked for, exit codes, terminals, signals."""

from __future__ import annotations

import io
import json
import os
import pty
import queue
import secrets
import signal
import subprocess
import sys
import tarfile
import termios
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from nbctl.__main__ import run
from nestbed.errors import InvalidArgument, NestbedError, NotFound, WrongState
from nestbed.service.status import refusal
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import container_pb2_grpc, lan_pb2, lan_pb2_grpc, node_pb2, node_pb2_grpc

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
        self.leftovers: list[node_pb2.Leftover] = []
        self.calls: list[Any] = []
        self.files = b""
        self.log: list[api.LogEntry] = []
        self.busy = 0
        self.most_busy = 0
        self.lock = threading.Lock()
        self.ready = threading.Event()
        """Set when a program that waits has begun to wait."""

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


def play(node: Node, args: list[str], requests: Iterator[Any], reply: Reply, signals: queue.Queue[int]) -> Iterator[Any]:
    """The programs that the fake node knows."""
    yield reply(started=True)
    match args:
        case ["say", out, err]:
            yield reply(stdout=out.encode())
            yield reply(stderr=err.encode())
            code = 0
        case ["bytes", count]:
            for at in range(0, int(count), 1 << 16):
                yield reply(stdout=bytes(range(256)) * (min(1 << 16, int(count) - at) // 256))
            code = 0
        case ["exit", number]:
            code = int(number)
        case ["cat"]:
            yield from (reply(stdout=request.stdin) for request in until_eof(requests))
            code = 0
        case ["sizes"]:
            node.ready.set()
            for request in requests:
                if request.WhichOneof("input") == "resize":
                    yield reply(stdout=f"{request.resize.rows}x{request.resize.columns}\r\n".encode())
                if request.stdin == b"q":
                    break
            code = 0
        case ["wait"]:
            node.ready.set()
            number = signals.get(timeout=20)
            yield reply(exit=api.ExitStatus(signal=number, reason="signaled", shell_code=128 + number))
            return
        case ["unknown"]:
            yield reply(exit=api.ExitStatus(reason="unknown", message="the keeper died", shell_code=255))
            return
        case _:
            return
    yield reply(exit=api.ExitStatus(code=code, reason="exited", shell_code=code))


def until_eof(requests: Iterator[Any]) -> Iterator[Any]:
    for request in requests:
        if request.WhichOneof("input") == "stdin_eof":
            return
        yield request


class Containers(container_pb2_grpc.ContainerServiceServicer):
    def __init__(self, node: Node) -> None:
        self.node = node
        self.signals: queue.Queue[int] = queue.Queue()

    def CreateContainer(self, request: Any, context: Any) -> Any:
        self.node.calls.append(request)
        if request.spec.name == "taken":
            refused(context, InvalidArgument("the name is taken", remedy="choose another"))
        made = self.node.add(request.spec.name or "made-up", state=api.CONTAINER_STATE_CREATED)
        made.spec.CopyFrom(request.spec)
        return api.CreateContainerResponse(container=made)

    def GetContainer(self, request: Any, context: Any) -> Any:
        return api.GetContainerResponse(container=self.node.find(request.container, context))

    def ListContainers(self, request: Any, context: Any) -> Any:
        found = [item for item in self.node.containers.values() if all(item.spec.labels.get(k) == v for k, v in request.labels.items())]
        at = int(request.page_token or 0)
        end = at + (request.page_size or 500)
        return api.ListContainersResponse(containers=found[at:end], next_page_token=str(end) if end < len(found) else "")

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
        self.signals.put(request.signal)
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
        yield from play(self.node, list(start.args), requests, api.ExecResponse, self.signals)

    def Attach(self, requests: Any, context: Any) -> Any:
        start = next(requests).start
        self.node.calls.append(start)
        container = self.node.find(start.container, context)
        if error := program_error(list(container.spec.process.args)):
            refused(context, error)
        container.state = api.CONTAINER_STATE_RUNNING
        yield from play(self.node, list(container.spec.process.args), requests, api.AttachResponse, self.signals)
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
    lan_pb2_grpc.add_LanServiceServicer_to_server(Lans(state), server)
    node_pb2_grpc.add_NodeServiceServicer_to_server(NodeServicer(state), server)
    served = Served(state, tmp_path, capfdbinary)
    server.add_insecure_port(served.host.replace("unix://", "unix:"))
    server.start()
    yield served
    server.stop(None).wait()


# ---------------------------------------------------------------- listing


def test_ps_shows_what_runs(node: Served) -> None:
    web = node.node.add("web", nics=[api.Nic(lan="lan0", addresses=["10.5.0.1/24", "fd00::1/64"]), api.Nic(lan="lan1")])
    web.spec.process.args.extend(["python3", "-c", "print('\x1b[31m')"])
    node.node.add("done", state=api.CONTAINER_STATE_STOPPED, exit=api.ExitStatus(code=3, shell_code=3))
    code, out, err = node.nbctl("ps")
    assert (code, err) == (0, "")
    head, line = out.splitlines()
    assert head.split() == ["NAME", "KIND", "STATE", "EXIT", "LANS", "ADDRESSES", "COMMAND", "AGE"]
    assert (
        line.split() == ["web", "process", "running", "-", "lan0,lan1", "10.5.0.1,fd00::1", "python3", "-c", line.split()[8], "0s"]
        or "\x1b" not in line
    )
    assert "done" not in out
    assert [row.split()[:4] for row in node.nbctl("ps", "-a")[1].splitlines()[1:]] == [
        ["web", "process", "running", "-"],
        ["done", "process", "stopped", "3"],
    ]


def test_ps_in_other_forms(node: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    web = node.node.add("web")
    assert node.nbctl("ps", "-a", "-o", "name")[1] == "web\n"
    assert node.nbctl("ps", "-q")[1] == f"{web.id}\n"
    assert json.loads(node.nbctl("-o", "json", "ps")[1])[0]["name"] == "web"
    monkeypatch.setenv("NBCTL_OUTPUT", "yaml")
    assert yaml.safe_load(node.nbctl("ps")[1])[0]["id"] == web.id
    monkeypatch.setenv("NBCTL_OUTPUT", "xml")
    assert node.nbctl("ps")[0] == 2


def test_ps_takes_all_pages(node: Served) -> None:
    for number in range(1203):
        node.node.add(f"h{number}")
    assert len(node.nbctl("ps", "-q")[1].split()) == 1203


def test_inspect_is_the_message_or_a_list(node: Served) -> None:
    node.node.add("web")
    node.node.add("db")
    assert json.loads(node.nbctl("inspect", "web")[1])["name"] == "web"
    assert [item["name"] for item in json.loads(node.nbctl("inspect", "web", "db")[1])] == ["web", "db"]
    assert [item["name"] for item in json.loads(node.nbctl("inspect", "w*")[1])] == ["web"]
    code, out, err = node.nbctl("inspect", "web", "none")
    assert (code, [item["name"] for item in json.loads(out)]) == (1, ["web"])
    assert err == "nbctl: there is no container none\nremedy: see `nbctl ps -a`\n"


# ---------------------------------------------------------------- many at once


def test_rm_of_a_thousand_is_concurrent_and_bounded(node: Served) -> None:
    for number in range(300):
        node.node.add(f"h{number}")
    node.node.add("other")
    code, out, err = node.nbctl("rm", "-f", "h*")
    assert (code, err) == (0, "")
    assert out.split() == [f"h{number}" for number in range(300)]
    assert [item.name for item in node.node.containers.values()] == ["other"]
    assert 1 < node.node.most_busy <= 64


def test_all_errors_are_reported_and_the_rest_is_done(node: Served) -> None:
    node.node.add("web")
    node.node.add("db", state=api.CONTAINER_STATE_STOPPED)
    code, out, err = node.nbctl("rm", "none", "web", "db", "gone")
    assert (code, out) == (1, "db\n")
    assert err.splitlines() == [
        "nbctl: there is no container none",
        "remedy: see `nbctl ps -a`",
        "nbctl: web is running",
        "remedy: stop it first, or use rm -f",
        "nbctl: there is no container gone",
        "remedy: see `nbctl ps -a`",
    ]


def test_selection_by_label(node: Served) -> None:
    node.node.add("web").spec.labels["role"] = "server"
    node.node.add("db")
    assert node.nbctl("stop", "-t", "1", "-l", "role=server")[1] == "web\n"
    assert node.node.calls[-1].grace.seconds == 1
    assert node.nbctl("stop", "-l", "role=nothing")[:2] == (0, "")
    assert node.nbctl("stop", "x*")[0] == 1
    assert node.nbctl("rm", "-f", "x*")[0] == 0


def test_the_other_verbs(node: Served) -> None:
    node.node.add("web")
    assert json.loads(node.nbctl("pause", "web", "-o", "json")[1])[0]["state"] == "CONTAINER_STATE_PAUSED"
    assert node.nbctl("unpause", "web")[1] == "web\n"
    assert node.nbctl("kill", "-s", "HUP", "web")[1] == "web\n"
    assert node.node.calls[-1].signal == 1
    assert node.nbctl("wait", "web")[:2] == (0, "137\n")
    assert json.loads(node.nbctl("wait", "web", "-o", "json")[1])[0]["signal"] == 9
    assert node.nbctl("update", "--memory", "64m", "--restart", "on-failure:2", "web")[0] == 0
    update = node.node.calls[-1]
    assert (update.resources.memory_bytes, update.resources.HasField("cpus"), update.restart.max_retries) == (64 << 20, False, 2)
    assert node.nbctl("update", "web")[0] == 2
    assert node.nbctl("rename", "web", "web2")[1] == "web2\n"
    assert node.nbctl("start", "web2")[1] == "web2\n"


# ---------------------------------------------------------------- run, exec, attach


def test_run_passes_output_and_status(node: Served) -> None:
    assert node.binary("run", "process", "--", "say", "out\r\n", "err") == (0, b"out\r\n", b"err")
    assert node.binary("run", "process", "--", "exit", "7") == (7, b"", b"")
    assert node.binary("run", "process", "--", "bytes", "1048576")[1] == bytes(range(256)) * 4096


def test_run_asks_for_what_was_given(node: Served) -> None:
    line = "--name n --lan lan0,ip=10.5.0.1/24,name=eth3 --fs rootfs=/r -e A=b --label x=y --memory 64m --sysctl a.b=1 --route default,via=10.5.0.2"
    assert node.nbctl("run", "process", "-d", *line.split(), "--", "sh", "-c", "x")[:2] == (0, "n\n")
    spec = node.node.calls[0].spec
    assert (spec.name, spec.kind, spec.labels["x"], spec.process.env["A"]) == ("n", api.CONTAINER_KIND_PROCESS, "y", "b")
    assert (spec.nics[0].lan, spec.nics[0].name, list(spec.nics[0].addresses)) == ("lan0", "eth3", ["10.5.0.1/24"])
    assert (spec.process.fs_mode, spec.process.rootfs, list(spec.process.args)) == (api.FS_MODE_ROOTFS, "/r", ["sh", "-c", "x"])
    assert (spec.routes[0].destination, spec.routes[0].via) == ("default", "10.5.0.2")
    assert node.node.calls[0].request_id


def test_environment(node: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN", "mine")
    monkeypatch.delenv("NONE", raising=False)
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=file\nB=b=c\nOWN\n")
    assert node.nbctl("create", "process", "--env-file", str(file), "-e", "A=line", "-e", "NONE", "--", "x")[0] == 0
    assert dict(node.node.calls[0].spec.process.env) == {"A": "line", "B": "b=c", "OWN": "mine"}
    code, _, err = node.nbctl("create", "process", "--env-file", str(tmp_path / "none"), "--", "x")
    assert (code, "No such file" in err or "no such file" in err) == (1, True)


@pytest.mark.parametrize(
    ("program", "code", "cause"),
    [
        ("missing", 127, "there is no program missing"),
        ("notexec", 126, "notexec cannot be executed"),
        ("fails", 125, "something else failed"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--rm",), ("-d",)])
def test_a_start_that_fails_leaves_nothing(node: Served, program: str, code: int, cause: str, options: tuple[str, ...]) -> None:
    ended, out, err = node.nbctl("run", "process", *options, "--", program)
    assert (ended, out) == (code, "")
    assert err.startswith(f"nbctl: {cause}\nremedy: ")
    assert err.count("\n") == 2
    assert node.node.containers == {}


def test_run_rm_removes(node: Served) -> None:
    assert node.nbctl("run", "process", "--rm", "--", "exit", "3")[0] == 3
    assert node.node.containers == {}
    assert node.node.calls[0].spec.auto_remove


def test_an_unknown_exit_status_is_a_failure(node: Served) -> None:
    code, _, err = node.nbctl("run", "process", "--name", "web", "--", "unknown")
    assert (code, err.splitlines()) == (125, ["nbctl: how web ended is not known: the keeper died", "remedy: see `nbctl logs web`"])
    assert node.nbctl("run", "process", "--", "vanishes")[0] == 125


def test_run_refuses_before_it_makes_anything(node: Served) -> None:
    assert node.nbctl("run", "process", "--name", "taken", "--", "x")[0] == 125
    assert node.nbctl("run", "process", "--rm", "--restart", "always", "--", "x")[0] == 2
    assert node.nbctl("run", "process", "-it", "--", "x")[0] == 2
    assert node.nbctl("run", "process", "--", "\udcff")[0] == 2
    assert node.node.containers == {}


def test_exec(node: Served) -> None:
    node.node.add("web")
    assert node.binary("exec", "-w", "/tmp", "--user", "1:2", "-e", "A=b", "web", "say", "o", "e") == (0, b"o", b"e")
    start = node.node.calls[-1]
    assert (start.cwd, start.user, start.env["A"], start.stdin, start.tty) == ("/tmp", "1:2", "b", False, False)
    assert node.nbctl("exec", "web", "exit", "4")[0] == 4
    assert node.nbctl("exec", "web", "missing")[0] == 127
    assert node.nbctl("exec", "none", "x")[0] == 125


def test_standard_input_is_passed(node: Served) -> None:
    node.node.add("web")
    sent = bytes(range(256)) * 2000
    done = node.start("exec", "-i", "web", "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert done.communicate(sent, timeout=30)[0] == sent
    assert done.returncode == 0


def test_standard_input_may_be_a_file(node: Served, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"from a file")
    with (tmp_path / "in").open("rb") as file:
        done = node.start("run", "process", "-i", "--", "cat", stdin=file, stdout=subprocess.PIPE)
        assert done.communicate(timeout=30)[0] == b"from a file"


def test_signals_go_to_the_program(node: Served) -> None:
    running = node.start("run", "process", "--rm", "--", "wait")
    assert node.node.ready.wait(20)
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 143
    assert node.node.containers == {}


def test_a_closed_pipe_ends_it_quietly(node: Served) -> None:
    running = node.start("run", "process", "--rm", "--", "bytes", str(1 << 26), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout
    assert running.stderr
    running.stdout.read(10)
    running.stdout.close()
    assert running.wait(20) == 141
    with running.stderr:
        assert running.stderr.read() == b""
    assert node.node.containers == {}


def test_no_reader_at_all(node: Served) -> None:
    for number in range(2000):
        node.node.add(f"container-with-a-long-name-{number}")
    running = node.start("ps", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout
    running.stdout.close()
    assert running.wait(20) == 141
    assert running.stderr
    with running.stderr:
        assert running.stderr.read() == b""


# ---------------------------------------------------------------- terminals


class Terminal:
    """A pseudo-terminal that nbctl is started on."""

    def __init__(self) -> None:
        self.keys, self.inside = pty.openpty()
        termios.tcsetwinsize(self.keys, (24, 80))
        self.before = termios.tcgetattr(self.inside)

    def start(self, node: Served, *line: str) -> subprocess.Popen[bytes]:
        return node.start(*line, stdin=self.inside, stdout=self.inside, stderr=self.inside)

    def read_until(self, wanted: bytes) -> bytes:
        seen = b""
        while wanted not in seen:
            seen += os.read(self.keys, 4096)
        return seen

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.inside)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def close(self) -> None:
        os.close(self.keys)
        os.close(self.inside)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def test_a_terminal_is_raw_follows_its_size_and_is_restored(node: Served, terminal: Terminal) -> None:
    running = terminal.start(node, "run", "process", "-it", "--rm", "--", "sizes")
    assert node.node.ready.wait(20)
    start = node.node.calls[-1]
    assert (start.size.rows, start.size.columns, start.stdin) == (24, 80, True)
    seen = b""
    while b"33x99" not in seen:  # the handler may not stand yet when the program has begun
        termios.tcsetwinsize(terminal.keys, (33, 99))
        running.send_signal(signal.SIGWINCH)
        os.write(terminal.keys, b"\x03")
        seen += terminal.read_until(b"x")
        seen += os.read(terminal.keys, 100)
    assert terminal.is_raw
    os.write(terminal.keys, b"q")
    assert running.wait(20) == 0
    assert termios.tcgetattr(terminal.inside) == terminal.before
    assert node.node.containers == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_is_restored_after_a_signal(node: Served, terminal: Terminal, number: signal.Signals) -> None:
    running = terminal.start(node, "run", "process", "-it", "--", "cat")
    os.write(terminal.keys, b"x")
    terminal.read_until(b"x")
    while not terminal.is_raw:
        os.sched_yield()
    running.send_signal(number)
    assert running.wait(20) == 128 + number
    assert termios.tcgetattr(terminal.inside) == terminal.before


def test_detach_keys_leave_the_container_running(node: Served, terminal: Terminal) -> None:
    running = terminal.start(node, "run", "process", "-it", "--rm", "--name", "web", "--", "cat")
    while not terminal.is_raw:
        os.sched_yield()
    os.write(terminal.keys, b"\x10\x11")
    assert b"web runs on" in terminal.read_until(b"runs on")
    assert running.wait(20) == 0
    assert [item.name for item in node.node.containers.values()] == ["web"]
    assert termios.tcgetattr(terminal.inside) == terminal.before


def test_top_fills_the_screen_and_leaves_it(node: Served, terminal: Terminal) -> None:
    node.node.add("web")
    running = terminal.start(node, "top")
    shown = terminal.read_until(b"50.0%")
    assert b"\x1b[?1049h" in shown
    assert b"n1: 1 running, 2 processors" in shown
    os.write(terminal.keys, b"q")
    terminal.read_until(b"\x1b[?1049l")
    assert running.wait(20) == 0
    assert termios.tcgetattr(terminal.inside) == terminal.before


# ---------------------------------------------------------------- logs, stats, events, node


def test_logs_are_byte_for_byte(node: Served) -> None:
    node.node.add("web")
    node.node.log = [
        api.LogEntry(stream=api.LOG_STREAM_STDOUT, data=b"\xff\x1b[31m", partial=True),
        api.LogEntry(stream=api.LOG_STREAM_STDERR, data=b"err\n"),
        api.LogEntry(stream=api.LOG_STREAM_STDOUT, data=b"rest\n"),
    ]
    assert node.binary("logs", "web") == (0, b"\xff\x1b[31mrest\n", b"err\n")
    node.nbctl("logs", "--tail", "5", "--since", "2026-01-02T03:04:05Z", "-f", "web")
    request = node.node.calls[-1]
    assert (request.tail, request.since.seconds, request.follow) == (5, 1767323045, True)
    assert len(node.nbctl("-o", "json", "logs", "web")[1].splitlines()) == 3


def test_stats_once(node: Served) -> None:
    node.node.add("web")
    code, out, _ = node.nbctl("stats", "--no-stream")
    assert (code, out.splitlines()[1].split()[:2]) == (0, ["web", "50.0%"])
    assert json.loads(node.nbctl("stats", "--no-stream", "-o", "json")[1])[0]["cpu_seconds"] == 0.0
    assert node.nbctl("stats", "--interval", "1ms")[0] == 2
    assert node.nbctl("top")[0] == 2


def test_events(node: Served) -> None:
    code, out, err = node.nbctl("events", "--type", "container.*", "--history")
    assert (code, out) == (0, "2026-01-02T03:04:05Z container.exited web\\x1b code=0\n")
    assert err.startswith("nbctl: 2 events were dropped")
    assert (list(node.node.calls[-1].types), node.node.calls[-1].history) == (["container.*"], True)
    assert json.loads(node.nbctl("events", "-o", "json")[1])["attributes"] == {"code": "0"}


def test_info(node: Served) -> None:
    code, out, _ = node.nbctl("info")
    assert code == 0
    assert "It cannot:\n  netem          no sch_netem -> delay and loss are not offered\n" in out
    assert json.loads(node.nbctl("info", "-o", "json")[1])["abilities"][0]["name"] == "cgroup-memory"
    assert node.nbctl("node", "info") == (code, out, "")


def test_audit(node: Served) -> None:
    assert node.nbctl("audit") == (0, "clean: 12 objects compared\n", "")
    node.node.leftovers = [node_pb2.Leftover(problem="extra", kind="link", name="nbp0", detail="of nobody")]
    code, out, _ = node.nbctl("audit")
    assert (code, out.splitlines()[1].split()) == (1, ["extra", "link", "nbp0", "of", "nobody"])
    code, out, _ = node.nbctl("audit", "-o", "json")
    assert (code, json.loads(out)["leftovers"][0]["kind"]) == (1, "link")


def test_version(node: Served) -> None:
    assert node.nbctl("version")[1].split() == ["nbctl", "0.1.0", "nestbedd", "9.9"]
    assert json.loads(node.nbctl("version", "-o", "json")[1]) == {"client": "0.1.0", "node": "9.9"}


# ---------------------------------------------------------------- LANs


def test_lans(node: Served) -> None:
    assert node.nbctl("lan", "create", "lan0", "--subnet", "10.5.0.0/24", "--mtu", "9000", "--label", "a=b")[:2] == (0, "lan0\n")
    assert (node.node.calls[-1].mtu, node.node.calls[-1].labels["a"]) == (9000, "b")
    assert node.nbctl("lan", "ls")[1].splitlines()[1].split() == ["lan0", "10.5.0.0/24", "-", "9000", "0", "0s"]
    assert node.nbctl("lan", "ls", "-o", "name")[1] == "lan0\n"
    assert json.loads(node.nbctl("lan", "inspect", "lan0")[1])["mtu"] == 9000
    assert node.nbctl("lan", "connect", "lan0", "web", "--ip", "10.5.0.9/24")[1] == "eth1 02:00:00:00:00:01 10.5.0.9/24\n"
    assert node.nbctl("lan", "disconnect", "lan0", "web", "--name", "eth1")[1] == "web\n"
    assert (node.node.calls[-1].lan, node.node.calls[-1].container, node.node.calls[-1].nic) == ("lan0", "web", "eth1")
    assert node.nbctl("lan", "rm", "lan*")[:2] == (0, "lan0\n")
    assert node.node.lans == {}


# ---------------------------------------------------------------- cp


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("source", "destination", "made"),
    [
        ("web:/etc", "new", ["new", "new/deep", "new/deep/b", "new/hosts"]),
        ("web:/etc", "there", ["there", "there/etc", "there/etc/deep", "there/etc/deep/b", "there/etc/hosts"]),
        ("web:/etc/.", "there", ["there", "there/deep", "there/deep/b", "there/hosts"]),
        ("web:etc/", "new/", ["new", "new/deep", "new/deep/b", "new/hosts"]),
        ("web:/etc/hosts", "new", ["new"]),
        ("web:/etc/hosts", "there/", ["there", "there/hosts"]),
        ("web:/etc/hosts", "file", ["file"]),
    ],
)
def test_cp_out(node: Served, tmp_path: Path, source: str, destination: str, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    node.node.add("web")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    if destination.startswith("there"):
        Path("there").mkdir()
    if destination == "file":
        Path("file").write_text("old")
    assert node.nbctl("cp", source, destination) == (0, "", "")
    assert tree(work) == made
    if destination == "file":
        assert Path("file").read_text() == "hosts"


@pytest.mark.parametrize(
    ("source", "destination", "cause"),
    [
        ("web:/etc", "file", "file exists and is no folder"),
        ("web:/etc/hosts", "none/", "there is no folder none/"),
        ("web:/etc/hosts", "file/", "file/ exists and is no folder"),
        ("web:/etc/hosts/", "new", "/etc/hosts/ in web is no folder"),
        ("web:/none", "new", "there is no /none"),
        ("web:/etc/hosts", "none/new", "No such file"),
        ("none:/etc", "new", "there is no container none"),
        ("web:/etc", "/dev/null", "exists and is no folder"),
        ("web:/etc/hosts", "/dev/null", "exists and is no regular file"),
    ],
)
def test_cp_out_refuses(node: Served, tmp_path: Path, source: str, destination: str, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node.node.add("web")
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("old")
    code, out, err = node.nbctl("cp", source, destination)
    assert (code, out) == (1, "")
    assert cause.lower() in err.lower()
    assert err.count("\n") == 2
    assert Path("file").read_text() == "old"


@pytest.mark.parametrize(
    ("source", "destination", "folder", "names"),
    [
        ("tree", "web:/tmp", "/tmp", ["tree", "tree/a"]),
        ("tree/.", "web:/tmp", "/tmp", ["a"]),
        ("tree", "web:/tmp/new", "/tmp", ["new", "new/a"]),
        ("tree/a", "web:/tmp/", "/tmp", ["a"]),
        ("tree/a", "web:/tmp/b", "/tmp", ["b"]),
        ("./tree/a", "web:/etc/hosts", "/etc", ["hosts"]),
    ],
)
def test_cp_in(
    node: Served, tmp_path: Path, source: str, destination: str, folder: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node.node.add("web")
    monkeypatch.chdir(tmp_path)
    Path("tree").mkdir()
    Path("tree/a").write_text("content")
    assert node.nbctl("cp", source, destination) == (0, "", "")
    assert node.node.calls[-1].path == folder
    with tarfile.open(fileobj=io.BytesIO(node.node.files)) as archive:
        assert archive.getnames() == names
        assert {(member.uid, member.uname) for member in archive} == {(0, "")}


@pytest.mark.parametrize(
    ("source", "destination", "cause"),
    [
        ("tree", "web:/etc/hosts", "/etc/hosts exists and is no folder"),
        ("tree/a/", "web:/tmp", "no"),
        ("none", "web:/tmp", "no such file"),
        ("tree/a", "web:/none/", "there is no folder /none"),
    ],
)
def test_cp_in_refuses(node: Served, tmp_path: Path, source: str, destination: str, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node.node.add("web")
    monkeypatch.chdir(tmp_path)
    Path("tree").mkdir()
    Path("tree/a").write_text("content")
    code, _, err = node.nbctl("cp", source, destination)
    assert (code, cause in err) == (1, True)
    assert node.node.files == b""


def test_cp_of_archives(node: Served, tmp_path: Path) -> None:
    node.node.add("web")
    code, out, _ = node.binary("cp", "web:/etc/.", "-")
    assert code == 0
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert archive.getnames() == ["etc", "etc/hosts", "etc/deep", "etc/deep/b"]
    done = node.start("cp", "-", "web:/tmp", stdin=subprocess.PIPE)
    done.communicate(out, timeout=30)
    assert (done.returncode, node.node.files) == (0, out)
    assert node.nbctl("cp", "a", "b")[0] == 2
    assert node.nbctl("cp", "web:/a", "web:/b")[0] == 2


# ---------------------------------------------------------------- no node


def test_no_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-H", str(tmp_path), "ps"]) == 1
    shown = capsys.readouterr().err
    assert f"unix://{tmp_path}/" in shown
    assert "start nestbedd" in shown
    assert shown.count("\n") == 2
    assert run(["-H", str(tmp_path), "run", "process", "--", "true"]) == 125
    assert run(["-H", "nonsense", "ps"]) == 1
