"""What impairments mean, without any kernel."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestbed.errors import InvalidArgument
from nestbed.lan import impair
from nestbed.lanmodel import NO_IMPAIRMENT, Impairment, ImpairmentChange

FRACTIONS = ("loss", "duplicate", "corrupt", "reorder")
fractions = st.floats(0, 1)
impairments = st.builds(
    Impairment,
    rate_bps=st.sampled_from([0, 1_000, 10_000_000]),
    delay_us=st.integers(1, 1_000_000),
    jitter_us=st.integers(0, 1),
    loss=fractions,
    duplicate=fractions,
    corrupt=fractions,
    reorder=fractions,
    limit_frames=st.integers(0, 1000),
)


def test_change_keeps_what_it_does_not_name() -> None:
    before = Impairment(rate_bps=10_000_000, delay_us=5000, loss=0.01)
    after = impair.changed(before, ImpairmentChange(delay_us=7000))
    assert after == Impairment(rate_bps=10_000_000, delay_us=7000, loss=0.01)
    assert impair.changed(after, ImpairmentChange(loss=0.0)) == Impairment(rate_bps=10_000_000, delay_us=7000)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"rate_bps": 999}, "rate"),
        ({"rate_bps": -1}, "rate"),
        ({"rate_bps": 10**12}, "rate"),
        ({"delay_us": -1}, "delay"),
        ({"delay_us": 60_000_001}, "delay"),
        ({"jitter_us": 1}, "jitter"),
        ({"delay_us": 10, "jitter_us": 11}, "jitter"),
        ({"reorder": 0.1}, "reorder"),
        ({"loss": 1.01}, "loss"),
        ({"loss": -0.01}, "loss"),
        ({"duplicate": float("nan")}, "duplicate"),
        ({"corrupt": float("inf")}, "corrupt"),
        ({"limit_frames": -1}, "limit"),
        ({"limit_frames": 1_000_001}, "limit"),
    ],
)
def test_nonsense_is_refused_by_name(values: dict[str, float], named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        impair.changed(NO_IMPAIRMENT, ImpairmentChange(**values))  # type: ignore[arg-type]
    assert (caught.value.reason, caught.value.metadata["impairment"]) == ("BAD_IMPAIRMENT", named)
    assert caught.value.remedy


def test_delay_cannot_go_below_the_jitter_that_is_kept() -> None:
    with pytest.raises(InvalidArgument):
        impair.changed(Impairment(delay_us=5000, jitter_us=2000), ImpairmentChange(delay_us=1000))


def test_change_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        impair.changed(NO_IMPAIRMENT, ImpairmentChange())
    assert caught.value.reason == "NOTHING_TO_CHANGE"


@given(lan=impairments)
def test_two_legs_make_the_whole(lan: Impairment) -> None:
    leg = impair.leg_share(lan)
    for name in FRACTIONS:
        assert 1 - (1 - getattr(leg, name)) ** 2 == pytest.approx(getattr(lan, name), abs=1e-9)
    assert 0 <= 2 * leg.delay_us - lan.delay_us <= 1
    assert leg.rate_bps == lan.rate_bps
    impair.check(leg)


@given(lan=impairments, own=impairments)
def test_what_is_in_force_is_never_refused_nor_milder(lan: Impairment, own: Impairment) -> None:
    both = impair.in_force(lan, own)
    impair.check(dataclasses.replace(both, delay_us=min(both.delay_us, impair.DELAY_MAX_US)))
    assert both.delay_us >= own.delay_us
    for name in FRACTIONS:
        assert getattr(both, name) >= getattr(own, name) - 1e-12
    assert both.rate_bps == min(filter(None, (lan.rate_bps, own.rate_bps)), default=0)


@given(own=impairments)
def test_lan_without_impairment_leaves_the_ports_own(own: Impairment) -> None:
    both = impair.in_force(NO_IMPAIRMENT, own)
    for field in dataclasses.fields(own):
        assert getattr(both, field.name) == pytest.approx(getattr(own, field.name))


def test_limit_alone_does_nothing() -> None:
    assert not impair.does_something(Impairment(limit_frames=10))
    assert impair.does_something(Impairment(loss=0.1))
    assert not impair.does_something(NO_IMPAIRMENT)


def test_queue_and_burst_grow_with_the_rate() -> None:
    assert impair.queue_frames(Impairment(rate_bps=1_000_000), 1500) == 50
    assert impair.queue_frames(Impairment(rate_bps=100_000_000), 1500) == 825
    assert impair.queue_frames(Impairment(rate_bps=100_000_000, limit_frames=7), 1500) == 7
    assert impair.burst_bytes(1_000_000, 1500, 1e-9) == 2 * 1518
    assert impair.burst_bytes(1_000_000_000, 1500, 1e-9) == 250_000
    assert impair.burst_bytes(1_000_000_000, 1500, 0.004) == 1_250_000


def test_thresholds_reach_never_and_always() -> None:
    assert (impair.threshold(0), impair.threshold(1)) == (0, 1 << 32)
    assert impair.threshold(0.5) == 1 << 31
