"""Captures of LANs and NICs, as tshark reads them, and what ends them."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from nestbed.testing.machine import Daemon, Machine

NBCTL = str(Path(sys.executable).parent / "nbctl")
PING = ("ping", "-c", "{count}", "-i", "0.01", "-W", "2", "web")
Start = Callable[..., subprocess.Popen[bytes]]


def nbctl(machine: Machine, *args: str) -> str:
    result = machine.nbctl(*args)
    assert result.returncode == 0, f"{args}: {result.stderr}{machine.daemon.log[-5:]}"
    return result.stdout


@pytest.fixture
def lan(machine: Machine, daemon: Daemon) -> Machine:
    """A machine with the containers web and client on lan0."""
    nbctl(machine, "lan", "create", "lan0", "--subnet", "10.5.0.0/24", "--mtu", "9000")
    for name in ("web", "client"):
        nbctl(machine, "run", "process", "-d", "--name", name, "--lan", "lan0", "--", "sleep", "1000")
    return machine


@pytest.fixture
def start(machine: Machine) -> Iterator[Start]:
    """Starts nbctl with its output in a pipe."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*args: str) -> subprocess.Popen[bytes]:
        argv = (NBCTL, "-H", machine.address, "capture", *args)
        started.append(machine.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ping(machine: Machine, count: int = 1) -> None:
    nbctl(machine, "exec", "client", "--", *(word.format(count=count) for word in PING))


def send_datagrams(machine: Machine, count: int, size: int) -> None:
    """To a port of web where nobody listens."""
    program = f"import socket; s = socket.socket(2, 2); s.connect(('10.5.0.1', 9)); b = bytes({size})\nfor n in range({count}):\n"
    program += "    try: s.send(b)\n    except ConnectionRefusedError: s.send(b)\n"
    nbctl(machine, "exec", "client", "--", "/usr/bin/python3", "-c", program)


def fields(file: bytes, *names: str) -> list[list[str]]:
    """What tshark reads of each frame."""
    assert shutil.which("tshark"), "hack/setup installs tshark"
    words = [word for name in names for word in ("-e", name)]
    read = subprocess.run(["tshark", "-n", "-r", "-", "-T", "fields", *words], input=file, capture_output=True, check=True)
    return [line.split("\t") for line in read.stdout.decode().splitlines()]


def read_some(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """What comes within the time."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return os.read(process.stdout.fileno(), 1 << 20) if ready else b""


def begun(process: subprocess.Popen[bytes]) -> bytes:
    """Wait until it captures: the beginning of the file has come."""
    data = read_some(process, 10)
    assert data[:4] == b"\x0a\x0d\x0d\x0a", process.poll()
    return data


def blocks(file: bytes) -> list[tuple[int, bytes]]:
    """Kind and content of each block of a file, which ends with a whole one."""
    found, at = [], 0
    while at < len(file):
        kind, size = (int.from_bytes(file[place : place + 4], "little") for place in (at, at + 4))
        assert 12 <= size <= len(file) - at
        assert file[at + size - 4 : at + size] == file[at + 4 : at + 8]
        found.append((kind, file[at + 8 : at + size - 4]))
        at += size
    return found


def counters(file: bytes) -> dict[int, int]:
    """The counters of the last statistics block, by the number of their option."""
    content = [content for kind, content in blocks(file) if kind == 5][-1][12:]
    found = {}
    while content[:2] != b"\0\0":
        number, size = int.from_bytes(content[:2], "little"), int.from_bytes(content[2:4], "little")
        found[number] = int.from_bytes(content[4 : 4 + size], "little")
        content = content[4 + size :]
    return found


def capturers(machine: Machine) -> Sequence[str]:
    """Command lines of the daemon's children that capture."""
    children = Path(f"/proc/{machine.daemon.pid}/task/{machine.daemon.pid}/children").read_text().split()
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ") for pid in children]
    return [line for line in lines if "nestbed.lan.capturer" in line]


def test_lan_is_captured_with_names_times_and_counters(lan: Machine, start: Start) -> None:
    began = time.time()
    capture = start("lan0", "-w", "-", "-f", "icmp", "-c", "20")
    head = begun(capture)
    ping(lan, 10)
    rest, err = capture.communicate(timeout=10)
    assert (capture.returncode, err) == (0, b"")
    file = head + rest
    frames = fields(file, "frame.interface_name", "frame.time_epoch", "ip.src", "ip.dst", "icmp.type")
    assert len(frames) == 20
    assert {frame[0] for frame in frames} == {"lan0"}
    assert all(began <= float(frame[1]) <= time.time() for frame in frames)
    assert any(not frame[1].endswith("000000") for frame in frames), "times are in nanoseconds"
    assert [frame[2:] for frame in frames[:2]] == [["10.5.0.2", "10.5.0.1", "8"], ["10.5.0.1", "10.5.0.2", "0"]]
    assert (counters(file)[4], counters(file)[5], counters(file)[8]) == (20, 0, 20)
    assert capturers(lan) == []


def test_frames_appear_at_once(lan: Machine, start: Start) -> None:
    capture = start("lan0", "-w", "-", "-f", "icmp")
    begun(capture)
    ping(lan)
    began = time.monotonic()
    assert read_some(capture, 2)
    assert time.monotonic() - began < 0.5
    capture.send_signal(signal.SIGINT)
    capture.communicate(timeout=5)
    assert capture.returncode == 0


def test_nic_is_captured_cut_to_length(lan: Machine, start: Start, tmp_path: Path) -> None:
    file = tmp_path / "web.pcapng"
    capture = start("web", "-w", str(file), "-s", "60", "-c", "2", "-f", "udp")
    while not file.exists() or not file.stat().st_size:
        assert capture.poll() is None
    send_datagrams(lan, 2, 1000)
    assert capture.wait(10) == 0
    frames = fields(file.read_bytes(), "frame.interface_name", "frame.len", "frame.cap_len")
    assert frames == [["web:eth0", "1042", "60"]] * 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("lan0", "-f", "no such filter"), "the filter is none: "),
        (("lan0", "-f", "len > 1 and len > 2 and ("), "the filter is none: "),
        (("lan9",), "there is no container lan9"),
        (("web:eth9",), "container web has no NIC eth9"),
        (("lan0", "-s", "0"), "'0' is not a number that fits here"),
        (("lan0", "-c", "-1"), "'-1' is not a number that fits here"),
    ],
)
def test_bad_captures_are_refused_before_anything_is_written(lan: Machine, tmp_path: Path, line: tuple[str, ...], said: str) -> None:
    file = tmp_path / "x"
    result = lan.nbctl("capture", *line, "-w", str(file))
    assert result.returncode in (1, 2)
    assert result.stderr.startswith(f"nbctl: {said}")
    assert "\nremedy: " in result.stderr
    assert not file.exists()
    assert capturers(lan) == []


