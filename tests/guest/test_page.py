"""The example of the page that described nestbed first: two processes and a virtual machine on a LAN, realised in several ways."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nestbed.testing.machine import Machine
from nestbed.testing.segment import Segment, checked

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

PAGE = Path(__file__).parents[2] / "docs" / "examples" / "page"
HELD = {"one-machine": [3, 0], "one-machine-two-vms": [4, 0], "two-machines": [1, 2]}
"""By ptopo, how many containers run on each machine, those inside virtual machines and these included."""
NBCTL = Path(sys.executable).with_name("nbctl")


def nbctl(machine: Machine, *args: str) -> str:
    return checked(machine.run(NBCTL, "-H", machine.address, *args, timeout_seconds=240))


def test_what_is_inside_cannot_tell_one_machine_from_two(pair: Segment, tmp_path: Path) -> None:
    """Realisations 1, 2, 3 of the page: all on one machine; the processes in a virtual machine that is but a node; on another machine."""
    alpha, beta = pair.machines
    vtopo = (PAGE / "vtopo.yaml").read_text()
    noted = vtopo.replace("    kind: qemu\n", "    kind: qemu\n    files: {/etc/page/note: {source: note}}\n")
    (tmp_path / "vtopo.yaml").write_text(noted)
    (tmp_path / "note").write_text("written before it began\n")
    seen = []
    for name, held in HELD.items():
        ptopo = (PAGE / f"{name}.yaml").read_text().replace("tcp://192.0.2.2:7411", f"unix://{beta.run_dir}/admin.sock")
        (tmp_path / f"{name}.yaml").write_text(ptopo)
        nbctl(alpha, "up", "-f", str(tmp_path / "vtopo.yaml"), "--on", str(tmp_path / f"{name}.yaml"))
        assert nbctl(alpha, "exec", "page.vm", "--", "cat", "/etc/page/note") == "written before it began\n"
        assert [nbctl(machine, "ps", "-q").count("\n") for machine in (alpha, beta)] == held
        assert nbctl(alpha, "status", "page", "-o", "json").count('"container":') == 3
        assert nbctl(alpha, "verify", "page", "--save", str(tmp_path / name)) == "page: 6 calls answered, no deviation\n"
        seen.append((tmp_path / name).read_bytes())
        nbctl(alpha, "down", "page")
    assert seen[0] == seen[1] == seen[2]
    for machine in (alpha, beta):
        assert nbctl(machine, "ps", "-a", "-q") == ""
        nbctl(machine, "audit")
