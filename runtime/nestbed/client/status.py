"""gRPC's errors -> nestbed's: what ``nestbed.service.status`` sent is raised again as the same class."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, cast

from grpc import StatusCode
from grpc.aio import AioRpcError

from nestbed import errors
from nestbed.errors import NestbedError

SETTLE_SECONDS = 0.5

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "nestbed"

_BY_NAME = {kind.__name__: kind for kind in NestbedError.__subclasses__()}

_BY_CODE: dict[StatusCode, type[NestbedError]] = {
    StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    StatusCode.NOT_FOUND: errors.NotFound,
    StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    StatusCode.FAILED_PRECONDITION: errors.WrongState,
    StatusCode.ABORTED: errors.Busy,
    StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    StatusCode.UNAVAILABLE: errors.Unavailable,
    StatusCode.DEADLINE_EXCEEDED: errors.Deadline,
    StatusCode.DATA_LOSS: errors.CorruptState,
    StatusCode.UNIMPLEMENTED: errors.Unsupported,
    StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
}

_REMEDIES = {
    StatusCode.DEADLINE_EXCEEDED: "allow more time, or see in the log of nestbedd what holds the call up",
    StatusCode.UNIMPLEMENTED: "use a client and a node of the same version",
    StatusCode.INTERNAL: "report it with the node's log: this is a defect of nestbed",
}


async def from_rpc(error: AioRpcError, diagnose: Callable[[], NestbedError]) -> NestbedError:
    """The error to raise for a failed call; ``diagnose`` is asked when the node did not answer at all."""
    told = _told(error)
    if told is not None:
        return told
    code = error.code()
    if code is StatusCode.UNAVAILABLE:
        return await asyncio.to_thread(diagnose)
    kind = _BY_CODE.get(code, NestbedError)
    return kind(error.details() or code.name.lower(), reason=code.name, remedy=_REMEDIES.get(code, ""))


async def from_call(call: Any, error: AioRpcError, diagnose: Callable[[], NestbedError]) -> NestbedError:
    """As :func:`from_rpc`, for a call with a stream of requests.

    When a write meets a call that the node has ended, gRPC makes up a status (INTERNAL, without metadata) that the real one replaces
    as soon as the event loop gets to it.
    """
    if error.code() is StatusCode.INTERNAL and not error.trailing_metadata():
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                while await call.code() is StatusCode.INTERNAL:  # noqa: ASYNC110 - gRPC gives no event for it
                    await asyncio.sleep(SETTLE_SECONDS / 100)
        code, metadata = await call.code(), await call.trailing_metadata()
        if code is StatusCode.INTERNAL and not metadata:  # nobody said why: the node is gone
            code = StatusCode.UNAVAILABLE
        error = AioRpcError(code, await call.initial_metadata(), metadata, await call.details(), None)
    return await from_rpc(error, diagnose)


def _told(error: AioRpcError) -> NestbedError | None:
    """The error as the node described it, if it did."""
    from google.rpc import error_details_pb2, status_pb2  # noqa: PLC0415 - only a failed call needs them

    metadata: Iterable[tuple[str, bytes]] = cast("Any", error.trailing_metadata()) or ()
    for key, value in metadata:
        if key != DETAILS_KEY:
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                values = dict(info.metadata)
                kind = _BY_NAME.get(values.pop("class", ""), _BY_CODE.get(error.code(), NestbedError))
                told = kind(error.details() or "", reason=info.reason, remedy=values.pop("remedy", ""))
                told.metadata.update(values)
                return told
    return None
