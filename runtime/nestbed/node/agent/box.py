"""What one container reports: from its FIFO and its drop directory, or from its guest, into its journal; bounded, whatever it writes."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import stat
import termios
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from nestbed import agentdir
from nestbed.errors import NestbedError, shown
from nestbed.log import fields
from nestbed.node.agent.inside import Directory, Dropped
from nestbed.node.agent.journal import Journal
from nestbed.node.agent.lines import Garbage, parse, split
from nestbed.node.agent.values import Report
from nestbed.node.operations import report
from nestbed.node.registry import Held
from nestbed.plain import to_json

REPORTS_PER_SECOND, BURST = 200, 2000
"""How many reports of one container are kept; more are counted only."""
REST_SECONDS = 0.25
"""For how long a container that reports too much is not listened to: what it writes then waits, and holds it up."""
RETRY_SECONDS = 1.0
FLOOD = "flood"
_LAST_CHUNKS = 16

Heard = Callable[["Box", list[Report]], None]
"""Told of reports that were just delivered, and whenever something was lost."""

_logger = logging.getLogger(__name__)


class Box:
    """The agent's side of one container. For one event loop."""

    def __init__(self, held: Held, heard: Heard) -> None:
        self.held = held
        self.journal = Journal(held.bundle.path)
        self.directory: Directory | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.run = 0.0
        """When the run began that is listened to."""
        self.watch = -1
        """Of its drop directory."""
        self.lost_told = 0
        self.timers: dict[str, asyncio.TimerHandle] = {}
        """By the id of an arrival: when its time is up."""
        self._heard = heard
        self._fifo = -1
        self._rest: asyncio.TimerHandle | None = None
        self._allowance, self._allowed_at = float(BURST), time.monotonic()

    def open_fifo(self) -> None:
        """Begin to listen to the FIFO of its bundle, if it has one. Idempotent."""
        if self._fifo >= 0:
            return
        try:
            fd = os.open(self.held.bundle.path / agentdir.REPORT, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # one of an older version
            return
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            return
        self._fifo = fd
        asyncio.get_running_loop().add_reader(fd, self._receive)

    def close_fifo(self) -> None:
        """Take what is left, and listen no more. Idempotent."""
        if self._fifo < 0:
            return
        self._pause()
        for _ in range(_LAST_CHUNKS):
            if not self._transfer():
                break
        os.close(self._fifo)
        self._fifo = -1

    def close(self) -> None:
        """Let go of everything; what is left will be found by the next daemon. Idempotent."""
        if self._fifo >= 0:
            self._pause()
            os.close(self._fifo)
            self._fifo = -1
        if self.directory is not None:
            self.directory.close()
            self.directory = None
        for timer in self.timers.values():
            timer.cancel()
        self.timers.clear()
        for task in self.tasks:
            task.cancel()

    # ---- lines

    def _receive(self) -> None:
        self._transfer()
        if self._fifo >= 0 and self._allowance < 1:
            self._pause(REST_SECONDS)

    def _transfer(self) -> bool:
        """Move what waits in the FIFO to the journal; whether there was anything."""
        try:
            is_any = _has_bytes(self._fifo) and self.journal.receive(self._fifo) > 0
            if is_any or self.journal.has_inbox:
                self.digest()
        except NestbedError as error:  # a full disk: it stays in the FIFO until there is room
            _logger.warning("reports wait", extra=fields(container=self.held.spec.id, reason=error.reason, cause=error.message))
            self._pause(RETRY_SECONDS)
            return False
        return is_any

    def _pause(self, seconds: float = 0.0) -> None:
        """Do not listen to the FIFO; for some seconds, or for good."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._fifo)
        if self._rest is not None:
            self._rest.cancel()
        self._rest = loop.call_later(seconds, self._listen_again) if seconds else None

    def _listen_again(self) -> None:
        self._rest = None
        if self._fifo >= 0:
            asyncio.get_running_loop().add_reader(self._fifo, self._receive)

    def hear(self, data: bytes) -> None:
        """Take bytes that came another way than through the FIFO.

        Raises:
            ResourceExhausted: they cannot be kept.
        """
        self.journal.put(data)
        self.digest()

    def digest(self) -> None:
        """Make reports of what is in the inbox.

        Raises:
            NestbedError: the journal cannot be written; nothing was delivered.
        """
        while data := self.journal.unread():
            steps, reports = self._steps(data)
            if not steps:
                return
            self._deliver(steps, reports)

    def _steps(self, data: bytes) -> tuple[list[dict[str, Any]], list[Report]]:
        tally = self.journal.tally
        begin, skipping = tally.read_bytes, tally.skipping
        steps: list[dict[str, Any]] = []
        reports: list[Report] = []
        lost: Counter[str] = Counter()
        end = 0
        for line in split(data, skipping=skipping):
            end = line.end
            if line.data is None:
                lost["long"] += not skipping
            else:
                made = self._report(line.data, tally.number + len(reports) + 1, lost)
                if made is not None:
                    reports.append(made)
                    steps.append({"report": to_json(made), "inbox": [tally.inbox, begin + end, False]})
            skipping = line.data is None and data[end - 1 : end] != b"\n"
        if not end:
            return [], []
        steps.append({"inbox": [tally.inbox, begin + end, skipping], **({"lost": dict(lost)} if lost.total() else {})})
        return steps, reports

    def _report(self, line: bytes, number: int, lost: Counter[str], file: str = "") -> Report | None:
        """The report; None if there is none, or none that is kept."""
        try:
            found = parse(line)
        except Garbage as garbage:
            lost[garbage.why] += 1
            return None
        if not found and not file:
            return None
        if not self._is_allowed():
            lost[FLOOD] += 1
            return None
        return Report(number, time.time(), found, file)

    def _is_allowed(self) -> bool:
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + REPORTS_PER_SECOND * (now - self._allowed_at))
        self._allowed_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _deliver(self, steps: Sequence[dict[str, Any]], reports: list[Report]) -> None:
        if self.run and self.run != self.journal.tally.run:
            steps = [{"run": self.run}, *steps]
        self.journal.write(steps)
        self._heard(self, reports)

    def spawn(self, doing: Coroutine[Any, Any, None]) -> None:
        """Do something in the background for as long as it is listened to."""
        task = asyncio.create_task(doing)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(report)

    # ---- files

    def look_for_files(self) -> bool:
        """Take what was dropped, after the lines that were written before; whether there was anything.

        Raises:
            NestbedError: the journal cannot be written.
        """
        if self._fifo >= 0 and self._rest is None:
            self._transfer()
        directory, is_any = self.directory, False
        for found in directory.dropped() if directory is not None else ():
            assert directory is not None
            if found.mark != self.journal.tally.dropped:  # else the daemon died between the two
                self._take(found)
            directory.remove(found)
            is_any = True
        return is_any

    def _take(self, found: Dropped) -> None:
        lost: Counter[str] = Counter()
        made = None
        if found.data is None:
            lost["file"] += 1
        else:
            # Its lines are one report.
            made = self._report(b" ".join(found.data.split(b"\n")), self.journal.tally.number + 1, lost, shown(found.name))
        step: dict[str, Any] = {"dropped": found.mark, **({"lost": dict(lost)} if lost else {})}
        self._deliver([step if made is None else {**step, "report": to_json(made)}], [] if made is None else [made])


def _has_bytes(fifo: int) -> bool:
    return any(fcntl.ioctl(fifo, termios.FIONREAD, bytes(4)))
