"""The plane's side of the relay process: what is asked of it, what it says, that it runs, and what it counted.

Nothing is sent to it and nothing waits for its answer: it is asked by ``relay.json``, tells by ``relay.status.json`` and counts in
``relay.counters``, all in the run directory (``nestbed.lan.relay``). It goes on without a daemon; the next one takes it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nestbed.errors import HostLacks, Unavailable, translated
from nestbed.lan.relay import LOCK_FILE, STATUS_FILE, tally, wanted
from nestbed.lan.relay.tally import Tally
from nestbed.lan.relay.wanted import DelayLeg, RelayedLan, Wanted
from nestbed.lanmodel import Achieved
from nestbed.linux.inotify import IN_MOVED_TO, inotify_add_watch, inotify_init, read_changes
from nestbed.linux.pidfd import open_process
from nestbed.log import fields
from nestbed.runtime import PlaneListener

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 10.0
_STEADY_SECONDS = 2.0
"""One that ran for so long and dies is started again at once."""
_PAUSE_SECONDS, _PAUSE_MAX_SECONDS = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """What the relay said last. ``errors`` are by LAN id or leg's tap; ``faults`` by LAN id and underlay, "" where there is none."""

    generation: int = 0
    pid: int = 0
    version: int = 0
    errors: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    loops: tuple[tuple[int, str, str, str, str], ...] = ()