def test_bounds_end_it(lan: Machine, start: Start) -> None:
    capture = start("lan0", "-w", "-", "--size", "20k")
    head = begun(capture)
    send_datagrams(lan, 50, 1000)
    file = head + capture.communicate(timeout=10)[0]
    assert capture.returncode == 0
    assert 18_000 < len(file) <= 20 * 1024
    blocks(file)
    began = time.monotonic()
    assert lan.nbctl("capture", "lan0", "-w", "/dev/null", "--duration", "300ms").returncode == 0
    assert 0.3 <= time.monotonic() - began < 3


def test_what_could_not_be_kept_is_counted(lan: Machine, start: Start) -> None:
    sent = 6000
    capture = start("lan0", "-w", "-", "-f", "udp")
    rest, frames, found = begun(capture), 0, {5: 0}
    capture.send_signal(signal.SIGSTOP)
    send_datagrams(lan, sent, 8900)
    capture.send_signal(signal.SIGCONT)
    while frames + found[5] != sent:
        piece = read_some(capture, 5)
        assert piece, f"{frames + found[5]} of {sent} frames are accounted for"
        rest += piece
        new = whole(rest)
        rest = rest[len(new) :]
        kinds = [kind for kind, _ in blocks(new)]
        frames += kinds.count(6)
        found = counters(new) if 5 in kinds else found
    assert found[5] == found[7] > 0
    assert found[4] == sent


