"""The record of a container's runs: what a keeper adds, the next one reads, whatever a crash tore."""

import json

import pytest

from nestbed.process.protocol import last_status
from nestbed.process.record import Record


def never(seconds: float, again) -> None:
    raise AssertionError("the record was not written")


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "status.json")


def test_the_next_keeper_knows_what_was_saved_last(path) -> None:
    record = Record(path, never)
    for state, pid in (("running", 7), ("stopped", 0), ("running", 9)):
        record.state, record.pid = state, pid
        record.save()
    again = Record(path, never)
    assert again.load() == record.status()
    assert (again.state, again.pid) == ("running", 9)


def test_changes_are_saved_without_being_so_yet(path) -> None:
    record = Record(path, never)
    record.save(state="running", pid=7)
    assert (record.state, record.pid) == ("created", 0)
    assert Record(path, never).load()["state"] == "running"


@pytest.mark.parametrize("torn", [b'\n{"state": "stop', b'\n{"state": "stopped"', b"\n", b"\xff\x00"])
def test_what_a_crash_tore_does_not_count_and_harms_nothing_after(path, torn) -> None:
    Record(path, never).save(state="running")
    with open(path, "ab") as file:
        file.write(torn)
    again = Record(path, never)
    assert again.load()["state"] == "running"
    again.save(state="stopped")
    assert Record(path, never).load()["state"] == "stopped"


def test_it_stays_short(path, tmp_path) -> None:
    record = Record(path, never)
    for number in range(1000):
        record.restarts = number
        record.save()
    assert (tmp_path / "status.json").stat().st_size < 20_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]
    assert Record(path, never).load()["restarts"] == 999


def test_nothing_written_is_told_from_nothing_understood() -> None:
    assert last_status(b"") is None
    assert last_status(b"\n\n") is None
    assert last_status(b"\n" + json.dumps({"state": "x"}).encode()) == {"state": "x"}
    with pytest.raises(ValueError, match="no line"):
        last_status(b"garbage\n[1, 2]\n")


def test_a_bundle_that_is_gone_is_nobodys_concern(tmp_path) -> None:
    Record(str(tmp_path / "gone" / "status.json"), never).save()


def test_a_disk_that_is_full_is_tried_again(path) -> None:
    waiting = []
    record = Record("/dev/full", lambda seconds, again: waiting.append(again))
    record.save()
    record.save()
    assert len(waiting) == 1
