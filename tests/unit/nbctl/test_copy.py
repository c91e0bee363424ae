"""nbctl cp: by docker's rules for folders and slashes."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.nbctl.conftest import Served


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("source", "destination", "made"),
    [
        ("web:/etc", "new", ["new", "new/deep", "new/deep/b", "new/hosts"]),
        ("web:/etc", "there", ["there", "there/etc", "there/etc/deep", "there/etc/deep/b", "there/etc/hosts"]),
        ("web:/etc/.", "there", ["there", "there/deep", "there/deep/b", "there/hosts"]),
        ("web:etc/", "new/", ["new", "new/deep", "new/deep/b", "new/hosts"]),
        ("web:/etc/hosts", "new", ["new"]),
        ("web:/etc/hosts", "there/", ["there", "there/hosts"]),
        ("web:/etc/hosts", "file", ["file"]),
    ],
)
def test_cp_out(node: Served, tmp_path: Path, source: str, destination: str, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    node.node.add("web")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    if destination.startswith("there"):
        Path("there").mkdir()
    if destination == "file":
        Path("file").write_text("old")
    assert node.nbctl("cp", source, destination) == (0, "", "")
    assert tree(work) == made
    if destination == "file":
        assert Path("file").read_text() == "hosts"


@pytest.mark.parametrize(
    ("source", "destination", "cause"),
    [
        ("web:/etc", "file", "file exists and is no folder"),
        ("web:/etc/hosts", "none/", "there is no folder none/"),
        ("web:/etc/hosts", "file/", "there is no folder file/"),
        ("web:/etc/hosts/", "new", "/etc/hosts/ in web is no folder"),
        ("web:/none", "new", "there is no /none"),
        ("web:/etc/hosts", "none/new", "No such file"),
        ("none:/etc", "new", "there is no container none"),
        ("web:/etc", "/dev/null", "exists and is no folder"),
        ("web:/etc/hosts", "/dev/null", "exists and is no regular file"),
    ],
)
def test_cp_out_refuses(node: Served, tmp_path: Path, source: str, destination: str, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node.node.add("web")
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("old")
    code, out, err = node.nbctl("cp", source, destination)
    assert (code, out) == (1, "")
    assert cause.lower() in err.lower()
    assert err.count("\n") == 2
    assert Path("file").read_text() == "old"


@pytest.mark.parametrize(
    ("source", "destination", "folder", "names"),
    [
        ("tree", "web:/tmp", "/tmp", ["tree", "tree/a"]),
        ("tree/.", "web:/tmp", "/tmp", ["a"]),
        ("tree", "web:/tmp/new", "/tmp", ["new", "new/a"]),
        ("tree/a", "web:/tmp/", "/tmp", ["a"]),
        ("tree/a", "web:/tmp/b", "/tmp", ["b"]),
        ("./tree/a", "web:/etc/hosts", "/etc", ["hosts"]),
    ],
)
def test_cp_in(
    node: Served, tmp_path: Path, source: str, destination: str, folder: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node.node.add("web")
    monkeypatch.chdir(tmp_path)
    Path("tree").mkdir()
    Path("tree/a").write_text("content")
    assert node.nbctl("cp", source, destination) == (0, "", "")
    assert node.node.calls[-1].path == folder
    with tarfile.open(fileobj=io.BytesIO(node.node.files)) as archive:
        assert archive.getnames() == names
        assert {(member.uid, member.uname) for member in archive} == {(0, "")}


@pytest.mark.parametrize(
    ("source", "destination", "cause"),
    [
        ("tree", "web:/etc/hosts", "/etc/hosts exists and is no folder"),
        ("tree/a/", "web:/tmp", "no"),
        ("none", "web:/tmp", "no such file"),
        ("tree/a", "web:/none/", "there is no folder /none"),
    ],
)
def test_cp_in_refuses(node: Served, tmp_path: Path, source: str, destination: str, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node.node.add("web")
    monkeypatch.chdir(tmp_path)
    Path("tree").mkdir()
    Path("tree/a").write_text("content")
    code, _, err = node.nbctl("cp", source, destination)
    assert (code, cause in err) == (1, True)
    assert node.node.files == b""


def test_cp_of_archives(node: Served, tmp_path: Path) -> None:
    node.node.add("web")
    code, out, _ = node.binary("cp", "web:/etc/.", "-")
    assert code == 0
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert archive.getnames() == ["etc", "etc/hosts", "etc/deep", "etc/deep/b"]
    done = node.start("cp", "-", "web:/tmp", stdin=subprocess.PIPE)
    done.communicate(out, timeout=30)
    assert (done.returncode, node.node.files) == (0, out)
    assert node.nbctl("cp", "a", "b")[0] == 2
    assert node.nbctl("cp", "web:/a", "web:/b")[0] == 2
