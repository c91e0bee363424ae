"""The noun lan: create, ls, inspect, rm, connect, disconnect."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from nbctl import output, select, text, values
from nbctl.commands import Command, selected
from nbctl.failure import OK

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.container_pb2 import Nic
    from nestbed.v1.lan_pb2 import Lan

HEADINGS = ("NAME", "SUBNET", "SUBNET6", "MTU", "GROUP", "MEMBERS", "AGE")


def _table(lans: Iterable[Lan]) -> list[str]:
    now = time.time()
    rows: list[Sequence[str]] = [
        (
            lan.name,
            lan.subnet or "-",
            lan.subnet6 or "-",
            str(lan.mtu),
            lan.group or "-",
            str(len(lan.members)),
            text.age(now - lan.create_time.seconds),
        )
        for lan in lans
    ]
    return text.table(HEADINGS, rows, width=output.width())


def _listing(context: Context) -> Callable[[Any], Coroutine[Any, Any, list[Lan]]]:
    async def listing(labels: Any) -> list[Lan]:
        return await context.client.list_lans(labels=labels)

    return listing


def _create_options(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="unique on the node")
    parser.add_argument("--subnet", metavar="CIDR", default="", help="IPv4 subnet to hand addresses out from, such as 10.5.0.0/24")
    parser.add_argument("--subnet6", metavar="CIDR", default="", help="IPv6 subnet to hand addresses out from, such as fd00:5::/64")
    parser.add_argument("--mtu", metavar="N", type=values.whole(1, 65535), default=0, help="largest packet in bytes (1500)")
    parser.add_argument(
        "--group", metavar="ADDR:PORT", default="", help="multicast group shared with other nodes, such as 239.1.2.3:5000 (one of its own)"
    )
    parser.add_argument(
        "--peer",
        dest="peers",
        metavar="ADDR",
        action="append",
        default=[],
        help="send to this node instead of to the group, where there is no multicast (may be repeated)",
    )
    parser.add_argument("--ttl", metavar="N", type=values.whole(1, 255), default=0, help="TTL of datagrams between nodes (1)")
    parser.add_argument("--local", action="store_true", help="keep it on this node, even if that has an underlay")
    select.add_label_option(parser, "label for selection (may be repeated)")


async def _create(context: Context, args: Namespace) -> int:
    lan = await context.client.create_lan(
        args.name,
        subnet=args.subnet,
        subnet6=args.subnet6,
        mtu=args.mtu,
        labels=dict(args.labels),
        group=args.group,
        peers=args.peers,
        ttl=args.ttl,
        local=args.local,
        request_id=secrets.token_hex(16),
    )
    output.show(context.output, [lan], lambda: [lan.name], single=True)
    return OK


def _select_options(parser: Parser) -> None:
    select.add_options(parser, "LAN")


async def _ls(context: Context, args: Namespace) -> int:
    found = await context.client.list_lans(labels=dict(args.labels))
    if args.names:
        found = select.choose(args.names, found, none_is_fine=True)
    output.show(context.output, found, lambda: _table(found))
    return OK


async def _inspect(context: Context, args: Namespace) -> int:
    return await selected.inspect(context, args, _listing(context), context.client.get_lan, _table)


def _rm_options(parser: Parser) -> None:
    _select_options(parser)
    parser.add_argument("-f", "--force", action="store_true", help="a glob that matches nothing is no error")


async def _rm(context: Context, args: Namespace) -> int:
    return await selected.act(context, args, _listing(context), context.client.delete_lan, none_is_fine=args.force)


def _member_options(parser: Parser) -> None:
    parser.add_argument("lan", metavar="LAN", help="name or id")
    parser.add_argument("container", metavar="CONTAINER", help="name or unique prefix of an id")


def _connect_options(parser: Parser) -> None:
    _member_options(parser)
    parser.add_argument(
        "--ip", dest="addresses", metavar="CIDR", action="append", default=[], help="address, such as 10.5.0.7/24 (may be repeated)"
    )
    parser.add_argument("--mac", metavar="MAC", default="", help="MAC address; derived from the names of LAN and container unless given")
    parser.add_argument("--name", metavar="IF", default="", help="name inside (eth0, eth1, ...)")


async def _connect(context: Context, args: Namespace) -> int:
    from nestbed.v1.container_pb2 import NicSpec  # noqa: PLC0415 - loaded with the client

    wanted = NicSpec(lan=args.lan, name=args.name, mac=args.mac, addresses=args.addresses)
    nic: Nic = await context.client.connect_lan(args.container, wanted)
    output.show(context.output, [nic], lambda: [" ".join([nic.name, nic.mac, *nic.addresses])], single=True)
    return OK


def _disconnect_options(parser: Parser) -> None:
    _member_options(parser)
    parser.add_argument("--name", metavar="IF", default="", help="only the NIC of this name inside; otherwise all on the LAN")


async def _disconnect(context: Context, args: Namespace) -> int:
    await context.client.disconnect_lan(args.container, args.lan, nic=args.name)
    if context.output in {"json", "yaml"}:
        output.write(output.encode(context.output, {"name": args.container}))
    else:
        output.lines([args.container])
    return OK


COMMANDS = {
    "lan create": Command(
        _create_options,
        _create,
        """\
  nbctl lan create lan0 --subnet 10.5.0.0/24
  nbctl lan create lan1 --subnet6 fd00:5::/64 --mtu 9000
  nbctl lan create wan --group 239.1.2.3:5000
  nbctl lan create wan --group 239.1.2.3:5000 --peer 192.0.2.2 --peer 192.0.2.3""",
        "Nodes that are given the same group share the LAN. Each hands out addresses by itself: give each a subnet\n"
        "of its own with the LAN's prefix in mind, or addresses with --lan LAN,ip=CIDR.",
    ),
    "lan ls": Command(_select_options, _ls, "  nbctl lan ls\n  nbctl lan ls -o json 'exp1-*'"),
    "lan inspect": Command(
        _select_options,
        _inspect,
        "  nbctl lan inspect lan0",
        "Prints JSON unless told otherwise: the message of the API for one name, a list for several, a glob or a label.",
    ),
    "lan rm": Command(_rm_options, _rm, "  nbctl lan rm lan0\n  nbctl lan rm -f 'exp1-*'"),
    "lan connect": Command(
        _connect_options, _connect, "  nbctl lan connect lan0 web\n  nbctl lan connect lan0 web --ip 10.5.0.7/24 --name eth5"
    ),
    "lan disconnect": Command(_disconnect_options, _disconnect, "  nbctl lan disconnect lan0 web"),
}
