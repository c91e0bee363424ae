"""Where the words of a file stand: every mistake is told with file, line and column, and with the nearest right word.

A *path* is what leads to a word: ``("elements", "web", "nics", 0, "lan")``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from nestbed.errors import InvalidArgument, shown

Path: TypeAlias = tuple[str | int, ...]


@dataclass(slots=True)
class Source:
    """One file: its name, and the line and column (from 1) of each path that was read."""

    name: str
    marks: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def place(self, path: Path) -> tuple[int, int]:
        """Line and column of the path, or of the nearest one above it that is known; (0, 0) if none is."""
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path, (0, 0))

    def mistake(self, path: Path, message: str, *, reason: str, remedy: str = "", **metadata: object) -> InvalidArgument:
        """The refusal of what stands at ``path``."""
        return self.mistake_at(self.place(path), message, reason=reason, remedy=remedy, **metadata)

    def mistake_at(self, place: tuple[int, int], message: str, *, reason: str, remedy: str = "", **metadata: object) -> InvalidArgument:
        """The refusal of what stands at a line and column."""
        line, column = place
        where = f"{self.name}:{line}:{column}" if line else self.name
        return InvalidArgument(f"{where}: {message}", reason=reason, remedy=remedy, file=self.name, line=line, column=column, **metadata)

    @contextmanager
    def telling(self, path: Path, about: str = "") -> Iterator[None]:
        """What the block refuses is told with the place of ``path``, after the words ``about``."""
        try:
            yield
        except InvalidArgument as error:
            raise self.mistake(path, about + error.message, reason=error.reason, remedy=error.remedy, **error.metadata) from error

    def unknown(self, path: Path, what: str, word: str, known: Iterable[str], *, reason: str) -> InvalidArgument:
        """The refusal of a word that is none of ``known``."""
        return self.mistake(path, f"{what} {shown(word)}", reason=reason, remedy=nearest_remedy(word, known), word=shown(word))


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that ``word`` was probably meant to be, or nothing."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return found[0] if found else ""


def nearest_remedy(word: str, known: Iterable[str]) -> str:
    """The remedy that names the nearest right word, or all of them."""
    words = list(known)
    meant = nearest(word, words)
    if meant:
        return f"did you mean {meant}?"
    return "there is none to choose from" if not words else "known are: " + ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")
