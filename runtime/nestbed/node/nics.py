"""The NICs that a container has on record: found by name, replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nestbed.errors import InvalidArgument, NotFound, shown
from nestbed.lanmodel import Lan, Nic
from nestbed.node.registry import Held
from nestbed.node.store import Record


def lan_nics(held: Held, lan: Lan, name: str) -> list[Nic]:
    """The container's NICs on the LAN, or the one of them with that name.

    Raises:
        NotFound: it has none (reason NIC_NOT_FOUND).
    """
    found = [nic for nic in held.spec.nics if nic.lan_id == lan.id and name in ("", nic.name)]
    if not found:
        raise NotFound(
            f"container {held.spec.name} has no NIC {f'{shown(name)} ' if name else ''}on LAN {lan.name}",
            reason="NIC_NOT_FOUND",
            remedy=f"see `nbctl inspect {held.spec.name}`",
            container=held.spec.name,
            lan=lan.name,
            nic=shown(name),
        )
    return found


def all_nics(held: Held, name: str) -> list[Nic]:
    """The container's NICs, or the one of that name.

    Raises:
        NotFound: it has none (reason NIC_NOT_FOUND).
    """
    found = [nic for nic in held.spec.nics if name in ("", nic.name)]
    if not found:
        raise NotFound(
            f"container {held.spec.name} has no NIC {shown(name) if name else ''}".rstrip(),
            reason="NIC_NOT_FOUND",
            remedy=f"see `nbctl inspect {held.spec.name}`",
            container=held.spec.name,
            nic=shown(name),
        )
    return found


def only_nic(held: Held, name: str) -> Nic:
    """The container's NIC of that name, or its only one if that is empty.

    Raises:
        NotFound: it has none (reason NIC_NOT_FOUND). InvalidArgument: it has several and no name is given (reason AMBIGUOUS).
    """
    nics = all_nics(held, name)
    if len(nics) > 1:
        names = ", ".join(nic.name for nic in nics)
        raise InvalidArgument(
            f"container {held.spec.name} has several NICs: {names}",
            reason="AMBIGUOUS",
            remedy=f"name one: {held.spec.name}:{nics[0].name}",
            container=held.spec.name,
            nics=names,
        )
    return nics[0]


def with_nics(record: Record, nics: tuple[Nic, ...]) -> Record:
    """The record with these NICs and no others."""
    return dataclasses.replace(record, spec=dataclasses.replace(record.spec, nics=nics))


def replaced(record: Record, nics: Sequence[Nic]) -> Record:
    """The record with these NICs in place of those at the same ports."""
    by_port = {nic.port: nic for nic in nics}
    return with_nics(record, tuple(by_port.get(nic.port, nic) for nic in record.spec.nics))
