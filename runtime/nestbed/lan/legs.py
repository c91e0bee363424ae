"""Legs: where the frames of one direction of a port go to be impaired, and come back from.

A leg is a pair of devices A and B and, where the kernel has no netem, a tap D that the relay process delays frames at::

    port --redirect--> A -> B [loss, duplication, corruption] -> B's qdiscs (tbf, netem) -> A --(-> D -> relay -> D)--> port

A has no offloads, so that super-frames are cut into the frames that go over a wire before any of them is lost or counted against a
rate. A leg that only delays by the same time needs no pair: the port leads to D at once, super-frames stay whole.

Names follow from the port's: ``nba``, ``nbc`` and ``nbd``, then what follows ``nbp`` in the port's, then ``f`` or ``t``. The records of
NICs and LANs therefore name every leg before it is made. A leg is built from its end to its beginning: the door opens last.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nestbed.lan import impair, shaping
from nestbed.lan.programs import PortPrograms, Side, Stage
from nestbed.lan.relay.wanted import DelayLeg
from nestbed.lan.shaping import Plan
from nestbed.lanmodel import Impairment
from nestbed.linux import devices, ethtool, qdisc, tun
from nestbed.linux.rtnl import Rtnl

PORT_PREFIX = "nbp"
PREFIXES = ("nba", "nbc", "nbd")
SCRATCH_PREFIX = "nbx"
_DOOM = 0x6E626C67
"""The group of devices that are about to be deleted."""


@dataclass(frozen=True, slots=True)
class Port:
    """A port that is there."""

    name: str
    index: int
    mtu: int
    lan_id: str = ""


def names(port: str, side: Side) -> tuple[str, str, str]:
    """The names of A, B and D."""
    stem = port.removeprefix(PORT_PREFIX) + "ft"[side]
    a, b, d = (prefix + stem for prefix in PREFIXES)
    return a, b, d


@dataclass(slots=True)
class _Tap:
    """The tap of a leg: its index, and what the relay does at it."""

    index: int
    delay: DelayLeg


@dataclass(slots=True)
class _Leg:
    """A leg as it is: indexes of its devices, 0 for one it does not have. Its tap is there already when it is made, and stays."""

    port: Port
    side: Side
    a: int = 0
    b: int = 0
    qdiscs: list[str] = field(default_factory=list)
    """The kinds of B's, from the outermost: of ``netem``, ``tbf``, ``pfifo``."""
    drops_before: int = 0
    """What B had dropped when counting began."""
    overflowed_before: int = 0
    """What it had dropped for want of room in all countings before."""


