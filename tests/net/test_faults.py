"""What users and machines do wrong: bad input, programs that die at once, a full disk, a kernel without cgroups."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nestbed.testing.machine import Machine

NBCTL = Path(sys.executable).with_name("nbctl")
OWN_FAILURE, NOT_EXECUTABLE, NOT_FOUND, USAGE = 125, 126, 127, 2
LONG = "x" * 10_000
RUN = ("run", "process", "-d")


class Furnished(Machine):
    """A machine with a mount namespace of its own, in which ``script`` has been run (a shell's; ``$1`` is the state directory)."""

    def __init__(self, name: str, base: Path, script: str) -> None:
        super().__init__(name, base)
        self.state_dir.mkdir(parents=True)
        script = f"set -e; {script}; echo ready; exec sleep 1000"
        self._keeping = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(self.state_dir)], stdout=subprocess.PIPE
        )
        assert self._keeping.stdout is not None
        assert self._keeping.stdout.readline() == b"ready\n"

    @property
    def inside(self) -> Path:
        """The root directory of its mount namespace."""
        return Path(f"/proc/{self._keeping.pid}/root")

    def bundles(self) -> list[str]:
        return sorted(os.listdir(f"{self.inside}{self.state_dir}/containers"))

    def popen(self, argv: Any, **options: Any) -> subprocess.Popen[bytes]:
        return super().popen(("nsenter", f"--mount=/proc/{self._keeping.pid}/ns/mnt", "--", *argv), **options)

    def close(self) -> None:
        if self.daemon.is_running:
            self.nbctl("rm", "-f", "*")
            self.nbctl("lan", "rm", "*")
        super().close()
        self._keeping.kill()
        self._keeping.communicate()


@pytest.fixture
def furnished(tmp_path: Path, owned_cgroups: set[str]) -> Iterator[Callable[[str], Furnished]]:
    made: list[Furnished] = []

    def make(script: str) -> Furnished:
        made.append(Furnished("node1", tmp_path / "node1", script))
        made[-1].daemon.start()
        return made[-1]

    yield make
    for machine in made:
        machine.close()
        owned_cgroups.add(f"nestbed-{machine.node_id}")


def nbctl(machine: Machine, *args: str) -> str:
    result = machine.nbctl(*args)
    assert result.returncode == 0, f"{args}: {result.stderr}{machine.daemon.log[-5:]}"
    return result.stdout


