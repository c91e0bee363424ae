"""The gate: who gets through, that bytes do, and that nothing is held without bound."""

import asyncio
import contextlib
import dataclasses
import os
import secrets
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nestbed.errors import AlreadyExists, NotFound, PermissionDenied
from nestbed.service import gate as gates
from nestbed.service import peer
from nestbed.service.gate import Gate
from nestbed.service.peer import Home

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the gate gives its socket an owner")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """The inner folder, as the server names it: through a descriptor."""
    descriptor = os.open(tmp_path, os.O_PATH)
    yield f"/proc/self/fd/{descriptor}"
    os.close(descriptor)


@contextlib.asynccontextmanager
async def inner(folder: str) -> AsyncIterator[list[str]]:
    """What stands behind the gate: an echo, which notes the names of those who come."""
    names: list[str] = []
    handlers: set[asyncio.Task[None] | None] = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        names.append(os.path.basename(writer.get_extra_info("peername")))
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write(b"end")
        writer.close()

    server = await asyncio.start_unix_server(echo, f"{folder}/inner")
    try:
        yield names
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*(task for task in handlers if task), return_exceptions=True)


def make(tmp_path: Path, folder: str, **bounds: int) -> Gate:
    return Gate(tmp_path / "outer.sock", mode=0o660, gid=7, inner=folder, inner_name="inner", **bounds)


@contextlib.contextmanager
def opened(gate: Gate) -> Iterator[Gate]:
    gate.open()
    try:
        yield gate
    finally:
        gate.close()


async def test_bytes_pass_both_ways_and_an_end_of_one_way_leaves_the_other(tmp_path: Path, folder: str) -> None:
    data = os.urandom(3_000_000)  # more than any buffer on the way
    async with inner(folder) as names:
        with opened(make(tmp_path, folder)):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "outer.sock")

            async def send() -> None:
                writer.write(data)
                await writer.drain()
                writer.write_eof()

            sending = asyncio.create_task(send())
            assert await reader.read(-1) == data + b"end"
            await sending
            writer.close()
            await writer.wait_closed()
        assert names == [f"peer-0-{os.getpid()}-1"]
    assert os.listdir(tmp_path) == ["inner"]


async def test_who_does_not_read_holds_up_who_writes(tmp_path: Path, folder: str) -> None:
    async with inner(folder):
        with opened(make(tmp_path, folder)), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "outer.sock"))
            client.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while sent < 50_000_000:
                    sent += client.send(b"x" * 65536)
                    for _ in range(20):
                        await asyncio.sleep(0)
            assert sent < 50_000_000


async def test_the_socket_has_its_mode_and_owner_and_goes_with_the_gate(tmp_path: Path, folder: str) -> None:
    with opened(make(tmp_path, folder)):
        found = (tmp_path / "outer.sock").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o660, 0, 7)
        assert os.listdir(tmp_path) == ["outer.sock"]
    assert os.listdir(tmp_path) == []


async def test_a_dead_daemons_socket_is_replaced_and_other_files_are_not(tmp_path: Path, folder: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "outer.sock"))
    with opened(make(tmp_path, folder)):
        pass
    (tmp_path / "outer.sock").write_text("precious")
    with pytest.raises(AlreadyExists):
        make(tmp_path, folder).open()
    assert (tmp_path / "outer.sock").read_text() == "precious"


async def test_a_path_longer_than_a_socket_address_serves(tmp_path: Path, folder: str) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    async with inner(folder):
        with opened(make(deep, folder)):
            descriptor = os.open(deep, os.O_PATH)
            try:
                reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{descriptor}/outer.sock")
            finally:
                os.close(descriptor)
            writer.write_eof()
            assert await reader.read(-1) == b"end"
            writer.close()
            await writer.wait_closed()


async def test_a_missing_folder_is_told(tmp_path: Path, folder: str) -> None:
    with pytest.raises(NotFound):
        make(tmp_path / "absent", folder).open()


async def test_callers_beyond_the_bound_wait_for_others_to_leave(tmp_path: Path, folder: str) -> None:
    async with inner(folder):
        with opened(make(tmp_path, folder, connections_max=2)):
            first = [await asyncio.open_unix_connection(tmp_path / "outer.sock") for _ in range(2)]
            for reader, writer in first:
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
            reader, writer = await asyncio.open_unix_connection(tmp_path / "outer.sock")
            writer.write(b"y")
            waiting = asyncio.create_task(reader.readexactly(1))
            first[0][1].close()
            assert await waiting == b"y"
            first[1][1].close()
            writer.close()
            for _reader, each in (*first, (reader, writer)):
                await each.wait_closed()


async def test_when_nobody_is_inside_the_caller_is_let_go(tmp_path: Path, folder: str) -> None:
    with opened(make(tmp_path, folder)):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "outer.sock")
        assert await reader.read(-1) == b""
        writer.close()
        await writer.wait_closed()


def test_connections_leave_descriptors_for_containers() -> None:
    assert gates.connections_max(1024) == 85
    assert gates.connections_max(1_000_000) == gates.CONNECTIONS_MAX


# ---------------------------------------------------------------- peers

CONNECT = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(1))"


@contextlib.contextmanager
def connection_of(tmp_path: Path, *prefix: str, keep: bool = True) -> Iterator[socket.socket]:
    """A connection made by another process, started through ``prefix``; with ``keep`` it lives as long as the block."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "listener"))
        (tmp_path / "listener").chmod(0o666)
        listener.listen()
        argv = [*prefix, sys.executable, "-c", CONNECT, str(tmp_path / "listener")]
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
            connection, _ = listener.accept()
            with connection:
                if not keep:
                    process.kill()
                    process.wait()
                yield connection


