"""nbctl's verbs about images: ls, inspect, build, import, rm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nestbed.v1 import image_pb2 as api

if TYPE_CHECKING:
    from tests.unit.nbctl.conftest import Served

HOST = api.Image(name="host", origin=api.IMAGE_ORIGIN_HOST, boot=api.BOOT_WAY_KERNEL)
STOCK = api.Image(
    name="stock",
    origin=api.IMAGE_ORIGIN_IMPORTED,
    format=api.DISK_FORMAT_QCOW2,
    boot=api.BOOT_WAY_FIRMWARE,
    stored_bytes=300 << 20,
    disk_bytes=2 << 30,
    sha256="ab" * 32,
)


@pytest.fixture
def full(node: Served) -> Served:
    node.node.images = {image.name: image for image in (HOST, STOCK)}
    return node


def test_ls_and_inspect(full: Served) -> None:
    code, out, _ = full.nbctl("image", "ls")
    head, host, stock = out.splitlines()
    assert (code, head.split()) == (0, ["NAME", "ORIGIN", "FORMAT", "BOOT", "DISK", "STORED", "AGE"])
    assert host.split() == ["host", "host", "-", "kernel", "-", "-", "-"]
    assert stock.split() == ["stock", "imported", "qcow2", "firmware", "2GiB", "300MiB", "-"]
    assert full.nbctl("image", "ls", "-o", "name")[1] == "host\nstock\n"
    assert json.loads(full.nbctl("image", "inspect", "stock")[1])["sha256"] == "ab" * 32
    assert [image["name"] for image in json.loads(full.nbctl("image", "inspect", "*st*")[1])] == ["host", "stock"]
    code, _, err = full.nbctl("image", "inspect", "nosuch")
    assert (code, err) == (1, "nbctl: there is no image nosuch\nremedy: see `nbctl image ls`\n")


def test_rm(full: Served) -> None:
    assert full.nbctl("image", "rm", "sto*")[:2] == (0, "stock\n")
    assert list(full.node.images) == ["host"]
    assert full.nbctl("image", "rm", "sto*")[0] == 1
    assert full.nbctl("image", "rm", "-f", "sto*")[:2] == (0, "")
    assert full.nbctl("image", "rm")[0] == 2


def test_build_tells_its_steps(node: Served) -> None:
    code, out, err = node.nbctl("image", "build", "debian-12", "--name", "mine", "--fresh")
    assert (code, out, err) == (0, "mine\n", "extracting archives\n")
    assert node.node.calls == [api.BuildImageRequest(recipe="debian-12", name="mine", fresh=True)]
    code, out, err = node.nbctl("image", "build", "lost")
    assert (code, out) == (1, "")
    assert "the node stopped before the image was built" in err


def test_ending_nbctl_ends_the_build(node: Served) -> None:
    process = node.start("image", "build", "slow", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert node.node.ready.wait(20)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) != 0
    assert node.node.ended.wait(5)


def test_import_sends_the_file(node: Served, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "disk").write_bytes(data)
    code, out, _ = node.nbctl("image", "import", str(tmp_path / "disk"), "--format", "qcow2", "--name", "stock")
    assert (code, out) == (0, "stock\n")
    assert node.node.calls == [api.ImportImageStart(name="stock", format=api.DISK_FORMAT_QCOW2)]
    assert node.node.files == data
    code, _, err = node.nbctl("image", "import", str(tmp_path / "disk"), "--format", "raw", "--name", "broken")
    assert (code, err) == (1, "nbctl: the image names a backing file\nremedy: convert it\n")


def test_import_of_standard_input(node: Served) -> None:
    process = node.start("image", "import", "-", "--format", "raw", "--name", "stock", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, _ = process.communicate(b"x" * 1024, timeout=20)
    assert (process.returncode, out, node.node.files) == (0, b"stock\n", b"x" * 1024)


@pytest.mark.parametrize(
    "line",
    [
        ["import", "disk", "--name", "a"],
        ["import", "disk", "--format", "raw"],
        ["import", "disk", "--format", "vmdk", "--name", "a"],
        ["import", "/", "--format", "raw", "--name", "a"],
        ["build"],
        ["make", "debian-12"],
    ],
)
def test_misused(node: Served, line: list[str]) -> None:
    code, out, err = node.nbctl("image", *line)
    assert (code, out) == (2, "")
    assert err.startswith("nbctl: ")
    assert "\nremedy: " in err
    assert node.node.calls == []


def test_a_file_that_is_not_there(node: Served) -> None:
    code, _, err = node.nbctl("image", "import", "/nonexistent", "--format", "raw", "--name", "a")
    assert code == 1
    assert "reading /nonexistent" in err
