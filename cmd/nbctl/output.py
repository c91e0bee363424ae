"""API messages as JSON, YAML, names or tables on standard output."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from google.protobuf.message import Message

_SPECIAL = {"google.protobuf.Timestamp", "google.protobuf.Duration"}


def plain(message: Message) -> dict[str, Any]:
    """The message as plain data: proto field names, enums by name, times in RFC 3339, bytes in base64, 64-bit integers as numbers.

    Fields that can be absent (messages, ``optional``) are left out if they are; all others are always there.
    """
    return {
        field.name: _field(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _field(field: Any, value: Any) -> Any:
    if not field.is_repeated:
        return _single(field, value)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        return {str(key): _single(entry, value[key]) for key in sorted(value)}
    return [_single(field, item) for item in value]


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return value.ToJsonString() if field.message_type.full_name in _SPECIAL else plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    if isinstance(value, bytes):
        import base64  # noqa: PLC0415 - no message that is shown has bytes today

        return base64.b64encode(value).decode("ascii")
    return value


def encode(form: str, data: Any, *, stream: bool = False) -> str:
    """Plain data as ``json`` or ``yaml``, ending with a line feed. In a ``stream`` each piece is a line, or a document, of its own."""
    if form == "json":
        import json  # noqa: PLC0415 - one form of several

        return json.dumps(data, indent=None if stream else 2) + "\n"
    import yaml  # noqa: PLC0415 - one form of several

    return str(yaml.safe_dump(data, sort_keys=False, default_flow_style=False, explicit_start=stream, width=10_000))


def write(text: str) -> None:
    """Write to standard output at once.

    Raises:
        BrokenPipeError: nobody reads it any more.
    """
    sys.stdout.write(text)
    sys.stdout.flush()


def lines(rows: Iterable[str]) -> None:
    """Write lines to standard output."""
    write("".join(f"{row}\n" for row in rows))


def show(form: str, items: Sequence[Any], table: Callable[[], Iterable[str]], *, single: bool = False) -> None:
    """Print messages that have a ``name``: the lines of ``table``, names, or a list of them; with ``single`` just the one message."""
    if form == "table":
        lines(table())
    elif form == "name":
        lines(item.name for item in items)
    else:
        data = [plain(item) for item in items]
        write(encode(form, data[0] if single else data))


def width() -> int | None:
    """Columns that fit on a line of the terminal; None if the output goes elsewhere and need not fit."""
    if not sys.stdout.isatty():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except OSError:
        return 80
