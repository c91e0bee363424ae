"""Frozen dataclasses as plain JSON data, and back: how the values of ``nestbed.model`` and others become records."""

from __future__ import annotations

import dataclasses
import enum
import functools
import typing
from pathlib import Path
from typing import Any, TypeVar

from nestbed.errors import CorruptState

T = TypeVar("T")


_PLAIN = frozenset([str, int, float, bool, type(None)])


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def to_json(value: Any) -> Any:
    """Plain JSON data of a value of this module: dataclasses as objects, tuples as lists, enums and paths as text."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if dataclasses.is_dataclass(kind):
        return {name: to_json(getattr(value, name)) for name in _field_names(kind)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    return value


def from_json(kind: type[T], data: Any) -> T:
    """The value of class ``kind`` that :func:`to_json` wrote. Unknown keys are ignored (a newer daemon wrote them).

    Raises:
        CorruptState: a field is missing or of the wrong type.
    """
    try:
        return typing.cast(T, _read(kind, data))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptState(f"record of {kind.__name__} cannot be read: {error}", reason="CORRUPT_RECORD", kind=kind.__name__) from error


_HINTS: dict[type, dict[str, Any]] = {}


def _read_fields(kind: type, data: Any) -> Any:
    hints = _HINTS.get(kind)
    if hints is None:
        hints = _HINTS[kind] = typing.get_type_hints(kind)
    if not isinstance(data, dict):
        raise TypeError(f"an object was expected, not {type(data).__name__}")
    return kind(**{name: _read(hint, data[name]) for name, hint in hints.items() if name in data})


def _read(kind: Any, data: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin is tuple:
        args = typing.get_args(kind)
        if not isinstance(data, list):
            raise TypeError(f"a list was expected, not {type(data).__name__}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_read(args[0], item) for item in data)
        return tuple(_read(arg, item) for arg, item in zip(args, data, strict=True))
    if origin is not None:  # X | None
        return None if data is None else _read(next(arg for arg in typing.get_args(kind) if arg is not type(None)), data)
    if dataclasses.is_dataclass(kind):
        return _read_fields(typing.cast(type, kind), data)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    if kind is float and isinstance(data, int):
        return float(data)
    if kind in (str, int, float, bool) and type(data) is not kind:
        raise TypeError(f"{kind.__name__} was expected, not {type(data).__name__}")
    return data
