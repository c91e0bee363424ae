"""The format of container logs, and reading them: shared by those who write a bundle's ``log`` and those who read it.

One entry a line, as the Kubernetes container runtime interface logs (``docs/runtime.md`` has the grammar)::

    2026-01-02T03:04:05.678901Z stdout F text of a whole line
    2026-01-02T03:04:05.678902Z stderr P piece of a line that goes on

The content is raw bytes without the line feed. A line longer than ``LINE_BYTES_MAX``, or one that ended without a line feed, is
written in pieces tagged ``P``. The newest file is ``log``, older ones are ``log.1``, ``log.2``, ...
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import NamedTuple

LINE_BYTES_MAX = 16 * 1024
STREAM_NAMES = {1: b"stdout", 2: b"stderr"}
_STREAM_NUMBERS = {b"stdout": 1, b"stderr": 2}


class Entry(NamedTuple):
    """``at`` seconds since the epoch; ``stream`` 1 or 2; ``data`` with its line feed unless ``partial``."""

    at: float
    stream: int
    data: bytes
    partial: bool


def stamp(at: float) -> bytes:
    """RFC 3339 in UTC with microseconds."""
    return b"%s.%06dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)).encode(), int(at % 1 * 1_000_000))


def encode(at: float, stream: int, data: bytes) -> bytes:
    """The log lines for ``data``, a chunk of what a program wrote at one moment."""
    head = stamp(at) + b" " + STREAM_NAMES[stream] + b" "
    lines = []
    for line in _split(data):
        whole = line.endswith(b"\n")
        body = line[:-1] if whole else line
        while len(body) > LINE_BYTES_MAX:
            lines.append(head + b"P " + body[:LINE_BYTES_MAX] + b"\n")
            body = body[LINE_BYTES_MAX:]
        lines.append(head + (b"F " if whole else b"P ") + body + b"\n")
    return b"".join(lines)


def _split(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def decode(line: bytes) -> Entry | None:
    """The entry of one line (with its line feed), or None if it is not one (torn by a crash)."""
    try:
        when, stream, tag, body = line.split(b" ", 3)
        if not body.endswith(b"\n") or tag not in (b"F", b"P"):
            return None
        at = datetime.fromisoformat(when.decode()).timestamp()
        return Entry(at, _STREAM_NUMBERS[stream], body if tag == b"F" else body[:-1], tag == b"P")
    except (ValueError, KeyError):
        return None