def whole(file: bytes) -> bytes:
    """The file up to its last whole block."""
    at = 0
    while at + 8 <= len(file) and at + int.from_bytes(file[at + 4 : at + 8], "little") <= len(file):
        at += int.from_bytes(file[at + 4 : at + 8], "little")
    return file[:at]


def test_reader_that_dies_ends_it(lan: Machine, start: Start) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM):
        capture = start("lan0", "-w", "-")
        begun(capture)
        assert len(capturers(lan)) == 1
        capture.send_signal(number)
        capture.wait(5)
        deadline = time.monotonic() + 5
        while capturers(lan):
            assert time.monotonic() < deadline, "the capture goes on without a reader"


def test_full_disk_ends_it(lan: Machine) -> None:
    result = lan.nbctl("capture", "lan0", "-w", "/dev/full")
    assert (result.returncode, "no space left on device" in result.stderr) == (1, True)
    deadline = time.monotonic() + 5
    while capturers(lan):
        assert time.monotonic() < deadline, "the capture goes on without a reader"


def test_lan_that_is_removed_ends_it(lan: Machine, start: Start) -> None:
    nbctl(lan, "lan", "create", "short")
    capture = start("short", "-w", "-")
    head = begun(capture)
    nbctl(lan, "lan", "rm", "short")
    rest, err = capture.communicate(timeout=5)
    assert (capture.returncode, err) == (0, b"")
    blocks(head + rest)
    assert capturers(lan) == []


def test_daemon_that_is_killed_ends_it(lan: Machine, start: Start) -> None:
    capture = start("lan0", "-w", "-")
    begun(capture)
    pid = int(Path(f"/proc/{lan.daemon.pid}/task/{lan.daemon.pid}/children").read_text().split()[-1])
    pidfd = os.pidfd_open(pid)
    assert b"nestbed.lan.capturer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    lan.daemon.kill()
    ready, _, _ = select.select([pidfd], [], [], 5)
    os.close(pidfd)
    assert ready, "the capture goes on without its daemon"
    _, err = capture.communicate(timeout=10)
    assert (capture.returncode, err.startswith(b"nbctl: ")) == (1, True)
    lan.daemon.start()
    ping(lan)


def test_capture_has_no_privileges_and_its_death_is_told(lan: Machine, start: Start) -> None:
    capture = start("lan0", "-w", "-")
    begun(capture)
    pid = int(Path(f"/proc/{lan.daemon.pid}/task/{lan.daemon.pid}/children").read_text().split()[-1])
    assert b"nestbed.lan.capturer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["Uid"].split() == ["65534"] * 4
    assert (int(status["CapEff"], 16), int(status["CapPrm"], 16), status["NoNewPrivs"]) == (0, 0, "1")
    os.kill(pid, signal.SIGKILL)
    _, err = capture.communicate(timeout=5)
    assert (capture.returncode, b"has died" in err, b"\nremedy: " in err) == (1, True, True)


def test_capture_of_an_idle_lan_costs_nothing_and_is_not_refused_to_others(lan: Machine, start: Start) -> None:
    captures = [start("lan0", "-w", "-") for _ in range(3)]
    for capture in captures:
        begun(capture)
    ping(lan)
    for capture in captures:
        assert read_some(capture, 2)
    assert json.loads(nbctl(lan, "-o", "json", "audit"))["leftovers"] == []


def test_frames_of_an_impaired_nic_are_captured_once(lan: Machine, start: Start) -> None:
    nbctl(lan, "lan", "impair", "lan0", "--port", "client", "--delay", "20ms")
    capture = start("client", "-w", "-", "-f", "icmp", "--duration", "2s")
    head = begun(capture)
    ping(lan, 5)
    rest, _ = capture.communicate(timeout=10)
    frames = fields(head + rest, "icmp.type", "icmp.seq", "frame.time_epoch")
    assert sorted((kind, sequence) for kind, sequence, _ in frames) == [(kind, str(number)) for kind in "08" for number in range(1, 6)]
    times = {(kind, sequence): float(at) for kind, sequence, at in frames}
    trips = [times["0", str(number)] - times["8", str(number)] for number in range(1, 6)]
    assert min(trips) > 0.039, "as the container sends and receives them"
