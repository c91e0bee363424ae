"""Whether the node's firewall sees the frames of LANs (``br_netfilter``), and keeping it out.

With ``net.bridge.bridge-nf-call-*`` at 1 the kernel passes every bridged IP and ARP frame through the node's iptables rules and drops
those that are malformed: a LAN is then not the Ethernet segment it should be. The settings belong to a network namespace. In one of its
own the daemon switches them off; in the machine's first one they are the administrator's, so it tells.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from nestbed.model import Ability

_SETTINGS = Path("/proc/sys/net/bridge")
_MACHINE_WIDE = Path("/proc/sys/net/core/netdev_max_backlog")
_NAMES = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")


def keep_out() -> None:
    """Switch the settings off if this process's network namespace is not the machine's first one. Never raises."""
    if not _in_first_namespace():
        for name in _switched_on():
            with contextlib.suppress(OSError):
                (_SETTINGS / name).write_text("0")


def ability() -> Ability:
    """What is so now."""
    names = _switched_on()
    if not names:
        return Ability("lan-transparency", available=True, detail="the node's firewall does not see the frames of LANs")
    settings = " ".join(f"net.bridge.{name}=0" for name in names)
    return Ability(
        "lan-transparency",
        available=False,
        detail=f"{', '.join(f'net.bridge.{name}' for name in names)} is on",
        consequence=f"the node's firewall sees the frames of LANs and drops some; to keep it out: sysctl -w {settings}",
    )


def _switched_on() -> list[str]:
    return [name for name in _NAMES if _read(_SETTINGS / name) not in ("", "0")]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # no br_netfilter in this kernel, or not for this namespace
        return ""


def _in_first_namespace() -> bool:
    own = os.stat("/proc/self/ns/net")
    try:
        first = os.stat("/proc/1/ns/net")
    except OSError:  # not ours to look at; settings of the whole machine are shown in the first namespace only
        return _MACHINE_WIDE.exists()
    return (first.st_dev, first.st_ino) == (own.st_dev, own.st_ino)
