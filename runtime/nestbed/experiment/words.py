"""How words of a topology file are declared, read and described: from one declaration come the reader and the JSON Schema.

A type reads a node of YAML into a value and tells its JSON Schema. A record is a frozen dataclass whose fields are made by
:func:`word`. Values stand as they will be used (a duration is a number), lists are tuples, mappings are dictionaries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from typing import Any, Protocol

import yaml

from nestbed.errors import InvalidArgument, shown
from nestbed.experiment.source import Path, Source, nearest_remedy

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where PyYAML was built with it: ten times as fast."""

FILE_BYTES_MAX = 16 * 1024 * 1024


class Type(Protocol):
    """What may stand in a place."""

    def read(self, node: yaml.Node, path: Path, source: Source) -> Any:
        """The value.

        Raises:
            InvalidArgument: with file, line and column.
        """

    def schema(self, definitions: dict[str, Any], /) -> dict[str, Any]:
        """Its JSON Schema; records are added to ``definitions``."""


def word(kind: Type, doc: str, default: Any = MISSING, *, key: str = "") -> Any:
    """A field of a record: its type, what it means, and what it is when it is left out (required without)."""
    metadata = {"type": kind, "doc": doc, "key": key}
    if default is MISSING:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def load(text: str, name: str, kind: type, *, source: Source | None = None) -> tuple[Any, Source]:
    """The record ``kind`` that the YAML ``text`` of the file ``name`` holds, and where its words stand.

    Raises:
        InvalidArgument: with file, line and column.
    """
    source = source or Source(name)
    if len(text) > FILE_BYTES_MAX:
        raise source.mistake((), "is larger than 16 MiB", reason="FILE_TOO_LARGE", remedy="write ranges such as bot[1-40]")
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        problem = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise source.mistake_at(place, f"is not YAML: {problem}", reason="NOT_YAML", remedy="see https://yaml.org/spec/1.2") from error
    except (yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise source.mistake((), f"is not YAML: {problem}", reason="NOT_YAML", remedy="see https://yaml.org/spec/1.2") from error
    if node is None:
        raise source.mistake((), "is empty", reason="EMPTY_FILE", remedy="see docs/experiments.md for what it holds")
    return Record(kind).read(node, (), source), source


def note(node: yaml.Node, path: Path, source: Source) -> None:
    """Remember where ``path`` stands."""
    source.marks[path] = (node.start_mark.line + 1, node.start_mark.column + 1)


def _wrong(node: yaml.Node, path: Path, source: Source, wanted: str) -> InvalidArgument:
    note(node, path, source)
    found = (
        "a mapping" if isinstance(node, yaml.MappingNode) else "a list" if isinstance(node, yaml.SequenceNode) else shown(str(node.value))
    )
    last = next((str(part) for part in reversed(path) if isinstance(part, str)), "the file")
    return source.mistake(path, f"{last} is {found}, not {wanted}", reason="WRONG_TYPE", remedy=f"write {wanted}")


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text that ``parse`` makes a value of; its ValueError completes the sentence "KEY VALUE ..."."""

    wanted: str
    parse: Callable[[str], Any]
    described: Mapping[str, Any]

    def read(self, node: yaml.Node, path: Path, source: Source) -> Any:
        note(node, path, source)
        if not isinstance(node, yaml.ScalarNode) or node.tag.endswith(":null"):
            raise _wrong(node, path, source, self.wanted)
        try:
            with source.telling(path):
                return self.parse(node.value)
        except ValueError as error:
            last = next((part for part in reversed(path) if isinstance(part, str)), "the file")
            what = shown(node.value) if last == node.value else f"{last} {shown(node.value)}"  # keys are values of their own
            raise source.mistake(
                path, f"{what} {error}", reason="BAD_VALUE", remedy=f"write {self.wanted}", value=shown(node.value)
            ) from error

    def schema(self, _: dict[str, Any], /) -> dict[str, Any]:
        return dict(self.described)


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of some words."""

    words: tuple[str, ...]

    def read(self, node: yaml.Node, path: Path, source: Source) -> str:
        note(node, path, source)
        if not isinstance(node, yaml.ScalarNode):
            raise _wrong(node, path, source, "one of " + ", ".join(self.words))
        if node.value not in self.words:
            raise source.unknown(path, f"{path[-1]} cannot be", node.value, self.words, reason="UNKNOWN_WORD")
        return str(node.value)

    def schema(self, _: dict[str, Any], /) -> dict[str, Any]:
        return {"enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list; a single thing stands for a list of one."""

    item: Type

    def read(self, node: yaml.Node, path: Path, source: Source) -> tuple[Any, ...]:
        note(node, path, source)
        if not isinstance(node, yaml.SequenceNode):
            return (self.item.read(node, (*path, 0), source),)
        return tuple(self.item.read(child, (*path, index), source) for index, child in enumerate(node.value))

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        item = self.item.schema(definitions)
        return {"anyOf": [item, {"type": "array", "items": item}]}


@dataclass(frozen=True, slots=True)
class Command:
    """A program and its arguments as a list, or a text for the shell."""

    def read(self, node: yaml.Node, path: Path, source: Source) -> tuple[str, ...]:
        note(node, path, source)
        if isinstance(node, yaml.ScalarNode) and node.value:
            return ("/bin/sh", "-c", node.value)
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise _wrong(node, path, source, "a list of a program and its arguments, or a text for the shell")
        return tuple(TEXT.read(child, (*path, index), source) for index, child in enumerate(node.value))

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": TEXT.schema(definitions), "minItems": 1}]}


@dataclass(frozen=True, slots=True)
class MapOf:
    """A mapping from names to ``value``; a name twice is a mistake."""

    value: Type
    key: Scalar

    def read(self, node: yaml.Node, path: Path, source: Source) -> dict[Any, Any]:
        note(node, path, source)
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(node, path, source, "a mapping")
        found: dict[Any, Any] = {}
        for key, child in node.value:
            if key.value in found:
                raise _twice(key, path, source)
            name = self.key.read(key, (*path, str(key.value)), source)
            found[name] = self.value.read(child, (*path, name), source)
            note(key, (*path, name), source)
        return found

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.value.schema(definitions)}


@dataclass(frozen=True, slots=True)
class Record:
    """A mapping with known words; with ``short`` a scalar stands for the record that has only that word. Empty is all defaults."""

    kind: type
    short: str = ""

    def read(self, node: yaml.Node, path: Path, source: Source) -> Any:
        note(node, path, source)
        fields = _fields(self.kind)
        if isinstance(node, yaml.ScalarNode) and (node.tag.endswith(":null") or (self.short and node.value)):
            given = {} if node.tag.endswith(":null") else {self.short: fields[self.short].metadata["type"].read(node, path, source)}
            return self._make(given, fields, path, source)
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(node, path, source, "a mapping")
        found: dict[str, Any] = {}
        for key, child in node.value:
            here = (*path, str(key.value))
            if key.value in found:
                raise _twice(key, path, source)
            note(key, here, source)
            field = fields.get(key.value) if isinstance(key, yaml.ScalarNode) else None
            if field is None:
                what = ".".join(map(str, path)) or "the file"
                raise source.mistake(
                    here,
                    f"{shown(what)} knows no word {shown(str(key.value))}",
                    reason="UNKNOWN_KEY",
                    remedy=nearest_remedy(str(key.value), fields),
                )
            found[key.value] = field.metadata["type"].read(child, here, source)
            if not isinstance(child, yaml.ScalarNode):
                note(key, here, source)
        return self._make(found, fields, path, source)

    def _make(self, found: dict[str, Any], fields: Mapping[str, dataclasses.Field[Any]], path: Path, source: Source) -> Any:
        for key, field in fields.items():
            if key not in found and field.default is MISSING and field.default_factory is MISSING:
                raise source.mistake(
                    path, f"the word {key} is missing", reason="MISSING_KEY", remedy=f"{key}: {field.metadata['doc']}", key=key
                )
        return self.kind(**{fields[key].name: value for key, value in found.items()})

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        name = self.kind.__name__
        reference = {"$ref": f"#/$defs/{name}"}
        if name not in definitions:
            definitions[name] = {}
            fields = _fields(self.kind)
            definitions[name] = {
                "description": " ".join((self.kind.__doc__ or "").split()),
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    key: {"description": f.metadata["doc"], **f.metadata["type"].schema(definitions)} for key, f in fields.items()
                },
                "required": [key for key, f in fields.items() if f.default is MISSING and f.default_factory is MISSING],
            }
        choices: list[dict[str, Any]] = [reference]
        if self.short:
            choices.append(_fields(self.kind)[self.short].metadata["type"].schema(definitions))
        elif not definitions[name].get("required"):
            choices.append({"type": "null"})
        return reference if len(choices) == 1 else {"anyOf": choices}


