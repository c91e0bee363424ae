"""Logging: constant messages, values as fields, one JSON object a line.

``bound`` attaches fields (``rpc``, ``container``, ``lan``) to everything logged in its block by the same task. JSON escaping keeps
a hostile name from forging a line: control characters and U+2028/2029 never reach the file as they are.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import IO

_NOTHING: Mapping[str, str] = MappingProxyType({})
_BOUND: ContextVar[Mapping[str, str]] = ContextVar("nestbed_log_fields", default=_NOTHING)


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Add ``fields`` to every record logged in the block by this task."""
    token = _BOUND.set({**_BOUND.get(), **{key: str(value) for key, value in fields.items()}})
    try:
        yield
    finally:
        _BOUND.reset(token)


class JsonFormatter(logging.Formatter):
    """A record as one line of ASCII JSON: ``time level logger message``, bound fields, then the record's own ``extra["fields"]``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without the line feed."""
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_BOUND.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def fields(**values: object) -> dict[str, dict[str, object]]:
    """``extra=`` for a logging call: ``logger.info("container started", extra=fields(pid=7))``."""
    return {"fields": dict(values)}


def configure(level: str = "info", stream: IO[str] | None = None) -> None:
    """Send everything of ``level`` and above to ``stream`` (standard error) as JSON lines. Called once by an executable."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
