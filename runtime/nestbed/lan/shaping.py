"""What a leg is made of for an impairment, and the queueing disciplines at its device B that do the shaping part of it.

For a delay netem, where the kernel has it, for a rate tbf in it, or alone, with a FIFO of frames in that. Functions raise OSError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nestbed.lan import impair
from nestbed.lanmodel import Impairment
from nestbed.linux import qdisc, timer
from nestbed.linux.rtnl import Rtnl

_BUCKET, _FIFO, _DELAY = 1, 2, 3
"""Handles."""
_INSIDE = {"netem": _DELAY << 16 | 1, "tbf": _BUCKET << 16 | 1}
"""As the parent of what is inside one."""
_NETEM_LIMIT_FRAMES = 10_000_000
"""netem counts what is under way: no bound but memory (its own default of 1000 would bound the throughput)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a leg for an impairment is made of."""

    has_pair: bool
    has_rate: bool
    has_netem: bool
    has_tap: bool

    @property
    def has_qdisc(self) -> bool:
        """Whether frames wait at B."""
        return self.has_rate or self.has_netem


def plan(wanted: Impairment, *, kernel_has_netem: bool) -> Plan:
    """The parts of the leg for an impairment that does something."""
    has_rate, has_delay = bool(wanted.rate_bps), bool(wanted.delay_us)
    acts_on_frames = any((wanted.loss, wanted.duplicate, wanted.corrupt, wanted.jitter_us, wanted.reorder))
    has_netem = has_delay and kernel_has_netem
    return Plan(acts_on_frames or has_rate or has_netem, has_rate, has_netem, has_delay and not kernel_has_netem)


def shape(links: Rtnl, index: int, there: Sequence[str], steps: Plan, wanted: Impairment, *, mtu: int) -> list[str]:
    """Have the disciplines that ``steps``, of which there are some, ask for at a device; ``there`` are the kinds it has.

    What is of the right kind is changed, not replaced. What there is then, as :func:`kinds`.
    """
    if there and there[0] != ("netem" if steps.has_netem else "tbf"):
        links.batch([qdisc.deletion(index)])
        there = ()
    requests = []
    if steps.has_netem:
        requests.append(netem(index, wanted, limited=not steps.has_rate))
        if not steps.has_rate and len(there) > 1:
            requests.append(qdisc.deletion(index, parent=_INSIDE["netem"]))
    if steps.has_rate:
        parent = _INSIDE["netem"] if steps.has_netem else qdisc.ROOT
        limit = impair.queue_frames(wanted, mtu)
        burst = impair.burst_bytes(wanted.rate_bps, mtu, timer.lateness_seconds())
        has_fifo = "pfifo" in there
        # A new bucket has no FIFO yet: a limit would make it one of bytes.
        bucket_limit = limit if has_fifo else 0
        requests.append(qdisc.tbf(index, parent=parent, handle=_BUCKET, rate_bps=wanted.rate_bps, burst_bytes=burst, limit=bucket_limit))
        if not has_fifo:
            requests.append(qdisc.pfifo(index, parent=_INSIDE["tbf"], handle=_FIFO, limit_frames=limit))
    links.batch(requests)
    return kinds(links, index)


def kinds(links: Rtnl, index: int) -> list[str]:
    """The kinds of a device's disciplines, from the outermost: of ``netem``, ``tbf``, ``pfifo``."""
    found, parent = [], qdisc.ROOT
    while (one := qdisc.find(links, index, parent=parent)) is not None:
        found.append(one.kind)
        if one.kind not in _INSIDE:
            break
        parent = _INSIDE[one.kind]
    return found


def netem(index: int, wanted: Impairment, *, limited: bool) -> bytes:
    """The request for the delay of ``wanted``; its limit on frames holds if ``limited``, or is another discipline's."""
    return qdisc.netem(
        index,
        parent=qdisc.ROOT,
        handle=_DELAY,
        delay_ns=wanted.delay_us * 1000,
        jitter_ns=wanted.jitter_us * 1000,
        reorder=min(impair.threshold(wanted.reorder), 0xFFFFFFFF),
        limit_frames=(wanted.limit_frames if limited else 0) or _NETEM_LIMIT_FRAMES,
    )
