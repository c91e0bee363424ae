"""Experiments whose daemon is killed, whose nodes die, and whose callers are in each other's way."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestbed.testing.machine import Machine
from nestbed.testing.segment import Segment, checked

NBCTL = Path(sys.executable).with_name("nbctl")
SMALL = """\
experiment: small
lans: {l: {delay: 1ms}}
elements:
  first: {nics: [l], command: "echo here; exec sleep 1000", ready: {log: here}}
  then: {nics: [l], after: first}
"""


def is_gone(machine: Machine) -> bool:
    """Whether nothing is left of any experiment, and the record agrees with the kernel."""
    checked(machine.nbctl("audit"))
    return checked(machine.nbctl("ps", "-a", "-q")) == checked(machine.nbctl("lan", "ls", "-o", "name")) == ""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_whenever_the_daemon_is_killed_the_next_one_goes_on(machine: Machine, daemon, tmp_path: Path) -> None:
    """Before each step of ``up``, and, for the same experiment, before each step of ``down``."""
    path, doom = tmp_path / "small.yaml", tmp_path / "doom"
    path.write_text(SMALL)
    daemon.stop()
    daemon.starter = (sys.executable, str(Path(__file__).with_name("doomed.py")), str(doom))
    daemon.start()
    for steps in itertools.count(1):
        doom.write_text(str(steps))
        came_up = machine.nbctl("up", "-f", str(path)).returncode == 0
        if not came_up:
            assert daemon.wait() == -signal.SIGKILL
            daemon.start()
            if machine.nbctl("wait", "--ready", "small").returncode != 0:
                assert is_gone(machine), "it was not begun, or is all there"
                checked(machine.nbctl("up", "-f", str(path)))
            assert json.loads(checked(machine.nbctl("diff", "-f", str(path), "-o", "json"))) == []
            assert "1 received" in checked(machine.nbctl("exec", "small.then", "--", "ping", "-c1", "-W2", "first"))
        doom.write_text(str(steps))
        went_down = machine.nbctl("down", "small").returncode == 0
        if not went_down:
            assert daemon.wait() == -signal.SIGKILL
            daemon.start()
            if machine.nbctl("wait", "--ready", "small").returncode == 0:
                assert steps == 1, "it was begun"
                checked(machine.nbctl("down", "small"))
        assert is_gone(machine), f"after {steps} steps"
        assert checked(machine.nbctl("status", "-o", "name")) == ""
        assert list((machine.state_dir / "experiments").iterdir()) == []
        if came_up and went_down:
            break
    assert steps > 12


@pytest.fixture
def pair(tmp_path: Path, owned_cgroups: set[str]) -> Iterator[Segment]:
    segment = Segment(tmp_path / "pair", 2)
    try:
        segment.start()
        yield segment
    finally:
        segment.close()
        owned_cgroups.update(f"nestbed-{machine.node_id}" for machine in segment.machines)


@pytest.fixture
def files(pair: Segment, tmp_path: Path) -> list[str]:
    """The words of ``up`` for an experiment on two nodes; an element on the second one is ready when ``flag`` is there."""
    beta = pair.machines[1]
    flag = tmp_path / "flag"
    (tmp_path / "apart.yaml").write_text(
        "experiment: apart\nlans: {l: {}}\nelements:\n  near: {nics: [l]}\n"
        f"  far: {{nics: [l], ready: {{command: [test, -e, {flag}], timeout: 1m}}}}\n  last: {{nics: [l], after: far}}\n"
    )
    (tmp_path / "ptopo.yaml").write_text(
        f"nodes: {{alpha: {{}}, beta: {{address: 'unix://{beta.run_dir}/admin.sock'}}}}\n"
        "placement: {fixed: {near: alpha, last: alpha, far: beta}}\n"
    )
    return ["-f", str(tmp_path / "apart.yaml"), "--on", str(tmp_path / "ptopo.yaml")]


def states(machine: Machine, experiment: str) -> dict[str, str]:
    found = json.loads(checked(machine.nbctl("status", experiment, "-o", "json")))
    return {one["name"]: one["state"].removeprefix("ELEMENT_STATE_").lower() for one in found["elements"]}


def end(machine: Machine, container: str) -> None:
    """End a machine as a failure of power does: the daemon, the keeper and a container's program, all by SIGKILL."""
    program = json.loads(checked(machine.nbctl("inspect", container)))
    pidfd = os.pidfd_open(program["pid"])
    machine.daemon.kill()
    machine.kill_keeper()
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def rise(machine: Machine, *args: str) -> subprocess.Popen[bytes]:
    return machine.popen([NBCTL, "-H", machine.address, "up", "-v", *args], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)


