"""Several daemons on one machine, and a machine that was switched off."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nestbed.testing.machine import Machine

NESTBEDD = Path(sys.executable).with_name("nestbedd")
CGROUPS = Path("/sys/fs/cgroup")
PATIENCE_SECONDS = 20.0


def nbctl(machine: Machine, *args: str) -> str:
    result = machine.nbctl(*args)
    assert result.returncode == 0, f"{args}: {result.stderr}{machine.daemon.log[-5:]}"
    return result.stdout


def inspect(machine: Machine, name: str) -> dict[str, Any]:
    return dict(json.loads(nbctl(machine, "-o", "json", "inspect", name)))


def names(machine: Machine) -> set[str]:
    return set(nbctl(machine, "-o", "name", "ps", "-a").split())


def run(machine: Machine, name: str, *options: str, args: tuple[str, ...] = ("sleep", "1000")) -> None:
    nbctl(machine, "run", "process", "-d", "--name", name, *options, "--", *args)


def test_second_daemon_refuses_directories_in_use(machine, daemon) -> None:
    run(machine, "web")
    other = machine.run_dir.with_name("other")
    for run_dir, state_dir in ((machine.run_dir, machine.state_dir), (other, machine.state_dir), (machine.run_dir, other)):
        second = machine.run(NESTBEDD, "--run-dir", run_dir, "--state-dir", state_dir)
        assert second.returncode == 1
        cause, remedy = second.stderr.splitlines()
        assert "another nestbedd" in cause
        assert str(daemon.pid) in cause
        assert remedy.startswith("remedy: ")
    assert inspect(machine, "web")["state"] == "CONTAINER_STATE_RUNNING"
    nbctl(machine, "audit")


@pytest.mark.slow
def test_daemons_in_namespaces_of_their_own_do_not_disturb_each_other(machines) -> None:
    """The same names on both, and one of them is killed and emptied."""
    one, other = machines("one"), machines("other")
    for machine in (one, other):
        machine.daemon.start()
        nbctl(machine, "lan", "create", "lan0", "--subnet", "10.5.0.0/24")
        run(machine, "web", "--lan", "lan0")
        run(machine, "count", "--lan", "lan0", args=("ping", "-n", "-i", "0.2", "web"))
    before = inspect(other, "web")
    assert inspect(one, "web")["nics"][0]["mac"] == before["nics"][0]["mac"]
    one.daemon.kill()
    one.kill_keeper()
    nbctl(other, "audit")
    one.daemon.start()
    nbctl(one, "rm", "-f", "web", "count")
    nbctl(one, "lan", "rm", "lan0")
    nbctl(one, "audit")
    assert names(one) == set()
    assert inspect(other, "web") == before
    nbctl(other, "audit")
    heard = nbctl(other, "logs", "count").count(" ttl=")
    assert nbctl(other, "exec", "count", "--", "ping", "-c", "1", "-W", "2", "web").count("1 received") == 1
    assert heard > 0


def switch_off(machine: Machine, after: Machine) -> None:
    """End everything of a machine that a reboot ends, and give its state directory to ``after``, which has nothing else of it."""
    pids = [pid for path in CGROUPS.rglob(f"nestbed-{machine.node_id}/*/cgroup.procs") for pid in map(int, path.read_text().split())]
    machine.daemon.kill()
    machine.kill_keeper()
    for pid in set(pids):
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
    for path in CGROUPS.rglob(f"nestbed-{machine.node_id}/*"):
        if path.is_dir():
            path.rmdir()
    machine.remove_empty_cgroups()
    after.state_dir = machine.state_dir


@pytest.mark.slow
def test_reboot(machines) -> None:
    before, after = machines("node1"), machines("after")
    before.daemon.start()
    nbctl(before, "lan", "create", "lan0", "--subnet", "10.5.0.0/24")
    run(before, "once", "--lan", "lan0", "--memory", "64m")
    run(before, "always", "--lan", "lan0", "--restart", "always", "--memory", "64m", args=("sh", "-c", "echo up; exec sleep 1000"))
    run(before, "stopped", "--restart", "always")
    nbctl(before, "stop", "-t", "0", "stopped")
    nbctl(before, "create", "process", "--name", "created", "--lan", "lan0", "--", "sleep", "1000")
    nbctl(before, "run", "process", "-d", "--rm", "--name", "passing", "--", "sleep", "1000")
    was = {name: inspect(before, name) for name in ("once", "always", "created")}
    switch_off(before, after)
    after.daemon.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "passing" in names(after):
        assert time.monotonic() < deadline, "what was to be removed when it stopped is still there"
    assert names(after) == {"once", "always", "stopped", "created"}
    states = {name: inspect(after, name)["state"].removeprefix("CONTAINER_STATE_") for name in names(after)}
    assert states == {"once": "STOPPED", "always": "RUNNING", "stopped": "STOPPED", "created": "CREATED"}
    ended = inspect(after, "once")["exit"]
    assert ended["reason"] == "unknown"
    assert "code" not in ended
    assert ended["shell_code"] == 255
    for name, view in was.items():
        assert inspect(after, name)["nics"] == view["nics"]
    nbctl(after, "audit")
    assert nbctl(after, "logs", "always") == "up\nup\n"
    for name in ("once", "created"):
        nbctl(after, "start", name)
        assert "1 received" in nbctl(after, "exec", name, "--", "ping", "-c", "1", "-W", "2", "always")
        limit = nbctl(after, "exec", name, "--", "cat", "/proc/self/cgroup")
        assert before.node_id not in limit
    pid = inspect(after, "once")["pid"]
    assert f"nestbed-{after.node_id}" in Path(f"/proc/{pid}/cgroup").read_text()
    nbctl(after, "audit")
