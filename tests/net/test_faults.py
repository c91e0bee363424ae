"""What goes wrong around a node: bad input through nbctl, programs that die at once, full disks."""

import json
import subprocess
import time
from pathlib import Path

import pytest

LAN = ("lan", "create", "lan0", "--subnet", "10.5.0.0/24")
RUN = ("run", "process", "-d", "--name", "web", "--lan", "lan0")
SLEEP = ("--", "sleep", "60")
WAIT_SECONDS = 10


def bundles(machine) -> list[str]:
    return sorted(path.name for path in (machine.state_dir / "containers").iterdir())


@pytest.mark.timeout(300)
def test_bad_input_is_refused_with_cause_and_remedy_and_leaves_nothing(daemon, machine) -> None:
    assert machine.nbctl(*LAN).returncode == 0
    assert machine.nbctl("run", "process", "-d", "--name", "first", "--lan", "lan0,ip=10.5.0.9/24", *SLEEP).returncode == 0
    kept = bundles(machine)
    cases: list[tuple[int, tuple[str, ...]]] = [
        (125, ("run", "process", "-d", "--lan", "nolan", *SLEEP)),
        (125, ("run", "process", "-d", "--name", "first", *SLEEP)),
        (125, (*RUN[:-1], "lan0,ip=10.6.0.1/24", *SLEEP)),
        (125, (*RUN[:-1], "lan0,ip=10.5.0.9/24", *SLEEP)),
        (125, (*RUN[:-1], "lan0,mac=zz:zz", *SLEEP)),
        (125, (*RUN[:-1], "lan0,mac=01:00:5e:00:00:01", *SLEEP)),
        (127, (*RUN, "--", "no-such-program")),
        (126, (*RUN, "--", "/etc/passwd")),
        (125, (*RUN, "-w", "/no/such/directory", *SLEEP)),
        (125, (*RUN, "-v", "/no/such/source:/mnt", *SLEEP)),
        (125, (*RUN, "--fs", "rootfs=/no/such/root", *SLEEP)),
        (125, (*RUN, "--cap-add", "FLY", *SLEEP)),
        (125, (*RUN, "--cpus", "0", *SLEEP)),
        (125, (*RUN, "--memory", "1", *SLEEP)),
        (125, (*RUN, "--pids-limit", "99999999999", *SLEEP)),
        (125, (*RUN, "--sysctl", "kernel.core_pattern=|/bin/sh", *SLEEP)),
        (125, (*RUN, "--user", "0x0", *SLEEP)),
        (125, (*RUN, "--route", "10.9.0.0/16,via=192.0.2.1", *SLEEP)),
        (125, ("run", "process", "-d", "--name", "a/b", *SLEEP)),
        (125, ("run", "process", "-d", "--name", "..", *SLEEP)),
        (125, ("run", "process", "-d", "--name", "a\nb", *SLEEP)),
        (125, ("run", "process", "-d", "--name", "x" * 10_000, *SLEEP)),
        (1, ("lan", "create", "lan0")),
        (1, ("lan", "create", "../lan1")),
        (1, ("lan", "create", "lan1", "--subnet", "10.5.0.0/99")),
        (1, ("lan", "create", "lan1", "--mtu", "7")),
        (1, ("lan", "rm", "lan0")),
        (1, ("rm", "first")),
        (1, ("inspect", "nobody")),
        (2, ("run", "process", "--memroy", "1g", *SLEEP)),
        (2, ("ruin", "process")),
    ]
    for code, words in cases:
        done = machine.nbctl(*words)
        said = done.stderr.splitlines()
        shown = [word[:40] for word in words]
        # What nbctl itself sees to be wrong is a mistake of usage, 2.
        assert done.returncode in {code, 2 if code == 125 else code}, (shown, done.returncode, done.stderr)
        assert 1 <= len(said) <= 3, (shown, said)
        assert all(len(line) < 2000 and line.isprintable() for line in said), shown
        assert "Traceback" not in done.stderr, shown
        assert bundles(machine) == kept, shown
    assert [one["name"] for one in json.loads(machine.nbctl("ps", "-a", "-o", "json").stdout)] == ["first"]
    assert machine.nbctl("audit").returncode == 0


def test_program_that_dies_at_once_leaves_status_and_last_words(daemon, machine) -> None:
    assert machine.nbctl("run", "process", "-d", "--name", "brief", "--", "sh", "-c", "echo first; echo last >&2; exit 9").returncode == 0
    assert machine.nbctl("wait", "brief").stdout.split()[-1] == "9"
    logs = machine.nbctl("logs", "brief")
    assert (logs.stdout, logs.stderr) == ("first\n", "last\n")
    (shown,) = json.loads(machine.nbctl("ps", "-a", "-o", "json").stdout)
    assert (shown["state"], shown["exit"]["code"]) == ("CONTAINER_STATE_STOPPED", 9)


@pytest.fixture
def small_disk(machine):
    """The machine's state directory on a file system of 3 MiB."""
    machine.state_dir.mkdir(mode=0o700, parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "nestbed-test", machine.state_dir], check=True)
    yield machine.state_dir
    machine.daemon.stop()
    machine.kill_keeper()
    subprocess.run(["umount", machine.state_dir], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 65536):
                pass
        except OSError:
            return


def inspect(machine, name: str) -> dict:
    return json.loads(machine.nbctl("inspect", name, "-o", "json").stdout)


def test_full_disk_loses_output_that_is_reported_and_harms_no_program(small_disk, machine) -> None:
    machine.daemon.start()
    script = "while [ ! -e /tmp/nestbed-test-end ]; do echo a line of output; sleep 0.02; done"
    assert machine.nbctl("run", "process", "-d", "--name", "talker", "--fs", "overlay", "--", "sh", "-c", script).returncode == 0
    fill(small_disk)
    refused = machine.nbctl("run", "process", "-d", "--name", "late", "--", "sleep", "60")
    assert refused.returncode == 125
    assert "space" in refused.stderr.lower()
    assert len(refused.stderr.splitlines()) == 2
    deadline = time.monotonic() + WAIT_SECONDS
    while int(inspect(machine, "talker").get("log_bytes_lost", 0)) == 0:
        assert time.monotonic() < deadline, "the loss was never reported"
    assert inspect(machine, "talker")["state"] == "CONTAINER_STATE_RUNNING"
    (small_disk / "filler").unlink()
    assert [one["name"] for one in json.loads(machine.nbctl("ps", "-a", "-o", "json").stdout)] == ["talker"]
    before = len(machine.nbctl("logs", "talker").stdout)
    while len(machine.nbctl("logs", "talker").stdout) == before:
        assert time.monotonic() < deadline + WAIT_SECONDS, "the log does not go on"
    assert machine.nbctl("rm", "-f", "talker").returncode == 0
    assert bundles(machine) == []
    assert machine.nbctl("audit").returncode == 0
