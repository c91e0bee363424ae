"""Who is calling, read from what gRPC tells about a connection.

Unix sockets: the gate (``nestbed.service.gate``) has asked the kernel, and binds its side of the inner connection to a name that says it;
gRPC hands that name out as the peer. TCP: mutual TLS, and the names in the client's certificate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from nestbed.errors import Unauthenticated
from nestbed.service.authorize import Caller, Role

_INNER_NAME = re.compile(r"unix:.*/peer-(\d+)-(\d+)-\d+")
_CERTIFICATE_ROLE = re.compile(r"(?:(?P<name>[^@]+)@)?(?P<role>admin|operator|viewer)")


class Connection(Protocol):
    """What is used of gRPC's ServicerContext."""

    def peer(self) -> str:
        """The peer's address."""
        ...

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What the transport's security knows."""
        ...


Identify = Callable[[Connection], Caller]


def inner_name(uid: int, pid: int, serial: int) -> str:
    """The file name the gate binds to for a connection of process ``pid`` of user ``uid``."""
    return f"peer-{uid}-{pid}-{serial}"


def behind_gate(role: Role) -> Identify:
    """Callers of a unix socket whose every caller has ``role``."""

    def identify(connection: Connection) -> Caller:
        found = _INNER_NAME.fullmatch(connection.peer())
        if found is None:
            raise Unauthenticated(
                "the connection did not come through the node's socket", reason="NO_PEER", remedy="connect to a socket in the run directory"
            )
        return Caller(role, f"uid {found[1]}", int(found[2]))

    return identify


def by_certificate(connection: Connection) -> Caller:
    """The caller that a verified client certificate names: ``ROLE`` or ``NAME@ROLE`` as common name or as any alternative name.

    Raises:
        Unauthenticated: its names give different roles. One that gives none is NOBODY.
    """
    known = connection.auth_context()
    names = [
        value.decode("utf-8", "replace") for key in ("x509_common_name", "x509_subject_alternative_name") for value in known.get(key, ())
    ]
    found = [match for match in map(_CERTIFICATE_ROLE.fullmatch, names) if match]
    roles = {match["role"] for match in found}
    if len(roles) > 1:
        raise Unauthenticated(
            f"the certificate gives several roles: {', '.join(sorted(roles))}",
            reason="AMBIGUOUS_CERTIFICATE",
            remedy="use a certificate whose names give one role",
            roles=",".join(sorted(roles)),
        )
    if not found:
        return Caller(Role.NOBODY, f"certificate {names[0]}" if names else "a certificate without a name")
    return Caller(Role[found[0]["role"].upper()], f"certificate {found[0][0]}")
