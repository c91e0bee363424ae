"""hack/dev-net, as people use it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestbed.linux.mount import mountpoints

SCRIPT = Path(__file__).parents[2] / "hack" / "dev-net"


class DevNet:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def command(self, *words: str) -> tuple[str, ...]:
        return (str(SCRIPT), "--directory", str(self.directory), *words)

    def run(self, *words: str) -> str:
        result = subprocess.run(self.command(*words), check=False, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture
def dev_net(tmp_path, owned_cgroups) -> Iterator[DevNet]:
    dev_net = DevNet(tmp_path / "net")
    yield dev_net
    dev_net.run("down")
    assert not dev_net.directory.exists()
    assert not any(point.startswith(str(tmp_path)) for point, _, _ in mountpoints())


def test_machines_are_joined(dev_net) -> None:
    shown = dev_net.run("up", "2")
    assert [line.split()[0] for line in shown.splitlines()] == ["m1", "m2"]
    for name in ("m1", "m2"):
        dev_net.run("shell", name, "--", "nbctl", "lan", "create", "lan0", "--subnet", "10.5.0.0/24", "--group", "239.1.1.1:5000")
    dev_net.run("shell", "m1", "--", "nbctl", "run", "process", "-d", "--name", "a", "--lan", "lan0", "--", "sleep", "1000")
    ping = ("ping", "-c", "1", "-W", "2", "10.5.0.1")
    run = ("nbctl", "run", "process", "--rm", "--name", "b", "--lan", "lan0,ip=10.5.0.9/24", "--", *ping)
    assert "1 received" in dev_net.run("shell", "m2", "--", *run)


def test_up_again_mends_what_is_broken(dev_net) -> None:
    dev_net.run("up", "1")
    pid = int((dev_net.directory / "m1" / "run" / "lock").read_text())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)  # the tests are the reaper of orphans
    assert "does not run" in dev_net.run("list")
    assert "does not run" not in dev_net.run("up", "2")
    assert "clean" in dev_net.run("shell", "m1", "--", "nbctl", "audit")


@pytest.mark.parametrize("after_ms", [50, 150, 400])
def test_killed_half_way_it_can_be_undone(dev_net, after_ms: int) -> None:
    process = subprocess.Popen(dev_net.command("up", "2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after_ms / 1000)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    dev_net.run("down")
    dev_net.run("down")
