"""The verb `lan stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbctl import output, stream, text, traffic, values
from nbctl.commands import Command
from nbctl.failure import OK, Usage

if TYPE_CHECKING:
    from argparse import Namespace

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.lan_pb2 import WatchLanStatsResponse


def _options(parser: Parser) -> None:
    parser.add_argument("names", nargs="*", metavar="LAN", help="name, id, or glob such as 'exp1-*'; all without any")
    parser.add_argument("-f", "--follow", action="store_true", help="go on, with new figures at every interval")
    parser.add_argument(
        "--interval", metavar="SECONDS", type=values.duration, default=1.0, help="time between figures, 0.1 s at least (1 s)"
    )


async def _stats(context: Context, args: Namespace) -> int:
    if args.interval < 0.1:
        raise Usage("the interval is too short", remedy="give 100ms or more")
    with stream.while_read():
        async for response in context.client.lan_stats(args.names, interval_seconds=args.interval if args.follow else None):
            _show(context, response, is_stream=args.follow)
    return OK


def _show(context: Context, response: WatchLanStatsResponse, *, is_stream: bool) -> None:
    if context.output == "table":
        output.lines(text.table(traffic.LAN_HEADINGS, traffic.lan_rows(response.stats), width=output.width()))
    elif context.output == "name":
        output.lines(each.name for each in response.stats)
    else:
        output.write(output.encode(context.output, [output.plain(each) for each in response.stats], stream=is_stream))


COMMANDS = {
    "lan stats": Command(
        _options,
        _stats,
        "  nbctl lan stats lan0\n  nbctl lan stats -f --interval 200ms lan0\n  nbctl lan stats -f -o json | jq .",
        "Frames and bytes since the LAN or port was made, by class (a frame may be in several), and drops by reason. The lines\n"
        "`(others)` are what the LAN exchanged with other nodes; rx and tx of a port are as the container sees them.",
    ),
}
