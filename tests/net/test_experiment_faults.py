"""Experiments whose daemon is killed, whose nodes die, and whose callers are in each other's way."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from pathlib import Path

import pytest

from nestbed.testing.machine import Machine
from nestbed.testing.segment import checked

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