def test_the_kernel_tells_who_it_is(tmp_path: Path) -> None:
    with connection_of(tmp_path) as connection:
        found = peer.admit(connection, Home.own())
        assert (found.uid, found.gid) == (0, 0)
        assert found.pid not in (0, os.getpid())


def test_a_process_in_another_pid_namespace_is_refused(tmp_path: Path) -> None:
    with connection_of(tmp_path, "unshare", "--pid", "--fork", "--kill-child") as connection, pytest.raises(PermissionDenied) as caught:
        peer.admit(connection, Home.own())
    assert caught.value.reason == "PEER_NAMESPACE"


def test_a_process_that_has_ended_is_refused(tmp_path: Path) -> None:
    with connection_of(tmp_path, keep=False) as connection, pytest.raises(PermissionDenied) as caught:
        peer.admit(connection, Home.own())
    assert caught.value.reason == "PEER_GONE"


def test_a_reused_pid_is_refused(tmp_path: Path) -> None:
    """In a PID namespace of its own, where the next PID can be chosen."""
    script = """
import os, socket, subprocess, sys
from nestbed.errors import PermissionDenied
from nestbed.service import peer

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
child = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]], stdout=subprocess.DEVNULL)
connection, _ = listener.accept()
assert peer.credentials(connection).pid == child.pid
child.kill()
child.wait()
with open("/proc/sys/kernel/ns_last_pid", "w") as file:
    file.write(str(child.pid - 1))
reuser = subprocess.Popen(["sleep", "60"])
assert reuser.pid == child.pid, (reuser.pid, child.pid)
try:
    peer.admit(connection, peer.Home.own())
except PermissionDenied as error:
    print(error.reason)
reuser.kill()
reuser.wait()
"""
    argv = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", sys.executable, "-c", script, str(tmp_path / "listener"), CONNECT]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, env=environment)
    assert (result.stdout, result.returncode) == ("PEER_GONE\n", 0), result.stderr


@pytest.fixture
def container_cgroup() -> Iterator[Path]:
    """A cgroup named as a node's are, in whatever hierarchy there is."""
    with open("/proc/self/mounts") as file:
        mounts = [line.split() for line in file]
    roots = [fields[1] for fields in mounts if fields[2] == "cgroup2"] or [fields[1] for fields in mounts if fields[2] == "cgroup"]
    if not roots:
        pytest.skip("no cgroup hierarchy is mounted")
    path = Path(roots[0], f"nestbed-{secrets.token_hex(4)}")
    path.mkdir()
    yield path
    path.rmdir()


def test_a_process_in_a_containers_cgroup_is_refused(tmp_path: Path, container_cgroup: Path) -> None:
    """A daemon that runs in that container itself does not mind."""
    with connection_of(tmp_path) as connection:
        pid = peer.admit(connection, Home.own()).pid
        (container_cgroup / "cgroup.procs").write_text(str(pid))
        with pytest.raises(PermissionDenied) as caught:
            peer.admit(connection, Home.own())
        assert caught.value.reason == "PEER_CONTAINED"
        assert peer.admit(connection, dataclasses.replace(Home.own(), containers=frozenset({container_cgroup.name}))).pid == pid


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0::/\n", set()),
        ("4:memory:/nestbed-0a1b2c3d/0123456789ab\n0::/user.slice\n", {"nestbed-0a1b2c3d"}),
        ("0::/nestbed-0a1b2c3d/0123456789ab/nestbed-ffffffff/x\n", {"nestbed-0a1b2c3d", "nestbed-ffffffff"}),
        ("0::/system.slice/nestbed.service\n", set()),
    ],
)
def test_containers_are_known_by_their_cgroup(text: str, found: set[str]) -> None:
    assert peer.containers_in(text) == found


async def test_another_user_does_not_reach_the_administrators_socket(folder: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o711)
        with opened(Gate(Path(name, "admin.sock"), mode=0o600, gid=0, inner=folder, inner_name="inner")):
            argv = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", CONNECT, f"{name}/admin.sock"]
            process = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.PIPE)
            _, stderr = await process.communicate()
    assert process.returncode == 1
    assert b"PermissionError" in stderr
