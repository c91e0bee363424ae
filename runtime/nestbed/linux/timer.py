"""How exact the kernel's timers are."""

from __future__ import annotations

import time
from pathlib import Path

TICK_SECONDS = 0.004
_CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_SLOW = {"hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies"}
"""Clocks that are read through a device: what an emulated processor has instead of a counter of its own, and there timers are late."""


def lateness_seconds() -> float:
    """What timers have to be expected to be late by: next to nothing, or a tick where there are no exact ones. Never raises."""
    resolution = time.clock_getres(time.CLOCK_MONOTONIC)
    try:
        is_slow = _CLOCKSOURCE.read_text().strip() in _SLOW
    except OSError:  # no sysfs
        is_slow = False
    return max(resolution, TICK_SECONDS) if is_slow else resolution
