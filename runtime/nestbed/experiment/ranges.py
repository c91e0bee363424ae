"""Ranges in names: ``bot[1-40]`` is bot1 to bot40, ``bot[01-40]`` bot01 to bot40. Pure.

One range per name. Inside an element that is a range, ``{n}`` stands for the number, as it is written in the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

RANGE_MAX = 100_000

_RANGE = re.compile(r"([^\[\]]*)\[(\d{1,9})-(\d{1,9})\]([^\[\]]*)", re.ASCII)
HERE = "{n}"


def expand(text: str) -> Iterator[tuple[str, str]]:
    """The names that ``text`` stands for, each with its number (empty without a range).

    Raises:
        ValueError: a range that cannot be; the text says why.
    """
    if "[" not in text and "]" not in text:
        yield text, ""
        return
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError("is no range; write it like bot[1-40], one range in a name")
    before, first, last, after = match.groups()
    if int(first) > int(last) or int(last) - int(first) >= RANGE_MAX:
        raise ValueError(f"is no range of 1 to {RANGE_MAX} names")
    width = len(first) if first.startswith("0") else 0
    for number in range(int(first), int(last) + 1):
        shown = f"{number:0{width}d}"
        yield f"{before}{shown}{after}", shown


def fill(text: str, number: str) -> str:
    """``text`` with ``{n}`` replaced, inside a range."""
    return text.replace(HERE, number) if number else text
