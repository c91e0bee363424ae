"""When a container that ended is started again."""

from __future__ import annotations

import pytest

from nestbed.process.restarts import BACKOFF_FIRST_SECONDS, BACKOFF_MAX_SECONDS, BACKOFF_RESET_SECONDS, Restarts


@pytest.mark.parametrize(
    ("mode", "most", "code", "restarts", "due"),
    [
        ("no", 0, 1, 0, False),
        ("always", 0, 0, 7, True),
        ("on-failure", 0, 0, 0, False),
        ("on-failure", 0, 1, 99, True),
        ("on-failure", 0, None, 0, True),
        ("on-failure", 3, 1, 2, True),
        ("on-failure", 3, 1, 3, False),
    ],
)
def test_policies(mode: str, most: int, code: int | None, restarts: int, *, due: bool) -> None:
    policy = Restarts()
    assert not policy.is_due(1, 0)
    policy.obey(mode, most)
    assert policy.is_due(code, restarts) is due


def test_each_wait_is_twice_as_long_until_a_run_was_long() -> None:
    policy = Restarts()
    assert [policy.delay_seconds(0) for _ in range(3)] == pytest.approx([BACKOFF_FIRST_SECONDS * factor for factor in (1, 2, 4)])
    assert max(policy.delay_seconds(0) for _ in range(20)) == BACKOFF_MAX_SECONDS
    assert policy.delay_seconds(BACKOFF_RESET_SECONDS) == BACKOFF_FIRST_SECONDS
    policy.delay_seconds(0)
    policy.forget_failures()
    assert policy.delay_seconds(0) == BACKOFF_FIRST_SECONDS
