"""A journal of reports survives whatever is killed, and does not grow without bound."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nestbed.node.agent import journal as module
from nestbed.node.agent.journal import Journal
from nestbed.node.agent.values import Report
from nestbed.plain import to_json


def again(journal: Journal) -> Journal:
    """As the next daemon finds it."""
    found = Journal(journal._directory)
    found.load()
    return found


def write(journal: Journal, *lines: str, inbox: list[object] | None = None) -> None:
    first = journal.tally.number + 1
    for number, line in enumerate(lines, first):
        fields = tuple(tuple(word.split("=", 1)) for word in line.split())
        step = {"report": to_json(Report(number, float(number), fields))}
        journal.write([step | ({"inbox": inbox} if inbox else {})])


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


def test_nothing_is_made_before_there_is_something_to_write(journal: Journal, tmp_path: Path) -> None:
    assert not journal.load()
    assert list(tmp_path.iterdir()) == []


def test_what_waits_in_a_fifo_is_moved_whole(journal: Journal, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(fifo, b"a=1\nb=")
        assert journal.receive(fifo) == 6
        assert journal.receive(fifo) == 0
        os.write(fifo, b"2\n")
        assert journal.receive(fifo) == 2
    finally:
        os.close(fifo)
    assert journal.unread() == b"a=1\nb=2\n"


def test_the_next_daemon_reads_on_where_this_one_was_killed(journal: Journal) -> None:
    journal.put(b"a=1\nb=2\n")
    write(journal, "a=1", inbox=[0, 4, False])
    found = again(journal)
    assert found.unread() == b"b=2\n"
    assert found.tally.fields == {"a": "1"}
    assert found.tally.number == 1


def test_a_torn_line_does_not_count(journal: Journal, tmp_path: Path) -> None:
    write(journal, "a=1", "a=2")
    with (tmp_path / "reports").open("ab") as file:
        file.write(b'{"report": {"num')
    assert again(journal).tally.fields == {"a": "2"}


def test_a_long_journal_is_put_aside_and_forgets_nothing_that_counts(journal: Journal, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "JOURNAL_BYTES_MAX", 2000)
    write(journal, "first=1", "barrier=go count=2 timeout=9", *(f"n={number}" for number in range(100)))
    assert {path.name for path in tmp_path.iterdir()} == {"reports", "reports.1"}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 8000
    found = again(journal)
    assert found.tally.fields["first"] == "1"
    assert found.tally.fields["n"] == "99"
    assert list(found.tally.waiting) == ["go"]
    numbers = [report.number for report in found.history()]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 102


def test_an_inbox_that_was_read_begins_anew_with_what_was_not(journal: Journal, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "INBOX_BYTES_MAX", 10)
    journal.put(b"x=1\n" * 4 + b"half")
    write(journal, "x=1", inbox=[0, 16, False])
    assert journal.unread() == b"half"
    assert again(journal).unread() == b"half"
    assert [path.name for path in tmp_path.glob("inbox-*")] == ["inbox-1"]


def test_a_daemon_killed_while_it_renewed_the_inbox_loses_and_doubles_nothing(journal: Journal, tmp_path: Path) -> None:
    journal.put(b"x=1\nhalf")
    write(journal, "x=1", inbox=[0, 4, False])
    (tmp_path / "inbox-1").write_bytes(b"half")
    assert again(journal).unread() == b"half"
    assert not (tmp_path / "inbox-0").exists()


def test_a_new_run_begins_without_fields_and_without_those_who_waited(journal: Journal) -> None:
    journal.write([{"run": 1.5}])
    write(journal, "state=ready", "barrier=go count=2")
    journal.write([{"run": 2.5}])
    assert journal.tally.fields == {}
    assert journal.tally.waiting == {}
    assert journal.tally.number == 2
