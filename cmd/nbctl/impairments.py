"""What is done to frames, as it is written on a command line and shown: units are tc's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nbctl.failure import Usage, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nestbed.v1.traffic_pb2 import Impairment

NONE = "none"
_NUMBER = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-z%]*)", re.ASCII)
_RATES = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_TIMES = {"us": 1, "ms": 10**3, "s": 10**6}


def _scaled(text: str, what: str, units: Mapping[str, int], example: str) -> int:
    match = _NUMBER.fullmatch(text.strip().lower())
    if match is None or (match[2] not in units and not (match[2] == "" and not float(match[1]))):
        meant = nearest(match[2], list(units)) if match else ""
        remedy = f"write a number and {', '.join(units)}, such as {example}"
        raise Usage(f"'{text}' is not a {what}", remedy=f"did you mean {match[1]}{meant}?" if match and meant else remedy)
    return round(float(match[1]) * units.get(match[2], 1))


def rate(text: str) -> int:
    """Bits per second of ``10mbit``, ``1.5gbit``, ``512kbit``: units are powers of 1000. 0, which takes it off, is ``none``.

    >>> rate("1.5kbit")
    1500
    """
    if text == NONE:
        return 0
    found = _scaled(text, "rate", _RATES, "10mbit")
    if not found:
        raise Usage("a rate of 0 would let nothing pass", remedy="write --rate none to take it off, or --loss 100% to let nothing pass")
    return found


def time(text: str) -> int:
    """Microseconds of ``5ms``, ``0.5ms``, ``250us``, ``1s``, ``0``, ``none``."""
    return 0 if text == NONE else _scaled(text, "time", _TIMES, "5ms")


def fraction(text: str) -> float:
    """The fraction that is ``1%``, ``0.05%``, ``0``, ``none``; whether it is one is for the node to say.

    >>> fraction("1%")
    0.01
    """
    if text == NONE:
        return 0.0
    match = _NUMBER.fullmatch(text.strip())
    if match is None or (match[2] != "%" and not (match[2] == "" and not float(match[1]))):
        raise Usage(f"'{text}' is not a percentage", remedy="write a number and %, such as 1% or 0.05%")
    return float(match[1]) / 100


def frames(text: str) -> int:
    """A number of frames; 0 or ``none`` for the default."""
    if text == NONE:
        return 0
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise Usage(f"'{text}' is not a number of frames", remedy="write a whole number, such as 1000")
    return int(text)


class Kind:
    """One of the things that can be done to frames: its name, the API's field, how it is read, and what help says."""

    def __init__(self, field: str, metavar: str, read: Callable[[str], float], text: str) -> None:
        self.field = field
        self.metavar = metavar
        self.read = read
        self.text = text


KINDS = {
    "rate": Kind("rate_bps", "RATE", rate, "bits per second, such as 10mbit"),
    "delay": Kind("delay_us", "TIME", time, "delay of each frame, such as 5ms"),
    "jitter": Kind("jitter_us", "TIME", time, "by how much the delay varies at most, such as 1ms"),
    "loss": Kind("loss", "PERCENT", fraction, "frames that are lost, such as 1%%"),
    "duplicate": Kind("duplicate", "PERCENT", fraction, "frames that come twice"),
    "corrupt": Kind("corrupt", "PERCENT", fraction, "frames in which a bit is changed"),
    "reorder": Kind("reorder", "PERCENT", fraction, "frames that overtake the delayed ones"),
    "limit": Kind("limit_frames", "FRAMES", frames, "how many frames may wait"),
}


def shown(impairment: Impairment) -> str:
    """As it would be written: ``rate 10mbit delay 5ms loss 1%``; ``none`` if nothing is done."""
    return " ".join(_parts(impairment)) or NONE


def _parts(impairment: Impairment) -> Iterator[str]:
    for name, kind in KINDS.items():
        value = getattr(impairment, kind.field)
        if not value:
            continue
        if kind.read is rate:
            yield f"{name} {_in_units(value, _RATES)}"
        elif kind.read is time:
            yield f"{name} {_in_units(value, _TIMES)}"
        elif kind.read is fraction:
            yield f"{name} {percent(value)}"
        else:
            yield f"{name} {value}"


def percent(value: float) -> str:
    """A fraction: ``1%``, ``0.05%``."""
    return f"{value * 100:.4g}%"


def bits(value: float) -> str:
    """A rate that was measured: ``9.87mbit``."""
    unit = next((name for name, scale in reversed(_RATES.items()) if value >= scale), "bit")
    return f"{value / _RATES[unit]:.3g}{unit}"


def _in_units(value: int, units: Mapping[str, int]) -> str:
    unit = next(name for name, scale in reversed(tuple(units.items())) if value >= scale)
    return f"{value / units[unit]:.12g}{unit}"
