"""Addresses of nodes, and why one does not answer."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

from nestbed.errors import InvalidArgument, NestbedError, PermissionDenied, Unavailable

SOCKET_PATH_MAX = 107
"""Bytes of a path that fit into ``sun_path`` (unix(7))."""

DEFAULT_PORT = 7411


@dataclass(frozen=True, slots=True)
class Address:
    """``unix:///PATH`` has ``path``; ``tcp://HOST:PORT`` has ``host`` and ``port``."""

    text: str
    path: str = ""
    host: str = ""
    port: int = 0

    def target(self, resources: ExitStack) -> str:
        """The name gRPC knows it by. A path too long for a socket goes through its folder's descriptor, held by ``resources``.

        Raises:
            Unavailable: the folder of a long path cannot be opened.
        """
        if self.host:
            return f"dns:///[{self.host}]:{self.port}" if ":" in self.host else f"dns:///{self.host}:{self.port}"
        if len(os.fsencode(self.path)) <= SOCKET_PATH_MAX:
            return f"unix:{self.path}"
        folder, name = os.path.split(self.path)
        try:
            descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _absent(self.text, error.errno or 0) from error
        resources.callback(os.close, descriptor)
        return f"unix:/proc/self/fd/{descriptor}/{name}"

    def diagnose(self) -> NestbedError:
        """Why a node here does not answer, found by knocking once (at most 2 seconds, blocking)."""
        try:
            self._knock()
        except OSError as error:
            return _absent(self.text, error.errno or 0)
        return Unavailable(
            f"the node at {self.text} closed the connection",
            reason="CONNECTION_LOST",
            remedy="try again; if it stays so, see the log of nestbedd",
            address=self.text,
        )

    def _knock(self) -> None:
        if self.host:
            socket.create_connection((self.host, self.port), timeout=2).close()
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocker, ExitStack() as resources:
            knocker.settimeout(2)
            knocker.connect(self.target(resources).removeprefix("unix:"))


def parse(text: str) -> Address:
    """The address that ``text`` means; a bare absolute path is a unix socket.

    Raises:
        InvalidArgument: it is none.
    """
    if text.startswith("/"):
        return Address(f"unix://{text}", path=text)
    try:
        parts = urlsplit(text)
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise _malformed(text) from error
    if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
        return Address(text, path=parts.path)
    if parts.scheme == "tcp" and parts.hostname and parts.path in ("", "/"):
        return Address(text, host=parts.hostname, port=port)
    raise _malformed(text)


def needs_tls() -> InvalidArgument:
    """The error for a TCP address without all TLS files."""
    return InvalidArgument(
        "a tcp:// address needs mutual TLS: a CA, a certificate and its key",
        reason="TLS_REQUIRED",
        remedy="give all three files, or use the node's unix socket",
    )


def _malformed(text: str) -> InvalidArgument:
    return InvalidArgument(
        f"{text!r} is no address of a node",
        reason="BAD_ADDRESS",
        remedy="write unix:///run/nestbed/nestbed.sock or tcp://HOST:PORT",
        address=text,
    )


def _absent(text: str, number: int) -> NestbedError:
    make: Callable[..., NestbedError] = PermissionDenied if number in (errno.EACCES, errno.EPERM) else Unavailable
    what, remedy = _ABSENCES.get(number, (os.strerror(number).lower(), "check the address and that nestbedd runs there"))
    return make(f"no node answers at {text}: {what}", reason="NO_NODE", remedy=remedy, address=text, errno=errno.errorcode.get(number, ""))


_ABSENCES = {
    errno.ENOENT: ("there is no such socket", "start nestbedd, or name its address with -H or NBCTL_HOST"),
    errno.ENOTDIR: ("there is no such socket", "start nestbedd, or name its address with -H or NBCTL_HOST"),
    errno.ECONNREFUSED: ("nobody listens there", "start nestbedd"),
    errno.EACCES: ("permission denied", "become root, or join the group nestbed"),
    errno.EPERM: ("permission denied", "become root, or join the group nestbed"),
}
