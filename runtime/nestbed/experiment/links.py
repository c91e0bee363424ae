"""The cables of an experiment, by the names of its elements and LANs, whatever nodes they are on.

``left`` or ``:left`` is every cable of the LAN left, ``web`` or ``web:`` every one of the element web, ``web:left`` or ``web:eth0`` those
that web has on left, or at its NIC eth0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from nestbed.errors import InvalidArgument, NotFound, shown
from nestbed.experiment.fleet import Fleet
from nestbed.experiment.plan import Plan
from nestbed.experiment.source import nearest_remedy
from nestbed.v1 import experiment_pb2


@dataclass(frozen=True, slots=True)
class Choice:
    """All cables of a LAN, or those of an element: with a LAN on that, with a NIC at that. What is empty is not said."""

    element: str = ""
    lan: str = ""
    nic: str = ""


def choose(plan: Plan, links: Iterable[str]) -> list[Choice]:
    """What the words mean, in their order.

    Raises:
        NotFound: a name that is none. InvalidArgument: a name that an element and a LAN have; nothing at all.
    """
    found = [_choice(plan, word) for word in links]
    if not found:
        raise InvalidArgument("no link is named", reason="NO_LINK", remedy="name elements, LANs, or ELEMENT:LAN")
    return found


def _choice(plan: Plan, word: str) -> Choice:
    before, colon, after = word.partition(":")
    if not colon and before in plan.elements and before in plan.lans:
        raise InvalidArgument(
            f"{before} is an element and a LAN",
            reason="AMBIGUOUS",
            remedy=f"write {before}: for the element, :{before} for the LAN",
            word=before,
        )
    if not before or (not colon and before in plan.lans):
        return Choice(lan=_known("LAN", after or before, plan.lans))
    if not colon and before not in plan.elements:
        raise _unknown("element or LAN", before, [*plan.elements, *plan.lans])
    element = _known("element", before, plan.elements)
    nics = plan.elements[element].element.nics
    if not after or any(nic.lan == after for nic in nics):
        return Choice(element, lan=after)
    return Choice(element, nic=_known(f"NIC or LAN of {element}", after, [name for nic in nics for name in (nic.name, nic.lan)]))


def _known(what: str, word: str, known: Iterable[str]) -> str:
    if word not in known:
        raise _unknown(what, word, known)
    return word


def _unknown(what: str, word: str, known: Iterable[str]) -> NotFound:
    return NotFound(f"there is no {what} {shown(word)}", reason="LINK_NOT_FOUND", remedy=nearest_remedy(word, known), word=shown(word))


async def plug(plan: Plan, fleet: Fleet, choices: Iterable[Choice], *, up: bool) -> list[experiment_pb2.Link]:
    """Plug them in or out, on every node that has some of them; all cables named, as they are then.

    Raises:
        NestbedError: a node could not be asked, or could not do it; those of other nodes may have changed.
    """
    elements = {planned.node_name: planned.name for planned in plan.elements.values()}
    lans = {planned.node_name: planned.name for planned in plan.lans.values()}

    async def one(choice: Choice, node: str) -> list[experiment_pb2.Link]:
        lan = plan.lans[choice.lan].node_name if choice.lan else ""
        container = plan.elements[choice.element].node_name if choice.element else ""
        members = await fleet.clients[node].set_link(lan, container=container, nic=choice.nic, up=up)
        return [
            experiment_pb2.Link(
                element=elements.get(member.container, member.container),
                nic=member.nic.name,
                lan=lans.get(member.nic.lan, member.nic.lan),
                is_down=member.nic.is_down,
            )
            for member in members
        ]

    works = [(choice, node) for choice in choices for node in _nodes(plan, choice)]
    results = await asyncio.gather(*(one(choice, node) for choice, node in works), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [link for result in results if not isinstance(result, BaseException) for link in result]


def _nodes(plan: Plan, choice: Choice) -> tuple[str, ...]:
    return (plan.elements[choice.element].node,) if choice.element else plan.lans[choice.lan].nodes
