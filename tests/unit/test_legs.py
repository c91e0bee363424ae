"""What a leg is made of, and what is packed for the BPF programs."""

from __future__ import annotations

import pytest

from nestbed.lan import legs, shaping
from nestbed.lan.addressing import port_name
from nestbed.lan.programs import BUCKETS, LegCounts, Side, Stage, bucket_end_ns
from nestbed.lan.shaping import Plan
from nestbed.lanmodel import Impairment


@pytest.mark.parametrize(
    ("wanted", "without_netem", "with_netem"),
    [
        # In order: a pair, a rate, netem, a tap.
        (Impairment(loss=0.1), Plan(True, False, False, False), Plan(True, False, False, False)),
        (Impairment(rate_bps=1_000_000), Plan(True, True, False, False), Plan(True, True, False, False)),
        (Impairment(delay_us=1), Plan(False, False, False, True), Plan(True, False, True, False)),
        (Impairment(delay_us=2, jitter_us=1), Plan(True, False, False, True), Plan(True, False, True, False)),
        (Impairment(delay_us=1, rate_bps=1_000_000), Plan(True, True, False, True), Plan(True, True, True, False)),
    ],
)
def test_only_what_is_needed_is_made(wanted: Impairment, without_netem: Plan, with_netem: Plan) -> None:
    assert shaping.plan(wanted, kernel_has_netem=False) == without_netem
    assert shaping.plan(wanted, kernel_has_netem=True) == with_netem


def test_names_are_names_of_interfaces_and_all_different() -> None:
    names = [name for number in (0, 1, 63) for side in Side for name in legs.names(port_name("0123456789ab", number), side)]
    assert len(set(names)) == 18
    assert max(map(len, names)) <= 15


def test_frames_from_the_container_go_on_into_the_bridge() -> None:
    flags = {side: Stage(7, side, 7, is_last=True).pack()[-4:] for side in Side}
    assert (int.from_bytes(flags[Side.FROM], "little"), int.from_bytes(flags[Side.TO], "little")) == (3, 1)
    assert Stage(7, Side.FROM, 8).pack()[-4:] == bytes(4)


def test_quantiles_of_the_histogram() -> None:
    buckets = [0] * BUCKETS
    buckets[10], buckets[100] = 98, 2
    counts = LegCounts(delay_count=100, buckets=tuple(buckets))
    assert LegCounts.unpack(counts.pack()) == counts
    assert counts.delay_quantile_ns(0.5) == bucket_end_ns(10)
    assert counts.delay_quantile_ns(0.99) == bucket_end_ns(100)
    assert LegCounts().delay_quantile_ns(0.99) == 0
    assert bucket_end_ns(0) == 1024 * 33 / 32
    assert bucket_end_ns(BUCKETS - 1) == 2**36
