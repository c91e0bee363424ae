"""Virtual machines while their daemon is killed."""

from __future__ import annotations

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
    site.machine.daemon.kill()
    site.start()
    assert site.inspect("vm1")["pid"] == pid
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
