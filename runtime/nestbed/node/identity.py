"""Which group or peers a LAN has, and refusing those it cannot have. Decides by what it is given; changes nothing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Sequence

from nestbed.errors import AlreadyExists, HostLacks, InvalidArgument
from nestbed.lan import identity
from nestbed.lan.underlays import fault_of
from nestbed.lanmodel import Lan, LanRequest, Underlay
from nestbed.node.bounds import check_count


def identify(lan: Lan, request: LanRequest, others: Collection[Lan], underlays: Sequence[Underlay]) -> Lan:
    """``lan`` with the group, peers and TTL that ``request`` asks for; ``others`` are the node's LANs.

    Without a group it gets the one of its id, on a node that has ``underlays`` and unless it is to be local.

    Raises:
        InvalidArgument: a value that cannot be, or values that cannot be together. AlreadyExists: another LAN has the group.
        HostLacks: the node has no underlay, or one that cannot carry it.
    """
    if request.is_local or not underlays:
        _check_stays(request)
        return lan
    group = identity.check_group(request.group) if request.group else ""
    peers = _peers(request, underlays)
    _check_underlays(lan, underlays, needs_multicast=not peers)
    _check_mtu(lan)
    if group:
        _check_free(group, peers, others)
    else:
        derived = (identity.default_group(lan.id, ordinal) for ordinal in itertools.count())
        group = next(one for one in derived if _holder(one, peers, others) is None)
    return dataclasses.replace(lan, group=group, peers=peers, ttl=identity.check_ttl(request.ttl))


def _check_stays(request: LanRequest) -> None:
    told = {"a group": request.group, "peers": request.peers, "a TTL": request.ttl}
    given = " and ".join(what for what, value in told.items() if value)
    if not given:
        return
    if request.is_local:
        raise InvalidArgument(
            f"a LAN that stays on its node cannot have {given}",
            reason="CONFLICTING_OPTIONS",
            remedy="leave out --local, or the rest",
            given=given,
        )
    raise HostLacks(
        f"the LAN cannot have {given}: this node has no underlay",
        reason="NO_UNDERLAY",
        remedy="start nestbedd with --underlay IF, the interface to the other nodes",
        given=given,
    )


def _peers(request: LanRequest, underlays: Sequence[Underlay]) -> tuple[str, ...]:
    check_count("peers", request.peers, identity.PEERS_MAX)
    peers = tuple(dict.fromkeys(map(identity.check_peer, request.peers)))
    own = {underlay.address for underlay in underlays}
    for peer in peers:
        if peer in own:
            raise identity.bad_peer(peer, "is this node's own address")
    return peers


def _check_underlays(lan: Lan, underlays: Sequence[Underlay], *, needs_multicast: bool) -> None:
    for underlay in underlays:
        fault = fault_of(underlay, needs_multicast=needs_multicast)
        if fault:
            raise HostLacks(
                f"LAN {lan.name} cannot use the underlay {underlay.name}: it {fault}",
                reason="BAD_UNDERLAY",
                remedy="set the interface right, name others to nestbedd (--underlay), or make the LAN with --local"
                + ("" if "multicast" not in fault else "; with --peer ADDR no multicast is needed"),
                lan=lan.name,
                underlay=underlay.name,
                fault=fault,
            )


def _check_mtu(lan: Lan) -> None:
    if lan.mtu > identity.MTU_MAX:
        raise InvalidArgument(
            f"an MTU of {lan.mtu} is more than fits a datagram between nodes",
            reason="BAD_MTU",
            remedy=f"give an MTU up to {identity.MTU_MAX}, or make the LAN with --local",
            mtu=lan.mtu,
            maximum=identity.MTU_MAX,
        )


def _check_free(group: str, peers: tuple[str, ...], others: Collection[Lan]) -> None:
    holder = _holder(group, peers, others)
    if holder is not None:
        what = f"the group {group}" if holder.group == group else f"the port of {group} with peers"
        raise AlreadyExists(
            f"LAN {holder.name} of this node has {what} already",
            reason="GROUP_IN_USE",
            remedy="give another group, or none to have one derived",
            group=group,
            lan=holder.name,
        )


def _holder(group: str, peers: tuple[str, ...], others: Collection[Lan]) -> Lan | None:
    """The LAN whose datagrams could not be told from those of the group: with peers, the port alone tells."""
    port = int(group.rpartition(":")[2])
    return next((lan for lan in others if lan.group == group or (peers and lan.peers and lan.group_port == port)), None)