def _twice(key: yaml.Node, path: Path, source: Source) -> InvalidArgument:
    here = (*path, str(key.value))
    first = source.place(here)
    place = (key.start_mark.line + 1, key.start_mark.column + 1)
    return source.mistake_at(
        place,
        f"{shown(str(key.value))} stands here for a second time",
        reason="DUPLICATE_KEY",
        remedy=f"it stands in line {first[0]} already",
    )


_FIELDS: dict[type, dict[str, dataclasses.Field[Any]]] = {}


def _fields(kind: type) -> dict[str, dataclasses.Field[Any]]:
    if kind not in _FIELDS:
        _FIELDS[kind] = {field.metadata["key"] or field.name: field for field in dataclasses.fields(kind)}
    return _FIELDS[kind]


def keys(kind: type) -> list[str]:
    """The words of a record."""
    return list(_fields(kind))


def json_schema(kind: type, title: str) -> dict[str, Any]:
    """The JSON Schema of a file that holds the record ``kind``."""
    definitions: dict[str, Any] = {}
    reference = Record(kind).schema(definitions)
    root = reference.get("$ref") or reference["anyOf"][0]["$ref"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, "$ref": root, "$defs": definitions}


# ---------------------------------------------------------------- scalars that several files use


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


def _flag(text: str) -> bool:
    try:
        return {"yes": True, "true": True, "no": False, "false": False}[text.lower()]
    except KeyError:
        raise ValueError("is neither yes nor no") from None


def whole(least: int, most: int) -> Scalar:
    """A whole number."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 19 and least <= int(text) <= most):
            raise ValueError(f"is no whole number from {least} to {most}")
        return int(text)

    return Scalar(f"a whole number from {least} to {most}", parse, {"type": "integer", "minimum": least, "maximum": most})


def _positive(text: str) -> float:
    number = float(text) if len(text) < 20 and text.replace(".", "", 1).isdecimal() else 0.0
    if number <= 0:
        raise ValueError("is no number above 0")
    return number


def quantity(wanted: str, parse: Callable[[str], Any]) -> Scalar:
    """A number with a unit."""
    return Scalar(wanted, parse, {"type": ["string", "number"], "examples": [wanted.partition(" such as ")[2].split(",")[0]]})


TEXT = Scalar("a text", _text, {"type": ["string", "number", "boolean"]})
FLAG = Scalar("yes or no", _flag, {"type": "boolean"})
POSITIVE = Scalar("a number above 0", _positive, {"type": "number", "exclusiveMinimum": 0})
