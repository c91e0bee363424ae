"""Removing a tree in which something is mounted."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nestbed.linux.mount import mount
from nestbed.linux.namespace import CLONE_NEWNS, unshare
from nestbed.linux.remove import remove_tree

MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


def in_own_mount_namespace(act: Callable[[], None]) -> None:
    """Call ``act`` in a thread that is in a mount namespace of its own, which goes with the thread."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            unshare(CLONE_NEWNS)
            mount("none", "/", "", MS_REC | MS_PRIVATE)
            act()
        except BaseException as error:  # noqa: BLE001 - carried to the caller
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("place", ["", "inner", "inner/deep"])
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_nothing_behind_a_mount_is_touched(tmp_path: Path, place: str, kind: str) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    (tree / "inner" / "deep").mkdir(parents=True)
    outside.mkdir()
    (outside / "precious").write_text("x")

    def act() -> None:
        target = tree / place
        if kind == "tmpfs":
            mount("tmpfs", str(target), "tmpfs", 0)
            (target / "precious").write_text("x")
        else:
            mount(str(outside), str(target), "", MS_BIND)
        parent = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with pytest.raises(OSError, match=r"(?i)busy|cross-device") as caught:
                remove_tree(parent, "tree")
            assert caught.value.errno in (errno.EBUSY, errno.EXDEV)
            assert (target / "precious").read_text() == "x"
        finally:
            os.close(parent)

    in_own_mount_namespace(act)
    assert (outside / "precious").read_text() == "x"


def test_mounted_file_stays(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("below")
    (tmp_path / "precious").write_text("x")

    def act() -> None:
        mount(str(tmp_path / "precious"), str(tmp_path / "tree" / "file"), "", MS_BIND)
        parent = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with pytest.raises(OSError, match=r"(?i)busy|cross-device") as caught:
                remove_tree(parent, "tree")
            assert caught.value.errno == errno.EBUSY
        finally:
            os.close(parent)

    in_own_mount_namespace(act)
    assert (tmp_path / "precious").read_text() == "x"
