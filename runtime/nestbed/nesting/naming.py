"""Names that are paths, in requests and answers: found by the option ``naming`` of the API's fields, whatever the method. Pure.

``vm1/vm2/web`` is ``vm2/web`` on the node inside ``vm1``. A request that names something by a path is for the node its first part
names, and goes there without that part; what that node answers gets it back.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from nestbed.errors import InvalidArgument, NestbedError, shown
from nestbed.v1 import naming_pb2

SEPARATOR = "/"

_PATH_CHARS_MAX = 1024
_NAMED_IN_ERRORS = ("container", "name", "lan")
"""Keys of an error's metadata that hold names."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    naming: int
    is_repeated: bool


@functools.cache
def _fields(descriptor: Descriptor, above: tuple[str, ...] = ()) -> tuple[tuple[_Field, ...], tuple[_Field, ...]]:
    """The fields of a message that name something, and those that hold messages which do."""
    names, messages = [], []
    for field in descriptor.fields:
        naming = cast("int", field.GetOptions().Extensions[naming_pb2.naming])
        entry = _Field(field.name, naming, bool(field.is_repeated))
        inner = field.message_type if field.type == FieldDescriptor.TYPE_MESSAGE else None
        if naming:
            names.append(entry)
        elif inner is not None and not inner.GetOptions().map_entry and inner.full_name not in above:
            found = _fields(inner, (*above, descriptor.full_name))
            if found[0] or found[1]:
                messages.append(entry)
    return tuple(names), tuple(messages)


def _each(message: Any) -> Iterator[tuple[Any, _Field]]:
    """Every field of a message, or of one in it, that names something."""
    names, messages = _fields(message.DESCRIPTOR)
    for field in names:
        yield message, field
    for field in messages:
        if field.is_repeated:
            for inner in getattr(message, field.name):
                yield from _each(inner)
        elif message.HasField(field.name):
            yield from _each(getattr(message, field.name))


def is_concerned(descriptor: Descriptor) -> bool:
    """Whether messages of this kind may name something."""
    return any(_fields(descriptor))


def head_of(message: Any) -> str:
    """The first part of the paths in a request; empty if it holds none, and is for the node itself.

    Raises:
        InvalidArgument: two paths that begin differently (reason SEVERAL_NODES), or one that is too long.
    """
    found = ""
    for holder, field in _each(message):
        text = getattr(holder, field.name)
        head, separator, _ = text.partition(SEPARATOR)
        if not head or not (separator or field.naming == naming_pb2.NAMING_NODE):
            continue
        if len(text) > _PATH_CHARS_MAX:
            raise InvalidArgument(f"the path {shown(text)} is too long", reason="BAD_NAME", remedy="see `nbctl node ls`", name=shown(text))
        if found and head != found:
            raise InvalidArgument(
                f"the request names things on two nodes, {shown(found)} and {shown(head)}",
                reason="SEVERAL_NODES",
                remedy="name one node's at a time",
                node=shown(found),
                other=shown(head),
            )
        found = head
    return found


def strip(message: Any) -> Any:
    """A request without the first part of its paths: a copy."""
    copy = type(message)()
    copy.CopyFrom(message)
    for holder, field in _each(copy):
        text = getattr(holder, field.name)
        _, separator, rest = text.partition(SEPARATOR)
        if separator or field.naming == naming_pb2.NAMING_NODE:
            setattr(holder, field.name, rest)
    return copy


def prefix(message: Any, name: str, machine_id: str) -> Any:
    """An answer of the node in the machine of this name and id, seen from outside: changed in place."""
    for holder, field in _each(message):
        text = getattr(holder, field.name)
        if text:
            setattr(holder, field.name, joined(machine_id if field.naming == naming_pb2.NAMING_ID else name, text))
    return message


def joined(*parts: str) -> str:
    """The path of these parts; empty ones are left out."""
    return SEPARATOR.join(part for part in parts if part)


def own_share(names: Sequence[str]) -> list[str] | None:
    """Of the names and globs of a request those for the node itself; None if none of them is, an empty list for all it has."""
    own = [name for name in names if SEPARATOR not in name]
    return own if own or not names else None


def share_of(names: Sequence[str], name: str, machine_id: str) -> list[str] | None:
    """The same for the node in a machine."""
    if not names:
        return []
    split = [text.partition(SEPARATOR) for text in names]
    found = [rest for head, separator, rest in split if separator and _means(head, name, machine_id)]
    return found or None


def _means(head: str, name: str, machine_id: str) -> bool:
    return fnmatchcase(name, head) or (bool(head) and machine_id.startswith(head))


def outside(error: NestbedError, name: str) -> NestbedError:
    """An error of the node in the machine of this name, seen from outside: the names in it are paths, ``node`` says where it was."""
    told = error.metadata
    names = {str(told[key]) for key in _NAMED_IN_ERRORS if told.get(key)}
    seen = functools.partial(_renamed, names, lambda text: joined(name, text))
    found = type(error)(seen(error.message), reason=error.reason, remedy=seen(error.remedy))
    found.metadata.update({key: joined(name, str(value)) if key in _NAMED_IN_ERRORS and value else value for key, value in told.items()})
    found.metadata["node"] = joined(name, str(told.get("node", "")))
    return found


def _renamed(names: set[str], change: Callable[[str], str], text: str) -> str:
    """``text`` with the names changed where they stand behind a word that says that they are some."""
    if not names:
        return text
    listed = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    behind = r"(\b(?:container|LAN|nbctl(?: lan)? [a-z]+(?: -[a-z]+)?) )"
    return re.sub(rf"{behind}({listed})(?![\w./-]*[\w/-])", lambda found: found[1] + change(found[2]), text)
