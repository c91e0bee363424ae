"""What does not map from one format to another: refused by name, unless the user said to leave it out."""

from __future__ import annotations

from collections.abc import Collection

from nestbed.errors import InvalidArgument, shown


class Losses:
    """``skipped`` are the words that the user agreed to lose."""

    def __init__(self, file: str, other: str, skipped: Collection[str]) -> None:
        self._file = file
        self._other = other
        self._skipped = frozenset(skipped)

    def is_unwanted(self, word: str) -> bool:
        """Whether the user wants it left out, although it has a counterpart."""
        return word in self._skipped

    def lose(self, word: str, whose: str, place: tuple[int, int] = (0, 0)) -> None:
        """``word`` of ``whose`` has no counterpart.

        Raises:
            InvalidArgument: and it is not to be left out.
        """
        if word in self._skipped:
            return
        where = f"{self._file}:{place[0]}:{place[1]}" if place[0] else self._file
        raise InvalidArgument(
            f"{where}: {whose} has {shown(word)}, which has no counterpart in {self._other}",
            reason="DOES_NOT_MAP",
            remedy=f"give --skip {word} to leave it out",
            word=shown(word),
            file=self._file,
            line=place[0],
            column=place[1],
        )
