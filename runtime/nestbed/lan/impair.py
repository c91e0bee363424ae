"""What impairments mean: values, refusals, changes, and how a LAN's and a port's come together on one direction of a port.

Pure. A LAN's impairment is that of the way from one member to another. A frame passes two legs on that way, the ``from`` leg of one port
and the ``to`` leg of another, so each leg gets half of the delay and jitter and the share of the loss that makes the whole right
(Emulab's rule): ``1 - sqrt(1 - L)``, and the same for duplication, corruption and reordering. A rate stays whole: two equal bottlenecks
in a row are one. A round trip takes the delay twice.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from nestbed.errors import InvalidArgument, shown
from nestbed.lanmodel import Impairment, ImpairmentChange

RATE_MIN_BPS, RATE_MAX_BPS = 1_000, 100_000_000_000
"""Below, one frame of 1500 bytes takes longer than 12 s; above, this is no emulation on one machine."""

DELAY_MAX_US = 60_000_000
LIMIT_MAX_FRAMES = 1_000_000

_FRACTIONS = ("loss", "duplicate", "corrupt", "reorder")
_QUEUE_SECONDS, _QUEUE_MIN_FRAMES, _QUEUE_MAX_FRAMES = 0.1, 50, 10_000
_ETHERNET_HEADER_BYTES = 14
_BURST_SECONDS = 0.002


def changed(before: Impairment, change: ImpairmentChange) -> Impairment:
    """``before`` with what ``change`` names; a 0 takes that one off.

    Raises:
        InvalidArgument: the change names nothing, or the outcome is refused by :func:`check`.
    """
    named = {field.name: value for field in dataclasses.fields(change) if (value := getattr(change, field.name)) is not None}
    if not named:
        raise InvalidArgument(
            "no impairment is named",
            reason="NOTHING_TO_CHANGE",
            remedy="give at least one, such as --delay 5ms; `nbctl lan impair reset` takes all off",
        )
    after = dataclasses.replace(before, **named)
    check(after)
    return after


def check(impairment: Impairment) -> None:
    """Refuse what cannot be.

    Raises:
        InvalidArgument: a value is outside its range (reason BAD_IMPAIRMENT), or makes no sense beside the others.
    """
    for name in _FRACTIONS:
        value = getattr(impairment, name)
        if not 0.0 <= value <= 1.0:  # true of NaN too
            raise _refused(name, f"{value * 100:g} %", "is not between 0 % and 100 %", "give a percentage from 0 to 100")
    rate, delay, jitter, limit = impairment.rate_bps, impairment.delay_us, impairment.jitter_us, impairment.limit_frames
    if rate and not RATE_MIN_BPS <= rate <= RATE_MAX_BPS:
        raise _refused("rate", f"{rate} bit/s", "is not between 1 kbit/s and 100 Gbit/s", "give a rate from 1kbit to 100gbit")
    if not 0 <= delay <= DELAY_MAX_US:
        raise _refused("delay", f"{delay} us", "is not between 0 and 60 s", "give a delay from 0 to 60s")
    if not 0 <= jitter <= delay:
        raise _refused("jitter", f"{jitter} us", f"is not between 0 and the delay of {delay} us", "give a delay at least as large")
    if impairment.reorder and not delay:
        raise _refused(
            "reorder", f"{impairment.reorder * 100:g} %", "needs a delay", "give a delay too: a frame overtakes by not being delayed"
        )
    if not 0 <= limit <= LIMIT_MAX_FRAMES:
        raise _refused(
            "limit", f"{limit} frames", f"is not between 1 and {LIMIT_MAX_FRAMES}", "give a number of frames, or 0 for the default"
        )


def _refused(name: str, value: str, why: str, remedy: str) -> InvalidArgument:
    return InvalidArgument(
        f"the {name} of {shown(value)} {why}", reason="BAD_IMPAIRMENT", remedy=remedy, impairment=name, value=value, why=why
    )


def leg_share(lan: Impairment) -> Impairment:
    """What each of the two legs between two members gets of a LAN's impairment."""
    fractions: dict[str, Any] = {name: 1.0 - math.sqrt(1.0 - getattr(lan, name)) for name in _FRACTIONS}
    return dataclasses.replace(lan, delay_us=(lan.delay_us + 1) // 2, jitter_us=lan.jitter_us // 2, **fractions)


def in_force(lan: Impairment, own: Impairment) -> Impairment:
    """What one direction of a port gets of its LAN's impairment and its own: delays add, fractions combine, the smaller rate and limit.

    A fraction combines as two independent events do: ``1 - (1 - a)(1 - b)``.
    """
    share = leg_share(lan)
    fractions = {name: _either(getattr(share, name), getattr(own, name)) for name in _FRACTIONS}
    return Impairment(
        rate_bps=_smaller(share.rate_bps, own.rate_bps),
        delay_us=share.delay_us + own.delay_us,
        jitter_us=share.jitter_us + own.jitter_us,
        limit_frames=_smaller(share.limit_frames, own.limit_frames),
        **fractions,
    )


def does_something(impairment: Impairment) -> bool:
    """Whether frames are treated otherwise than without it: a limit alone is none."""
    return dataclasses.replace(impairment, limit_frames=0) != Impairment()


def queue_frames(impairment: Impairment, mtu: int) -> int:
    """How many frames may wait for the rate: what was asked for, else 100 ms of full frames, at least 50 and at most 10,000."""
    if impairment.limit_frames:
        return impairment.limit_frames
    frames = impairment.rate_bps * _QUEUE_SECONDS / 8 / (mtu + _ETHERNET_HEADER_BYTES)
    return int(min(max(frames, _QUEUE_MIN_FRAMES), _QUEUE_MAX_FRAMES))


def burst_bytes(rate_bps: int, mtu: int, lateness_seconds: float) -> int:
    """What may pass at once after a pause: 2 ms of the rate, as timers are late, and at least two full frames.

    ``lateness_seconds`` is what the kernel's timers are late by (``nestbed.linux.timer``): of that it is two and a half, or the rate would
    not be reached.
    """
    seconds = max(_BURST_SECONDS, 2.5 * lateness_seconds)
    return max(int(rate_bps * seconds / 8), 2 * (mtu + _ETHERNET_HEADER_BYTES + 4))


def busy_gap_ns(impairment: Impairment, mtu: int) -> int:
    """A longer pause between two frames is none of the rate's doing: four full frames' time, and at least 10 ms."""
    frame_ns = (mtu + _ETHERNET_HEADER_BYTES) * 8_000_000_000 // impairment.rate_bps if impairment.rate_bps else 0
    return max(4 * frame_ns, 10_000_000)


def threshold(fraction: float) -> int:
    """A random number of 32 bits is below this with the probability ``fraction``; 2**32 for 1."""
    return round(fraction * (1 << 32))


def _either(one: float, other: float) -> float:
    """The probability that one of two independent events occurs; exactly the other's if one never does."""
    return one + other - one * other


def _smaller(one: int, other: int) -> int:
    """The smaller of two limits, where 0 is none."""
    return min(one, other) if one and other else one or other