class RelayClient:
    """One per plane; all methods in the event loop's thread. :meth:`open` comes first."""

    def __init__(self, run_dir: Path, listener: PlaneListener) -> None:
        """``listener`` hears of ``relay.lost``, ``relay.started`` and ``lan.loop``."""
        self._run_dir = run_dir
        self._listener = listener
        self._wanted = Wanted()
        self._lans: dict[str, RelayedLan] = {}
        self._legs: dict[str, DelayLeg] = {}
        self._is_dirty = False
        self._status = RelayStatus()
        self._news = asyncio.Event()
        self._loops_heard = (0, 0)
        self._inotify = -1
        self._pidfd = -1
        self._pid = 0
        self._seen_at = 0.0
        self._pause_seconds = 0.0
        self._starting: asyncio.TimerHandle | None = None
        self._tally: Tally | None = None

    # ---- life

    def open(self) -> None:
        """Take up what an earlier daemon asked for, and the relay that does it; start one if there should be one and is none.

        Raises:
            NestbedError: the run directory cannot be used.
        """
        if not (self._run_dir / wanted.FILE).exists():
            return
        self._watch()
        try:
            self._wanted = wanted.read(self._run_dir)
        except (OSError, ValueError) as error:
            # The LANs and ports are on record elsewhere; each is asked for again. What the relay does now it goes on doing.
            logger.warning("what the relay was asked to do is unreadable", extra=fields(error=str(error)))
            self._wanted = Wanted(generation=int(time.time()))
        self._lans = {lan.id: lan for lan in self._wanted.lans}
        self._legs = {leg.tap: leg for leg in self._wanted.legs}
        self._read_status()
        self._loops_heard = (self._status.pid, max((number for number, *_ in self._status.loops), default=0))
        if self._reach() and self._status.pid == self._pid and self._status.version != wanted.VERSION:
            logger.info("the relay is of another version", extra=fields(pid=self._pid))
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)  # its successor is there in a moment
        elif not self.is_running and self._wanted:
            self._start()

    def close(self) -> None:
        """Let go of the relay, which goes on and does what was asked to the last. Idempotent."""
        self._flush_quietly()
        loop = asyncio.get_running_loop()
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None
        for fd in (self._inotify, self._pidfd):
            if fd >= 0:
                loop.remove_reader(fd)
                os.close(fd)
        self._inotify = self._pidfd = -1
        if self._tally is not None:
            self._tally.close()
            self._tally = None

    @property
    def is_running(self) -> bool:
        """Whether there is a relay."""
        return self._pidfd >= 0

    @property
    def pid(self) -> int:
        """Its process, or 0."""
        return self._pid if self.is_running else 0

    # ---- what is asked

    def set_lan(self, lan: RelayedLan) -> None:
        """Have the LAN relayed so from now on."""
        if self._lans.get(lan.id) != lan:
            self._lans[lan.id] = lan
            self._change()

    def drop_lan(self, lan_id: str) -> None:
        """Have the LAN relayed no longer; its counters go. Idempotent."""
        if self._lans.pop(lan_id, None) is not None:
            self._change()

    def set_leg(self, leg: DelayLeg) -> None:
        """Have the leg delay frames so from now on."""
        if self._legs.get(leg.tap) != leg:
            self._legs[leg.tap] = leg
            self._change()

    def drop_leg(self, tap: str) -> None:
        """Have the leg no longer; frames that wait in it are lost, its counters go. Idempotent."""
        if self._legs.pop(tap, None) is not None:
            self._change()

    def keep_only(self, *, lan_ids: Collection[str] | None = None, taps: Collection[str] | None = None) -> None:
        """Drop other LANs than these and legs of other taps; None keeps all."""
        for lan_id in [] if lan_ids is None else self._lans.keys() - set(lan_ids):
            self.drop_lan(lan_id)
        for tap in [] if taps is None else self._legs.keys() - set(taps):
            self.drop_leg(tap)

    async def settle(self) -> None:
        """Wait until the relay does what is asked; whether it could, :meth:`error_of` tells.

        Raises:
            Unavailable: it does not come to it.
        """
        self._flush()
        if not self._wanted:
            return
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while self._status.generation != self._wanted.generation or self._status.pid != self.pid:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise Unavailable(
                f"the relay process does not do what it is asked within {SETTLE_SECONDS:.0f} s",
                reason="RELAY_NOT_READY",
                remedy="see relay.log in the run directory",
                seconds=SETTLE_SECONDS,
            ) from error

    def check(self, key: str) -> None:
        """Refuse if the relay cannot do what was asked for this LAN (its id) or leg (its tap).

        Raises:
            HostLacks: it said so.
        """
        if error := self.error_of(key):
            raise HostLacks(
                f"the relay process refuses {key}: {error}",
                reason="RELAY_REFUSES",
                remedy="see relay.log in the run directory",
                key=key,
                error=error,
            )

    # ---- what it says

    def error_of(self, key: str) -> str:
        """What keeps it from doing what is asked for this LAN (its id) or leg (its tap); empty if nothing does."""
        return self._status.errors.get(key, "")

    def fault(self, lan_id: str, underlay: str) -> str:
        """Why the LAN does not use the underlay, as the end of a sentence that begins with its name; empty if it does."""
        if not self.is_running:
            return "waits for the relay process"
        if error := self.error_of(lan_id):
            return f"is not used: {error}"
        return self._status.faults.get(lan_id, {}).get(underlay, "waits for the relay process")

    def traffic(self, lan_id: str) -> tuple[bytes, bytes] | None:
        """What the LAN received and sent by the relay, each as ``nestbed.lan.traffic`` decodes it; None if it was never relayed."""
        numbers = self._look(lan_id)
        if numbers is None:
            return None
        half = 8 * tally.TRAFFIC_WORDS
        return numbers[:half], numbers[half : 2 * half]

    def achieved(self, tap: str) -> Achieved | None:
        """What a leg did since it was made; None if there is none. The rate is not the relay's business."""
        numbers = self._look(tap)
        if numbers is None:
            return None
        words = memoryview(numbers).cast("Q")
        told = dict(zip(tally.LEG_FIELDS, words, strict=False))
        released = told["released"]
        p99_us = tally.quantile_us(words[tally.HISTOGRAM_AT : tally.HISTOGRAM_AT + tally.BUCKETS], 0.99)
        return Achieved(
            since=0.0,
            frames=told["frames"],
            bytes=told["bytes"],
            reordered=told["reordered"],
            overflowed=told["overflowed"],
            delay_min_us=told["delay_min_ns"] / 1000 if released else None,
            delay_mean_us=told["delay_sum_ns"] / released / 1000 if released else None,
            delay_p99_us=min(max(p99_us, told["delay_min_ns"] / 1000), told["delay_max_ns"] / 1000) if released else None,
        )

    def _look(self, key: str) -> bytes | None:
        if self._tally is not None and not self._tally.is_current(self._run_dir):
            self._tally.close()
            self._tally = None
        if self._tally is None:
            with contextlib.suppress(OSError):
                self._tally = Tally.open_to_read(self._run_dir)
        return None if self._tally is None else self._tally.look(key)

    def _hear(self) -> None:
        changes = read_changes(self._inotify)
        if any(change.name in (STATUS_FILE, "") for change in changes):
            self._read_status()

    def _read_status(self) -> None:
        try:
            self._status = _status(json.loads((self._run_dir / STATUS_FILE).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):  # there is none yet; another comes
            return
        self._news.set()
        if self.is_running and "wanted" in self._status.errors:
            self._is_dirty = True  # somebody damaged the file
            self._flush()
        pid, heard = self._loops_heard
        for number, lan_id, mac, kept, refused in self._status.loops:
            if pid != self._status.pid or number > heard:
                self._tell_loop(lan_id, mac, kept, refused)
        self._loops_heard = (self._status.pid, max((number for number, *_ in self._status.loops), default=0))

    def _tell_loop(self, lan_id: str, mac: str, kept: str, refused: str) -> None:
        if mac:
            self._listener("lan.loop", lan_id, {"mac": mac, "kept": kept or "local", "refused": refused or "local"})
        else:
            self._listener("lan.loop", lan_id, {"underlay": refused, "kept": kept})

    # ---- that it runs

    def _watch(self) -> None:
        if self._inotify >= 0:
            return
        with translated(f"watching {self._run_dir}", path=self._run_dir):
            self._inotify = inotify_init()
            inotify_add_watch(self._inotify, str(self._run_dir), IN_MOVED_TO)
        asyncio.get_running_loop().add_reader(self._inotify, self._hear)

    def _change(self) -> None:
        if not self._is_dirty:
            self._is_dirty = True
            asyncio.get_running_loop().call_soon(self._flush_quietly)

    def _flush_quietly(self) -> None:
        try:
            self._flush()
        except Exception as error:  # noqa: BLE001 - whoever waits in settle is told; the next change tries again
            logger.warning("the relay cannot be told what to do", extra=fields(error=str(error)))

    def _flush(self) -> None:
        if not self._is_dirty:
            return
        self._watch()
        asked = Wanted(self._wanted.generation + 1, tuple(self._lans.values()), tuple(self._legs.values()))
        with translated("asking the relay process", run_dir=self._run_dir):
            wanted.write(self._run_dir, asked)
        self._wanted, self._is_dirty = asked, False
        if asked and not self.is_running and self._starting is None:
            self._start()

    def _reach(self) -> bool:
        """Find the relay that has the run directory."""
        try:
            fd = os.open(self._run_dir / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return False
            record = json.loads(os.pread(fd, 4096, 0))
            self._use(int(record["pid"]), open_process(int(record["pid"]), int(record["start_time"])))
        except (OSError, ValueError, KeyError, TypeError):  # it is about to end, or to say who it is
            return False
        finally:
            os.close(fd)
        return True

    def _start(self) -> None:
        self._starting = None
        if self._inotify < 0 or not self._wanted or self._reach():
            return
        try:
            # A damaged file would end it at once.
            wanted.write(self._run_dir, self._wanted)
            pid = self._spawn()
            self._use(pid, os.pidfd_open(pid))
        except OSError as error:
            logger.warning("the relay does not start", extra=fields(error=str(error)))
            self._start_later()
            return
        self._listener("relay.started", "", {"pid": str(pid)})

    def _spawn(self) -> int:
        log = os.open(self._run_dir / "relay.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ]
            words = [sys.executable, "-I", "-m", "nestbed.lan.relay", str(self._run_dir)]
            env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
            return os.posix_spawn(sys.executable, words, env, file_actions=actions, setsigmask=(), setsid=True)
        finally:
            os.close(log)

    def _use(self, pid: int, pidfd: int) -> None:
        self._pid, self._pidfd, self._seen_at = pid, pidfd, time.monotonic()
        asyncio.get_running_loop().add_reader(pidfd, self._died)
        logger.info("relay", extra=fields(pid=pid))
        self._news.set()

    def _died(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        with contextlib.suppress(ChildProcessError):  # an earlier daemon's child
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        pid, self._pidfd = self._pid, -1
        self._news.set()
        if not self._wanted:
            return
        self._listener("relay.lost", "", {"pid": str(pid)})
        if time.monotonic() - self._seen_at >= _STEADY_SECONDS:
            self._pause_seconds = 0.0
            self._start()
        else:
            self._start_later()

    def _start_later(self) -> None:
        self._pause_seconds = min(max(self._pause_seconds * 2, _PAUSE_SECONDS), _PAUSE_MAX_SECONDS)
        self._starting = asyncio.get_running_loop().call_later(self._pause_seconds, self._start)


def _status(told: dict[str, Any]) -> RelayStatus:
    return RelayStatus(
        int(told["generation"]),
        int(told["pid"]),
        int(told["version"]),
        dict(told["errors"]),
        {lan_id: dict(lan["faults"]) for lan_id, lan in told["lans"].items()},
        tuple((int(loop[0]), *map(str, loop[1:5])) for loop in told["loops"]),  # type: ignore[misc]
    )
