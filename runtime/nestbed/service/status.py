"""Errors -> gRPC statuses, in one place: ``google.rpc.Status`` with an ErrorInfo in the trailing metadata.

The ErrorInfo has domain ``nestbed``, the error's reason, and its metadata together with ``class`` (the error's class, for the codes that
two classes share) and ``remedy``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from nestbed import errors
from nestbed.errors import NestbedError
from nestbed.service.present import text, texts

logger = logging.getLogger(__name__)

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "nestbed"

CODES: dict[type[NestbedError], StatusCode] = {
    errors.InvalidArgument: StatusCode.INVALID_ARGUMENT,
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.AlreadyExists: StatusCode.ALREADY_EXISTS,
    errors.WrongState: StatusCode.FAILED_PRECONDITION,
    errors.HostLacks: StatusCode.FAILED_PRECONDITION,
    errors.Busy: StatusCode.ABORTED,
    errors.ResourceExhausted: StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: StatusCode.UNAVAILABLE,
    errors.Deadline: StatusCode.DEADLINE_EXCEEDED,
    errors.CorruptState: StatusCode.DATA_LOSS,
    errors.Unsupported: StatusCode.UNIMPLEMENTED,
    errors.Unauthenticated: StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: StatusCode.PERMISSION_DENIED,
}

TEXT_MAX = 1000
"""Characters of a message or of a metadata value: HTTP/2 header lists are bounded, and clients drop what is longer."""

TRAILER_BYTES_MAX = 6000
"""Of the status in the trailing metadata; gRPC refuses header lists above 8 KiB."""

_INTERNAL = NestbedError(
    "nestbed met a defect of its own and did not finish the call",
    reason="INTERNAL",
    remedy="report it with the daemon's log, where the cause stands",
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call ends that failed."""

    code: StatusCode
    message: str
    trailer: tuple[tuple[str, bytes], ...]


def refusal(error: Exception) -> Refusal:
    """The end of a call that raised ``error``. What is not a NestbedError is a defect: logged here, told neutrally."""
    found = cause(error)
    code = next((CODES[kind] for kind in type(found).__mro__ if kind in CODES), None) if isinstance(found, NestbedError) else None
    if code is None or not isinstance(found, NestbedError):
        logger.error("call met a defect", exc_info=error)
        return _refusal(StatusCode.INTERNAL, _INTERNAL)
    return _refusal(code, found)


def cause(error: BaseException) -> BaseException:
    """The first error in a group of errors of concurrent tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _refusal(code: StatusCode, error: NestbedError) -> Refusal:
    message = _short(error.message)
    values = {"class": type(error).__name__, "remedy": _short(error.remedy)}
    budget = TRAILER_BYTES_MAX - sum(len(value.encode()) for value in (message, *values.values()))
    for key, value in texts(error.metadata).items():
        value = _short(value)  # noqa: PLW2901 - nothing else may be used below
        budget -= len(key.encode()) + len(value.encode())
        if budget < 0:
            break
        values.setdefault(key, value)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=values)
    packed = any_pb2.Any()
    packed.Pack(info)
    status = status_pb2.Status(code=code.value[0], message=message, details=[packed])
    return Refusal(code, message, ((DETAILS_KEY, status.SerializeToString()),))


def _short(value: str) -> str:
    """``value`` on one line, of a bounded length."""
    line = " ".join(text(value[: 2 * TEXT_MAX]).split())
    return line if len(line) <= TEXT_MAX else line[: TEXT_MAX - 1] + "…"
