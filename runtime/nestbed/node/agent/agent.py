"""The node's agent: one for all containers. It hears what their programs report, gives them orders, and lets them meet at barriers.

Reports become events (``agent.report``), once they are in the container's journal. Barriers of containers that belong to no experiment
are this node's; those of an experiment may span nodes, and who runs the experiment says when they are passed (``release``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import cache
from typing import cast

from nestbed import agentdir
from nestbed.errors import InvalidArgument, NestbedError, NotFound, WrongState, shown, translated
from nestbed.linux import inotify
from nestbed.log import fields
from nestbed.model import Kind, State, Status
from nestbed.node.agent import barriers, guest
from nestbed.node.agent.box import Box
from nestbed.node.agent.inside import Directory
from nestbed.node.agent.lines import LINE_BYTES_MAX
from nestbed.node.agent.values import AgentView, Arrival, Report
from nestbed.node.parts import Parts, present
from nestbed.node.registry import Held
from nestbed.runtime import Reporting

EXPERIMENT_LABEL, ELEMENT_LABEL = "nestbed.experiment", "nestbed.element"
TELL_SECONDS = 1.0
"""How often it is told at most that reports of a container are lost."""
_LISTEN_AGAIN_SECONDS, _LOOK_AGAIN_SECONDS = 2.0, 0.1
_DROPPED = inotify.IN_CLOSE_WRITE | inotify.IN_MOVED_TO | inotify.IN_CREATE | inotify.IN_ONLYDIR
_RUNS = (State.RUNNING, State.PAUSED)
_ENDED = (State.STOPPED, State.RESTARTING)

_logger = logging.getLogger(__name__)


@cache
def _reports(kind: type) -> bool:
    """Whether containers of this class have a FIFO and a directory. (To ask an object costs as much as to open both.)"""
    return issubclass(kind, Reporting)


class Agent:
    """For one event loop. ``open`` before use."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._boxes: dict[str, Box] = {}
        self._watches: dict[int, Box] = {}
        self._inotify = -1
        self._is_closed = False
        self._tellers: dict[str, asyncio.TimerHandle] = {}
        """By container: when it is told next how much was lost."""

    def open(self) -> None:
        """Make it ready. Called once."""
        # To see whether a file is still written takes a lease for a moment; breaking one sends this signal, which would end the process.
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        with translated("watching what containers drop"):
            self._inotify = inotify.inotify_init()
        asyncio.get_running_loop().add_reader(self._inotify, self._on_change)

    async def aclose(self) -> None:
        """Hear no more; the next daemon goes on. Idempotent."""
        self._is_closed = True
        tasks = [task for box in self._boxes.values() for task in box.tasks]
        for box in self._boxes.values():
            box.close()
            box.held.wake()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._boxes.clear()
        for timer in self._tellers.values():
            timer.cancel()
        if self._inotify >= 0:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1

    # ------------------------------------------------------------ following containers

    def recover(self, held: Held) -> None:
        """Before a container is taken up again: what was reported meanwhile is still there, and would not be afterwards if it ended."""
        box = self._box(held)
        try:
            box.journal.load()
        except NestbedError as error:
            _logger.warning("journal of reports not read", extra=fields(container=held.spec.id, reason=error.reason, cause=error.message))
        box.open_fifo()

    def follow(self, held: Held, status: Status) -> None:
        """A container is where ``status`` says: begin to listen, or end. Idempotent."""
        if status.state in _RUNS:
            self._attach(self._box(held), status.started_at)
        elif held.spec.id in self._boxes and status.state in _ENDED:
            self._detach(self._boxes[held.spec.id])

    def forget(self, container_id: str) -> None:
        """A container is being removed. Idempotent."""
        box = self._boxes.pop(container_id, None)
        if box is not None:
            self._unwatch(box)
            box.close()

    def _box(self, held: Held) -> Box:
        box = self._boxes.get(held.spec.id)
        if box is None:
            box = self._boxes[held.spec.id] = Box(held, self._heard)
        return box

    def _attach(self, box: Box, run: float) -> None:
        if box.run == run:
            return
        tally = box.journal.tally
        if tally.run not in (0.0, run):
            self._tell_unseen(box)
        box.run = run
        if tally.number and tally.run != run:
            self._write(box, {"run": run})
        for arrival in tally.waiting.values():
            self._await_deadline(box, arrival)
        if box.held.spec.kind is Kind.QEMU:
            box.spawn(self._listen(box))
        elif box.held.container is not None and _reports(type(box.held.container)):
            box.open_fifo()
            with contextlib.suppress(NestbedError):  # it ended already, or has something else at that place
                box.directory = Directory(cast("Reporting", box.held.container).open_agent())
                self._watch(box)
                self._look(box)

    def _detach(self, box: Box) -> None:
        """The run ended: take what is left of it."""
        is_unseen = not box.run
        self._look(box)
        box.close_fifo()
        self._unwatch(box)
        box.close()
        if box.journal.tally.run:
            if is_unseen:
                self._tell_unseen(box)
            self._write(box, {"run": 0.0})
        box.run = 0.0

    def _tell_unseen(self, box: Box) -> None:
        spec = box.held.spec
        self._publish(box, "agent.lost", cause="a run ended while no daemon listened: files that it dropped then are gone")
        _logger.info("a run ended unseen", extra=fields(container=spec.id))

    def _write(self, box: Box, step: dict[str, object]) -> None:
        try:
            box.journal.write([step])
        except NestbedError as error:
            _logger.warning("journal not written", extra=fields(container=box.held.spec.id, reason=error.reason, cause=error.message))

    async def _listen(self, box: Box) -> None:
        """Listen to a guest for as long as it runs."""
        while not self._is_closed:
            try:
                await guest.listen(present(box.held), box.hear)
            except NotFound:  # a guest without a shell has no agent's directory
                return
            except NestbedError as error:
                if isinstance(error, WrongState):
                    return
                _logger.info("guest not listened to", extra=fields(container=box.held.spec.id, reason=error.reason, cause=error.message))
            await asyncio.sleep(_LISTEN_AGAIN_SECONDS)

    # ------------------------------------------------------------ files

    def _watch(self, box: Box) -> None:
        path = box.directory.drop_path if box.directory is not None else ""
        if path:
            with translated("watching what a container drops"):
                box.watch = inotify.inotify_add_watch(self._inotify, path, _DROPPED)
            self._watches[box.watch] = box

    def _unwatch(self, box: Box) -> None:
        if self._watches.pop(box.watch, None) is not None:
            with contextlib.suppress(OSError):  # the directory went, and the watch with it
                inotify.inotify_rm_watch(self._inotify, box.watch)
        box.watch = -1

    def _on_change(self) -> None:
        changed = {change.watch for change in inotify.read_changes(self._inotify)}
        for box in list(self._watches.values()) if -1 in changed else [self._watches[one] for one in changed if one in self._watches]:
            self._look(box)

    def _look(self, box: Box) -> None:
        try:
            is_any = box.look_for_files()
        except NestbedError as error:
            _logger.warning("dropped files wait", extra=fields(container=box.held.spec.id, reason=error.reason, cause=error.message))
            is_any = False
        if is_any and not self._is_closed:  # there may be more than are looked at at once
            asyncio.get_running_loop().call_later(_LOOK_AGAIN_SECONDS, self._look, box)

    # ------------------------------------------------------------ what is heard

    def _heard(self, box: Box, reports: list[Report]) -> None:
        for report in reports:
            file = {"file": report.file} if report.file else {}
            self._publish(box, "agent.report", **{**dict(report.fields), **file, "number": report.number})
            self._arrived(box, report)
        if box.journal.tally.lost.total() != box.lost_told and box.held.spec.id not in self._tellers:
            self._tell_lost(box)
        box.held.wake()

    def _tell_lost(self, box: Box) -> None:
        """Tell how much was lost, now and, if it goes on, every second."""
        self._tellers.pop(box.held.spec.id, None)
        lost = box.journal.tally.lost
        if lost.total() == box.lost_told or self._is_closed:
            return
        box.lost_told = lost.total()
        self._publish(box, "agent.lost", **{str(why): count for why, count in lost.items()})
        later = asyncio.get_running_loop().call_later(TELL_SECONDS, self._tell_lost, box)
        self._tellers[box.held.spec.id] = later

    def _publish(self, box: Box, kind: str, **attributes: object) -> None:
        """An event of a container; whose element it is comes last, for the rest is what its programs say."""
        spec = box.held.spec
        labels = dict(spec.labels)
        known = {name: labels[key] for name, key in (("experiment", EXPERIMENT_LABEL), ("element", ELEMENT_LABEL)) if key in labels}
        self._parts.events.publish(kind, spec.id, spec.name, **{**attributes, **known})

    # ------------------------------------------------------------ barriers

    def _arrived(self, box: Box, report: Report) -> None:
        told = dict(report.fields)
        if "barrier" not in told:
            return
        arrival = box.journal.tally.waiting.get(told.get("id", told["barrier"]))
        if arrival is None or arrival.at != report.at:
            if arrival is None and barriers.is_name(told.get("id", told["barrier"])):
                self._answer(box, told.get("id", told["barrier"]), agentdir.REFUSED)
            return
        if box.directory is not None:
            box.directory.forget_answer(arrival.id)
        self._await_deadline(box, arrival)
        self._publish(box, "agent.arrived", barrier=arrival.barrier, count=arrival.count, arrival=arrival.id)
        if not self._experiment(box):
            self._pass_local()

    def _pass_local(self) -> None:
        waiting = [
            (container_id, arrival)
            for container_id, box in self._boxes.items()
            if not self._experiment(box)
            for arrival in box.journal.tally.waiting.values()
        ]
        for container_id, arrival in barriers.complete(waiting):
            self._leave(self._boxes[container_id], arrival.id, agentdir.PASSED)

    @staticmethod
    def _experiment(box: Box) -> str:
        return dict(box.held.spec.labels).get(EXPERIMENT_LABEL, "")

    def _await_deadline(self, box: Box, arrival: Arrival) -> None:
        left = max(0.0, arrival.deadline - time.time())
        timer = asyncio.get_running_loop().call_later(left, self._leave, box, arrival.id, agentdir.TIMED_OUT)
        box.timers[arrival.id] = timer

    def _leave(self, box: Box, arrival_id: str, outcome: str) -> bool:
        """Let who waits go on; whether anybody did."""
        timer = box.timers.pop(arrival_id, None)
        if timer is not None:
            timer.cancel()
        arrival = box.journal.tally.waiting.get(arrival_id)
        if arrival is None:
            return False
        self._write(box, {"left": [arrival_id]})
        self._answer(box, arrival_id, outcome)
        self._publish(box, f"agent.{outcome}", barrier=arrival.barrier, arrival=arrival_id)
        return True

    def _answer(self, box: Box, arrival_id: str, outcome: str) -> None:
        if box.directory is not None:
            try:
                box.directory.answer(arrival_id, outcome)
            except NestbedError as error:
                _logger.info("no answer left at a barrier", extra=fields(container=box.held.spec.id, cause=error.message))
        elif box.held.spec.kind is Kind.QEMU and box.run:
            box.spawn(guest.answer(present(box.held), arrival_id, outcome))

    # ------------------------------------------------------------ what callers ask for

    def release(self, held: Held, arrival_ids: Iterable[str]) -> list[str]:
        """Let these arrivals pass; those who waited no more are left out of the answer."""
        box = self._boxes.get(held.spec.id)
        return [] if box is None else [one for one in arrival_ids if self._leave(box, one, agentdir.PASSED)]

    async def tell(self, held: Held, text: str) -> None:
        """Add a line to a container's orders.

        Raises:
            InvalidArgument: it is no line. WrongState: it does not run, or has no place for orders.
        """
        line = f"{text}\n"
        if "\n" in text or not text.isprintable() or len(line.encode()) > LINE_BYTES_MAX:
            raise InvalidArgument(
                f"{shown(text)} is no line of printable text of at most {LINE_BYTES_MAX} bytes",
                reason="BAD_ORDER",
                remedy="give it in several orders",
                text=shown(text),
            )
        box = self._boxes.get(held.spec.id)
        if box is not None and box.directory is not None:
            box.directory.order(line.encode())
        elif box is not None and box.run and held.spec.kind is Kind.QEMU:
            await guest.order(present(held), line)
        else:
            raise WrongState(
                f"container {held.spec.name} does not run, or has no {agentdir.DIRECTORY}",
                reason="NO_AGENT_DIRECTORY",
                remedy="start it; nothing else may be mounted at /run",
                container=held.spec.name,
            )
        self._publish(box, "agent.told", text=text)

    def view(self, held: Held) -> AgentView:
        """What is known of a container."""
        box = self._boxes.get(held.spec.id)
        if box is None:
            return AgentView(held.spec, held.status.state, None, (), (), ())
        tally = box.journal.tally
        shown_fields = tuple(tally.fields.items()) if box.run else ()
        waiting = tuple(tally.waiting.values()) if box.run else ()
        return AgentView(held.spec, held.status.state, tally.last, shown_fields, tuple(tally.lost.items()), waiting)

    async def reports(self, held: Held, *, tail: int | None, follow: bool) -> AsyncIterator[Sequence[Report]]:
        """The reports that are kept, the last ``tail`` of them, in batches; with ``follow`` new ones, too, until the container is gone."""
        wake = asyncio.Event()
        held.wakers.add(wake)
        last = 0
        try:
            while True:
                wake.clear()
                box = self._boxes.get(held.spec.id)
                found = (
                    [] if box is None or box.journal.tally.number == last else [one for one in box.journal.history() if one.number > last]
                )
                if found:
                    last = found[-1].number
                    yield found if tail is None else found[max(0, len(found) - tail) :]
                tail = None
                if not follow or held.is_gone or self._is_closed:
                    return
                await wake.wait()
        finally:
            held.wakers.discard(wake)
