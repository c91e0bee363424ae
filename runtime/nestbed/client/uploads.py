"""Sending a file: a message with ``start``, then its bytes."""

from __future__ import annotations

from asyncio import InvalidStateError
from collections.abc import AsyncIterable, Callable
from contextlib import suppress
from typing import Any

from grpc import aio

from nestbed.client.session import CHUNK_BYTES
from nestbed.client.status import from_call
from nestbed.errors import NestbedError


async def upload(
    call: Any, message: Callable[..., Any], start: object, chunks: AsyncIterable[bytes], diagnose: Callable[[], NestbedError]
) -> Any:
    """The answer to a call whose messages hold ``start`` or ``data``; it is ended if this is cancelled.

    Raises:
        what the node answers with; as ``nestbed.client.status.from_rpc``.
    """
    try:
        with suppress(aio.AioRpcError, InvalidStateError):  # the node has refused it; the answer tells why
            await call.write(message(start=start))
            async for chunk in chunks:
                for begin in range(0, len(chunk), CHUNK_BYTES):
                    await call.write(message(data=chunk[begin : begin + CHUNK_BYTES]))
            await call.done_writing()
        return await call
    except aio.AioRpcError as error:
        raise await from_call(call, error, diagnose) from error
    finally:
        call.cancel()
