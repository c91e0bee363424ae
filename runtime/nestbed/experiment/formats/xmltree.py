"""A small XML reader that knows where things stand, and takes neither document types nor entities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn
from xml.parsers import expat

from nestbed.errors import InvalidArgument

DEPTH_MAX = 64


@dataclass(slots=True)
class Tag:
    """An element of XML: its children, its text without blanks around, its line and column (from 1)."""

    name: str
    place: tuple[int, int]
    children: list[Tag] = field(default_factory=list)
    text: str = ""

    def all(self, name: str) -> list[Tag]:
        """Its children of that name."""
        return [child for child in self.children if child.name == name]

    def value(self, name: str) -> str:
        """The text of its first child of that name, or nothing."""
        return next((child.text for child in self.children if child.name == name), "")


def parse(text: str, file: str) -> Tag:
    """The root of a document.

    Raises:
        InvalidArgument: it is not XML, or has a document type.
    """
    parser = expat.ParserCreate()
    stack: list[Tag] = [Tag("", (0, 0))]
    pieces: list[str] = []

    def start(name: str, _: dict[str, str]) -> None:
        if len(stack) > DEPTH_MAX:
            refuse("is nested too deeply")
        tag = Tag(name.rpartition(":")[2], (parser.CurrentLineNumber, parser.CurrentColumnNumber + 1))
        stack[-1].children.append(tag)
        stack.append(tag)
        pieces.append("")

    def end(_: str) -> None:
        stack.pop().text = pieces.pop().strip()

    def refuse(why: str, *_: Any) -> NoReturn:
        place = f"{file}:{parser.CurrentLineNumber}:{parser.CurrentColumnNumber + 1}"
        raise InvalidArgument(f"{place}: {why}", reason="NOT_XML", remedy="write plain XML", file=file)

    def data(piece: str) -> None:
        if pieces:
            pieces[-1] += piece

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = data
    parser.StartDoctypeDeclHandler = lambda *_: refuse("a document type is not taken")
    parser.buffer_text = True
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        place = f"{file}:{error.lineno}:{error.offset + 1}"
        raise InvalidArgument(
            f"{place}: is not XML: {expat.ErrorString(error.code)}", reason="NOT_XML", remedy="write XML", file=file
        ) from error
    return stack[0].children[0]
