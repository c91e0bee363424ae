"""A node on which somebody keeps namespaces as files, as snapd and testbeds do."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestbed.testing.machine import Machine


@pytest.fixture
def pinned(tmp_path: Path) -> Iterator[Path]:
    """A mount namespace that is a file."""
    directory, file = tmp_path / "ns", tmp_path / "ns" / "mnt"
    directory.mkdir()
    subprocess.run(["mount", "--bind", "--make-private", directory, directory], check=True)
    file.touch()
    subprocess.run(["unshare", f"--mount={file}", "true"], check=True)
    yield file
    subprocess.run(["umount", file], check=True)
    subprocess.run(["umount", directory], check=True)


def test_mount_namespace_that_is_a_file_stops_nothing(pinned: Path, machine: Machine) -> None:
    machine.daemon.start()
    shown = machine.nbctl("run", "process", "--rm", "--fs", "host", "--", "ls", "-l", str(pinned))
    assert shown.returncode == 0, shown.stderr
