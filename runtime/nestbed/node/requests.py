"""Recognising a call that comes again: the same request id with the same content means the same object."""

from __future__ import annotations

import hashlib

from nestbed.errors import AlreadyExists
from nestbed.lanmodel import LanRequest
from nestbed.model import ContainerRequest


def digest(request: ContainerRequest | LanRequest, request_id: str) -> str:
    """What tells a request from others with its id; empty without an id."""
    if not request_id:
        return ""
    return hashlib.sha256(repr(request).encode()).hexdigest()


def check_same(request_id: str, recorded: str, wanted: str) -> None:
    """Whether a call with an id that is known asks for what was asked for then.

    Raises:
        AlreadyExists: it asks for something else (reason REQUEST_ID_REUSED).
    """
    if recorded != wanted:
        raise AlreadyExists(
            f"the request id {request_id} made something else already",
            reason="REQUEST_ID_REUSED",
            remedy="use a new request id for a new request",
            request_id=request_id,
        )
