"""What a container's programs reported, on disk: delivered once, whatever is killed when.

In the container's bundle, from the first report on::

    inbox-N        bytes as they were written, N rising: one system call (splice(2)) moves them here from the FIFO
    reports        a line of JSON for each step: reports, with how far the inbox was read for them; what was lost; who left a barrier
    reports.1      the same, older; ``reports`` then begins with all that the older lines came to

A report is delivered when its line is in ``reports``. What was read of the inbox and not yet delivered is read again.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nestbed.errors import CorruptState, translated
from nestbed.node.agent import barriers
from nestbed.node.agent.values import Arrival, Report
from nestbed.plain import from_json, to_json

CHUNK_BYTES = 64 * 1024
"""What a pipe holds at most (pipe(7))."""
JOURNAL_BYTES_MAX = 512 * 1024
INBOX_BYTES_MAX = 256 * 1024
KEYS_MAX = 64
WAITING_MAX = 256

_JOURNAL, _OLDER, _NEW, _INBOX = "reports", "reports.1", "reports.new", "inbox-"


@dataclass(slots=True)
class Tally:
    """All that the lines of a journal come to."""

    number: int = 0
    last: Report | None = None
    fields: dict[str, str] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)
    waiting: dict[str, Arrival] = field(default_factory=dict)
    inbox: int = 0
    read_bytes: int = 0
    skipping: bool = False
    dropped: str = ""
    run: float = 0.0
    """When the run began that reported last, if its end was not seen; else 0."""

    def take(self, step: dict[str, Any]) -> None:
        """Add a line of the journal."""
        if "all" in step:
            self._restore(step["all"])
        if "run" in step:
            self.run = step["run"]
            self.waiting.clear()
            if self.run:
                self.fields.clear()
        if "report" in step:
            self._report(from_json(Report, step["report"]))
        if "inbox" in step:
            self.inbox, self.read_bytes, self.skipping = step["inbox"]
        self.dropped = step.get("dropped", self.dropped)
        self.lost.update(step.get("lost", {}))
        for arrival_id in step.get("left", ()):
            self.waiting.pop(arrival_id, None)

    def _report(self, report: Report) -> None:
        self.number, self.last = report.number, report
        for key, value in report.fields:
            self.fields.pop(key, None)
            self.fields[key] = value
        while len(self.fields) > KEYS_MAX:
            del self.fields[next(iter(self.fields))]
        arrived = barriers.arrival(dict(report.fields), report.at)
        if arrived is not None and len(self.waiting) < WAITING_MAX:
            self.waiting.setdefault(arrived.id, arrived)

    def snapshot(self) -> dict[str, Any]:
        """A line that alone comes to the same."""
        plain = asdict(self)
        plain["last"], plain["waiting"] = to_json(self.last), [to_json(each) for each in self.waiting.values()]
        return {"all": plain}

    def _restore(self, plain: dict[str, Any]) -> None:
        self.number, self.fields, self.lost = plain["number"], dict(plain["fields"]), Counter(plain["lost"])
        self.last = from_json(Report, plain["last"]) if plain["last"] else None
        self.waiting = {each.id: each for each in (from_json(Arrival, item) for item in plain["waiting"])}
        self.inbox, self.read_bytes, self.skipping = plain["inbox"], plain["read_bytes"], plain["skipping"]
        self.dropped, self.run = plain["dropped"], plain["run"]


class Journal:
    """The journal of one container. Makes nothing before there is something to write; holds no descriptor. OSErrors are translated."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.tally = Tally()
        self.has_inbox = False
        """Whether there may be something in the inbox."""

    def load(self) -> bool:
        """Read what an earlier daemon wrote; whether there was anything."""
        with translated(f"reading the reports in {self._directory}", path=self._directory):
            names = os.listdir(self._directory)
            for step in _steps(self._directory / _JOURNAL):
                with contextlib.suppress(KeyError, TypeError, ValueError, CorruptState):  # of another version
                    self.tally.take(step)
            for number in sorted(_inboxes(names)):
                if number < max(_inboxes(names)):
                    (self._directory / f"{_INBOX}{number}").unlink()
                elif number != self.tally.inbox:
                    self.tally.inbox, self.tally.read_bytes = number, 0
        self.has_inbox = bool(_inboxes(names))
        return _JOURNAL in names or self.has_inbox

    # ---- the inbox

    def receive(self, fifo: int) -> int:
        """Move what waits in a FIFO into the inbox, at most CHUNK_BYTES; how much. It is never only here or only there."""
        inbox = self._open_inbox()
        try:
            end = os.fstat(inbox).st_size
            return os.splice(fifo, inbox, CHUNK_BYTES, offset_dst=end, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return 0
        except OSError as error:
            with translated(f"keeping reports in {self._directory}", path=self._directory):
                raise error from None
        finally:
            os.close(inbox)

    def put(self, data: bytes) -> None:
        """Add to the inbox."""
        inbox = self._open_inbox()
        try:
            with translated(f"keeping reports in {self._directory}", path=self._directory):
                os.pwrite(inbox, data, os.fstat(inbox).st_size)
        finally:
            os.close(inbox)

    def unread(self) -> bytes:
        """What is in the inbox and was not read, at most CHUNK_BYTES."""
        inbox = self._open_inbox()
        try:
            return os.pread(inbox, CHUNK_BYTES, self.tally.read_bytes)
        finally:
            os.close(inbox)

    def _open_inbox(self) -> int:
        path = self._directory / f"{_INBOX}{self.tally.inbox}"
        self.has_inbox = True
        with translated(f"opening {path}", path=path):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def _renew_inbox(self) -> None:
        """Begin a new inbox with what was not read of this one."""
        old = self._directory / f"{_INBOX}{self.tally.inbox}"
        new = self._directory / f"{_INBOX}{self.tally.inbox + 1}"
        new.with_suffix(".new").write_bytes(old.read_bytes()[self.tally.read_bytes :])
        new.with_suffix(".new").rename(new)
        self.tally.inbox, self.tally.read_bytes = self.tally.inbox + 1, 0
        old.unlink()

    # ---- the journal

    def write(self, steps: Sequence[dict[str, Any]]) -> None:
        """Add lines, all or, should the machine lose power, some. What has grown long is put aside."""
        path = self._directory / _JOURNAL
        with translated(f"writing {path}", path=path):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                data = b"".join(json.dumps(step).encode() + b"\n" for step in steps)
                size = os.fstat(fd).st_size
                if os.write(fd, data) < len(data):
                    os.ftruncate(fd, size)
                    raise OSError(28, "No space left on device")
                size += len(data)
            finally:
                os.close(fd)
            for step in steps:
                self.tally.take(step)
            if size > JOURNAL_BYTES_MAX:
                self._rotate(path)
            if self.tally.read_bytes > INBOX_BYTES_MAX:
                self._renew_inbox()

    def _rotate(self, path: Path) -> None:
        new = self._directory / _NEW
        new.write_text(json.dumps(self.tally.snapshot()) + "\n")
        with contextlib.suppress(FileNotFoundError):
            (self._directory / _OLDER).unlink()
        os.link(path, self._directory / _OLDER)
        new.rename(path)

    def history(self) -> Iterator[Report]:
        """The reports that are kept, oldest first."""
        last = 0
        for name in (_OLDER, _JOURNAL):
            for step in _steps(self._directory / name):
                report = from_json(Report, step["report"]) if "report" in step else None
                if report is not None and report.number > last:  # a rotation that was cut short leaves both files alike
                    last = report.number
                    yield report


def _steps(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal; one that was torn does not count."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return
            for line in file:
                with contextlib.suppress(ValueError):
                    step = json.loads(line)
                    if isinstance(step, dict):
                        yield step
    except FileNotFoundError:
        return


def _inboxes(names: Iterable[str]) -> list[int]:
    return [int(name[len(_INBOX) :]) for name in names if name.startswith(_INBOX) and name[len(_INBOX) :].isdecimal()]
