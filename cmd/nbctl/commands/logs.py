"""The verb logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbctl import output, stream, values
from nbctl.commands import Command
from nbctl.failure import OK

if TYPE_CHECKING:
    from argparse import Namespace

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.container_pb2 import LogEntry


def _options(parser: Parser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="name or unique prefix of an id")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the container has stopped")
    parser.add_argument("-t", "--timestamps", action="store_true", help="put the time before each line")
    parser.add_argument(
        "--since", metavar="TIME", type=values.moment, help="from then on: 2026-01-02T03:04:05Z, or 10m for ten minutes ago"
    )
    parser.add_argument("-n", "--tail", metavar="N", type=values.tail, help="only the last N lines, or all (all)")


class Stamps:
    """Puts times before lines, not before the parts in which a line goes on."""

    def __init__(self) -> None:
        self._within_line: set[int] = set()

    def stamped(self, entry: LogEntry) -> bytes:
        """The entry's bytes, with its time if they begin a line."""
        begins = entry.stream not in self._within_line
        (self._within_line.add if entry.partial else self._within_line.discard)(entry.stream)
        return (entry.time.ToJsonString().encode("ascii") + b" " if begins else b"") + entry.data


async def _logs(context: Context, args: Namespace) -> int:
    stamps = Stamps() if args.timestamps else None
    with stream.while_read():
        async for entry in context.client.logs(args.container, follow=args.follow, since=args.since, tail=args.tail):
            await _show(context, entry, stamps)
    return OK


async def _show(context: Context, entry: LogEntry, stamps: Stamps | None) -> None:
    from nestbed.v1.container_pb2 import LOG_STREAM_STDERR  # noqa: PLC0415 - loaded with the client

    if context.output in {"json", "yaml"}:
        output.write(output.encode(context.output, output.plain(entry), stream=True))
    else:
        await stream.write(2 if entry.stream == LOG_STREAM_STDERR else 1, stamps.stamped(entry) if stamps else entry.data)


COMMANDS = {
    "logs": Command(
        _options,
        _logs,
        "  nbctl logs web\n  nbctl logs -f --tail 20 web\n  nbctl logs -t --since 10m web 2>/dev/null",
        "What the program wrote to standard output goes to standard output, the rest to standard error, byte for byte.",
    )
}