def until_said(process: subprocess.Popen[bytes], text: bytes) -> None:
    assert process.stderr is not None
    assert any(text in line for line in process.stderr), f"{text!r} was never said"


def test_what_was_on_a_node_that_died_is_lost_until_up_heals_it(pair: Segment, files: list[str], tmp_path: Path) -> None:
    alpha, beta = pair.machines
    (tmp_path / "flag").touch()
    checked(alpha.nbctl("up", *files))
    end(beta, "apart.far")
    assert states(alpha, "apart") == {"near": "ready", "far": "lost", "last": "ready"}
    assert "1 received" in checked(alpha.nbctl("exec", "apart.near", "--", "ping", "-c1", "-W2", "last"))
    table = alpha.nbctl("status", "apart").stdout
    assert "node beta cannot be reached: " in table
    result = alpha.nbctl("up", *files)
    assert result.returncode != 0
    assert "no node answers at " in result.stderr
    assert states(alpha, "apart") == {"near": "ready", "far": "lost", "last": "ready"}
    beta.daemon.start("--underlay", "u0")
    checked(alpha.nbctl("up", *files))
    assert states(alpha, "apart") == {"near": "ready", "far": "ready", "last": "ready"}
    assert "1 received" in checked(alpha.nbctl("exec", "apart.near", "--", "ping", "-c1", "-W2", "far"))
    checked(alpha.nbctl("down", "apart"))
    assert is_gone(alpha)
    assert is_gone(beta)


@pytest.mark.parametrize("keep", [False, True])
def test_a_node_that_dies_on_the_way_up_is_named_and_all_heals(pair: Segment, files: list[str], tmp_path: Path, keep: bool) -> None:
    alpha, beta = pair.machines
    with rise(alpha, *files, *(["--keep"] if keep else [])) as rising:
        until_said(rising, b"far running")
        end(beta, "apart.far")
        assert rising.stderr is not None
        said = rising.stderr.read().decode()
    assert rising.returncode == 1
    assert "no node answers at " in said
    assert states(alpha, "apart")["far"] == "lost"
    assert states(alpha, "apart")["near"] == ("running" if keep else "absent")
    assert " is failed\n" in alpha.nbctl("status", "apart").stdout
    (tmp_path / "flag").touch()
    beta.daemon.start("--underlay", "u0")
    checked(alpha.nbctl("up", *files))
    assert states(alpha, "apart") == {"near": "ready", "far": "ready", "last": "ready"}
    checked(alpha.nbctl("down", "apart"))
    assert is_gone(alpha)
    assert is_gone(beta)


def test_one_up_at_a_time_and_down_ends_it(machine: Machine, daemon, tmp_path: Path) -> None:
    path = tmp_path / "half.yaml"
    path.write_text("experiment: half\nlans: {l: {}}\nelements:\n  a: {nics: [l], ready: {log: never}}\n  b: {nics: [l], after: a}\n")
    with rise(machine, "-f", str(path)) as first, rise(machine, "-f", str(path)) as second:
        outcomes = {}
        for process in (first, second):
            assert process.stderr is not None
            outcomes[process] = process.stderr.readline()
        (refused,) = [process for process, line in outcomes.items() if line == b"nbctl: experiment half is rising\n"]
        assert refused.wait() != 0
        rising = second if refused is first else first
        until_said(rising, b"a running")
        assert checked(machine.nbctl("status", "half")).startswith("half is rising\n")
        checked(machine.nbctl("down", "half"))
        assert rising.stderr is not None
        rising.stderr.read()
    assert rising.returncode != 0
    assert is_gone(machine)
    assert checked(machine.nbctl("status", "-o", "name")) == ""


def test_a_program_that_fails_leaves_a_kept_experiment_failed_with_what_it_said(machine: Machine, daemon, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("experiment: bad\nelements:\n  good: {}\n  sick: {command: 'echo no disk; exit 3', ready: {port: 80}}\n")
    result = machine.nbctl("up", "-f", str(path), "--keep")
    assert result.returncode == 1
    assert "sick ended with status 3\n" in result.stderr
    assert "  | no disk\n" in result.stderr
    status = machine.nbctl("status", "bad").stdout
    assert status.startswith("bad is failed\n")
    assert "  | no disk\n" in status
    assert states(machine, "bad") == {"good": "running", "sick": "failed"}
    path.write_text("experiment: bad\nelements:\n  good: {}\n  sick: {command: 'exec python3 -m http.server 80', ready: {port: 80}}\n")
    checked(machine.nbctl("up", "-f", str(path)))
    assert states(machine, "bad") == {"good": "ready", "sick": "ready"}
    checked(machine.nbctl("down", "bad"))
    assert is_gone(machine)
