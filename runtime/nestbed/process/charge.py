"""One container in the keeper's charge: start, watch, log, stop, restart, exec.

Everything that must outlive the keeper is in ``status.json`` before anybody is told.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nestbed import agentdir
from nestbed.linux.descriptors import keep
from nestbed.linux.path import contents
from nestbed.linux.pidfd import exit_information, open_process, zombie_status
from nestbed.process import holder, signals
from nestbed.process.birth import Birth, Completion, Join, Refusal
from nestbed.process.executions import Executions
from nestbed.process.inflight import Piece
from nestbed.process.memorywatch import MemoryWatch
from nestbed.process.output import Journal, Outlet, Sink
from nestbed.process.pipes import find_pipe, members
from nestbed.process.places import BUNDLES
from nestbed.process.protocol import Launch
from nestbed.process.record import Record, exit_record, start_failed
from nestbed.process.restarts import Restarts

if TYPE_CHECKING:
    from nestbed.process.keeper import Keeper

Answer = tuple[dict[str, Any], list[int]]

_EXIT_TRIES, _EXIT_TRY_SECONDS = 50, 0.02
"""How long the kernel may take to tell how the child of a dead keeper ended."""


class Charge:
    """A container under the keeper's care. Descriptors given out in an answer are duplicates that the caller closes."""

    def __init__(self, keeper: Keeper, id: str) -> None:
        self.id = id
        self._keeper = keeper
        self._bundle = f"{BUNDLES}/{id}"
        self._record = Record(f"{self._bundle}/status.json", keeper.loop.later)
        self._record.sources = lambda: tuple(self._outlet.sources) if self._outlet else ()
        self._stands_for = 0
        """The signal for which SIGKILL was sent in this run, if any."""
        self._was_killed = False
        """Whether SIGKILL was sent in this run: then it is not the kernel that ended it for want of memory, which others may share."""
        self._restarts = Restarts()
        self._ours = True
        self._netns_fd = -1
        self._pidfd = -1
        self._stdin_fd = -1
        self._terminal_fd = -1
        self._outlet: Outlet | None = None
        self._report_fd = -1
        """The FIFO of reports, held from the first run on: what is in it outlives nestbedd and the container, and nobody gets SIGPIPE."""
        self._told_lost = 0
        self._waiting_sinks: list[Sink] = []
        self._executions = Executions(keeper, id)
        self._starting = False
        self._birth: Birth | None = None
        self._holder_pidfd = -1
        self._memory = MemoryWatch(keeper.host_root_fd)

    # ---- status

    def status(self) -> dict[str, Any]:
        """As in ``status.json``."""
        return self._record.status()

    def _event(self, name: str, fds: list[int] | None = None) -> None:
        self._keeper.send({"event": name, "id": self.id, "status": self.status()}, fds)

    # ---- network namespace

    def prepare(self, *, is_machine: bool) -> Answer:
        """Make the network namespace, or give the one there is; and let the program's process set itself up meanwhile."""
        if self._netns_fd < 0:
            self._netns_fd = self._keeper.netns.own() if is_machine else self._keeper.netns.take()
        if self._birth is None and self._record.state in ("created", "stopped"):
            self._keeper.loop.later(0, self._bear)  # once this is answered: nestbedd has enough to do meanwhile
        return {}, [os.dup(self._netns_fd), self._keeper.netns.netlink(self._netns_fd)]

    def _bear(self) -> None:
        if self._birth is None and self._netns_fd >= 0 and not self._starting:
            with suppress(Refusal):  # the start will tell
                self._birth = Birth(self._keeper, self._read_launch(), self._netns_fd)

    def netlink(self) -> Answer:
        """A netlink socket inside the network namespace."""
        if self._netns_fd < 0:
            raise Refusal("netns", errno.ENOENT, "the container has no network namespace now")
        return {}, [self._keeper.netns.netlink(self._netns_fd)]

    # ---- start

    def start(self, complete: Completion) -> None:
        """Clone and execute; ``complete`` is called when the program runs, or with why it does not."""
        if self._starting or self._record.state == "running":
            raise Refusal("keeper", errno.EALREADY, "it runs already")
        self._record.stop_asked = False
        self._restarts.forget_failures()
        self._record.restarts = 0
        self._launch(complete)

    def _read_launch(self) -> Launch:
        try:
            launch: Launch = json.loads(contents(f"{self._bundle}/launch.json"))
        except OSError as error:
            raise Refusal("keeper", error.errno or errno.EIO, "the bundle has no launch.json") from error
        if launch["id"] != self.id:
            raise Refusal("keeper", errno.EINVAL, "launch.json is of another container")
        return launch

    def _launch(self, complete: Completion) -> None:
        launch = self._read_launch()
        self._restarts.obey_launch(launch)
        if self._netns_fd < 0:
            self._netns_fd = self._keeper.netns.own() if launch.get("machine") else self._keeper.netns.take()
        birth, self._birth = self._birth, None
        if birth is not None and not birth.alive():
            birth.bury()
            birth = None
        if birth is None:
            birth = Birth(self._keeper, launch, self._netns_fd)
        self._memory.begin(launch)
        self._stands_for, self._was_killed = 0, False
        self._starting = True
        self._hold_report()
        self._record.started_at = time.time()
        self._save_before(birth)
        birth.go(lambda refusal: self._launched(launch, birth, refusal, complete))

    def _hold_report(self) -> None:
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        if self._report_fd < 0:
            with suppress(OSError):  # a machine's sandbox has none
                self._report_fd = keep(os.open(f"{self._bundle}/{agentdir.REPORT}", flags))

    def _save_before(self, birth: Birth) -> None:
        """Record the run before the program executes: should this keeper die next, another one finds it by this."""
        pipes = [os.fstat(fd).st_ino for fd in (birth.out_fd, birth.err_fd) if fd >= 0]
        self._record.save(state="running", pid=birth.pid, start_time=birth.start_time, exit=None, pipes=pipes)

    def _launched(self, launch: Launch, birth: Birth, refusal: Refusal | None, complete: Completion) -> None:
        """The child has executed the program or told what went wrong."""
        self._starting = False
        if refusal is not None:
            birth.bury()
            self._record.exit = start_failed(refusal.step, refusal.text)
            self._record.save()
            complete(refusal, {}, [])
            return
        self._record.pid, self._pidfd, self._record.start_time = birth.pid, birth.pidfd, birth.start_time
        self._record.state, self._record.exit, self._ours = "running", None, True
        self._stdin_fd, self._terminal_fd = birth.stdin_fd, birth.terminal_fd
        if max(self._stdin_fd, self._terminal_fd) >= 0:
            self._record.holder, self._holder_pidfd = holder.hold(self._keeper.memory, max(self._stdin_fd, self._terminal_fd), birth.pidfd)
        streams = [birth.out_fd, birth.err_fd] if birth.terminal_fd < 0 else [os.dup(birth.terminal_fd)]
        given = [os.dup(fd) for fd in (birth.pidfd, *streams)]
        self._connect_output(launch, {fd: stream for stream, fd in enumerate(streams, 1)})
        if self._record.holder is not None:
            self._record.save()
        self._keeper.loop.watch(birth.pidfd, self._ended)
        complete(None, {"pid": birth.pid, "start_time": self._record.start_time, "status": self.status()}, given)

    def _connect_output(self, launch: Launch, sources: dict[int, int]) -> None:
        self._outlet = self._make_outlet(launch)
        self._outlet.journal.bytes_lost = self._record.bytes_lost
        for sink in self._waiting_sinks:
            self._outlet.add_sink(sink)
        self._waiting_sinks = []
        for fd, stream in sources.items():
            self._outlet.add_source(fd, stream)

    def _journal(self, launch: Launch) -> Journal:
        return Journal(self._bundle, self._keeper.inflight, bytes_max=launch["log"]["bytes_max"], files=launch["log"]["files"])

    def _make_outlet(self, launch: Launch) -> Outlet:
        keeper = self._keeper
        return Outlet(self.id, self._journal(launch), keeper.inflight, keeper.loop.watch, keeper.loop.drain, self._note_lost)

    def log_again(self, piece: Piece) -> None:
        """Complete the log with what an earlier keeper had read for it."""
        with suppress(Refusal):  # it is being removed
            journal = self._journal(self._read_launch())
            journal.write_again(piece)
            journal.close()

    def _note_lost(self, total: int) -> None:
        """Output could not be logged; tell of it once a second at most."""
        if self._record.bytes_lost == self._told_lost:
            self._keeper.loop.later(1.0, self._tell_lost)
        self._record.bytes_lost = total

    def _tell_lost(self) -> None:
        self._told_lost = self._record.bytes_lost
        self._keeper.send({"event": "log_lost", "id": self.id, "bytes": self._record.bytes_lost})
        self._record.save()

    # ---- end

    def _ended(self, tries: int = 0) -> None:
        """The first process ended, and with it all of the container's."""
        self._keeper.loop.watch(self._pidfd, None)
        status = self._wait_status()
        if status is None and not self._ours and tries < _EXIT_TRIES:  # not yet reaped by its new parent
            self._keeper.loop.later(_EXIT_TRY_SECONDS, lambda: self._ended(tries + 1))
            return
        if status == signal.SIGKILL and self._stands_for:
            status = self._stands_for
        self._record.exit = exit_record(status, oom=self._memory.has_killed() and not self._was_killed)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._outlet is not None:
            self._outlet.finish()
            self._outlet = None
        _close([fd for fd in (self._stdin_fd, self._terminal_fd) if fd >= 0])
        self._stdin_fd = self._terminal_fd = -1
        self._dismiss_holder()
        self._record.pid = self._record.start_time = 0
        self._settle()

    def _wait_status(self) -> int | None:
        """How it ended as waitpid(2) tells it; None if that is not known (yet)."""
        if not self._ours:
            told = exit_information(self._pidfd)
            return zombie_status(self._record.pid) if told is None else told
        found = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        assert found is not None
        return found.si_status << 8 if found.si_code == os.CLD_EXITED else found.si_status

    def _settle(self) -> None:
        """After an end: restart or stop for good."""
        ended = self._record.exit
        if ended is not None and not self._record.stop_asked and self._restarts.is_due(ended["code"], self._record.restarts):
            self._record.state = "restarting"
            delay = self._restarts.delay_seconds(time.time() - self._record.started_at)
            self._record.save()
            self._event("exited")
            self._keeper.loop.later(delay, self._restart)
        else:
            self._stop_for_good()

    def _stop_for_good(self) -> None:
        self._record.state = "stopped"
        if self._netns_fd >= 0:
            os.close(self._netns_fd)
            self._netns_fd = -1
        self._record.save()
        self._event("exited")

    def _restart(self) -> None:
        if self._record.state != "restarting" or self._starting or self._record.stop_asked:
            return
        self._record.restarts += 1

        def complete(refusal: Refusal | None, _: dict[str, Any], fds: list[int]) -> None:
            if refusal is None:
                self._event("started", fds)
                _close(fds)
            else:
                self._settle()

        try:
            self._launch(complete)
        except Refusal as refusal:
            self._record.exit = start_failed(refusal.step, refusal.text)
            self._settle()

    def set_policy(self, mode: str, max_retries: int) -> Answer:
        """The restart policy from now on. Limits may have changed with it."""
        self._restarts.obey(mode, max_retries)
        with suppress(Refusal):  # it is being removed
            self._memory.follow(self._read_launch())
        return {}, []

    # ---- signals

    def stop(self, grace: float) -> Answer:
        """Ask it to end, and end it after ``grace`` seconds; at once without any."""
        self._record.stop_asked = True
        if self._record.state == "restarting" and not self._starting:
            self._stop_for_good()
        elif self._record.state == "running":
            self._record.save()
            run = self._record.start_time
            if grace > 0:
                self._send_signal(signal.SIGTERM)
                self._keeper.loop.later(grace, lambda: self._kill_run(run))
            else:
                self._send_signal(signal.SIGKILL)
        return {}, []

    def _kill_run(self, run: int) -> None:
        if self._record.state == "running" and self._record.start_time == run:
            self._send_signal(signal.SIGKILL)

    def signal(self, number: int) -> Answer:
        """Send a signal to the first process."""
        if self._record.state != "running":
            raise Refusal("keeper", errno.ESRCH, "it does not run")
        if not 1 <= number <= 64:
            raise Refusal("keeper", errno.EINVAL, f"no signal {number}")
        self._send_signal(number)
        return {}, []

    def _send_signal(self, number: int) -> None:
        """Send a signal to the first process, or SIGKILL where the kernel would not deliver one that ends a process."""
        if signals.is_swallowed(self._record.pid, number):
            self._stands_for, number = number, signal.SIGKILL
        self._was_killed = self._was_killed or number == signal.SIGKILL
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    # ---- streams

    def attach(self, sink: Sink) -> Answer:
        """Connect a reader, now or for the next start."""
        if self._outlet is None:
            self._waiting_sinks.append(sink)
            sink.when_deserted(lambda: self._forget_sink(sink))
            return {"stdin": False, "tty": False}, []
        self._outlet.add_sink(sink)
        fd = self._terminal_fd if self._terminal_fd >= 0 else self._stdin_fd
        return {"stdin": fd >= 0, "tty": self._terminal_fd >= 0}, [os.dup(fd)] if fd >= 0 else []

    def _forget_sink(self, sink: Sink) -> None:
        self._waiting_sinks.remove(sink)
        sink.close()

    def stdin(self) -> Answer:
        """The writer of standard input, or the terminal."""
        fd = self._terminal_fd if self._terminal_fd >= 0 else self._stdin_fd
        return {"tty": self._terminal_fd >= 0}, [os.dup(fd)] if fd >= 0 else []

    def close_stdin(self) -> Answer:
        """Close this side of standard input."""
        if self._stdin_fd >= 0:
            os.close(self._stdin_fd)
            self._stdin_fd = -1
            self._dismiss_holder()
            self._record.save()
        return {}, []

    def _dismiss_holder(self) -> None:
        if self._holder_pidfd < 0:
            return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._holder_pidfd, signal.SIGKILL)
        self._keeper.reap_later(self._holder_pidfd)
        self._record.holder, self._holder_pidfd = None, -1

    # ---- exec

    def exec(self, exec_id: str, given: dict[str, Any], fds: list[int], complete: Completion) -> None:
        """Run a further program; ``fds`` are its standard streams (closed here), or none with a terminal."""
        if self._record.state != "running" or exec_id in self._executions:
            _close(fds)
            raise Refusal("keeper", errno.ESRCH, "it does not run")
        self._executions.begin(exec_id, given, Join(self._read_launch(), self._pidfd, fds), complete)

    # ---- taking over

    def take_over(self) -> bool:
        """At the start of a keeper: adopt the process an earlier one left. False if there is nothing to keep."""
        found = self.recall()
        if found is None:
            return False
        launch, record = found
        if self._record.state == "running":
            try:
                self._pidfd = keep(open_process(self._record.pid, self._record.start_time))
            except (ProcessLookupError, OSError):
                self._lost()
                return True
            self._take_over_running(launch, record["pipes"])
            return True
        if self._record.state == "restarting":
            self._record.state = "stopped"
            self._record.save()
        return False

    def recall(self) -> tuple[Launch, dict[str, Any]] | None:
        """Know again what an earlier keeper left in the bundle: ``launch.json`` and ``status.json``; None if they are not there."""
        try:
            record = self._record.load()
            launch = self._read_launch()
        except (OSError, ValueError, KeyError, TypeError, Refusal):
            return None
        if record is None:
            return None
        self._told_lost = self._record.bytes_lost
        self._restarts.obey_launch(launch)
        return launch, record

    def _lost(self) -> None:
        """It ended while there was no keeper; nestbedd may know more (``adopt``)."""
        self._record.exit = exit_record(None, oom=False)
        self._record.pid = self._record.start_time = 0
        self._record.state = "stopped"
        self._record.save()

    def _take_over_running(self, launch: Launch, pipes: list[int]) -> None:
        self._ours = False
        self._hold_report()
        self._memory.begin(launch)
        with suppress(OSError):  # it is ending
            self._netns_fd = keep(os.open(f"/proc/{self._record.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        sources: dict[int, int] = {}
        self._take_from_holder(launch)
        if self._terminal_fd >= 0:
            sources[os.dup(self._terminal_fd)] = 1
        elif not launch["tty"]:
            for stream, inode in enumerate(pipes, 1):
                fd = find_pipe((self._record.pid, *members(launch, self._keeper.host_root_fd)), inode)
                if fd >= 0:
                    sources[fd] = stream
        self._connect_output(launch, sources)
        self._keeper.loop.watch(self._pidfd, self._ended)
        if self._record.stop_asked:
            self.stop(10.0)

    def _take_from_holder(self, launch: Launch) -> None:
        if self._record.holder is None:
            return
        try:
            fd, self._holder_pidfd = holder.take(self._record.holder)
        except OSError:
            self._record.holder = None
        else:
            if launch["tty"]:
                self._terminal_fd = fd
            else:
                self._stdin_fd = fd

    def adopt(self, wait_status: int | None, fds: list[int]) -> Answer:
        """Take from nestbedd what it held while there was no keeper: network namespace, rest of the output, and how it ended."""
        netns, rest = (fds[0], fds[1:]) if fds else (-1, [])
        launch = self._read_launch()
        if netns >= 0 and self._netns_fd < 0:
            self._netns_fd = keep(netns)
        elif netns >= 0:
            os.close(netns)
        if self._record.state == "running" and self._outlet is not None and not self._ours:
            self._take_sources(launch, rest)
            return {"status": self.status()}, []
        self._log_rest(launch, rest)
        if self._record.exit is not None and self._record.exit["reason"] == "unknown":
            if wait_status is not None:
                self._record.exit = exit_record(wait_status, oom=False)
            self._settle()
        return {"status": self.status()}, []

    def _log_rest(self, launch: Launch, fds: list[int]) -> None:
        """Log what an ended run left in its pipes."""
        outlet = self._make_outlet(launch)
        for stream, fd in enumerate(fds, 1):
            outlet.add_source(fd, stream)
        outlet.finish()

    def _take_sources(self, launch: Launch, fds: list[int]) -> None:
        """Of the given streams, take those not found by itself (a terminal's master has no other way)."""
        assert self._outlet is not None
        if launch["tty"] and self._terminal_fd >= 0:
            _close(fds)
            return
        if launch["tty"] and fds:
            self._terminal_fd = os.dup(fds[0])
        have = {os.fstat(fd).st_ino for fd in self._outlet.sources}
        for stream, fd in enumerate(fds, 1):
            if os.fstat(fd).st_ino in have and not launch["tty"]:
                os.close(fd)
            else:
                self._outlet.add_source(fd, stream)

    def release(self) -> None:
        """Let everything go.

        Raises:
            Refusal: it runs.
        """
        if self._record.state == "running" or self._starting:
            raise Refusal("keeper", errno.EBUSY, "it runs")
        self._record.state = "stopped"
        if self._birth is not None:
            self._birth.bury()
            self._birth = None
        for sink in self._waiting_sinks:
            sink.close()
        self._waiting_sinks = []
        _close([fd for fd in (self._netns_fd, self._report_fd) if fd >= 0])
        self._netns_fd = self._report_fd = -1


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
