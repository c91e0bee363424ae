"""The verb `lan impair`: set, reset, show."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nbctl import impairments, output, text
from nbctl.commands import Command
from nbctl.failure import OK, Usage

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.lan_pb2 import Achieved, Direction, LanImpairment
    from nestbed.v1.traffic_pb2 import Impairment

HEADINGS = ("LAN", "PORT", "FRAMES", "IN FORCE", "ACHIEVED")


def _options(parser: Parser) -> None:
    parser.add_argument("words", nargs="*", metavar="[reset|show] LAN", help="name or id of the LAN; show takes none, too")
    parser.add_argument("--port", metavar="CONTAINER[:NIC]", default="", help="only the ports of this container, or of one NIC of it")
    which = parser.add_mutually_exclusive_group()
    for name, meaning in (
        ("to", "only frames to the container"),
        ("from", "only frames from it"),
        ("both", "frames in both directions (the default)"),
    ):
        which.add_argument(f"--{name}", dest="direction", action="store_const", const=name, help=meaning)
    for name, kind in impairments.KINDS.items():
        parser.add_argument(f"--{name}", dest=kind.field, metavar=kind.metavar, type=kind.read, help=f"{kind.text} (none takes it off)")


async def _impair(context: Context, args: Namespace) -> int:
    words = list(args.words)
    verb = words.pop(0) if words and words[0] in {"reset", "show"} else "set"
    fields = [kind.field for kind in impairments.KINDS.values()]
    given = {field: value for field in fields if (value := getattr(args, field)) is not None}
    if len(words) > 1 or (not words and verb != "show"):
        raise Usage("exactly one LAN is wanted", remedy="write `nbctl lan impair LAN --delay 5ms`, `... reset LAN` or `... show [LAN]`")
    if verb != "set" and given:
        raise Usage(f"`{verb}` takes no values", remedy=f"leave out `{verb}`, or the values")
    if verb == "show" and args.direction:
        raise Usage("`show` shows both directions", remedy=f"leave out --{args.direction}")
    lan = words[0] if words else ""
    container, _, nic = args.port.partition(":")
    if args.port and not container:
        raise Usage(f"'{args.port}' names no container", remedy="write --port CONTAINER or --port CONTAINER:NIC")
    if verb == "show":
        return _show(context, await context.client.impairments(lan, container=container, nic=nic), single=bool(lan))
    if verb == "reset":
        told = await context.client.reset_impairment(lan, container=container, nic=nic, direction=_direction(args.direction))
    else:
        told = await _set(context, args, given, lan, container, nic)
    if context.output == "table":
        output.lines(_told(told, is_whole=not container))
        return OK
    return _show(context, [told], single=True)


async def _set(context: Context, args: Namespace, given: dict[str, float], lan: str, container: str, nic: str) -> LanImpairment:
    if not given:
        names = ", ".join(f"--{name}" for name in impairments.KINDS)
        raise Usage("nothing is to be done to the frames", remedy=f"give at least one of {names}; `nbctl lan impair reset` takes all off")
    client = context.client
    from nestbed.v1.traffic_pb2 import Impairment  # noqa: PLC0415 - loaded with the client

    wanted = Impairment(**given)  # type: ignore[arg-type]
    return await client.set_impairment(lan, wanted, container=container, nic=nic, direction=_direction(args.direction))


def _direction(name: str | None) -> Direction.ValueType:
    from nestbed.v1 import lan_pb2  # noqa: PLC0415 - loaded with the client

    return lan_pb2.Direction.Value(f"DIRECTION_{(name or 'both').upper()}")


def _show(context: Context, told: Sequence[LanImpairment], *, single: bool) -> int:
    if context.output == "name":
        output.lines(each.lan.name for each in told)
    else:
        output.show(context.output, told, lambda: text.table(HEADINGS, _rows(told), width=output.width()), single=single)
    return OK


def _told(told: LanImpairment, *, is_whole: bool) -> Iterator[str]:
    if is_whole:
        yield text.escape(f"{told.lan.name}: {impairments.shown(told.lan.impairment)}")
        return
    for port, direction, in_force, _ in _ports(told):
        yield text.escape(f"{told.lan.name} {port} {direction}: {impairments.shown(in_force)}")


def _rows(told: Sequence[LanImpairment]) -> Iterator[Sequence[str]]:
    for each in told:
        yield each.lan.name, "(LAN)", "all", impairments.shown(each.lan.impairment), ""
        for port, direction, in_force, achieved in _ports(each):
            yield each.lan.name, port, direction, impairments.shown(in_force), "" if achieved is None else _achieved(achieved)


def _ports(told: LanImpairment) -> Iterator[tuple[str, str, Impairment, Achieved | None]]:
    for port in told.ports:
        name = f"{port.member.container}:{port.member.nic.name}"
        yield name, "to", port.in_force_to, port.achieved_to if port.HasField("achieved_to") else None
        yield name, "from", port.in_force_from, port.achieved_from if port.HasField("achieved_from") else None


def _achieved(found: Achieved) -> str:
    """``delay 4.98/5.02/5.31 ms, loss 0.99% of 12003, 9.8mbit, 40s``: the delay's least, mean and 99th percentile."""
    parts = []
    if found.HasField("delay_mean_us"):
        delays = (found.delay_min_us, found.delay_mean_us, found.delay_p99_us)
        parts.append(f"delay {'/'.join(f'{delay / 1000:.2f}' for delay in delays)} ms")
    share = found.lost / found.frames if found.frames else 0.0
    parts.append(f"loss {impairments.percent(share)} of {found.frames}")
    for name in ("duplicated", "corrupted", "reordered", "overflowed"):
        count = getattr(found, name)
        if count:
            parts.append(f"{count} {name}")
    if found.HasField("rate_bps"):
        parts.append(impairments.bits(found.rate_bps))
    parts.append(text.age(time.time() - found.since.seconds))
    return ", ".join(parts)


COMMANDS = {
    "lan impair": Command(
        _options,
        _impair,
        """\
  nbctl lan impair lan0 --delay 20ms --loss 1%
  nbctl lan impair lan0 --port web --to --rate 10mbit
  nbctl lan impair lan0 --port web:eth0 --delay none
  nbctl lan impair show lan0
  nbctl lan impair reset lan0""",
        """\
Values of a LAN are those of the way from one member to another; half of a delay is on each leg. Values of a
port come on top. What is not named keeps its value. `show` tells what is in force on each port and what came
of it: delay (least, mean, 99th percentile), loss, rate. `reset` without --port clears the LAN and all its ports.""",
        usage="[reset|show] LAN [--port CONTAINER[:NIC]] [--to|--from|--both] [OPTION]...",
    ),
}
