"""Rates, losses and duplicates: which calls in numbers `verify` makes over each LAN, and what must come of them. Pure.

Over each LAN every member calls the next one, the last the first, so that each port carries frames both ways. Where something is declared,
and where something was found that is not, that is done while nothing else is measured on the LAN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nestbed.experiment.forwarding import Expected
from nestbed.experiment.plan import Plan

RATE_TOLERANCE = 0.15
"""Share by which a rate may differ from the one declared."""
RATE_MAX_BPS = 200_000_000
"""Faster ones cannot be told by a program: of them, and where none is declared, it must be RATE_MIN_BPS at least."""
RATE_MIN_BPS = 20_000_000
SIGMAS = 4.5
"""By how many standard deviations a count may differ from the one that is declared."""
STRAY_SHARE = 0.005
"""What may get lost where no loss is declared: machines have more to do than this."""
_FRAME_BYTES = 14
_CALL_BITS = (64 + _FRAME_BYTES) * 8
_FULL_BYTES = 1500 + _FRAME_BYTES
_CALLS, _CALLS_AGAIN, _CALLS_MAX = 30, 400, 600
_PACKETS, _PACKETS_SKIPPED = 48, 16
_BURST_SECONDS = 0.0125
"""Of a rate so much may pass at once, see ``nestbed.lan.impair.burst_bytes``, and a quarter."""
_SPAN_SECONDS, _SPAN_PACKETS = 0.08, 12
_SECONDS_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Flow:
    """Calls of an address on a LAN that the caller is on, too."""

    element: str
    lan: str
    address: str
    want: Expected

    @property
    def is_declared(self) -> bool:
        """Whether there is something to measure: a rate, a loss, duplicates."""
        return bool(self.want.rate_bps or self.want.loss or self.want.copies > 1)


def choose(plan: Plan, expected: Mapping[str, Mapping[str, Expected | None]]) -> list[Flow]:
    """The flows of an experiment, over each LAN around, in the order of the file."""
    found = []
    for lan, members in plan.topology.members().items():
        rounds = zip(members, [*members[1:], *members[:1]] if len(members) > 2 else members[1:], strict=False)
        for (element, _), (other, index) in rounds:
            addresses = [address.partition("/")[0] for address in other.nics[index].addresses]
            wants = ((address, expected[element.name].get(address)) for address in addresses)
            flow = next((Flow(element.name, lan, address, want) for address, want in wants if want is not None and want.neighbour), None)
            if flow is not None:
                found.append(flow)
    return found


def request(flow: Flow, *, again: bool) -> dict[str, Any]:
    """What the program inside is asked for, see ``nestbed.experiment.probe``; ``again`` for more calls."""
    want, rate = flow.want, flow.want.rate_bps
    share = max(want.loss, want.copies - 1)
    calls = _CALLS_AGAIN if again else _CALLS
    if share:
        calls = min(_CALLS_MAX, max(calls, math.ceil(30 / share)))
    gap = max(0.0005, 1.3 * _CALL_BITS / rate) if rate else 0.0005
    size, packets, pace, skip = want.path_mtu, _PACKETS, 0.0, _PACKETS_SKIPPED * (want.path_mtu + _FRAME_BYTES)
    if 0 < rate <= RATE_MAX_BPS:
        size = min(size, max(64, int(rate * _SPAN_SECONDS / 8 / _SPAN_PACKETS)))
        skip = int(max(2.5 * _FULL_BYTES, rate * _BURST_SECONDS / 8))
        frame = size + _FRAME_BYTES
        packets = skip // frame + max(_SPAN_PACKETS, int(rate * _SPAN_SECONDS / 8 / frame)) + 1
        packets = min(packets, int(_SECONDS_MAX * rate / 8 / frame))
        if want.queue_frames >= 2 * _SPAN_PACKETS:  # they can all wait: whether the sender gets its turn does not matter
            packets = min(packets, int(want.queue_frames * 0.9))
        else:
            pace = frame * 8 / rate / 1.3
    return {
        "address": flow.address,
        "calls": max(5, min(calls, int(_SECONDS_MAX / gap))),
        "gap": gap,
        "size": size,
        "packets": packets,
        "pace": pace,
        "skip": skip,
    }


def deviations(flow: Flow, got: Mapping[str, float]) -> Iterable[str]:
    """What came of it and is not as declared."""
    yield from _loss(flow, int(got["calls"]), int(got["answered"]))
    yield from _duplicates(flow, int(got["answered"]), int(got["duplicates"]))
    yield from _rate(flow, got["rate"])


def _loss(flow: Flow, calls: int, answered: int) -> Iterable[str]:
    want, lost = flow.want.loss, calls - answered
    slack = SIGMAS * math.sqrt(calls * want * (1 - want)) + calls * STRAY_SHARE
    is_too_low = lost < calls * want - slack and flow.want.copies == 1  # of two copies one is enough
    if lost > calls * want + slack or is_too_low:
        yield f"of {calls} calls of {flow.address} on {flow.lan} {_percent(lost / calls)} had no answer, not {_percent(want)}"


def _duplicates(flow: Flow, answered: int, found: int) -> Iterable[str]:
    want = (flow.want.copies - 1) * answered
    slack = SIGMAS * math.sqrt(want) + 2 if want else 0
    if answered and abs(found - want) > slack:
        shares = _percent(found / answered), _percent(flow.want.copies - 1)
        yield f"of {answered} answers of {flow.address} on {flow.lan} {shares[0]} came twice, not {shares[1]}"


def _rate(flow: Flow, got: float) -> Iterable[str]:
    want = flow.want.rate_bps
    if not got:
        return
    if 0 < want <= RATE_MAX_BPS:
        least = want * (1 - flow.want.loss)  # what is lost behind the rate does not come
        if not least * (1 - RATE_TOLERANCE) <= got <= want * (1 + RATE_TOLERANCE):
            yield f"the rate to {flow.address} on {flow.lan} and back is {_bits(got)}, not {_bits(want)}"
    elif got < RATE_MIN_BPS:
        yield f"the rate to {flow.address} on {flow.lan} and back is {_bits(got)}, and {_bits(want) if want else 'none'} is declared"


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _bits(rate: float) -> str:
    return f"{rate / 1e6:.3g} Mbit/s"
