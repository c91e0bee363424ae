"""The agent in virtual machines, and the boot files that one of them asks for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from nestbed.testing.machine import Machine
from nestbed.testing.segment import checked

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]

NBCTL = Path(sys.executable).with_name("nbctl")
VTOPO = """\
experiment: old
lans: {l: {}}
elements:
  vm:
    kind: qemu
    compat: "emulab:catch"
    nics: [l]
    command: |
      until cd /run/nestbed/agent && [ -x barrier ]; do sleep 0.1; done
      ./barrier go 2 100 && echo state=ready >report
      printf 'a=1\\nb=2\\n' >drop/.x; mv drop/.x drop/x
      exec sleep 1000
    ready: {report: state=ready, timeout: 150s}
  plain: {kind: qemu, nics: [l]}
  process:
    nics: [l]
    command: /run/nestbed/agent/barrier go 2 100 && echo state=ready >/run/nestbed/agent/report; exec sleep 1000
    ready: {report: state=ready, timeout: 150s}
"""


def nbctl(machine: Machine, *args: str) -> str:
    return checked(machine.run(NBCTL, "-H", machine.address, *args, timeout_seconds=200))


def test_a_machine_reports_takes_orders_and_meets_a_process(fresh_site: Any, tmp_path: Path) -> None:
    machine = fresh_site.machine
    path = tmp_path / "old.yaml"
    path.write_text(VTOPO)
    nbctl(machine, "up", "-f", str(path))
    nbctl(machine, "agent", "tell", "-x", "old", "vm", "well", "done")
    inside = ("exec", "old.vm", "--", "sh", "-c")
    assert nbctl(machine, *inside, "cat /run/nestbed/agent/orders") == "well done\n"
    nbctl(machine, *inside, "while [ -e /run/nestbed/agent/drop/x ]; do sleep 0.1; done; echo state=last >/run/nestbed/agent/report")
    assert nbctl(machine, *inside, "cat /var/emulab/boot/nickname /var/emulab/boot/controlif") == "vm.old.catch\ncontrol\n"
    assert " a=1 b=2 file=x" in nbctl(machine, "agent", "reports", "-x", "old", "vm")
    assert (
        nbctl(machine, "exec", "old.plain", "--", "sh", "-c", "ls /var/emulab 2>/dev/null; ip -br link show control >&2; echo none")
        == "none\n"
    )
    nbctl(machine, "down", "old")
    nbctl(machine, "audit")
