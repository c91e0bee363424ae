"""Streams of requests: a message with ``start``, then messages with ``data`` for calls that take files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from nestbed.errors import InvalidArgument, NestbedError

_DRAIN_SECONDS = 10.0


async def started(requests: AsyncIterator[Any]) -> Any:
    """The ``start`` that a stream begins with.

    Raises:
        InvalidArgument: it begins otherwise (reason START_EXPECTED).
    """
    first = await anext(requests, None)
    if first is None or not first.HasField("start"):
        raise InvalidArgument("the first message must hold `start`", reason="START_EXPECTED", remedy="send `start` first")
    return first.start


@asynccontextmanager
async def upload(requests: AsyncIterator[Any]) -> AsyncIterator[AsyncIterator[bytes]]:
    """The data of the messages that follow ``start``, for the block.

    If the block refuses them, what still comes is read first: to a client of gRPC in Python whose write meets the end of its call the
    reason for that end is lost.

    Raises:
        InvalidArgument: something else follows (reason BAD_STREAM), while the data are read.
    """
    try:
        yield _data(requests)
    except NestbedError:
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                async for _ in requests:
                    pass
        raise


async def _data(requests: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("input") != "data":
            raise InvalidArgument("only data may follow `start`", reason="BAD_STREAM", remedy="send one `start`, then `data`")
        yield request.data
