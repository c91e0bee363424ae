"""Names of containers and LANs: what they may be, and how callers select by them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from nestbed.errors import InvalidArgument, shown

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_ID = re.compile(r"[0-9a-f]{12}")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_INTERFACES_TAKEN = frozenset({"lo", "all", "default"})
"""``all`` and ``default`` are directories of /proc/sys/net/ipv4/conf: the kernel refuses such names."""
_PATTERNS_MAX = 64
_PATTERN_CHARS_MAX = 256


def check_name(text: str, what: str) -> str:
    """``text`` as the name of a container, LAN or host: ``[A-Za-z0-9][A-Za-z0-9_.-]{0,62}``, ASCII.

    Not ``localhost`` (every ``/etc/hosts`` has that), and nothing that reads like an id.

    Raises:
        InvalidArgument: it is none (reason BAD_NAME).
    """
    if not _NAME.fullmatch(text):
        raise InvalidArgument(
            f"{shown(text)} cannot be the name of a {what}",
            reason="BAD_NAME",
            remedy="use 1 to 63 of A-Z a-z 0-9 _ . - and begin with a letter or digit",
            name=shown(text),
            what=what,
        )
    if text.lower() == "localhost" or _ID.fullmatch(text):
        raise InvalidArgument(
            f"{text} cannot be the name of a {what}: it means something else already",
            reason="BAD_NAME",
            remedy="choose a name other than `localhost` and not of 12 hexadecimal digits, as ids are",
            name=text,
            what=what,
        )
    return text


def check_interface(text: str) -> str:
    """``text`` as the name of an interface inside a container.

    Raises:
        InvalidArgument: the kernel would not take it, or every container has one of that name (reason BAD_INTERFACE_NAME).
    """
    if not _INTERFACE.fullmatch(text) or text in _INTERFACES_TAKEN:
        raise InvalidArgument(
            f"{shown(text)} cannot be the name of an interface",
            reason="BAD_INTERFACE_NAME",
            remedy="use 1 to 15 of A-Z a-z 0-9 _ . - and begin with a letter or digit; lo, all and default are taken",
            name=shown(text),
        )
    return text


class Matcher:
    """Whether a text matches one of some globs; without globs every text does."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._expression = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns)) if patterns else None

    def __call__(self, text: str) -> bool:
        return self._expression is None or self._expression.match(text) is not None


def matcher(patterns: Sequence[str]) -> Matcher:
    """A :class:`Matcher` of patterns that a client sent.

    Raises:
        InvalidArgument: too many or too long ones, or one that is none.
    """
    if len(patterns) > _PATTERNS_MAX or any(len(pattern) > _PATTERN_CHARS_MAX for pattern in patterns):
        raise InvalidArgument(
            f"more than {_PATTERNS_MAX} patterns, or one of more than {_PATTERN_CHARS_MAX} characters",
            reason="TOO_MANY_PATTERNS",
            remedy="give fewer or shorter patterns",
            patterns_max=_PATTERNS_MAX,
            characters_max=_PATTERN_CHARS_MAX,
        )
    try:
        return Matcher(patterns)
    except re.error as error:
        raise InvalidArgument("one of the patterns is none", reason="BAD_PATTERN", remedy="use * ? and [...] as in a shell") from error


class Selection:
    """What a list is narrowed to: globs of names (or beginnings of ids), and labels with their values. Empty selects everything.

    Raises:
        InvalidArgument: as :func:`matcher`.
    """

    def __init__(self, names: Sequence[str], labels: Sequence[tuple[str, str]]) -> None:
        self._is_named = matcher(names)
        self._beginnings = tuple(name for name in names if name and not is_glob(name))
        self._labels = frozenset(labels)

    def takes(self, object_id: str, name: str, labels: Sequence[tuple[str, str]]) -> bool:
        """Whether it selects the object."""
        is_named = self._is_named(name) or (bool(self._beginnings) and object_id.startswith(self._beginnings))
        return is_named and self._labels.issubset(labels)


def chosen(refs: Sequence[str], objects: Iterable[T], *, find: Callable[[str], T], name_of: Callable[[T], str]) -> list[T]:
    """Those of the ``objects`` whose names the globs among ``refs`` match, and those that ``find`` finds for the others; each once.

    Raises:
        InvalidArgument: as :func:`matcher`. What ``find`` raises.
    """
    globs = [ref for ref in refs if is_glob(ref)]
    is_matched = matcher(globs)
    named = [find(ref) for ref in refs if not is_glob(ref)]
    return list(dict.fromkeys((*named, *(one for one in objects if globs and is_matched(name_of(one))))))


def is_id(text: str) -> bool:
    """Whether ``text`` has the form of an id."""
    return _ID.fullmatch(text) is not None


def is_glob(text: str) -> bool:
    """Whether ``text`` is a pattern rather than a name."""
    return any(character in text for character in "*?[")


def by_prefix(prefix: str, ids: Mapping[str, object]) -> list[str]:
    """The ids that begin with ``prefix``, if it may be one."""
    if not prefix or not _ID.fullmatch(prefix.ljust(12, "0")):
        return []
    return [object_id for object_id in ids if object_id.startswith(prefix)]
