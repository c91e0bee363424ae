"""The members' ports of a node's LANs: their programs, what is in force on them, and what they count.

Every port is counted by BPF programs from before it is up. What is to be in force on a port is remembered by the port's name, whether the
port is there or not; it is the node that has it on record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from nestbed.errors import HostLacks, NestbedError, Unavailable, from_errno, translated
from nestbed.lan import impair, legs
from nestbed.lan.legs import Legs, Port
from nestbed.lan.loops import Loops
from nestbed.lan.members import lan_key
from nestbed.lan.programs import PortPrograms, Side
from nestbed.lan.reasons import Reason
from nestbed.lan.relay.wanted import DelayLeg
from nestbed.lanmodel import NO_IMPAIRMENT, Achieved, DropCount, Impairment, Nic, NicImpairment, PortStats, Traffic
from nestbed.linux.rtnl import Rtnl
from nestbed.log import fields
from nestbed.model import Ability
from nestbed.runtime import Leftover, PlaneListener

_logger = logging.getLogger(__name__)

_NOTHING = (NO_IMPAIRMENT, NO_IMPAIRMENT)
_BURIED_AT_ONCE = 64
"""Devices: so many take the kernel some 40 ms."""
_CARRIER_TRIES, _CARRIER_SECONDS = 1000, 0.002
_SIDES = (Side.TO, Side.FROM)
"""In the order of the pairs of impairments."""
_ROUND_SECONDS = 1.0
_BUSY_MIN_NS = 1_000_000
"""Less than that says nothing about a rate."""


class Delays(Protocol):
    """The relay process, as far as it delays frames: :class:`nestbed.lan.relay_client.RelayClient`."""

    def set_leg(self, leg: DelayLeg) -> None: ...

    def drop_leg(self, tap: str) -> None: ...

    def keep_only(self, *, taps: Collection[str]) -> None: ...

    async def settle(self) -> None: ...

    def check(self, key: str) -> None: ...

    def achieved(self, tap: str) -> Achieved | None: ...


class MemberPorts:
    """The ports of one node, in the network namespace in which it was made."""

    def __init__(self, node_id: str, programs: PortPrograms, relay: Delays) -> None:
        self._mark = f"nestbed:{node_id}:leg:"
        self._programs = programs
        self._relay = relay
        self._rtnl = Rtnl()
        self._legs = Legs(self._mark, programs, self._rtnl)
        self._wanted: dict[str, tuple[Impairment, Impairment]] = {}
        """By port, what is in force to and from the container."""
        self._ports: dict[str, Port] = {}
        self._is_taking_up = True
        """Until :meth:`sweep` nobody waits for the relay: it does already what an earlier daemon asked for."""

    def close(self) -> None:
        """Let go; what is in force stays. Idempotent."""
        self._rtnl.close()
        self._programs.close()

    def abilities(self) -> list[Ability]:
        """What this kernel can do to frames. Takes some milliseconds the first time."""
        whole = Ability("impairments", available=True, detail="BPF programs count and impair the frames of every port")
        try:
            has_netem = self._legs.has_netem()
        except OSError as error:
            return [whole, Ability("netem", available=False, detail=error.strerror or str(error), consequence="delays may be refused")]
        if has_netem:
            return [whole, Ability("netem", available=True, detail="the kernel delays frames")]
        consequence = "the relay process delays frames: as exactly, with more processor time"
        return [whole, Ability("netem", available=False, detail="the kernel has no sch_netem", consequence=consequence)]

    # ---- ports come and go

    def added(self, nic: Nic, index: int) -> Sequence[bytes]:
        """See ``PortHook.port_added``."""
        self._ports[nic.port] = port = Port(nic.port, index, nic.mtu, nic.lan_id)
        self._programs.set_home(index, lan_key(nic.lan_id), nic.mac)
        self._impair_new(nic, port)
        return self._programs.on_port(index)

    def found(self, nic: Nic, index: int) -> None:
        """See ``PortHook.port_found``."""
        self._ports[nic.port] = port = Port(nic.port, index, nic.mtu, nic.lan_id)
        try:
            self._programs.set_home(index, lan_key(nic.lan_id), nic.mac)
            self._rtnl.batch(self._programs.on_port_again(index))
        except OSError:  # without clsact: a port of a version that did not count, or half made
            try:
                self._rtnl.batch(self._programs.on_port(index))
            except OSError as error:
                _logger.warning("port not counted", extra=fields(port=nic.port, cause=str(error)))
        try:
            for side, wanted in zip(_SIDES, self._wanted.get(nic.port, _NOTHING), strict=True):
                if not impair.does_something(wanted):
                    self._programs.close_leg(index, side)  # it may have been taken off while the last daemon died
            self._impair_new(nic, port, keep_counts=True)
        except (OSError, NestbedError) as error:
            _logger.exception("impairment not taken up", extra=fields(port=nic.port, cause=str(error)))

    def guarded(self, nic: Nic, index: int) -> list[bytes]:
        """Requests that let a port on the control network, added or found, take only what its container says in its own name."""
        return [self._programs.on_control_port(index, nic.mac, nic.addresses[0].partition("/")[0])]

    def gone(self, port: str) -> None:
        """See ``PortHook.port_gone``."""
        there = self._ports.pop(port, None)
        if there is None:
            return
        try:
            for side in Side:
                self._legs.clear(port, side)
            self._legs.bury()
            self._programs.forget_port(there.index)
        except OSError as error:
            _logger.warning("leg not removed", extra=fields(port=port, cause=str(error)))

    def _impair_new(self, nic: Nic, port: Port, *, keep_counts: bool = False) -> None:
        to, from_ = self._wanted.get(nic.port, _NOTHING)
        with _refusing(nic):
            for side, wanted in zip(_SIDES, (to, from_), strict=True):
                if impair.does_something(wanted):
                    self._legs.put(port, side, wanted, keep_counts=keep_counts)

    # ---- impairments

    async def impair(self, wanted: Sequence[NicImpairment]) -> None:
        """See ``LanPlane.impair``."""
        changes = [one for one in wanted if self._wanted.get(one.nic.port, _NOTHING) != (one.to, one.from_)]
        before = [NicImpairment(one.nic, *self._wanted.get(one.nic.port, _NOTHING)) for one in changes]
        try:
            await self._change(changes)
        except BaseException:
            with self._logged(before):
                await self._change(before)
            raise

    async def _change(self, changes: Sequence[NicImpairment]) -> None:
        """Have them in force at the ports that are there, and remember them.

        Each device takes the kernel milliseconds, so others have a turn between the ports; but the relay is told, and devices are deleted,
        for all together: each of that takes as long for one.
        """
        await self._reserve(changes)
        for one in changes:
            await asyncio.sleep(0)
            with _refusing(one.nic):
                self._enforce(one)
        for one in changes:
            for side, new in zip(_SIDES, (one.to, one.from_), strict=True):
                if not new.delay_us:
                    self._relay.drop_leg(legs.names(one.nic.port, side)[2])
                    self._legs.release(one.nic.port, side)
        with translated("removing legs"):
            for _ in self._legs.burying(_BURIED_AT_ONCE):
                await asyncio.sleep(0)

    async def _reserve(self, changes: Sequence[NicImpairment]) -> None:
        """Have the relay at the taps before frames come."""
        delays = []
        for one in changes:
            with _refusing(one.nic):
                for side, new in zip(_SIDES, (one.to, one.from_), strict=True):
                    if (delay := self._legs.reserve(one.nic.port, side, new)) is not None:
                        delays.append(delay)
            await asyncio.sleep(0)
        for delay in delays:
            self._relay.set_leg(delay)
        if delays and not self._is_taking_up:
            await self._relay.settle()
            for delay in delays:
                self._relay.check(delay.tap)
                await self._carried(delay.tap)

    def _enforce(self, one: NicImpairment) -> None:
        port, wanted = one.nic.port, (one.to, one.from_)
        before = self._wanted.get(port, _NOTHING)
        self._wanted[port] = wanted
        if wanted == _NOTHING:
            del self._wanted[port]
        there = self._ports.get(port)
        for side, old, new in zip(_SIDES, before, wanted, strict=True):
            if not impair.does_something(new):
                self._legs.clear(port, side)
            elif there is not None and (old != new or not self._legs.has(port, side)):
                self._legs.put(there, side, new)
            if wanted == _NOTHING:
                self._legs.remove_unfinished(port, side)

    async def _carried(self, tap: str) -> None:
        """Wait until a tap that the relay has opened takes frames; what is sent to it before is lost."""
        for _ in range(_CARRIER_TRIES):
            if self._rtnl.is_carrying(tap):
                return
            await asyncio.sleep(_CARRIER_SECONDS)
        raise Unavailable(
            f"the tap {tap} does not take frames",
            reason="RELAY_NOT_READY",
            remedy="see relay.log in the run directory",
            tap=tap,
        )

    @contextlib.contextmanager
    def _logged(self, before: Sequence[NicImpairment]) -> Iterator[None]:
        try:
            yield
        except NestbedError as error:
            ports = [one.nic.port for one in before]
            _logger.exception("earlier impairments not restored", extra=fields(ports=ports, cause=error.message))

    def achieved(self, nic: Nic) -> tuple[Achieved | None, Achieved | None]:
        """See ``LanPlane.achieved``."""
        return self._achieved(nic.port, Side.TO), self._achieved(nic.port, Side.FROM)

    def _achieved(self, name: str, side: Side) -> Achieved | None:
        port = self._ports.get(name)
        counts = None if port is None else self._programs.counts(port.index, side)
        if counts is None or not self._legs.has(name, side):
            return None
        relayed = self._relay.achieved(legs.names(name, side)[2])
        measured = relayed or Achieved(0.0)
        if relayed is None and counts.delay_count:
            measured = Achieved(
                0.0,
                delay_min_us=counts.delay_min_ns / 1000,
                delay_mean_us=counts.delay_sum_ns / counts.delay_count / 1000,
                delay_p99_us=counts.delay_quantile_ns(0.99) / 1000,
            )
        return Achieved(
            since=counts.since_ns / 1e9,
            frames=counts.in_frames,
            bytes=counts.in_bytes,
            lost=counts.lost,
            duplicated=counts.duplicated,
            corrupted=counts.corrupted,
            reordered=measured.reordered,
            overflowed=self._legs.overflowed(name, side) + measured.overflowed,
            delay_min_us=measured.delay_min_us,
            delay_mean_us=measured.delay_mean_us,
            delay_p99_us=measured.delay_p99_us,
            rate_bps=counts.out_bytes * 8e9 / counts.busy_ns if counts.busy_ns >= _BUSY_MIN_NS else None,
        )

    # ---- counters

    def counters(self, ports: Collection[str]) -> dict[str, PortStats]:
        """See ``LanPlane.port_counters``."""
        return {name: PortStats(name, self._traffic(port, Side.TO), self._traffic(port, Side.FROM)) for name, port in self._chosen(ports)}

    def _chosen(self, ports: Collection[str]) -> list[tuple[str, Port]]:
        return [(name, self._ports[name]) for name in ports if name in self._ports]

    def _traffic(self, port: Port, side: Side) -> Traffic:
        counted = self._programs.traffic(port.index, side)
        waited = self._legs.overflowed_ever(port.name, side) if self._legs.has(port.name, side) else 0
        if not waited:
            return counted
        return Traffic(counted.frames, counted.bytes, counted.classes, (*counted.drops, DropCount(Reason.QUEUE.label, waited)))

    # ---- loops

    def cut(self, lan_id: str) -> set[str]:
        """See ``LanPlane.cut``."""
        closed = self._programs.closings()
        return {port.name for port in self._ports.values() if port.lan_id == lan_id and port.index in closed} if closed else set()

    async def tell_of_loops(self, listener: PlaneListener) -> None:
        """Tell of ports that are closed because of a loop, for ever."""
        loops = Loops()
        while True:
            if closings := self._programs.closings():
                known = {port.index: port for port in self._ports.values()}
                news = loops.port_news({index: closing for index, closing in closings.items() if index in known})
                for index, closing in news.items():
                    cut, kept = known[index], known.get(closing.kept_index)
                    listener("lan.loop", cut.lan_id, {"mac": closing.mac, "kept": kept.name if kept else "", "refused": cut.name})
            await asyncio.sleep(_ROUND_SECONDS)

    # ---- in line with the records

    def sweep(self) -> None:
        """Once every port on record was found or added: remove what an earlier daemon left of others. Raises OSError."""
        kept = self._legs.devices
        self._legs.remove_devices([*(self._marked() - kept.keys()), self._legs.scratch])
        self._programs.keep_only((port.index for port in self._ports.values()), kept.values())
        self._relay.keep_only(taps=[delay.tap for delay in self._legs.delays])
        self._is_taking_up = False

    def audit(self) -> list[Leftover]:
        """Devices of legs that nobody has, or that are missing."""
        kept, present = self._legs.devices, self._marked()
        extra = [Leftover("extra", "link", name, "of the leg of no impaired port") for name in sorted(present - kept.keys())]
        return [*extra, *(Leftover("missing", "link", name, "of the leg of an impaired port") for name in sorted(kept.keys() - present))]

    def _marked(self) -> set[str]:
        return {link.name for link in self._rtnl.links() if link.alias.startswith(self._mark)}


@contextlib.contextmanager
def _refusing(nic: Nic) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        doing = f"impairing the frames of {nic.name} on LAN {nic.lan}"
        refusal = from_errno(error.errno or 0, doing, nic=nic.name, lan=nic.lan, port=nic.port)
        if isinstance(refusal, HostLacks):
            refusal.reason = "NO_IMPAIRMENTS"
        raise refusal from error
