"""Attacks on the daemon: who calls, with what, how often, and what of it ends where it should not."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from nestbed.client import Client
from nestbed.errors import InvalidArgument, NestbedError, NotFound, PermissionDenied
from nestbed.testing.inside import connect
from nestbed.v1 import container_pb2 as api

pytestmark = pytest.mark.net

OPERATOR = "nestbed.sock"
NBCTL = Path(sys.executable).parent / "nbctl"
HOSTILE_TEXT = 'x\n{"message": "ready", "forged": true}\r\x1b[2J\x1b]0;owned\x07\x9b31m\u2028\u2029\x00'.replace("\0", "")
MEGABYTES = 1 << 20


def keeper_pid(fort) -> int:
    return int(json.loads((fort.machine.run_dir / "keeper.json").read_bytes())["pid"])


def resident_bytes(fort) -> int:
    """Of daemon and keeper together."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (fort.machine.daemon.pid, keeper_pid(fort))]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def descriptors(fort) -> int:
    """Of daemon and keeper together."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (fort.machine.daemon.pid, keeper_pid(fort)))


def refused(fort, before: int, count: int = 1) -> list[str]:
    """The sockets at which connections were refused since the log had ``before`` entries; waits for ``count``."""

    def found() -> list[str]:
        return [entry["socket"] for entry in fort.log[before:] if entry["message"] == "connection refused"]

    asyncio.run(until(lambda: len(found()) >= count))
    return found()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a fact that nobody tells."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


# ---------------------------------------------------------------- who is calling


@pytest.mark.parametrize("name", ["admin.sock", "nestbed.sock"])
def test_another_user_calls(fort, name) -> None:
    script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    argv = ["/usr/bin/python3", "-I", "-S", "-c", script, f"{fort.machine.run_dir}/{name}"]
    done = subprocess.run(argv, user=65534, group=65534, extra_groups=[], capture_output=True, check=False)
    assert b"PermissionError" in done.stderr


def test_cve_2024_25621_directories_and_files_of_the_daemon_are_open_to_other_users(fort) -> None:
    fort.start("sleep", "100", env={"SECRET": "hunter2"})
    allowed = {"run": 0o711, "nestbed.sock": 0o660, "hosts": 0o644, "report": 0o622}  # the last two are shown in the container
    for top in (fort.machine.state_dir, fort.machine.run_dir):
        for path in (top, *top.rglob("*")):
            shape = path.lstat()
            assert stat.S_IMODE(shape.st_mode) & ~allowed.get(path.name, 0o700) & 0o077 == 0, path
            assert not shape.st_mode & 0o6000, path
    tops = [str(fort.machine.state_dir), str(fort.machine.run_dir)]
    listing = subprocess.run(["find", *tops], user=65534, group=65534, extra_groups=[], capture_output=True, check=False)
    assert listing.stdout.decode().split() == tops


def test_process_in_a_container_is_given_the_daemons_socket(fort) -> None:
    """The directory of the socket comes as a descriptor over a socket that an administrator shared with the container."""

    def receive(path):
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(path)
            _, fds, _, _ = socket.recv_fds(end, 1, 1)
        answers = []
        for name in ("admin.sock", "nestbed.sock"):
            with socket.socket(socket.AF_UNIX) as end:
                end.settimeout(10)
                try:
                    end.connect(f"/proc/self/fd/{fds[0]}/{name}")
                    end.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                    answers.append(end.recv(100).decode("latin-1"))
                except OSError as error:
                    answers.append(type(error).__name__)
        return answers

    shared = fort.base / "shared"
    shared.mkdir()
    run = os.open(fort.machine.run_dir, os.O_PATH)
    before = len(fort.log)
    with socket.socket(socket.AF_UNIX) as listener:
        container = fort.start("sleep", "100", mounts=(f"{shared}:/shared",))
        listener.bind(f"{shared}/door")
        listener.listen()
        attack = subprocess.Popen(
            [NBCTL, "-H", fort.machine.address, "exec", container, "--", *fort.program(receive, "/shared/door")], stdout=subprocess.PIPE
        )
        listener.settimeout(20)
        connection, _ = listener.accept()
        with connection:
            socket.send_fds(connection, [b"x"], [run])
        answers = json.loads(attack.communicate(timeout=20)[0])
    os.close(run)
    assert set(answers) <= {"", "ConnectionResetError", "BrokenPipeError"}
    assert refused(fort, before, 2) == ["admin.sock", "nestbed.sock"]


def test_caller_hands_its_place_to_a_process_with_its_pid(fort) -> None:
    """The peer has ended when the daemon looks: whoever has the connection, or the pid, now is not whom the kernel names."""
    script = "import os, socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.connect(sys.argv[2]); os._exit(0)"
    ours, before = socket.socket(socket.AF_UNIX), len(fort.log)
    os.kill(fort.machine.daemon.pid, 19)
    try:
        argv = ["/usr/bin/python3", "-I", "-S", "-c", script, str(ours.fileno()), f"{fort.machine.run_dir}/admin.sock"]
        subprocess.run(argv, pass_fds=(ours.fileno(),), check=True)
    finally:
        os.kill(fort.machine.daemon.pid, 18)
    with ours:
        ours.settimeout(10)
        assert ours.recv(1) == b""
    assert refused(fort, before) == ["admin.sock"]


# ---------------------------------------------------------------- what the operator may not do


@pytest.mark.parametrize(
    "privilege",
    [{"fs": "host"}, {"fs": "rootfs"}, {"mounts": ("/usr:/v:ro",)}, {"cap_add": ("SYS_ADMIN",)}, {"overlay_dir": "/var/tmp"}],
    ids=["host", "rootfs", "mounts", "capabilities", "overlay"],
)
def test_operator_becomes_root_by_a_privileged_container(fort, privilege) -> None:
    with pytest.raises(PermissionDenied):
        fort.run("id", socket=OPERATOR, **privilege)
    if "overlay_dir" in privilege:
        privilege = {"overlay_dir": str(fort.base / "kept")}
        (fort.base / "kept").mkdir()
    container = fort.start("cat", stdin=True, **privilege)

    async def enter(client: Client) -> None:
        async with client.exec(api.ExecStart(container=container, args=["id"])):
            pass

    async def attach(client: Client) -> None:
        async with client.attach(api.AttachStart(container=container, stdin=True)):
            pass

    async def copy_out(client: Client) -> None:
        async for _ in client.copy_from(container, "/etc/passwd"):
            pass

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("evil"))
    for attack in (enter, attach, copy_out, lambda client: client.update_container(container, name="mine")):
        with pytest.raises(PermissionDenied):
            fort.call(attack, socket=OPERATOR)
    with pytest.raises(PermissionDenied):
        fort.copy_in(container, "/tmp", archive.getvalue(), socket=OPERATOR)
    assert fort.call(lambda client: client.get_container(container), socket=OPERATOR).name == container


def test_operator_writes_to_a_privileged_container_it_attaches_to_without_input(fort) -> None:
    container = fort.start("sh", "-c", "read word; echo got $word", fs="host", stdin=True)

    async def smuggle(client: Client) -> None:
        async with client.attach(api.AttachStart(container=container)) as session:
            await session.write(b"words\n")
            await session.resize(10, 10)
            await session.signal(9)
            async for _ in session.output():
                pass

    with pytest.raises(NestbedError):
        fort.call(smuggle, socket=OPERATOR)
    assert fort.container(container).state == api.CONTAINER_STATE_RUNNING


def test_reflection_on_the_privileged_socket(fort) -> None:
    def listed(name: str) -> int:
        with grpc.insecure_channel(f"unix://{fort.machine.run_dir}/{name}") as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            answers = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            return len(next(answers).list_services_response.service)

    assert listed(OPERATOR) > 0
    with pytest.raises(grpc.RpcError) as refused:
        listed("admin.sock")
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


# ---------------------------------------------------------------- what they send


NAMES = (
    "..",
    ".",
    "../x",
    "a/b",
    "/etc",
    "a\0b",
    "a\nb",
    "a" * 257,
    "\u0430",
    "a\u2044b",
    "-rf",
    "a b",
    "~",
    "%2e%2e",
    "\u202ex",
    "C:\\x",
    "",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_become_paths(fort, name) -> None:
    before = sorted(fort.machine.state_dir.rglob("*"))
    if name:
        refused = NotFound if name.find("/") > 0 else InvalidArgument  # a path leads to a node inside
        with pytest.raises(refused):
            fort.run("true", name=name)
        with pytest.raises(refused):
            fort.call(lambda client: client.create_lan(name))
        with pytest.raises(InvalidArgument):
            fort.run("true", hostname=name)
    for reach in (
        lambda client: client.get_container(name),
        lambda client: client.delete_container(name, force=True),
        lambda client: client.delete_lan(name),
    ):
        with pytest.raises(NestbedError):
            fort.call(reach)
    assert sorted(fort.machine.state_dir.rglob("*")) == before


def test_hostile_texts_forge_lines_of_the_log_or_command_the_terminal(fort) -> None:
    before = len(fort.log)
    fort.start("sh", "-c", "sleep 100", HOSTILE_TEXT, labels={"fine": "x"})
    for act in (
        lambda: fort.run("true", name=HOSTILE_TEXT, hostname="fine"),
        lambda: fort.run("true", labels={HOSTILE_TEXT: HOSTILE_TEXT}),
        lambda: fort.run("true", user=HOSTILE_TEXT),
        lambda: fort.run(f"/{HOSTILE_TEXT}"),
        lambda: fort.run("true", sysctls={HOSTILE_TEXT: HOSTILE_TEXT}),
        lambda: fort.run("true", cwd=f"/{HOSTILE_TEXT}"),
        lambda: fort.call(lambda client: client.get_container(HOSTILE_TEXT)),
    ):
        with pytest.raises(NestbedError):
            act()
    entries = fort.log[before:]
    assert entries != []
    assert [entry for entry in entries if entry.get("forged") or "logger" not in entry] == []
    for words in (("ps",), ("inspect", "*"), ("run", "process", "--", f"/{HOSTILE_TEXT}"), ("rm", HOSTILE_TEXT)):
        shown = fort.machine.nbctl(*words)
        assert not {"\x1b", "\r", "\x07", "\x9b", "\u2028"} & set(shown.stdout + shown.stderr), words


def test_secrets_in_the_environment_end_in_logs(fort) -> None:
    container = fort.start("sleep", "100", env={"TOKEN": "hunter2-first"})
    assert fort.exec(container, "env", env={"OTHER": "hunter2-second"}).out.count(b"hunter2") == 2
    with pytest.raises(NestbedError):
        fort.run("no-such-program", env={"TOKEN": "hunter2-third"})
    with pytest.raises(NestbedError):
        fort.run("true", env={"BAD=NAME": "hunter2-fourth"})
    fort.clear()
    assert "hunter2" not in json.dumps(fort.log)
    assert [path for path in fort.machine.run_dir.glob("*.log") if b"hunter2" in path.read_bytes()] == []


# ---------------------------------------------------------------- how much and how often


def test_cve_2022_31030_output_that_nobody_reads(fort) -> None:
    """A caller that asks for endless output and never reads it costs a bounded amount of memory."""
    container = fort.start("yes")
    bundle = fort.machine.state_dir / "containers" / fort.container(container).id
    fort.exec(container, "true")
    before = resident_bytes(fort)

    async def ignore(client: Client) -> int:
        follow = [client.logs(container, follow=True) for _ in range(4)]
        for entries in follow:
            await anext(entries)
        sessions = [client.exec(api.ExecStart(container=container, args=["yes"])) for _ in range(4)]
        async with sessions[0], sessions[1], sessions[2], sessions[3]:
            await until((bundle / "log.2").exists)  # more than 20 MB were written meanwhile
            used = resident_bytes(fort)
        for entries in follow:
            await entries.aclose()
        return used

    assert fort.call(ignore) - before < 48 * MEGABYTES


def test_cve_2025_64329_attaches_that_are_dropped(fort) -> None:
    """Neither of a program that says nothing nor of one that never started anything may stay."""
    silent = fort.start("sleep", "100")
    spec = fort.spec("sleep", "100")
    fort.call(lambda client: client.create_container(spec))

    async def drop(client: Client) -> None:
        for _ in range(100):
            for name in (silent, spec.name):
                async with client.attach(api.AttachStart(container=name)):
                    pass

    fort.call(drop)
    before, resident = descriptors(fort), resident_bytes(fort)
    for _ in range(2):
        fort.call(drop)
    asyncio.run(until(lambda: descriptors(fort) <= before + 8))
    assert resident_bytes(fort) - resident < 8 * MEGABYTES


def test_bursts_of_failing_starts_leave_something(fort) -> None:
    """Starts that fail in the middle of set-up leave neither processes nor descriptors."""
    broken = fort.base / "broken"
    (broken / "usr").mkdir(parents=True)
    (broken / "dev").symlink_to("/nowhere")

    def fail() -> None:
        with pytest.raises(NestbedError):
            fort.run("true", fs="rootfs", rootfs=str(broken), mounts=("/usr:/usr:ro",))
        gc.collect()  # a client's connection goes with its last reference, which the error's traceback holds in a circle

    for _ in range(4):
        fail()
    before = descriptors(fort)
    for _ in range(20):
        fail()
    asyncio.run(until(lambda: descriptors(fort) <= before + 4))
    children = Path(f"/proc/{keeper_pid(fort)}/task/{keeper_pid(fort)}/children")
    asyncio.run(until(lambda: not children.read_text().split()))


# ---------------------------------------------------------------- helper


def test_cve_2020_15257_helper_is_reached_by_a_path_or_a_name(fort) -> None:
    """Neither keeper nor gRPC's inner sockets have a name that anybody could connect to."""
    fort.start("sleep", "100")
    names = set()
    for pid in (keeper_pid(fort), fort.machine.daemon.pid):
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
        lines = [line.split(None, 7) for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
        names |= {words[7] for words in lines if len(words) == 8 and words[6] in inodes}
        if pid == keeper_pid(fort):
            assert names == set()
    assert {name for name in names if not name.startswith("/proc/self/fd/")} == set()
    assert {connect(name) for name in names} <= {"ENOENT", "ECONNREFUSED", "ENOTDIR"}


@pytest.mark.parametrize("mode", ["host", "host-ro", "overlay", "rootfs"])
def test_processes_of_the_node_are_seen_and_signalled_from_inside(fort, mode) -> None:
    shown = fort.run("sh", "-c", "kill -9 -1; kill -9 1; for pid in /proc/[0-9]*; do echo $pid; done", fs=mode)
    assert shown.out == b"/proc/1\n"
    assert fort.run("true").code == 0
