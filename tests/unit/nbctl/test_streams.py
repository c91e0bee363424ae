"""nbctl as a process: standard input, signals, closed pipes, terminals."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.nbctl.conftest import Served


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_go_to_the_program(node: Served, number: signal.Signals) -> None:
    with node.start("run", "process", "--rm", "--", "wait", stdout=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(number)
        assert running.stdout.read() == b"%d\n" % number
        assert running.wait(20) == 128 + number
    assert node.node.containers == {}


def test_three_times_ctrl_c_kills(node: Served) -> None:
    with node.start("run", "process", "--rm", "--", "wait", "for KILL", stdout=subprocess.PIPE) as running:
        assert running.stdout
        for expected in (b"ready\n", b"2\n", b"2\n"):
            assert running.stdout.readline() == expected
            running.send_signal(signal.SIGINT)
        assert running.stdout.readline() == b"9\n"
        assert running.wait(20) == 137


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


def test_following_ends_with_its_reader(node: Served) -> None:
    node.node.add("web")
    with node.start("stats", "-o", "name", stdout=subprocess.PIPE) as running:
        assert running.stdout
        assert [running.stdout.readline() for _ in range(3)] == [b"web\n"] * 3
        running.stdout.close()
        assert running.wait(20) == 141


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
    terminal.read_until(b"ready")
    start = node.node.calls[-1]
    assert (start.size.rows, start.size.columns, start.stdin) == (24, 80, True)
    assert terminal.is_raw
    termios.tcsetwinsize(terminal.keys, (33, 99))
    running.send_signal(signal.SIGWINCH)
    terminal.read_until(b"33x99")
    os.write(terminal.keys, b"\x03q")
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


def test_a_program_runs_in_all_containers_with_a_label(node: Served) -> None:
    for name, role in (("bot1", "bot"), ("bot22", "bot"), ("web", "server")):
        node.node.add(name).spec.labels["role"] = role
    done = node.start("exec", "-l", "role=bot", "--", "say", "one", "two", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = done.communicate(timeout=30)
    assert sorted(out.splitlines()) == [b"bot1  | one", b"bot22 | one"]
    assert sorted(err.splitlines()) == [b"bot1  | two", b"bot22 | two"]
    assert done.returncode == 0
    done = node.start("exec", "-l", "role=bot", "--", "exit", "3", stderr=subprocess.PIPE)
    assert sorted(done.communicate(timeout=30)[1].splitlines()) == [b"bot1  | ended with status 3", b"bot22 | ended with status 3"]
    assert done.returncode == 1


@pytest.mark.parametrize(
    "words", [("-l", "role=none", "--", "say"), ("-l", "role=bot", "web", "say"), ("--", "say"), ("-it", "-l", "a=b", "--", "say")]
)
def test_a_program_in_no_container(node: Served, words: tuple[str, ...]) -> None:
    node.node.add("web")
    done = node.start("exec", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert b"remedy: " in done.communicate(timeout=30)[1]
    assert done.returncode != 0
