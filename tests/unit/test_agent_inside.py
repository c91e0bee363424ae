"""The agent's directory belongs to programs that may put anything there at any time."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestbed.errors import NestbedError, WrongState
from nestbed.node.agent.inside import ENTRIES_AT_ONCE, Directory
from nestbed.node.agent.lines import LINE_BYTES_MAX


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "agent"
    for path in (place, place / "drop", place / "barriers"):
        path.mkdir()
    (tmp_path / "secret").write_text("secret=1\n")
    return place


@pytest.fixture
def directory(place: Path) -> Iterator[Directory]:
    directory = Directory(os.open(place, os.O_PATH | os.O_DIRECTORY))
    yield directory
    directory.close()


def test_a_file_is_read_and_removed(place: Path, directory: Directory) -> None:
    (place / "drop" / "one").write_text("a=1\nb=2\n")
    (found,) = directory.dropped()
    assert (found.name, found.data) == ("one", b"a=1\nb=2\n")
    directory.remove(found)
    assert list((place / "drop").iterdir()) == []


def test_a_file_that_is_still_written_is_left_alone(place: Path, directory: Directory) -> None:
    with (place / "drop" / "one").open("w") as file:
        file.write("a=")
        file.flush()
        assert list(directory.dropped()) == []
        file.write("1")
    assert [found.data for found in directory.dropped()] == [b"a=1"]


def test_a_file_under_a_dot_name_waits_for_its_name(place: Path, directory: Directory) -> None:
    (place / "drop" / ".one").write_text("a=1")
    assert list(directory.dropped()) == []
    (place / "drop" / ".one").rename(place / "drop" / "one")
    assert [found.data for found in directory.dropped()] == [b"a=1"]


def test_what_is_no_file_is_never_opened_and_goes(place: Path, directory: Directory) -> None:
    drop = place / "drop"
    (drop / "link").symlink_to("../../secret")
    os.mkfifo(drop / "fifo")
    os.mknod(drop / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5)) if os.geteuid() == 0 else None
    (drop / "large").write_bytes(b"x" * (LINE_BYTES_MAX + 1))
    (drop / "line\nfeed").write_text("a=1")
    (drop / "folder").mkdir()
    found = {one.name: one for one in directory.dropped()}
    assert {name: one.data for name, one in found.items() if one.data is not None} == {"line\nfeed": b"a=1"}
    for one in found.values():
        directory.remove(one)
    assert [path.name for path in drop.iterdir()] == ["folder"]


def test_a_full_directory_is_looked_at_in_portions(place: Path, directory: Directory) -> None:
    for number in range(ENTRIES_AT_ONCE + 50):
        (place / "drop" / f"f{number}").touch()
    seen = 0
    for expected in (ENTRIES_AT_ONCE, 50, 0):
        found = list(directory.dropped())
        assert len(found) == expected
        seen += len(found)
        for one in found:
            directory.remove(one)
    assert seen == ENTRIES_AT_ONCE + 50


def test_orders_are_added_and_a_long_file_begins_anew(place: Path, directory: Directory) -> None:
    directory.order(b"go\n")
    directory.order(b"on\n")
    assert (place / "orders").read_bytes() == b"go\non\n"
    assert stat.S_IMODE((place / "orders").stat().st_mode) == 0o644
    os.truncate(place / "orders", 1 << 40)
    directory.order(b"again\n")
    assert (place / "orders").read_bytes() == b"again\n"


def test_orders_go_nowhere_else(place: Path, directory: Directory) -> None:
    (place / "orders").symlink_to("../secret")
    with pytest.raises(NestbedError):
        directory.order(b"go\n")
    assert (place.parent / "secret").read_text() == "secret=1\n"
    (place / "orders").unlink()
    os.mkfifo(place / "orders")
    reader = os.open(place / "orders", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(WrongState):
            directory.order(b"go\n")
    finally:
        os.close(reader)


def test_answers_are_whole_and_go_nowhere_else(place: Path, directory: Directory) -> None:
    directory.answer("go.1", "passed")
    assert (place / "barriers" / "go.1").read_text() == "passed\n"
    (place / "barriers" / ".go.2").symlink_to("../../secret")
    directory.answer("go.2", "passed")
    assert (place.parent / "secret").read_text() == "secret=1\n"
    (place / "barriers").rename(place / "old")
    (place / "barriers").symlink_to("..")
    with pytest.raises(NestbedError):
        directory.answer("go.3", "passed")
    assert not (place.parent / "go.3").exists()


def test_without_a_drop_directory_nothing_is_dropped(place: Path) -> None:
    (place / "drop").rmdir()
    (place / "drop").symlink_to("/etc")
    directory = Directory(os.open(place, os.O_PATH | os.O_DIRECTORY))
    assert directory.drop_path == ""
    assert list(directory.dropped()) == []
    directory.close()
