"""What the containers of one runtime share, and the translation of the keeper's words."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nestbed.errors import (
    Busy,
    HostLacks,
    InvalidArgument,
    NestbedError,
    NotFound,
    ResourceExhausted,
    Unavailable,
    WrongState,
    from_errno,
    shown,
)
from nestbed.model import ExitStatus, Kind, RestartMode, RestartPolicy, State, Status
from nestbed.process.keeper_client import KeeperClient, KeeperError, Reply
from nestbed.process.limits import Cgroups
from nestbed.process.lookup import not_executable, program_not_found
from nestbed.process.ports import Ports
from nestbed.refusals import already_running, not_running
from nestbed.runtime import StatusListener

T = TypeVar("T")

_EMPTY_TRIES, _EMPTY_SECONDS = 10, 0.002

_STATES = {"created": State.CREATED, "running": State.RUNNING, "restarting": State.RESTARTING, "stopped": State.STOPPED}
_EXHAUSTED = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EUSERS)


@dataclass(slots=True)
class Parts:
    """The keeper, the cgroups, the ports, and who wants to know of every change."""

    keeper: KeeperClient
    cgroups: Cgroups
    ports: Ports
    listeners: Mapping[Kind, StatusListener]
    """By the kind of a container's spec."""
    forget: Callable[[str], object]
    """Called with the id of a container that was destroyed."""
    keeper_back: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while there is a keeper that knows all containers."""

    async def call(self, operation: str, container_id: str, *, fds: Sequence[int] = (), **arguments: object) -> Reply:
        """Ask the keeper something about a container; its refusals become errors for the caller.

        Raises:
            WrongState: it does not run, or runs already. Unavailable: there is no keeper. HostLacks, ResourceExhausted: it failed.
        """
        try:
            return await self.keeper.call(operation, fds=fds, id=container_id, **arguments)
        except KeeperError as error:
            raise translated_answer(error, container_id) from error

    async def release(self, container_id: str) -> None:
        """Make the keeper forget a container that does not run. Idempotent."""
        (await self.insist(lambda: self.call("release", container_id))).close()

    async def remove_cgroups(self, container_id: str) -> None:
        """Remove the cgroups of a container whose programs have ended; the kernel may need a moment to let the last of them go.

        Raises:
            Busy: something goes on in them.
        """
        for number in range(_EMPTY_TRIES):
            try:
                self.cgroups.remove(container_id)
            except Busy:
                if number == _EMPTY_TRIES - 1:
                    raise
                self.cgroups.kill(container_id)
                await asyncio.sleep(_EMPTY_SECONDS * 2**number)
            else:
                return

    async def insist(self, doing: Callable[[], Awaitable[T]]) -> T:
        """``doing``, again with the next keeper whenever one goes away meanwhile: for what may be done twice.

        Raises:
            Unavailable: there will be no next one. What ``doing`` raises.
        """
        while True:
            await self.keeper_back.wait()
            try:
                return await doing()
            except Unavailable:
                if self.keeper_back.is_set():
                    raise


def status_of(entry: dict[str, Any]) -> Status:
    """The status that the keeper tells or wrote into ``status.json``."""
    ended = entry["exit"]
    return Status(
        state=_STATES[entry["state"]],
        pid=entry["pid"],
        started_at=entry["started_at"],
        exit=None if ended is None else ExitStatus(ended["code"], ended["signal"], ended["reason"], ended["message"], ended["at"]),
        restarts=entry["restarts"],
        log_bytes_lost=entry["log_bytes_lost"],
    )


def owes_restart(entry: dict[str, Any], policy: RestartPolicy) -> bool:
    """Whether a container found stopped was to be started again by its policy, and nobody was there to do it."""
    ended = entry["exit"]
    if entry["state"] != "stopped" or entry["stop_asked"] or ended is None or ended["reason"] == "start-failed":
        return False
    if policy.mode is RestartMode.ON_FAILURE:
        failed = ended["reason"] != "unknown" and ended["code"] != 0
        return failed and (policy.max_retries == 0 or entry["restarts"] < policy.max_retries)
    return policy.mode is RestartMode.ALWAYS


def translated_refusal(error: KeeperError, container_id: str, program: str) -> NestbedError:
    """The error for the caller of what the keeper refused to start."""
    known = {"step": error.step, "container": container_id}
    if error.step == "execve" and error.number in (errno.ENOENT, errno.ENOTDIR):
        refusal: NestbedError = program_not_found(program)
    elif error.step == "execve" and error.number in (errno.EACCES, errno.ENOEXEC, errno.EISDIR, errno.EPERM, errno.ELIBBAD):
        refusal = not_executable(program)
    elif error.step == "execve" and error.number == errno.E2BIG:
        refusal = InvalidArgument("arguments and environment are too long together", reason="ARGUMENTS_TOO_LONG", remedy="shorten them")
    elif error.step in ("cwd", "mount", "overlay") and error.number in (errno.ENOENT, errno.ENOTDIR):
        refusal = NotFound(f"{error.step}: {error.text}", reason="PATH_NOT_FOUND", remedy="check that it exists inside the container")
    elif error.step == "sysctl":
        refusal = InvalidArgument(f"sysctl: {error.text}", reason="BAD_SYSCTL", remedy="check the name and the value against this kernel")
    elif error.number in _EXHAUSTED:
        refusal = from_errno(error.number, f"container {container_id}: {error.step}: {error.text}")
        refusal = (
            refusal
            if isinstance(refusal, ResourceExhausted)
            else ResourceExhausted(refusal.message, reason="NO_ROOM", remedy=refusal.remedy)
        )
    else:
        number = errno.errorcode.get(error.number, str(error.number))
        refusal = HostLacks(
            f"container {container_id} cannot be set up: {error.step}: {error.text} ({number})",
            reason="SETUP_FAILED",
            remedy="see what `nbctl info` says this machine lacks",
            errno=number,
        )
    refusal.metadata.update(known)
    return refusal


def translated_answer(error: KeeperError, container_id: str) -> NestbedError:
    """The error for the caller of what the keeper refused of other requests."""
    if error.number in (errno.ESRCH, errno.ENOENT):
        return not_running(container_id)
    if error.number == errno.EALREADY:
        return already_running(container_id)
    return from_errno(error.number, f"container {container_id}: {error.step}: {error.text}", container=container_id, step=error.step)


def no_nic(container_id: str, name: str) -> NotFound:
    """It has no such interface."""
    return NotFound(
        f"container {container_id} has no interface {shown(name)}",
        reason="NIC_NOT_FOUND",
        remedy="see its NICs with `nbctl inspect`",
        container=container_id,
        nic=shown(name),
    )


def is_paused(container_id: str) -> WrongState:
    """It must not stand still for that."""
    return WrongState(f"container {container_id} is paused", reason="PAUSED", remedy="resume it first", container=container_id)
