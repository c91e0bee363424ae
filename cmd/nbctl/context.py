"""What every command needs: which node, in which form to print."""

from __future__ import annotations

import gc
import os
import stat
from typing import TYPE_CHECKING

from nbctl.failure import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbctl.signals import Signals
    from nestbed.client import Client

RUN_DIR = "/run/nestbed"
TLS_VARIABLES = ("NBCTL_TLS_CA", "NBCTL_TLS_CERT", "NBCTL_TLS_KEY")


class Context:
    """One run of nbctl. The client is made when it is first asked for, in the running event loop."""

    def __init__(self, *, host: str | None, output: str | None, environment: Mapping[str, str]) -> None:
        self.address = address(host, environment)
        self.given_output = output
        """The form that was asked for, None if none was."""
        self._environment = environment
        self._client: Client | None = None
        self._signals: Signals | None = None

    @property
    def signals(self) -> Signals:
        """Who gets the signals."""
        if self._signals is None:
            from nbctl.signals import Signals  # noqa: PLC0415 - imports asyncio

            self._signals = Signals()
        return self._signals

    @property
    def output(self) -> str:
        """The form to print in."""
        return self.given_output or "table"

    @property
    def client(self) -> Client:
        """The client of the node.

        Raises:
            NestbedError: the address is none, or TLS files cannot be read.
        """
        if self._client is None:
            # gRPC's C core writes notes of its own to standard error, and its fork handlers serve nobody here.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")
            os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
            from pathlib import Path  # noqa: PLC0415 - see below

            from nestbed.client import Client  # noqa: PLC0415 - importing gRPC takes longer than most commands

            gc.freeze()
            gc.enable()
            ca, cert, key = (Path(self._environment[name]) if self._environment.get(name) else None for name in TLS_VARIABLES)
            self._client = Client.connect(self.address, tls_ca=ca, tls_cert=cert, tls_key=key)
        return self._client

    async def aclose(self) -> None:
        """End the connection, if there is one."""
        if self._client is not None:
            await self._client.aclose()


def address(host: str | None, environment: Mapping[str, str]) -> str:
    """The node's address: ``-H``, then NBCTL_HOST, then the sockets of NBCTL_RUN_DIR or /run/nestbed. A directory means its sockets.

    Raises:
        Usage: the address is empty.
    """
    given = host if host is not None else environment.get("NBCTL_HOST") or environment.get("NBCTL_RUN_DIR") or RUN_DIR
    if not given:
        raise Usage("the address of the node is empty", remedy="write -H unix:///PATH, -H tcp://HOST:PORT or -H RUN_DIRECTORY")
    path = given.removeprefix("unix://")
    if "://" in path or not _is_run_directory(path):
        return given
    socket = "admin.sock" if os.geteuid() == 0 else "nestbed.sock"
    return f"unix://{os.path.abspath(path)}/{socket}"


def _is_run_directory(path: str) -> bool:
    """Whether a path means a directory; one that does not exist does unless it is named like a socket."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return path.startswith(("/", ".")) and not path.endswith(".sock")
