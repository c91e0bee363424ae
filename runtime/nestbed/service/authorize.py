"""Who may do what: three roles, one table of methods, denied by default.

A role includes the roles below it. What depends on the container (one that reaches the node's file systems is the administrator's) is
decided by the node; here stands only the least role of each method.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from nestbed.errors import PermissionDenied, Unauthenticated


class Role(enum.IntEnum):
    """What a caller is. NOBODY is one whom a certificate names but gives no role."""

    NOBODY = 0
    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @property
    def label(self) -> str:
        """As it is written in certificates and messages."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: ``name`` tells people (``uid 1000``, a certificate's name) and is what streams are counted by."""

    role: Role
    name: str
    pid: int = 0

    @property
    def is_admin(self) -> bool:
        """Whether it may do everything."""
        return self.role >= Role.ADMIN


_CALLER: ContextVar[Caller] = ContextVar("nestbed_caller")


def caller() -> Caller:
    """The caller of the API call that the running task answers.

    Raises:
        Unauthenticated: there is none.
    """
    try:
        return _CALLER.get()
    except LookupError as error:
        raise Unauthenticated("nobody is calling", reason="NO_CALLER") from error


@contextmanager
def calling(who: Caller) -> Iterator[None]:
    """Make ``who`` the caller in the block, for this task and those it starts."""
    token = _CALLER.set(who)
    try:
        yield
    finally:
        _CALLER.reset(token)


_AGENTS = "/nestbed.v1.AgentService/"
_CONTAINERS = "/nestbed.v1.ContainerService/"
_LANS = "/nestbed.v1.LanService/"
_NODE = "/nestbed.v1.NodeService/"
_EXPERIMENTS = "/nestbed.v1.ExperimentService/"
_IMAGES = "/nestbed.v1.ImageService/"
_HEALTH = "/grpc.health.v1.Health/"

LEAST_ROLES: Mapping[str, Role] = {
    _AGENTS + "ListAgents": Role.VIEWER,
    _AGENTS + "WatchReports": Role.VIEWER,
    _AGENTS + "WatchTraffic": Role.VIEWER,
    _AGENTS + "Tell": Role.OPERATOR,
    _AGENTS + "Release": Role.OPERATOR,
    _CONTAINERS + "CreateContainer": Role.OPERATOR,
    _CONTAINERS + "GetContainer": Role.VIEWER,
    _CONTAINERS + "ListContainers": Role.VIEWER,
    _CONTAINERS + "StartContainer": Role.OPERATOR,
    _CONTAINERS + "StopContainer": Role.OPERATOR,
    _CONTAINERS + "KillContainer": Role.OPERATOR,
    _CONTAINERS + "PauseContainer": Role.OPERATOR,
    _CONTAINERS + "ResumeContainer": Role.OPERATOR,
    _CONTAINERS + "WaitContainer": Role.VIEWER,
    _CONTAINERS + "Exec": Role.OPERATOR,
    _CONTAINERS + "Attach": Role.OPERATOR,
    _CONTAINERS + "GetLogs": Role.VIEWER,
    _CONTAINERS + "GetStats": Role.VIEWER,
    _CONTAINERS + "UpdateContainer": Role.OPERATOR,
    _CONTAINERS + "DeleteContainer": Role.OPERATOR,
    _CONTAINERS + "CopyFrom": Role.OPERATOR,
    _CONTAINERS + "CopyTo": Role.OPERATOR,
    _LANS + "CreateLan": Role.OPERATOR,
    _LANS + "ExtendLan": Role.ADMIN,
    _LANS + "GetLan": Role.VIEWER,
    _LANS + "ListLans": Role.VIEWER,
    _LANS + "DeleteLan": Role.OPERATOR,
    _LANS + "ConnectLan": Role.OPERATOR,
    _LANS + "DisconnectLan": Role.OPERATOR,
    _LANS + "SetLink": Role.OPERATOR,
    _LANS + "SetImpairment": Role.OPERATOR,
    _LANS + "ResetImpairment": Role.OPERATOR,
    _LANS + "ListImpairments": Role.VIEWER,
    _LANS + "WatchLanStats": Role.VIEWER,
    _LANS + "Capture": Role.OPERATOR,
    _NODE + "GetInfo": Role.VIEWER,
    _NODE + "WatchEvents": Role.VIEWER,
    _NODE + "Audit": Role.OPERATOR,
    _NODE + "GetMetrics": Role.VIEWER,
    _NODE + "ListNodes": Role.VIEWER,
    _EXPERIMENTS + "Up": Role.OPERATOR,
    _EXPERIMENTS + "Down": Role.OPERATOR,
    _EXPERIMENTS + "GetExperiment": Role.VIEWER,
    _EXPERIMENTS + "ListExperiments": Role.VIEWER,
    _EXPERIMENTS + "DiffExperiment": Role.OPERATOR,
    _EXPERIMENTS + "WaitExperiment": Role.VIEWER,
    _EXPERIMENTS + "ExecInElements": Role.OPERATOR,
    _EXPERIMENTS + "SetLinks": Role.OPERATOR,
    _EXPERIMENTS + "VerifyExperiment": Role.OPERATOR,
    _IMAGES + "ListImages": Role.VIEWER,
    _IMAGES + "GetImage": Role.VIEWER,
    _IMAGES + "ImportImage": Role.OPERATOR,
    _IMAGES + "BuildImage": Role.OPERATOR,
    _IMAGES + "DeleteImage": Role.OPERATOR,
    _HEALTH + "Check": Role.NOBODY,
    _HEALTH + "Watch": Role.NOBODY,
    _HEALTH + "List": Role.NOBODY,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.VIEWER,
}


def authorize(method: str, who: Caller) -> None:
    """Pass if ``who`` may call ``method`` (a full name, ``/package.Service/Method``).

    Raises:
        PermissionDenied: the role is too small (ROLE_TOO_SMALL), or no rule names the method (NO_RULE).
    """
    least = LEAST_ROLES.get(method)
    if least is None:
        raise PermissionDenied(f"no rule allows {method}", reason="NO_RULE", remedy="use a client of the node's version", method=method)
    if who.role < least:
        raise PermissionDenied(
            f"{who.name} is {who.role.label}, and {method.rpartition('/')[2]} needs the role {least.label}",
            reason="ROLE_TOO_SMALL",
            remedy=f"call as {least.label}: through admin.sock as root, or with a certificate of that role",
            caller=who.name,
            role=who.role.label,
            least_role=least.label,
            method=method,
        )
