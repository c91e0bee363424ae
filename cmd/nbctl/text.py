"""Text for terminals: escaped, measured in cells, cut and aligned; times and sizes for people."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

ELLIPSIS = "…"
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def escape(text: str) -> str:
    r"""``text`` on one line and without power over a terminal: what does not print becomes ``\n``, ``\x1b``, ``\u202e``..."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char.isprintable() or unicodedata.category(char) not in _UNPRINTABLE else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


def cells(text: str) -> int:
    """How many cells of a terminal the (escaped) text takes."""
    return len(text) if text.isascii() else sum(map(_char_cells, text))


def _char_cells(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` cells; what is cut off leaves an ellipsis."""
    if cells(text) <= width:
        return text
    kept, used = [], 0
    for char in text:
        used += _char_cells(char)
        if used > width - 1:
            break
        kept.append(char)
    return "".join(kept) + ELLIPSIS if width > 0 else ""


def pad(text: str, width: int) -> str:
    """``text`` filled with blanks to ``width`` cells."""
    return text + " " * (width - cells(text))


NARROWEST = 8


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, width: int | None = None) -> list[str]:
    """The lines of a table. With a ``width`` the widest columns are cut until each line fits, though none below ``NARROWEST``."""
    cooked = [list(headings), *([escape(cell) for cell in row] for row in rows)]
    widths = [max(map(cells, column)) for column in zip(*cooked, strict=True)]
    if width is not None:
        _narrow(widths, [cells(heading) for heading in headings], width - 2 * (len(widths) - 1))
        cooked = [[cut(cell, limit) for cell, limit in zip(row, widths, strict=True)] for row in cooked]
    lines = ["  ".join(map(pad, row, widths)).rstrip() for row in cooked]
    return lines if width is None else [cut(line, width) for line in lines]


def _narrow(widths: list[int], headings: list[int], room: int) -> None:
    while (excess := sum(widths) - room) > 0:
        widest = max(range(len(widths)), key=widths.__getitem__)
        second = max((width for index, width in enumerate(widths) if index != widest), default=0)
        floor = max(NARROWEST, headings[widest])
        if widths[widest] <= floor:
            return
        widths[widest] = max(floor, min(widths[widest] - 1, max(second, widths[widest] - excess)))


_STEPS = ((86400 * 3, 86400, "d"), (3600 * 3, 3600, "h"), (60 * 3, 60, "m"), (0, 1, "s"))


def age(seconds: float) -> str:
    """A span of time in one number: ``47s``, ``119s``, ``5m``, ``4h``, ``9d``."""
    seconds = max(0.0, seconds)
    return next(f"{int(seconds // unit)}{name}" for least, unit, name in _STEPS if seconds >= least)


def size(count: float) -> str:
    """Bytes for people, in powers of 1024: ``0B``, ``1.5KiB``, ``64MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f}{unit}" if unit == "B" or count >= 100 or count == int(count) else f"{count:.1f}{unit}"


def command(args: Iterable[str]) -> str:
    """A command as one would type it."""
    import shlex  # noqa: PLC0415 - few verbs show commands

    return shlex.join(args)
