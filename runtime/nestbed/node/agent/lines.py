"""Lines of reports: from bytes of anybody's making to fields. Pure; docs/agent.md has the grammar."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

LINE_BYTES_MAX = 4096
"""PIPE_BUF (pipe(7)): what is not longer is written to a FIFO in one piece, however many write to it."""
FIELDS_MAX = 32

TEXT = "text"
"""The field for what is no field."""

_FIELD = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]{0,63})=((?:[^\s\"']|\"[^\"]*\"|'[^']*')*)(?:[ \t]+|$)")
_UNPRINTABLE = re.compile("[\0-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


class Garbage(Exception):
    """A line that is no report; ``why`` is ``binary`` (not printable UTF-8), ``long`` or ``fields`` (more than FIELDS_MAX)."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def parse(line: bytes) -> tuple[tuple[str, str], ...]:
    """The fields of a line: words KEY=VALUE at its beginning, the last one of each key, and the rest as the field ``text``.

    Quotes in a value are taken off, as a shell does. An empty line has none.

    Raises:
        Garbage: it is no report.
    """
    if len(line) > LINE_BYTES_MAX:
        raise Garbage("long")
    try:
        text = line.decode().strip(" \t\r")
    except UnicodeDecodeError as error:
        raise Garbage("binary") from error
    if _UNPRINTABLE.search(text):
        raise Garbage("binary")
    fields: dict[str, str] = {}
    at = 0
    while (found := _FIELD.match(text, at)) is not None:
        fields.pop(found[1], None)
        fields[found[1]] = found[2].replace('"', "").replace("'", "")
        at = found.end()
    if at < len(text):
        fields[TEXT] = text[at:]
    if len(fields) > FIELDS_MAX:
        raise Garbage("fields")
    return tuple(fields.items())


class Line(NamedTuple):
    """``data`` without its line feed, None for one longer than LINE_BYTES_MAX; ``end`` is where the next one begins."""

    data: bytes | None
    end: int


def split(data: bytes, *, skipping: bool) -> Iterator[Line]:
    """The lines that are whole in ``data``. With ``skipping`` it begins in the middle of a line that is too long already.

    A line that is not whole yet and too long already is told as far as it goes: go on behind it, skipping.
    """
    at = 0
    while (end := data.find(b"\n", at)) >= 0:
        line = data[at:end]
        yield Line(None if skipping or len(line) > LINE_BYTES_MAX else line, end + 1)
        at, skipping = end + 1, False
    if len(data) > at and (skipping or len(data) - at > LINE_BYTES_MAX):
        yield Line(None, len(data))
