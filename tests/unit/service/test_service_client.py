"""The client's addresses, and what it says when nobody answers."""

import asyncio
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from nestbed import errors
from nestbed.client import Client, address
from nestbed.v1 import container_pb2 as api


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("/run/nestbed/admin.sock", "unix:/run/nestbed/admin.sock"),
        ("unix:///run/x.sock", "unix:/run/x.sock"),
        ("tcp://node1", "dns:///node1:7411"),
        ("tcp://192.0.2.1:5/", "dns:///192.0.2.1:5"),
        ("tcp://[fd00::1]:5", "dns:///[fd00::1]:5"),
    ],
)
def test_addresses(text: str, target: str) -> None:
    with ExitStack() as resources:
        assert address.parse(text).target(resources) == target


@pytest.mark.parametrize("text", ["", "node1", "unix:x", "unix://host/x", "tcp://", "tcp://h:99999", "tcp://h:1/x", "http://h", "\0"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        address.parse(text)


def test_a_path_too_long_for_a_socket_goes_through_its_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with ExitStack() as resources:
        target = address.parse(str(deep / "x.sock")).target(resources)
        assert len(target) < 60
        assert Path(target.removeprefix("unix:")).parent.samefile(deep)


def test_why_nobody_answers(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    for path, word in (
        (tmp_path / "absent", "no such socket"),
        (tmp_path / "dead", "nobody listens"),
        (tmp_path / "dead/x", "no such socket"),
    ):
        error = address.parse(str(path)).diagnose()
        assert isinstance(error, errors.Unavailable)
        assert error.reason == "NO_NODE"
        assert word in error.message
        assert error.remedy


def test_one_that_hangs_up_is_told_from_one_that_is_absent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "x"))
        listener.listen()

        def hang_up() -> None:
            listener.accept()[0].close()

        knocked = threading.Thread(target=hang_up)
        knocked.start()
        assert address.parse(str(tmp_path / "x")).diagnose().reason == "CONNECTION_LOST"
        knocked.join()


async def test_tcp_needs_all_tls_files(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument):
        Client.connect("tcp://node1")
    absent = tmp_path / "absent"
    with pytest.raises(errors.NotFound):
        Client.connect("tcp://node1", tls_ca=absent, tls_cert=absent, tls_key=absent)


async def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    client = Client.connect(f"unix://{tmp_path}/x")
    await asyncio.gather(client.aclose(), client.aclose())


def test_the_client_imports_little() -> None:
    """Its import is a good part of what a command costs."""
    script = "import sys; import nestbed.client; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20, env={"PYTHONPATH": ":".join(sys.path)}
    ).stdout.split()
    assert not {"pyroute2", "google.rpc", "nestbed.lanmodel", "nestbed.model", "nestbed.node", "prctl"} & set(modules)


async def test_session_with_nobody_says_so(tmp_path: Path) -> None:
    async with Client.connect(f"unix://{tmp_path}/absent") as client:
        with pytest.raises(errors.Unavailable) as caught:
            async with client.exec(api.ExecStart(container="web", args=["true"])):
                raise AssertionError("there is no node")
    assert caught.value.reason == "NO_NODE"