def inspect(machine: Machine, name: str) -> dict[str, Any]:
    return dict(json.loads(nbctl(machine, "-o", "json", "inspect", name)))


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The cause, if the result is a refusal as it should be: one line of cause, one of remedy."""
    lines = result.stderr.splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("nbctl: ")
    assert lines[1].startswith("remedy: ")
    assert len(lines[0]) > len("nbctl: ") + 10
    assert len(lines[1]) > len("remedy: ") + 3
    assert all(character.isprintable() for line in lines for character in line)
    assert max(map(len, lines)) < 500, "nobody reads that"
    return lines[0]


async def refusals(machine: Machine, cases: dict[str, tuple[str, ...]]) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run nbctl for each case, some at a time."""
    room = asyncio.Semaphore(4)

    async def one(args: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        async with room:
            return await asyncio.to_thread(machine.nbctl, *args)

    return dict(zip(cases, await asyncio.gather(*(one(args) for args in cases.values())), strict=True))


# ---------------------------------------------------------------- bad input

BAD_INPUT: dict[str, tuple[int, tuple[str, ...]]] = {
    "unknown LAN": (OWN_FAILURE, (*RUN, "--lan", "nowhere", "--", "true")),
    "duplicate name": (OWN_FAILURE, (*RUN, "--name", "there", "--", "true")),
    "address outside the subnet": (OWN_FAILURE, (*RUN, "--lan", "lan0,ip=10.6.0.1/24", "--", "true")),
    "address taken": (OWN_FAILURE, (*RUN, "--lan", "lan0,ip=10.5.0.1/24", "--", "true")),
    "address of the subnet itself": (OWN_FAILURE, (*RUN, "--lan", "lan0,ip=10.5.0.0/24", "--", "true")),
    "no address": (OWN_FAILURE, (*RUN, "--lan", "lan0,ip=10.5.0", "--", "true")),
    "MAC of a group": (OWN_FAILURE, (*RUN, "--lan", "lan0,mac=01:00:5e:00:00:01", "--", "true")),
    "no MAC": (OWN_FAILURE, (*RUN, "--lan", "lan0,mac=02:00", "--", "true")),
    "bad interface name": (OWN_FAILURE, (*RUN, "--lan", "lan0,name=a/b", "--", "true")),
    "missing program": (NOT_FOUND, (*RUN, "--", "no-such-program")),
    "missing program by path": (NOT_FOUND, (*RUN, "--", "/no/such/program")),
    "no program but a file": (NOT_EXECUTABLE, (*RUN, "--", "/etc/passwd")),
    "no program but a directory": (NOT_EXECUTABLE, (*RUN, "--", "/etc")),
    "missing working directory": (OWN_FAILURE, (*RUN, "-w", "/no/such/directory", "--", "true")),
    "missing rootfs": (OWN_FAILURE, (*RUN, "--fs", "rootfs=/no/such/directory", "--", "true")),
    "missing source of a mount": (OWN_FAILURE, (*RUN, "-v", "/no/such/directory:/mnt", "--", "true")),
    "user that is almost a number": (OWN_FAILURE, (*RUN, "--user", "0x0", "--", "true")),
    "unknown user": (OWN_FAILURE, (*RUN, "--user", "nobody-like-that", "--", "true")),
    "unknown capability": (OWN_FAILURE, (*RUN, "--cap-add", "NO_SUCH", "--", "true")),
    "sysctl of the node": (OWN_FAILURE, (*RUN, "--sysctl", "kernel.core_pattern=|/bin/sh", "--", "true")),
    "unknown sysctl": (OWN_FAILURE, (*RUN, "--sysctl", "net.ipv4.no_such=1", "--", "true")),
    "more processors than can be": (OWN_FAILURE, (*RUN, "--cpus", "1e9", "--", "true")),
    "no memory to speak of": (OWN_FAILURE, (*RUN, "--memory", "1k", "--", "true")),
    "more processes than can be": (OWN_FAILURE, (*RUN, "--pids-limit", "99999999999", "--", "true")),
    "route by nobody": (OWN_FAILURE, (*RUN, "--lan", "lan0", "--route", "10.9.0.0/16,via=192.0.2.1", "--", "true")),
    "gateway on no LAN": (OWN_FAILURE, (*RUN, "--lan", "lan0", "--gateway", "192.0.2.1", "--", "true")),
    "name with a slash": (OWN_FAILURE, (*RUN, "--name", "a/b", "--", "true")),
    "name of dots": (OWN_FAILURE, (*RUN, "--name", "..", "--", "true")),
    "name with control characters": (OWN_FAILURE, (*RUN, "--name", "a\x1b[2J\n", "--", "true")),
    "name of 10,000 characters": (OWN_FAILURE, (*RUN, "--name", LONG, "--", "true")),
    "LAN's name with a slash": (1, ("lan", "create", "a/b")),
    "LAN's name of dots": (1, ("lan", "create", "../lan1")),
    "LAN's MTU below Ethernet's": (1, ("lan", "create", "lan1", "--mtu", "7")),
    "LAN's name of 10,000 characters": (1, ("lan", "create", LONG)),
    "LAN twice": (1, ("lan", "create", "lan0")),
    "LAN with a bad subnet": (1, ("lan", "create", "lan1", "--subnet", "10.5.0.1/24")),
    "LAN with an impossible subnet": (1, ("lan", "create", "lan1", "--subnet", "10.5.0.0/99")),
    "LAN with members": (1, ("lan", "rm", "lan0")),
    "running container without force": (1, ("rm", "there")),
    "container that is not there": (1, ("inspect", "nobody")),
    "program in one that is not there": (OWN_FAILURE, ("exec", "nobody", "--", "true")),
    "missing program in one that runs": (NOT_FOUND, ("exec", "there", "--", "no-such-program")),
    "file for a program in one that runs": (NOT_EXECUTABLE, ("exec", "there", "--", "/etc/passwd")),
    "limit that is no number": (USAGE, (*RUN, "--memory", "much", "--", "true")),
    "unknown option": (USAGE, (*RUN, "--no-such-option", "--", "true")),
    "unknown verb": (USAGE, ("no-such-verb",)),
}


@pytest.mark.slow
async def test_bad_input_is_refused_with_cause_and_remedy(machine, daemon) -> None:
    nbctl(machine, "lan", "create", "lan0", "--subnet", "10.5.0.0/24")
    nbctl(machine, *RUN, "--name", "there", "--lan", "lan0,ip=10.5.0.1/24", "--", "sleep", "1000")
    before = inspect(machine, "there"), sorted(machine.state_dir.rglob("*"))
    results = await refusals(machine, {name: args for name, (_, args) in BAD_INPUT.items()})
    wrong = []
    for name, (code, _) in BAD_INPUT.items():
        result = results[name]
        try:
            refusal(result)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
        if (result.returncode, result.stdout) != (code, ""):
            wrong.append(f"{name}: exit code {result.returncode}, not {code}: {result.stdout}{result.stderr}")
    assert wrong == []
    assert (inspect(machine, "there"), sorted(machine.state_dir.rglob("*"))) == before
    nbctl(machine, "audit")


def test_program_that_dies_at_once_leaves_status_and_last_words(machine, daemon) -> None:
    nbctl(machine, *RUN, "--name", "brief", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert nbctl(machine, "wait", "brief") == "3\n"
    assert inspect(machine, "brief")["exit"]["code"] == 3
    logged = machine.nbctl("logs", "brief")
    assert (logged.stdout, logged.stderr) == ("out\n", "err\n")


# ---------------------------------------------------------------- a full disk


@pytest.mark.slow
def test_full_disk(furnished) -> None:
    """The container runs on and the loss is told; nothing new can be made, and what there is can still be used and removed."""
    machine = furnished('mount -t tmpfs -o size=2m tmpfs "$1"')
    nbctl(machine, *RUN, "--name", "quiet", "--", "sh", "-c", "read line; echo never; exit 7")
    nbctl(machine, *RUN, "--name", "noisy", "--", "sh", "-c", "yes 0123456789 | head -c 4000000; exec sleep 1000")
    with events(machine, "container.log_lost") as lost:
        told = next(lost)
    assert told["name"] == "noisy"
    assert int(told["attributes"]["bytes"]) > 0
    noisy = inspect(machine, "noisy")
    assert noisy["state"] == "CONTAINER_STATE_RUNNING"
    assert int(noisy["log_bytes_lost"]) > 0
    assert nbctl(machine, "logs", "noisy").count("0123456789\n") > 1000

    fill(machine.inside / machine.state_dir.relative_to("/") / "filler")
    before = machine.bundles()
    for code, make in ((OWN_FAILURE, RUN), (1, ("create", "process"))):
        refused = machine.nbctl(*make, "--name", "late", "--", "true")
        assert refused.returncode == code
        assert "no space" in refusal(refused)
    assert "no space" in refusal(machine.nbctl("lan", "create", "lan0"))
    assert machine.bundles() == before
    nbctl(machine, "audit")

    assert nbctl(machine, "exec", "noisy", "--", "echo", "inside") == "inside\n"
    nbctl(machine, "kill", "-s", "KILL", "noisy")
    assert nbctl(machine, "wait", "noisy") == "137\n"
    nbctl(machine, "rm", "noisy")
    assert machine.bundles() == [name for name in before if name != noisy["id"]]
    assert nbctl(machine, *RUN, "--name", "late", "--", "true") != ""
    nbctl(machine, "audit")


def fill(path: Path) -> None:
    """Leave no room at all on the file system of ``path``."""
    with path.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass


@contextlib.contextmanager
def events(machine: Machine, kind: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a kind that have happened and that happen, as nbctl tells them."""
    process = machine.popen(
        (NBCTL, "-H", machine.address, "-o", "json", "events", "--history", "--type", kind),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield (json.loads(line) for line in process.stdout)
    finally:
        process.kill()
        process.communicate()


# ---------------------------------------------------------------- a kernel that lacks something


@pytest.mark.slow
def test_machine_without_cgroups(furnished) -> None:
    """What needs none works; a limit is refused, with the reason."""
    machine = furnished("umount -R /sys/fs/cgroup")
    info = nbctl(machine, "info")
    assert "limit-memory" in info.partition("It cannot")[2]
    nbctl(machine, "lan", "create", "lan0", "--subnet", "10.5.0.0/24")
    nbctl(machine, *RUN, "--name", "web", "--lan", "lan0", "--", "sleep", "1000")
    assert "1 received" in nbctl(machine, "run", "process", "--rm", "--lan", "lan0", "--", "ping", "-c", "1", "-W", "2", "web")
    for option in (("--memory", "64m"), ("--cpus", "0.5"), ("--pids-limit", "10")):
        refused = machine.nbctl(*RUN, *option, "--name", "limited", "--", "true")
        assert refused.returncode == OWN_FAILURE
        assert "cgroup" in refusal(refused)
    refused = machine.nbctl("pause", "web")
    assert refused.returncode == 1
    refusal(refused)
    assert len(machine.bundles()) == 1
    nbctl(machine, "rm", "-f", "web")
    nbctl(machine, "audit")