class Legs:
    """The legs of one node, in the network namespace of this process. Methods raise OSError with the kernel's errno."""

    def __init__(self, mark: str, programs: PortPrograms, links: Rtnl) -> None:
        """``mark``, with the name of the port behind it, is the alias of every device; ``links`` stays the caller's."""
        self._mark = mark
        self.scratch = f"{SCRATCH_PREFIX}{hashlib.sha256(mark.encode()).hexdigest()[:10]}"
        """The name of a device that is made, and removed at once, to find out what the kernel can."""
        self._programs = programs
        self._rtnl = links
        self._legs: dict[tuple[str, Side], _Leg] = {}
        self._taps: dict[tuple[str, Side], _Tap] = {}
        self._doomed: list[str] = []
        self._kernel_has_netem: bool | None = None
        """None until somebody wants a delay."""

    @property
    def delays(self) -> list[DelayLeg]:
        """What the relay is to do for them."""
        return [tap.delay for tap in self._taps.values()]

    @property
    def devices(self) -> dict[str, int]:
        """The devices of all legs, by name, with their indexes."""
        found: dict[str, int] = {}
        for (port, side), leg in self._legs.items():
            a, b, _ = names(port, side)
            found |= {name: index for name, index in ((a, leg.a), (b, leg.b)) if index}
        for (port, side), tap in self._taps.items():
            found[names(port, side)[2]] = tap.index
        return found

    def reserve(self, port: str, side: Side, wanted: Impairment) -> DelayLeg | None:
        """See to it that there is the tap that a leg for ``wanted`` needs, whether the port is there or not, and tell what the relay has to
        do at it; None if it needs none. Do it before :meth:`put`, so that the relay is there before frames come. Idempotent.
        """
        if not wanted.delay_us or not self._plan(wanted).has_tap:
            return None
        name = names(port, side)[2]
        limit = 0 if wanted.rate_bps else wanted.limit_frames
        # Another daemon comes to the same epoch: the relay counts on.
        epoch = zlib.crc32(repr(wanted).encode())
        delay = DelayLeg(name, wanted.delay_us, wanted.jitter_us, wanted.reorder, limit, epoch)
        tap = self._taps.get((port, side))
        if tap is None:
            self._taps[port, side] = _Tap(self._find_tap(port, name) or self._make_tap(port, name), delay)
        else:
            tap.delay = delay
        return delay

    def release(self, port: str, side: Side) -> None:
        """Remove the tap, which no leg needs any more, with the next :meth:`bury`. Idempotent."""
        tap = self._taps.pop((port, side), None)
        if tap is not None:
            self._programs.drop_stage(tap.index)
            self._doomed.append(tap.delay.tap)

    def has(self, port: str, side: Side) -> bool:
        """Whether that direction is led through a leg."""
        return (port, side) in self._legs

    def put(self, port: Port, side: Side, wanted: Impairment, *, keep_counts: bool = False) -> None:
        """Have ``wanted``, which does something and is reserved, in force. Of an earlier leg what can stay stays, with the frames in it.

        With ``keep_counts`` an earlier daemon's counts go on.
        """
        key = (port.name, side)
        leg = self._legs.get(key) or self._find(port, side)
        overflowed = self.overflowed(*key)
        try:
            self._converge(leg, wanted)
        except BaseException:
            if key not in self._legs:
                self._remove(leg)
                self.bury()
            raise
        self._legs[key] = leg
        if not keep_counts or self._programs.counts(port.index, side) is None:
            self._programs.begin_counts(port.index, side, time.time_ns())
            leg.drops_before = self._dropped(leg)
            leg.overflowed_before += overflowed
        self._programs.set_door(port.index, side, leg.a or self._taps[key].index)

    def clear(self, port: str, side: Side) -> None:
        """Let that direction pass, and remove the leg, but for its tap, with the next :meth:`bury`. Idempotent."""
        leg = self._legs.pop((port, side), None)
        if leg is not None:
            self._remove(leg)

    def remove_unfinished(self, port: str, side: Side) -> None:
        """Remove, with the next :meth:`bury`, what a daemon that died while it made a leg has left of it, of a port that has none now."""
        self._doomed += [name for name in names(port, side) if name not in self._doomed and self._exists(name)]

    def bury(self) -> None:
        """Delete the devices that other methods were to remove: until then they are there, and drop everything."""
        for _ in self.burying(len(self._doomed)):
            pass

    def burying(self, most: int) -> Iterator[None]:
        """The same, with a pause after so many of them."""
        while self._doomed:
            doomed, self._doomed = self._doomed[:most], self._doomed[most:]
            self.remove_devices(doomed)
            yield

    def remove_devices(self, doomed: Sequence[str]) -> None:
        """Delete devices, all in the time that one takes (some 16 ms). Idempotent."""
        there = [name for name in doomed if self._exists(name)]
        requests = [*(devices.link_group(name, _DOOM) for name in there), devices.group_deletion(_DOOM)]
        try:
            self._rtnl.batch(requests if there else [])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def overflowed(self, port: str, side: Side) -> int:
        """How many frames the leg dropped because too many waited in the kernel, since counting began."""
        leg = self._legs.get((port, side))
        return 0 if leg is None else max(self._dropped(leg) - leg.drops_before, 0)

    def overflowed_ever(self, port: str, side: Side) -> int:
        """The same since the leg was made, however often it was changed."""
        leg = self._legs.get((port, side))
        return 0 if leg is None else leg.overflowed_before + self.overflowed(port, side)

    # ---- what is there

    def has_netem(self) -> bool:
        """Whether the kernel delays frames; tried once, OSError."""
        if self._kernel_has_netem is None:
            self._kernel_has_netem = self._try_netem()
        return self._kernel_has_netem

    def _plan(self, wanted: Impairment) -> Plan:
        return shaping.plan(wanted, kernel_has_netem=bool(wanted.delay_us) and self.has_netem())

    def _try_netem(self) -> bool:
        name = self.scratch
        self._rtnl.delete_link(name)
        self._rtnl.batch([devices.bridge(name, mtu=1500)])
        try:
            self._rtnl.batch([shaping.netem(self._rtnl.link_index(name), Impairment(delay_us=1), limited=False)])
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        else:
            return True
        finally:
            self._rtnl.delete_link(name)

    def _find(self, port: Port, side: Side) -> _Leg:
        """The leg that an earlier daemon left, if it is whole; what is not is removed."""
        leg = _Leg(port, side)
        a, b, _ = names(port.name, side)
        found = {name: self._link(port.name, name) for name in (a, b)}
        if all(found.values()):
            leg.a, leg.b = found[a], found[b]
            self._rtnl.batch([self._programs.on_leg_again(leg.a), self._programs.on_leg_again(leg.b)])
            leg.qdiscs = shaping.kinds(self._rtnl, leg.b)
        return leg

    def _find_tap(self, port: str, name: str) -> int:
        index = self._link(port, name)
        if index:
            self._rtnl.batch([self._programs.on_leg_again(index)])
        return index

    def _link(self, port: str, name: str) -> int:
        """The index of a device of a leg, made by an earlier daemon and finished; 0 for none. One that was not finished is removed."""
        try:
            link = self._rtnl.link(name)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return 0
        if link.up and link.alias == self._mark + port:
            return link.index
        self._rtnl.delete_link(name)
        return 0

    def _converge(self, leg: _Leg, wanted: Impairment) -> None:
        steps = self._plan(wanted)
        if steps.has_pair and not leg.a:
            self._make_pair(leg)
        if steps.has_qdisc:
            leg.qdiscs = shaping.shape(self._rtnl, leg.b, leg.qdiscs, steps, wanted, mtu=leg.port.mtu)
        self._lead(leg, steps, wanted)
        if not steps.has_qdisc and leg.qdiscs:
            self._rtnl.batch([qdisc.deletion(leg.b)])
            leg.qdiscs = []

    def _lead(self, leg: _Leg, steps: Plan, wanted: Impairment) -> None:
        """Say at each device where frames go next, the last one first."""
        index, side = leg.port.index, leg.side
        gap = impair.busy_gap_ns(wanted, leg.port.mtu)
        last = Stage(index, side, index, is_last=True, busy_gap_ns=gap)
        after_pair = last
        if steps.has_tap:
            tap = self._taps[leg.port.name, side].index
            self._programs.set_stage(tap, last)
            after_pair = Stage(index, side, tap)
        if leg.a:
            self._programs.set_stage(leg.a, after_pair)
            at_b = Stage(index, side, leg.b) if steps.has_qdisc else after_pair
            loss, duplicate, corrupt = (impair.threshold(fraction) for fraction in (wanted.loss, wanted.duplicate, wanted.corrupt))
            self._programs.set_stage(leg.b, dataclasses.replace(at_b, loss=loss, duplicate=duplicate, corrupt=corrupt))

    # ---- devices

    def _dropped(self, leg: _Leg) -> int:
        """What B's qdiscs dropped, and what came faster than this machine's processors took it from A."""
        if not leg.b:
            return 0
        found = qdisc.find(self._rtnl, leg.b)
        return self._rtnl.counters_of(leg.b).rx_drops + (0 if found is None else found.drops)

    def _make_pair(self, leg: _Leg) -> None:
        a, b, _ = names(leg.port.name, leg.side)
        self._rtnl.batch([devices.veth_pair(a, b, mtu=leg.port.mtu)])
        ethtool.switch(a, ethtool.ETHTOOL_STXCSUM, on=False)
        leg.a, leg.b = self._rtnl.link_index(a), self._rtnl.link_index(b)
        alias = self._mark + leg.port.name
        self._rtnl.bring_up(b, alias=alias, first=self._programs.on_leg(leg.b))
        self._rtnl.bring_up(a, alias=alias, first=self._programs.on_leg(leg.a))

    def _make_tap(self, port: str, name: str) -> int:
        fd = tun.open_tap(name, vnet_header=True)
        try:
            tun.set_persistent(fd, persistent=True)
        finally:
            os.close(fd)
        index = self._rtnl.link_index(name)
        self._rtnl.bring_up(name, alias=self._mark + port, first=self._programs.on_leg(index))
        return index

    def _remove(self, leg: _Leg) -> None:
        self._programs.close_leg(leg.port.index, leg.side)
        for index in filter(None, (leg.a, leg.b)):
            self._programs.drop_stage(index)
        if leg.a:
            self._doomed.append(names(leg.port.name, leg.side)[0])

    def _exists(self, name: str) -> bool:
        try:
            self._rtnl.link_index(name)
        except OSError:
            return False
        return True
