"""The nestbedd inside a machine that is a node: what it is told, and where it answers. Pure.

Its code is this daemon's, shown read-only at the same place; what it keeps is in the guest's memory and ends with the guest. Its key
comes by the agent's channel, in a file that only root of the guest can read.
"""

from __future__ import annotations

from dataclasses import dataclass

from nestbed.lanmodel import Nic
from nestbed.model import ExecSpec, Spec
from nestbed.qemu import frames

PORT = 7411
STATE_DIR = "/run/nestbed-state"

_CHANNEL = 0
_FILES = {"ca.pem": "/run/nestbed-ca.pem", "node.pem": "/run/nestbed-node.pem", "node.key": "/run/nestbed-node.key"}


@dataclass(frozen=True, slots=True)
class Code:
    """The daemon's code: directories that the guest must see, and how it is started."""

    paths: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()


def is_node(spec: Spec) -> bool:
    """Whether nestbedd runs inside."""
    return spec.qemu is not None and spec.qemu.node


def address(spec: Spec) -> str:
    """``HOST:PORT`` at which the node inside answers; empty if there is none."""
    return f"{_host(spec.control)}:{PORT}" if is_node(spec) and spec.control is not None else ""


def program(spec: Spec, code: Code, credentials: dict[str, bytes]) -> bytes:
    """The frames that start it. ``credentials`` are the files ``ca.pem``, ``node.pem`` and ``node.key``."""
    argv = (*code.argv, "--name", spec.name, "--state-dir", STATE_DIR, "--listen", f"tcp://{address(spec)}", "--log-level", "warning")
    tls = ("--tls-client-ca", _FILES["ca.pem"], "--tls-cert", _FILES["node.pem"], "--tls-key", _FILES["node.key"])
    files = (frames.write(_CHANNEL, path, credentials[name], 0o600) for name, path in _FILES.items())
    underlay = ("--underlay", spec.underlay.name) if spec.underlay is not None else ()
    return b"".join((*files, frames.keep(_CHANNEL, ExecSpec((*argv, *tls, *underlay)))))


def _host(nic: Nic) -> str:
    return nic.addresses[0].partition("/")[0]
