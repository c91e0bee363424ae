"""Removing a directory tree."""

from __future__ import annotations

import os

import pytest

from nestbed.linux.remove import remove_tree


@pytest.fixture
def parent(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_removes_all_but_what_links_point_to(tmp_path, parent) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_text("x")
    (tree / "a" / "link").symlink_to(kept)
    (tree / "link").symlink_to("/etc")
    (tree / ".removing-0").mkdir()
    (tree / ".removing-0" / "file").write_text("x")
    os.mkfifo(tree / "fifo")
    remove_tree(parent, "tree")
    remove_tree(parent, "tree")
    assert not tree.exists()
    assert (kept / "file").exists()


def test_removes_what_is_no_directory(tmp_path, parent) -> None:
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "file").write_text("x")
    remove_tree(parent, "link")
    remove_tree(parent, "file")
    assert list(tmp_path.iterdir()) == []


def test_depth_costs_nothing(tmp_path, parent) -> None:
    (tmp_path / "tree").mkdir()
    directory = os.open(tmp_path / "tree", os.O_RDONLY)
    for _ in range(600):
        os.mkdir("d", dir_fd=directory)
        inner = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = inner
    os.close(directory)
    remove_tree(parent, "tree")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc"])
def test_only_entries_are_removed(parent, name) -> None:
    with pytest.raises(OSError, match="not the name of an entry"):
        remove_tree(parent, name)
