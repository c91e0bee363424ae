"""Cables plugged in and out: `lan up`, `lan down` of one node's LANs and NICs, `links up`, `links down` of an experiment's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from nbctl import output, text
from nbctl.commands import Command
from nbctl.failure import OK, Usage

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.experiment_pb2 import Link
    from nestbed.v1.lan_pb2 import LanMember


def _lan_options(parser: Parser) -> None:
    parser.add_argument("lan", metavar="LAN", nargs="?", default="", help="name or id; may be left out if --port is given")
    parser.add_argument("--port", metavar="CONTAINER[:NIC]", default="", help="only the NICs of this container, or one of them")


async def _lan(context: Context, args: Namespace, *, up: bool) -> int:
    container, _, nic = args.port.partition(":")
    if args.port and not container:
        raise Usage(f"'{args.port}' names no container", remedy="write --port CONTAINER or --port CONTAINER:NIC")
    if not args.lan and not container:
        raise Usage("nothing is named", remedy="name a LAN, or a container's NICs with --port")
    members = await context.client.set_link(args.lan, container=container, nic=nic, up=up)
    output.show(context.output, members, lambda: list(_members(members)))
    return OK


def _members(members: Iterable[LanMember]) -> Iterable[str]:
    for member in members:
        yield text.escape(f"{member.container}:{member.nic.name} on {member.nic.lan} is {_state(is_down=member.nic.is_down)}")


def _links_options(parser: Parser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="name")
    parser.add_argument("links", metavar="LINK", nargs="+", help="LAN, ELEMENT, ELEMENT:LAN or ELEMENT:NIC")


async def _links(context: Context, args: Namespace, *, up: bool) -> int:
    links = await context.client.set_links(args.experiment, args.links, up=up)
    output.show(context.output, links, lambda: list(_cables(links)))
    return OK


def _cables(links: Iterable[Link]) -> Iterable[str]:
    for link in links:
        yield text.escape(f"{link.element}:{link.nic} on {link.lan} is {_state(is_down=link.is_down)}")


def _state(*, is_down: bool) -> str:
    return "down" if is_down else "up"


_LAN_DETAILS = """\
As if a cable were pulled out and plugged in: without it the NIC has no carrier inside, and no frame passes. Addresses and routes
stay. Of a LAN it is every NIC, on this node, also those that join later. It stays so through restarts of containers and daemon."""
_LINKS_DETAILS = """\
LAN is every link of it, ELEMENT every one of that; write :LAN or ELEMENT: if both have the name. Without its cable a NIC has no
carrier inside, and no frame passes; addresses and routes stay. `status` shows what is down; `up` leaves it so."""

COMMANDS = {
    "lan up": Command(_lan_options, partial(_lan, up=True), "  nbctl lan up lan0\n  nbctl lan up --port web:eth0", _LAN_DETAILS),
    "lan down": Command(_lan_options, partial(_lan, up=False), "  nbctl lan down lan0\n  nbctl lan down lan0 --port web\n", _LAN_DETAILS),
    "links up": Command(_links_options, partial(_links, up=True), "  nbctl links up street left router:right", _LINKS_DETAILS),
    "links down": Command(_links_options, partial(_links, up=False), "  nbctl links down street router:right", _LINKS_DETAILS),
}
