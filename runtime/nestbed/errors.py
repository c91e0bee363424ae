"""The one error tree of nestbed.

A class exists only where a caller would act differently::

    NestbedError
     +- InvalidArgument      the request itself is wrong, whatever the state      INVALID_ARGUMENT
     +- NotFound             the named thing does not exist                       NOT_FOUND
     +- AlreadyExists        the name or address is taken                         ALREADY_EXISTS
     +- WrongState           right request, wrong moment                          FAILED_PRECONDITION
     +- HostLacks            this machine or kernel cannot do it                  FAILED_PRECONDITION
     +- Busy                 another operation holds the thing; try again         ABORTED
     +- ResourceExhausted    a limit of the node or of the request is reached     RESOURCE_EXHAUSTED
     +- Unavailable          a part of nestbed is restarting; try again           UNAVAILABLE
     +- Deadline             it took longer than was allowed                      DEADLINE_EXCEEDED
     +- CorruptState         a record on disk cannot be read                      DATA_LOSS
     +- Unsupported          nestbed does not do this (yet)                       UNIMPLEMENTED
     +- Unauthenticated      who is calling cannot be told (the edge only)        UNAUTHENTICATED
     +- PermissionDenied     the role may not do this (the edge only)             PERMISSION_DENIED

The mapping to gRPC codes stands in ``nestbed.service`` alone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class NestbedError(Exception):
    """An error with a cause for people, a remedy, and a stable reason for programs.

    ``message`` is one line that says what happened to whom; ``reason`` is UPPER_SNAKE_CASE and never changes;
    ``remedy`` is one line that says what to do (may be empty); every value in ``message`` is in ``metadata``.
    """

    default_reason = "ERROR"

    def __init__(self, message: str, *, reason: str = "", remedy: str = "", **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.remedy = remedy
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}


class InvalidArgument(NestbedError):
    """The request is wrong in itself."""

    default_reason = "INVALID_ARGUMENT"


class NotFound(NestbedError):
    """The named thing does not exist."""

    default_reason = "NOT_FOUND"


class AlreadyExists(NestbedError):
    """The name, address or directory is taken."""

    default_reason = "ALREADY_EXISTS"


class WrongState(NestbedError):
    """The thing is not in a state in which this can be done."""

    default_reason = "WRONG_STATE"


class HostLacks(NestbedError):
    """This machine or its kernel lacks what is needed."""

    default_reason = "HOST_LACKS"


class Busy(NestbedError):
    """Another operation on the same thing is under way."""

    default_reason = "BUSY"


class ResourceExhausted(NestbedError):
    """A bound of the node, the kernel or the request is reached."""

    default_reason = "RESOURCE_EXHAUSTED"


class Unavailable(NestbedError):
    """A part of nestbed is away for a moment; the same call may succeed later."""

    default_reason = "UNAVAILABLE"


class Deadline(NestbedError):
    """The operation took longer than it was given."""

    default_reason = "DEADLINE"


class CorruptState(NestbedError):
    """A record of nestbed cannot be understood."""

    default_reason = "CORRUPT_STATE"


class Unsupported(NestbedError):
    """nestbed does not offer this for this kind of thing."""

    default_reason = "UNSUPPORTED"


class Unauthenticated(NestbedError):
    """The caller cannot be identified."""

    default_reason = "UNAUTHENTICATED"


class PermissionDenied(NestbedError):
    """The caller's role does not allow the call."""

    default_reason = "PERMISSION_DENIED"


_SHOWN_CHARS_MAX = 64

_BY_ERRNO: dict[int, tuple[type[NestbedError], str, str]] = {
    errno.ENOENT: (NotFound, "NOT_FOUND", "check the path or name"),
    errno.EEXIST: (AlreadyExists, "ALREADY_EXISTS", "choose another name or remove the old one"),
    errno.EACCES: (PermissionDenied, "PERMISSION_DENIED", "check the owner and mode of the path"),
    errno.EPERM: (HostLacks, "NOT_PERMITTED", "run nestbedd as root, and see what `nbctl info` says this machine lacks"),
    errno.ENOSPC: (ResourceExhausted, "NO_SPACE", "free space on the file system that holds the state directory"),
    errno.EDQUOT: (ResourceExhausted, "NO_SPACE", "raise the quota of the file system that holds the state directory"),
    errno.EMFILE: (ResourceExhausted, "TOO_MANY_FILES", "raise the daemon's limit of open files"),
    errno.ENFILE: (ResourceExhausted, "TOO_MANY_FILES", "raise fs.file-max"),
    errno.ENOMEM: (ResourceExhausted, "NO_MEMORY", "free memory or lower the limits asked for"),
    errno.EAGAIN: (ResourceExhausted, "TOO_MANY_PROCESSES", "raise kernel.pid_max or end some processes"),
    errno.EBUSY: (Busy, "BUSY", "try again in a moment"),
    errno.EOPNOTSUPP: (HostLacks, "KERNEL_LACKS", "see what `nbctl info` says this kernel lacks"),
    errno.ENOSYS: (HostLacks, "KERNEL_LACKS", "see what `nbctl info` says this kernel lacks"),
    errno.EROFS: (WrongState, "READ_ONLY", "choose a path on a writable file system"),
    errno.EINVAL: (InvalidArgument, "REFUSED_BY_KERNEL", "check the value against what this kernel allows"),
}


def from_errno(number: int, doing: str, **metadata: object) -> NestbedError:
    """The error that stands for errno ``number`` met while ``doing`` something; never raises."""
    kind, reason, remedy = _BY_ERRNO.get(number, (HostLacks, "SYSTEM_ERROR", "see the daemon's log"))
    name = errno.errorcode.get(number, str(number))
    metadata.setdefault("errno", name)
    return kind(f"{doing}: {_describe(number)} ({name})", reason=reason, remedy=remedy, **metadata)


def shown(text: str) -> str:
    """``text`` from outside as it may stand in a message: at most 64 characters of it, none of them a control character."""
    cut = text if len(text) <= _SHOWN_CHARS_MAX else text[: _SHOWN_CHARS_MAX - 3] + "..."
    return cut if cut and cut.isprintable() else repr(cut)


def _describe(number: int) -> str:
    return os.strerror(number).lower()


@contextmanager
def translated(doing: str, **metadata: object) -> Iterator[None]:
    """Turn an OSError raised in the block into the NestbedError of its errno, chained. Others pass."""
    try:
        yield
    except OSError as error:
        raise from_errno(error.errno or 0, doing, **metadata) from error
