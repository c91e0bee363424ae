"""Virtual machines while their daemon is killed."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.guest.conftest import Site

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]


def test_machines_survive_the_daemon(fresh_site: Site) -> None:
    site = fresh_site
    site.nbctl("run", "qemu", "--name", "vm1", "--lan", "lan0")
    site.nbctl("run", "qemu", "-d", "--name", "alone", "-i", "--", "sh", "-c", "sleep 1; echo done; exit 9")
    site.inside("vm1", "touch", "/tmp/still-there")
    pid = site.inspect("vm1")["pid"]
    site.restart()
    assert site.inspect("vm1")["pid"] == pid
    assert site.inspect("vm1")["boot"] == "BOOT_PHASE_READY"
    site.inside("vm1", "ls", "/tmp/still-there")
    assert "1 received" in site.inside("web", "ping", "-c", "1", "-W", "5", "vm1")
    assert site.nbctl("wait", "alone") == "9\n"
    assert site.nbctl("logs", "alone") == "done\n"
    site.nbctl("lan", "create", "lan1", "--subnet", "10.6.0.0/24")
    site.nbctl("lan", "connect", "lan1", "vm1")
    assert "10.6.0.1/24" in site.inside("vm1", "ip", "-br", "-4", "address")
    assert site.machine.nbctl("audit").returncode == 0
    site.nbctl("rm", "-f", "vm1", "alone", "web")
    site.nbctl("lan", "rm", "lan0", "lan1")
    assert site.machine.nbctl("audit").returncode == 0


def test_daemon_dies_while_a_machine_is_made(fresh_site: Site) -> None:
    site = fresh_site
    making = site.begin("create", "qemu", "--name", "vm1", "--lan", "lan0")
    site.until_written("containers/*/vm/hosts")
    site.restart()
    making.wait()
    assert site.machine.nbctl("audit").returncode == 0
    site.nbctl("rm", "-f", "vm*")
    assert site.machine.nbctl("audit").returncode == 0


def test_daemon_dies_while_a_machine_boots(fresh_site: Site) -> None:
    site = fresh_site
    starting = site.begin("run", "qemu", "--name", "vm1", "--lan", "lan0")
    site.until_state("booting")
    site.restart()
    starting.wait()
    assert site.inspect("vm1")["state"] == "CONTAINER_STATE_RUNNING"
    assert "1 received" in site.inside("vm1", "ping", "-c", "1", "-W", "5", "web")
    stopping = site.begin("stop", "vm1")
    site.until_state("off")
    site.restart()
    stopping.wait()
    assert site.nbctl("wait", "vm1") == "0\n"
    assert site.machine.nbctl("audit").returncode == 0


def test_daemon_dies_while_nics_come_and_go(fresh_site: Site) -> None:
    site = fresh_site
    site.nbctl("lan", "create", "lan1", "--subnet", "10.6.0.0/24")
    site.nbctl("run", "qemu", "--name", "vm1", "--lan", "lan0")
    for file in ("record.json", "vm/nics.json", "vm/program"):
        plugging = site.begin("lan", "connect", "lan1", "vm1")
        site.until_written(f"containers/*/{file}", "eth1")
        site.restart()
        plugging.wait()
        assert site.machine.nbctl("audit").returncode == 0
        has_nic = any(nic["lan"] == "lan1" for nic in site.inspect("vm1")["nics"])
        assert ("10.6.0.1/24" in site.inside("vm1", "ip", "-br", "-4", "address")) == has_nic
        if has_nic:
            site.nbctl("lan", "disconnect", "lan1", "vm1")
    assert "1 received" in site.inside("vm1", "ping", "-c", "1", "-W", "5", "web")


def test_everything_dies(fresh_site: Site) -> None:
    site = fresh_site
    site.nbctl("run", "qemu", "--name", "vm1", "--lan", "lan0")
    site.nbctl("run", "qemu", "-d", "--name", "doomed", "--", "sleep", "1000")
    (qemu,) = site.processes("doomed", "qemu-system-x86_64")
    site.machine.daemon.kill()
    site.machine.kill_keeper()
    os.kill(qemu, signal.SIGKILL)
    site.start()
    assert site.nbctl("wait", "doomed") == "255\n"
    site.inside("vm1", "true")
    assert "1 received" in site.inside("web", "ping", "-c", "1", "-W", "5", "vm1")
    site.nbctl("rm", "-f", "vm1", "doomed")
    assert site.machine.nbctl("audit").returncode == 0
