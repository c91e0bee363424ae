"""Pagination of lists: a page token is the place of the last item given, so pages stay right while items come and go."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from nestbed.errors import InvalidArgument

SIZE_DEFAULT = 500
SIZE_MAX = 1000
PAGE_BYTES = 2 * 1024 * 1024
"""A page ends early beyond so many bytes: gRPC's clients take messages of 4 MiB unless told otherwise."""


class Message(Protocol):
    """What is put into a page."""

    def ByteSize(self) -> int:
        """Its size on the wire."""
        ...


Item = TypeVar("Item")
M = TypeVar("M", bound=Message)
Place = tuple[float, str]


def page(
    items: Iterable[Item], *, size: int, token: str, place: Callable[[Item], Place], present: Callable[[Item], M]
) -> tuple[list[M], str]:
    """The messages of one page in order of ``place`` (time made, id), and the token of the next page ("" on the last).

    Raises:
        InvalidArgument: a negative size, or a token that no page gave.
    """
    if size < 0:
        raise InvalidArgument(f"page_size: {size} is negative", reason="BAD_PAGE_SIZE", remedy="give 0 to 1000", page_size=size)
    after = _decoded(token) if token else (float("-inf"), "")
    rest = sorted((item for item in items if place(item) > after), key=place)
    messages: list[M] = []
    held = 0
    for item in rest[: min(size or SIZE_DEFAULT, SIZE_MAX)]:
        messages.append(present(item))
        held += messages[-1].ByteSize()
        if held > PAGE_BYTES:
            break
    more = len(messages) < len(rest)
    return messages, _encoded(place(rest[len(messages) - 1])) if more else ""


def _encoded(place: Place) -> str:
    return base64.urlsafe_b64encode(f"{place[0].hex()} {place[1]}".encode()).decode()


def _decoded(token: str) -> Place:
    try:
        at, identifier = base64.b64decode(token, altchars=b"-_", validate=True).decode().split(" ", 1)
        return float.fromhex(at), identifier
    except (binascii.Error, ValueError, OverflowError) as error:
        raise InvalidArgument(
            "page_token: no page ended there", reason="BAD_PAGE_TOKEN", remedy="give the next_page_token of the last response"
        ) from error
