"""The text of a container's ``/etc/hosts``. Pure, and the same on every machine for the same members.

First the loopback, then the container's own names, then the members of its LANs, LAN by LAN in the order of its NICs and name by
name within a LAN, so that a name stands first with the address that is reached through the container's nearest NIC::

    127.0.0.1	localhost
    ::1	localhost ip6-localhost ip6-loopback
    10.5.0.3	web web-lan0
    10.5.0.2	irc irc-lan0
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nestbed.lanmodel import Nic

LOOPBACK = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)  # fmt: skip


def member_lines(name: str, nic: Nic) -> str:
    """The lines of one NIC of the container ``name``: each address with ``NAME NAME-LAN``."""
    return "".join(f"{address.partition('/')[0]}\t{name} {name}-{nic.lan}\n" for address in nic.addresses)


def own_lines(name: str, hostname: str, nics: Sequence[Nic]) -> str:
    """A container's lines about itself: all its addresses, or 127.0.1.1 (as Debian does) while it has none."""
    also = f" {hostname}" if hostname and hostname != name else ""
    lines = "".join(member_lines(name, nic) for nic in nics)
    return lines.replace("\n", f"{also}\n") if lines else f"127.0.1.1\t{name}{also}\n"


def hosts_text(own: str, others: Iterable[str]) -> str:
    """The file: ``own`` from :func:`own_lines`, ``others`` made of :func:`member_lines`, in order."""
    return f"{LOOPBACK}{own}{''.join(others)}"
