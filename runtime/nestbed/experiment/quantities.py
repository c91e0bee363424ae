"""Numbers with units, as people write them in topology files. Pure; every function raises ValueError that says what is wrong."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z%/]*)", re.ASCII)

_TIMES_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000}
_RATES_BPS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9, "bps": 1, "kbps": 10**3, "mbps": 10**6, "gbps": 10**9}
_SIZES = {
    "": 1,
    "b": 1,
    "k": 1 << 10,
    "kib": 1 << 10,
    "m": 1 << 20,
    "mib": 1 << 20,
    "g": 1 << 30,
    "gib": 1 << 30,
    "t": 1 << 40,
    "tib": 1 << 40,
}


def _split(text: str, units: dict[str, int], example: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    unit = match[2].lower() if match else ""
    if match is None or len(match[1]) > 20 or unit not in units:
        raise ValueError(f"is not written like {example}")
    return float(match[1]) * units[unit]


def duration_us(text: str) -> int:
    """``10ms``, ``0.5s``, ``20us``: microseconds. A number without unit is refused: seconds and milliseconds are confused too easily."""
    return round(_split(text, _TIMES_US, "10ms, 0.5s or 20us"))


def duration_seconds(text: str) -> float:
    """``30s``, ``2m``: seconds."""
    return duration_us(text) / 1e6


def rate_bps(text: str) -> int:
    """``10Mbit``, ``1.5Gbit``: bits per second."""
    rate = round(_split(text, _RATES_BPS, "10Mbit, 64kbit or 1Gbit"))
    if rate < 1:
        raise ValueError("lets nothing pass; for an unlimited rate leave it out")
    return rate


def size_bytes(text: str) -> int:
    """``64M``, ``2G``: bytes, in powers of 1024."""
    size = round(_split(text, _SIZES, "64M or 2G"))
    if size < 1:
        raise ValueError("is no size; leave it out for no limit")
    return size


def fraction(text: str) -> float:
    """``1%``, ``0.01``: a fraction from 0 to 1."""
    share = _split(text, {"": 100, "%": 1}, "1% or 0.01") / 100
    if share > 1:
        raise ValueError("is more than all; write it like 1% or 0.01")
    return share


def show_rate(bps: int) -> str:
    """As :func:`rate_bps` reads it."""
    return next(
        (f"{bps // unit}{name}" for name, unit in (("Gbit", 10**9), ("Mbit", 10**6), ("kbit", 10**3)) if not bps % unit), f"{bps}bit"
    )


def show_duration(us: int) -> str:
    """As :func:`duration_us` reads it."""
    return next((f"{us // unit}{name}" for name, unit in (("s", 10**6), ("ms", 10**3)) if not us % unit), f"{us}us")


def show_fraction(share: float) -> str:
    """As :func:`fraction` reads it."""
    return f"{share * 100:.6g}%"
