"""Experiments on a real daemon: what runs inside sees just what the file says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nestbed.testing.machine import Machine

NBCTL = Path(sys.executable).with_name("nbctl")
STREET = """\
experiment: street
pool6: fd00::/48
lans: {left: {}, right: {mtu: 1400}}
elements:
  server:
    nics: [right]
    command: exec python3 -m http.server 80 --bind 10.0.1.1
    ready: {port: 80}
  router:
    nics: [left, right]
  bot[1-3]:
    nics: [left]
    command: curl -sS --max-time 5 http://server/etc/hostname && echo got {n}; exec sleep 1000
    ready: {log: "got {n}"}
    after: server
"""


def nbctl(machine: Machine, *args: str) -> str:
    result = machine.nbctl(*args)
    assert result.returncode == 0, f"{args}: {result.stderr}{machine.daemon.log[-5:]}"
    return result.stdout


def inside(machine: Machine, element: str, *args: str) -> str:
    return nbctl(machine, "exec", f"street.{element}", "--", *args)


@pytest.fixture
def street(tmp_path: Path) -> Path:
    path = tmp_path / "street.yaml"
    path.write_text(STREET)
    return path


def test_what_is_inside_is_what_the_file_says(machine, daemon, street: Path) -> None:
    out = nbctl(machine, "up", "-f", str(street))
    assert re.match(r"street: 5 elements, 2 LANs up after", out)
    assert "got 2\n" in nbctl(machine, "logs", "street.bot2")
    assert inside(machine, "bot2", "hostname") == "bot2\n"
    assert "1 received" in inside(machine, "bot2", "ping", "-c1", "-W2", "server-right")
    assert "1 received" in inside(machine, "server", "ping", "-c1", "-W2", "10.0.0.1")
    assert "1 received" in inside(machine, "bot1", "ping", "-6", "-c1", "-W2", "fd00:0:0:1::1")
    assert "10.0.1.0/24 via 10.0.0.1 dev eth0" in inside(machine, "bot3", "ip", "-4", "route")
    hosts = inside(machine, "server", "cat", "/etc/hosts")
    assert "street" not in hosts
    assert re.search(r"10\.0\.1\.2\trouter router-right\n.*10\.0\.0\.1\trouter router-left\n", hosts, re.DOTALL)
    plan = json.loads(nbctl(machine, "up", "-f", str(street), "--dry-run"))
    nic = json.loads(inside(machine, "server", "ip", "-j", "link", "show", "eth0"))[0]
    assert (nic["address"], nic["mtu"]) == (plan["elements"]["server"]["nics"][0]["mac"], 1400)
    assert json.loads(nbctl(machine, "diff", "-f", str(street), "-o", "json")) == []
    nbctl(machine, "down", "street")
    assert nbctl(machine, "ps", "-a", "-q") == ""
    nbctl(machine, "audit")


def test_a_startup_that_fails_is_shown_and_nothing_is_left(machine, daemon, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("experiment: bad\nlans: {l: {}}\nelements:\n  a: {nics: [l], startup: 'echo trying; no-such-program'}\n")
    result = machine.nbctl("up", "-f", str(path))
    assert result.returncode == 1
    assert "a startup ended with status 127" in result.stderr
    assert "  | trying\n" in result.stderr
    assert nbctl(machine, "ps", "-a", "-q") == nbctl(machine, "lan", "ls", "-o", "name") == ""
    nbctl(machine, "audit")


@pytest.mark.slow
def test_a_killed_daemon_goes_on_where_it_was(machine, daemon, tmp_path: Path) -> None:
    """Killed while the first element is not ready yet: the next daemon sees it become so, and starts the others."""
    flag = tmp_path / "flag"
    path = tmp_path / "street.yaml"
    path.write_text(STREET.replace("ready: {port: 80}", f"ready: {{command: [test, -e, {flag}], timeout: 1m}}"))
    argv = [NBCTL, "-H", machine.address, "up", "-v", "-f", str(path)]
    with machine.popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as rising:
        assert rising.stderr is not None
        assert any(b"server running" in line for line in rising.stderr)
        daemon.kill()
        rising.stderr.read()
    assert rising.returncode == 1
    daemon.start()
    assert nbctl(machine, "status", "-o", "name") == "street\n"
    flag.touch()
    assert nbctl(machine, "wait", "--ready", "street") == "street up\n"
    assert "got 3\n" in nbctl(machine, "logs", "street.bot3")
    nbctl(machine, "down", "street")
    nbctl(machine, "audit")


FILES = """\
experiment: files
lans: {l: {}}
elements:
  'bot[1-2]':
    nics: [l]
    fs: overlay
    env: {WHO: "bot {n}"}
    files:
      /etc/bot/name: "{n} of 2\\n"
      /srv/tool: {source: tool, mode: "0755", owner: "65534:65534"}
    command: [/srv/tool, "{n}"]
    restart: on-failure
    ready: {log: "second time"}
"""


def test_files_are_there_before_the_program_at_every_start(machine, daemon, tmp_path: Path) -> None:
    (tmp_path / "files.yaml").write_text(FILES)
    (tmp_path / "tool").write_text(
        '#!/bin/sh\necho "$WHO, $(cat /etc/bot/name)"; [ $(stat -c %u:%a /srv/tool) = 65534:755 ] || exit 0\n'
        "rm /etc/bot/name; echo second time; exit 1\n"
    )
    nbctl(machine, "up", "-f", str(tmp_path / "files.yaml"))
    with machine.popen([NBCTL, "-H", machine.address, "logs", "-f", "files.bot2"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as log:
        assert log.stdout is not None
        assert [log.stdout.readline() for _ in range(4)] == [b"bot 2, 2 of 2\n", b"second time\n"] * 2
        log.kill()
    assert not Path("/srv/tool").exists()
    assert json.loads(nbctl(machine, "diff", "-f", str(tmp_path / "files.yaml"), "-o", "json")) == []
    (tmp_path / "tool").write_text("#!/bin/sh\necho second time; exec sleep 1000\n")
    assert machine.nbctl("diff", "-f", str(tmp_path / "files.yaml"), "-o", "name").stdout != "[]"
    nbctl(machine, "up", "-f", str(tmp_path / "files.yaml"))
    assert nbctl(machine, "logs", "files.bot1") == "second time\n"
    nbctl(machine, "down", "files")
