"""The interfaces of the machine that carry LANs: what is there now, and what it means."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from nestbed.lanmodel import Underlay
from nestbed.linux import ifreq
from nestbed.model import Ability

MTU_MIN = 576
"""RFC 1122 section 3.3.2: what every host takes without fragments having to be put together beyond it."""

_WORKING = ifreq.IFF_UP | ifreq.IFF_RUNNING


def look_at(name: str) -> Underlay:
    """The interface as it is now, in the network namespace of this thread. Never raises."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            flags = ifreq.flags(sock, name)
            return Underlay(
                name,
                exists=True,
                is_up=bool(flags & ifreq.IFF_UP),
                has_multicast=bool(flags & ifreq.IFF_MULTICAST),
                address=ifreq.address(sock, name),
                mtu=ifreq.mtu(sock, name),
            )
        except OSError:  # there is none, or it goes at this moment
            return Underlay(name)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What an underlay is to those who send on it: ``index`` is 0 without the interface. ``is_up``: it is set up and has a carrier."""

    name: str
    index: int = 0
    mac: str = ""
    is_up: bool = False
    has_multicast: bool = False
    address: str = ""
    mtu: int = 0

    @property
    def is_usable(self) -> bool:
        """Whether datagrams can be sent on it."""
        return self.is_up and bool(self.address) and self.mtu >= MTU_MIN

    def fault(self, *, needs_multicast: bool) -> str:
        """Why a LAN cannot use it now, as the end of a sentence that begins with its name; empty if it can."""
        underlay = Underlay(self.name, bool(self.index), self.is_up, self.has_multicast, self.address, self.mtu)
        return fault_of(underlay, needs_multicast=needs_multicast) or ("" if self.is_up else "is down")


def look_out(name: str) -> Outlook:
    """The interface as it is now, in the network namespace of this thread. Never raises."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            flags = ifreq.flags(sock, name)
            return Outlook(
                name,
                index=ifreq.index(sock, name),
                mac=ifreq.mac(sock, name),
                is_up=flags & _WORKING == _WORKING,
                has_multicast=bool(flags & ifreq.IFF_MULTICAST),
                address=ifreq.address(sock, name),
                mtu=ifreq.mtu(sock, name),
            )
        except OSError:  # there is none, or it goes at this moment
            return Outlook(name)


def fault_of(underlay: Underlay, *, needs_multicast: bool) -> str:
    """Why a new LAN cannot use it, as the end of a sentence that begins with its name; empty if it can. Being down is no reason."""
    if not underlay.exists:
        return "does not exist"
    if not underlay.address:
        return "has no IPv4 address"
    if needs_multicast and not underlay.has_multicast:
        return "carries no multicast"
    if underlay.mtu < MTU_MIN:
        return f"has an MTU of {underlay.mtu}, below {MTU_MIN}"
    return ""


def abilities(found: Sequence[Underlay]) -> list[Ability]:
    """One for each underlay; one that says that there is none."""
    if not found:
        return [
            Ability("underlays", available=False, detail="none was given", consequence="LANs stay on this node; see nestbedd --underlay")
        ]
    return [_ability(underlay) for underlay in found]


def _ability(underlay: Underlay) -> Ability:
    fault = fault_of(underlay, needs_multicast=True)
    name = f"underlay-{underlay.name}"
    if not fault and underlay.is_up:
        return Ability(name, available=True, detail=f"{underlay.address}, MTU {underlay.mtu}")
    unicast_only = not fault_of(underlay, needs_multicast=False)
    if fault and unicast_only:
        consequence = "only LANs with --peer can use it"
    elif fault:
        consequence = "no LAN can use it until that is changed"
    else:
        fault, consequence = "is down", "LANs wait for it to come up"
    return Ability(name, available=False, detail=f"{underlay.name} {fault}", consequence=consequence)
