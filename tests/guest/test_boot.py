"""How virtual machines come up, and what is told of those that do not, or that stop answering: a cause, a remedy, and nothing left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.guest.conftest import Site

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]


def refused(site: Site, *args: str) -> str:
    """What a call that must fail says."""
    result = site.machine.nbctl(*args)
    assert result.returncode != 0, args
    assert result.stderr.count("\n") == 2, result.stderr
    assert "\nremedy: " in result.stderr
    return result.stderr


def state(site: Site, name: str) -> str:
    """The column STATE of ps."""
    lines = site.nbctl("ps", "-a", name).splitlines()
    return lines[1].split()[2]


def events(site: Site, name: str) -> list[tuple[str, str]]:
    """What happened to a container, with the phase of its boot."""
    watching = site.begin("-o", "json", "events", "--history", stdout=subprocess.PIPE)
    assert watching.stdout is not None
    mark = f"mark{time.monotonic_ns()}"
    site.nbctl("lan", "create", mark)
    found = []
    for line in watching.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["name"] == mark:
            break
        if event["name"] == name:
            found.append((event["type"], event["attributes"].get("phase", "")))
    watching.kill()
    watching.wait()
    watching.stdout.close()
    site.nbctl("lan", "rm", mark)
    return found


def test_running_is_not_ready_and_how_far_it_is_can_be_seen(site: Site) -> None:
    assert state(site, "vm1") == "ready"
    site.nbctl("run", "qemu", "--name", "late", "--lan", "lan0", "--no-wait")
    assert state(site, "late") in ("booting", "answering", "addressed")
    assert "still boots" in refused(site, "exec", "late", "--", "true")
    assert "is starting" in refused(site, "rm", "late")
    while state(site, "late") != "ready":
        continue
    assert "10.5.0." in site.inside("late", "ip", "-br", "-4", "address", "show", "dev", "eth0")
    phases = list(dict.fromkeys(phase for kind, phase in events(site, "late") if kind == "container.boot"))
    assert phases == ["booting", "answering", "addressed", "ready"]
    site.nbctl("stop", "-t", "0", "late")
    result = site.machine.nbctl("start", "--wait", "late")
    assert result.returncode == 0
    told = result.stderr.splitlines()
    assert told[0].startswith("late: its kernel boots")
    assert told[-1] == "late: it is ready"
    site.nbctl("rm", "-f", "late")


def test_one_that_boots_can_be_stopped_killed_and_removed_at_once(site: Site) -> None:
    site.nbctl("create", "qemu", "--name", "late")
    for words in (("kill", "late"), ("stop", "-t", "5", "late"), ("rm", "-f", "late")):
        waiting = site.begin("start", "late")
        while state(site, "late") != "booting":
            continue
        began = time.monotonic()
        site.nbctl(*words)
        assert time.monotonic() - began < 5
        waiting.wait()
        if words[0] != "rm":
            assert state(site, "late") not in ("booting", "ready")
    site.nbctl("audit")


def test_boot_that_stalls_is_told_with_the_last_lines_of_the_console(site: Site) -> None:
    said = refused(site, "run", "qemu", "--name", "late", "--boot-timeout", "1s")
    assert "did not come up in 1 s; its console said last: " in said
    assert "--boot-timeout" in said
    site.nbctl("run", "qemu", "--name", "late", "--boot-timeout", "1s", "--no-wait")
    while state(site, "late") == "booting":
        continue
    assert "did not come up in 1 s" in site.inspect("late")["exit"]["message"]
    assert ("container.boot_failed", "") in events(site, "late")
    site.nbctl("rm", "late")
    site.nbctl("audit")


def test_guest_that_cannot_reach_the_host_is_told(site: Site) -> None:
    said = refused(site, "run", "qemu", "--name", "late", "--append", "module_blacklist=virtio_pci")
    assert "did not come up: " in said
    assert "nestbed: " in said
    site.nbctl("audit")


def test_qemu_that_stops_answering_is_told_by_every_verb_in_bounded_time(site: Site) -> None:
    site.nbctl("lan", "create", "lan7")
    site.nbctl("run", "qemu", "--name", "mute", "--lan", "lan0", "--lan", "lan7")
    (qemu,) = site.processes("mute", "qemu-system-x86_64")
    os.kill(qemu, signal.SIGSTOP)
    began = time.monotonic()
    # exec and cp go on beside changes; those come one after the other.
    at_once = {
        words: site.begin(*words, stderr=subprocess.PIPE)
        for words in (("exec", "mute", "--", "true"), ("cp", "mute:/etc/hostname", "/nonexistent"), ("lan", "connect", "lan7", "mute"))
    }
    for words, waiting in at_once.items():
        _, said = waiting.communicate(timeout=60)
        assert waiting.returncode != 0, words
        assert b"does not answer" in said, (words, said)
        assert b"remedy: " in said
    assert time.monotonic() - began < 30
    for words in (("pause", "mute"), ("lan", "disconnect", "lan7", "mute")):
        began = time.monotonic()
        assert "does not answer" in refused(site, *words)
        assert time.monotonic() - began < 15
    site.nbctl("stats", "--no-stream", "mute")
    site.nbctl("logs", "mute")
    # It goes on where it was, without what was given up meanwhile.
    os.kill(qemu, signal.SIGCONT)
    site.nbctl("lan", "connect", "lan7", "mute")
    assert len(site.inside("mute", "ls", "/sys/class/net").split()) == 5  # lo, control, eth0, eth1, eth2
    site.nbctl("audit")
    os.kill(qemu, signal.SIGSTOP)
    began = time.monotonic()
    site.nbctl("kill", "mute")
    assert site.nbctl("wait", "mute") == "137\n"
    assert time.monotonic() - began < 10
    site.nbctl("rm", "mute")
    site.nbctl("lan", "rm", "lan7")
    site.nbctl("audit")


def test_full_disk_inside_harms_nothing_else(site: Site) -> None:
    result = site.machine.nbctl("exec", "vm1", "--", "dd", "if=/dev/zero", "of=/var/tmp/big", "bs=1M")
    assert "No space left on device" in result.stderr
    assert site.inside("vm1", "cat", "/etc/hostname") == "vm1\n"
    site.inside("vm1", "rm", "/var/tmp/big")
    assert site.machine.nbctl("exec", "vm1", "--", "dd", "if=/dev/zero", "of=/var/tmp/small", "bs=1M", "count=8").returncode == 0


def test_warden_that_is_killed_takes_its_machine_along(site: Site) -> None:
    site.nbctl("run", "qemu", "--name", "doomed")
    os.kill(site.inspect("doomed")["pid"], signal.SIGKILL)
    assert site.nbctl("wait", "doomed") == "137\n"
    site.nbctl("rm", "doomed")
    site.nbctl("audit")


@pytest.fixture
def cramped_site(tmp_path: Path, owned_cgroups: set[str]) -> Iterator[Site]:
    """A site whose directories are on a file system of their own, of 200 MB."""
    from tests.guest.conftest import Site

    base = tmp_path / "cramped"
    base.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "nestbed-test", base], check=True)
    try:
        site = Site(base)
        try:
            yield site
        finally:
            site.close()
            owned_cgroups.add(f"nestbed-{site.machine.node_id}")
    finally:
        subprocess.run(["umount", "-l", base], check=True)


def test_full_disk_of_the_node_is_told_and_what_runs_runs_on(cramped_site: Site) -> None:
    site = cramped_site
    site.nbctl("run", "qemu", "--name", "vm1")
    filling = os.open(site.machine.state_dir / "filling", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(filling, bytes(4096))
    os.close(filling)
    said = refused(site, "run", "qemu", "--name", "vm2")
    assert "no space left on device" in said
    assert "free space" in said
    site.inside("vm1", "sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x >/dev/console")
    assert site.inside("vm1", "echo", "alive") == "alive\n"
    site.nbctl("stop", "vm1")
    assert site.inspect("vm1")["exit"]["code"] == 0
    assert "no space left on device" in refused(site, "start", "vm1")
    (site.machine.state_dir / "filling").unlink()
    site.nbctl("start", "vm1")
    site.inside("vm1", "true")
    site.nbctl("audit")
