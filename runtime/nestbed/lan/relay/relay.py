"""The relay's work: keep to what is wanted, look after underlays and stock members, and tell what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from nestbed.lan import members
from nestbed.lan.relay import STATUS_FILE
from nestbed.lan.relay import wanted as wish
from nestbed.lan.relay.engine import Engine
from nestbed.lan.relay.leg import Leg
from nestbed.lan.relay.members import local_members
from nestbed.lan.relay.segment import Segment
from nestbed.lan.relay.tally import Tally
from nestbed.lan.relay.taps import TapDrops
from nestbed.lan.relay.underlay import Shape
from nestbed.lan.relay.wanted import DelayLeg, RelayedLan, Wanted
from nestbed.linux import ifreq
from nestbed.linux.inotify import IN_MOVED_TO, inotify_add_watch, inotify_init, read_changes

TICK_SECONDS = 1.0
RISE_SECONDS = 1.0
LOOPS_TOLD = 16

_ANY = "0.0.0.0"
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40


class Relay:
    """One node's relay, from :meth:`open` until nothing is wanted of it."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._wanted = Wanted()
        self._engine = Engine()
        self._segments: dict[str, Segment] = {}
        self._legs: dict[str, Leg] = {}
        self._errors: dict[str, str] = {}
        self._loops: list[list[Any]] = []
        self._loop_count = 0
        self._shapes: dict[str, Shape] = {}
        self._told = ""
        self._complaint = ""
        self._generation = 0
        self._tap_drops = TapDrops()
        self._rising: set[str] = set()
        self._rises_until = 0.0
        self._is_stranger_near = False
        self._is_file_new = True

    def open(self) -> None:
        """Take up the counters and begin to watch (OSError)."""
        self._tally = Tally.open_to_write(self._run_dir)
        self._inotify = inotify_init()
        inotify_add_watch(self._inotify, str(self._run_dir), IN_MOVED_TO)
        self._engine.watch(self._inotify, self._look_at_changes)
        self._links = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._links.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE))
        self._engine.watch(self._links.fileno(), self._look_at_links)

    def run(self) -> None:
        """Work until nothing is wanted."""
        tick_at = 0.0
        while True:
            if self._is_file_new:
                self._is_file_new = False
                self._read_wanted()
            now = time.monotonic()
            if now >= tick_at:
                tick_at = now + TICK_SECONDS
                self._tick()
            self._tell()
            if not self._wanted:
                return
            self._engine.step(min(tick_at, now + RISE_SECONDS) if self._rising else tick_at)
            if self._is_stranger_near:
                self._is_stranger_near = False
                self._look_for_members()

    # ---- what is wanted

    def _look_at_changes(self) -> None:
        self._is_file_new |= any(change.name in (wish.FILE, "") for change in read_changes(self._inotify))

    def _read_wanted(self) -> None:
        try:
            wanted = wish.read(self._run_dir)
        except (ValueError, OSError) as error:  # what was wanted before still is; the plane writes it again
            self._complain(str(error))
            self._errors["wanted"] = str(error)
            return
        self._errors.clear()
        self._wanted = wanted
        self._tally.keep_only([*(lan.id for lan in wanted.lans), *(leg.tap for leg in wanted.legs)])
        self._apply_lans({lan.id: lan for lan in wanted.lans})
        self._apply_legs({leg.tap: leg for leg in wanted.legs})
        self._look_for_members()
        self._count_tap_drops()
        self._rising = {*(lan.tap for lan in wanted.lans), *(leg.tap for leg in wanted.legs)}
        self._rises_until = time.monotonic() + RISE_SECONDS

    def _is_settled(self) -> bool:
        """Whether the taps take frames: the kernel gives a device that got its carrier a queue a moment later."""
        if self._rising and time.monotonic() < self._rises_until:
            self._rising = {name for name in self._rising if _is_rising(name)}
            return not self._rising
        self._rising = set()
        return True

    def _apply_lans(self, lans: dict[str, RelayedLan]) -> None:
        for lan_id, segment in list(self._segments.items()):
            if lans.get(lan_id) != segment.wanted or segment.is_broken:
                segment.close()
                del self._segments[lan_id]
        for lan_id, lan in lans.items():
            if lan_id not in self._segments:
                self._make(lan)

    def _make(self, lan: RelayedLan) -> None:
        try:
            segment = Segment(lan, self._engine, self._tally.claim(lan.id), self._notice_stranger)
        except OSError as error:
            self._errors[lan.id] = f"{lan.tap}: {error.strerror}"
            return
        self._errors.pop(lan.id, None)
        self._segments[lan.id] = segment
        segment.refresh()

    def _apply_legs(self, legs: dict[str, DelayLeg]) -> None:
        _be_punctual(punctual=bool(legs))
        for tap in [tap for tap, leg in self._legs.items() if tap not in legs or leg.is_broken]:
            self._legs.pop(tap).close()
        for tap, leg in legs.items():
            if tap in self._legs:
                self._legs[tap].change(leg)
                continue
            try:
                self._legs[tap] = Leg(leg, self._engine, self._tally.claim(tap))
            except OSError as error:
                self._errors[tap] = f"{tap}: {error.strerror}"
            else:
                self._errors.pop(tap, None)

    # ---- what changes by itself

    def _look_at_links(self) -> None:
        try:
            while self._links.recv(65536):
                pass
        except OSError:  # nothing more, or more than the buffer holds: look at all of them either way
            pass
        shapes = {name: Shape.of(name) for segment in self._segments.values() for name in segment.wanted.underlays}
        for segment in self._segments.values():
            if segment.wanted.peers or shapes != self._shapes:
                segment.refresh()
        self._shapes = shapes

    def _notice_stranger(self) -> None:
        self._is_stranger_near = True

    def _look_for_members(self) -> None:
        segments = [segment for segment in self._segments.values() if not segment.wanted.peers]
        if not segments:
            return
        bound = local_members({inode for segment in segments for inode in segment.inodes()})
        for segment in segments:
            lan = segment.wanted
            has_members = (lan.group, lan.port) in bound or (_ANY, lan.port) in bound
            if has_members != segment.has_members:
                segment.serve_members(has_members)
        fast = {segment.wanted.id: segment.has_members for segment in segments if segment.wanted.is_fast}
        if fast:
            # Each time, because the maps may be others than before.
            with contextlib.suppress(OSError):  # the plane is about to make them
                members.set_flags(self._run_dir / "bpf", fast)

    def _tick(self) -> None:
        self._count_tap_drops()
        for segment in self._segments.values():
            segment.tick()
            for loop in segment.macs.loops:
                self._loop_count += 1
                self._loops.append([self._loop_count, segment.wanted.id, loop.mac, loop.origin, loop.other])
            segment.macs.loops.clear()
        del self._loops[:-LOOPS_TOLD]
        is_broken = any(segment.is_broken for segment in self._segments.values()) or any(leg.is_broken for leg in self._legs.values())
        if self._errors or is_broken:
            self._mend()
        self._look_for_members()

    def _count_tap_drops(self) -> None:
        by_tap = {segment.wanted.tap: segment for segment in self._segments.values()}
        for tap, count in self._tap_drops.look([*by_tap, *self._legs]).items():
            if tap in by_tap:
                by_tap[tap].note_lost(count)
            else:
                self._legs[tap].note_lost(count)

    def _mend(self) -> None:
        """A tap that was not there, or was made again, may be there now."""
        if "wanted" in self._errors:
            self._is_file_new = True
        self._apply_lans({lan.id: lan for lan in self._wanted.lans})
        self._apply_legs({leg.tap: leg for leg in self._wanted.legs})

    # ---- what is told

    def _tell(self) -> None:
        """Write the status if it is another than before."""
        if self._is_settled():
            self._generation = self._wanted.generation
        lans = {lan_id: {"faults": segment.faults, "has_members": segment.has_members} for lan_id, segment in self._segments.items()}
        status = {
            "version": wish.VERSION,
            "generation": self._generation,
            "pid": os.getpid(),
            "errors": self._errors,
            "lans": lans,
            "loops": self._loops,
        }
        text = json.dumps(status)
        if text == self._told:
            return
        self._told = text
        new = self._run_dir / f"{STATUS_FILE}.new"
        try:
            new.write_text(text)
            new.rename(self._run_dir / STATUS_FILE)
        except OSError as error:
            self._told = ""
            self._complain(f"the status cannot be written: {error}")

    def _complain(self, text: str) -> None:
        """Write to the log, unless it is what was written last."""
        if text != self._complaint:
            print(f"relay: {text}", file=sys.stderr)  # noqa: T201
            self._complaint = text


def _is_rising(name: str) -> bool:
    """Whether the device is set up and does not work yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            flags = ifreq.flags(sock, name)
        except OSError:
            return False
    return flags & (ifreq.IFF_UP | ifreq.IFF_RUNNING) == ifreq.IFF_UP


def _be_punctual(*, punctual: bool) -> None:
    """While frames are to be delayed exactly, go before everything that is not in a hurry: busy programs cost milliseconds otherwise.

    The kernel leaves others a twentieth of the time (sched_rt_runtime_us), and on a machine with one processor that would be all they get.
    """
    if not punctual or (os.cpu_count() or 1) < 2:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        return
    with contextlib.suppress(PermissionError):  # a cgroup without a share of real time
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
