"""Verbs about what programs in containers report, orders to them, and barriers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from nbctl import output, stream, text, traffic, values
from nbctl.commands import Command
from nbctl.failure import OK

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Mapping, Sequence

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.agent_pb2 import Agent, Arrival, Report

HEADINGS = ("NAME", "STATE", "REPORTS", "LAST", "LOST", "FIELDS")
BARRIER_HEADINGS = ("BARRIER", "EXPERIMENT", "CAME", "OF", "WHO", "WAITING", "LEFT")


def _experiment_option(parser: Parser) -> None:
    parser.add_argument(
        "-x", "--experiment", metavar="EXPERIMENT", default="", help="of this experiment's elements, by their names, on all its nodes"
    )


# ---------------------------------------------------------------- ls


def _ls_options(parser: Parser) -> None:
    parser.add_argument("names", nargs="*", metavar="CONTAINER", help="name or glob such as 'web*'; all unless given")
    _experiment_option(parser)


async def _ls(context: Context, args: Namespace) -> int:
    found = await context.client.list_agents(args.names, experiment=args.experiment)
    output.show(context.output, found, lambda: text.table(HEADINGS, map(_row, found), width=output.width()))
    return OK


def _row(agent: Agent) -> Sequence[str]:
    number, at = (str(agent.last.number), agent.last.time.ToJsonString()) if agent.HasField("last") else ("0", "-")
    lost = sum(agent.lost.values())
    return agent.name, _state(agent), number, at, str(lost), _pairs(agent.fields)


def _state(agent: Agent) -> str:
    from nestbed.v1.container_pb2 import ContainerState  # noqa: PLC0415 - loaded with the client

    return ContainerState.Name(agent.state).removeprefix("CONTAINER_STATE_").lower()


def _pairs(fields: Mapping[str, str]) -> str:
    return " ".join(f"{key}={fields[key]}" for key in sorted(fields))


# ---------------------------------------------------------------- reports


def _reports_options(parser: Parser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="name or unique prefix of an id")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is reported from now on")
    parser.add_argument("-n", "--tail", metavar="N", type=values.whole(0), default=None, help="only the last N of those kept")
    _experiment_option(parser)


async def _reports(context: Context, args: Namespace) -> int:
    source = context.client.reports(args.container, experiment=args.experiment, follow=args.follow, tail=args.tail)
    with stream.while_read():
        async for report in source:
            if context.output in {"json", "yaml"}:
                output.write(output.encode(context.output, output.plain(report), stream=True))
            else:
                output.lines([str(report.number) if context.output == "name" else _line(report)])
    return OK


def _line(report: Report) -> str:
    file = f"file={report.file}" if report.file else ""
    return text.escape(" ".join(filter(None, [report.time.ToJsonString(), str(report.number), file, _pairs(report.fields)])))


# ---------------------------------------------------------------- tell


def _tell_options(parser: Parser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="name or unique prefix of an id; of elements also a glob")
    parser.add_argument("words", metavar="TEXT", nargs="+", help="the order: all words on one line")
    _experiment_option(parser)


async def _tell(context: Context, args: Namespace) -> int:
    await context.client.tell(args.container, " ".join(args.words), experiment=args.experiment)
    return OK


# ---------------------------------------------------------------- barriers


def _barriers_options(parser: Parser) -> None:
    _experiment_option(parser)


async def _barriers(context: Context, args: Namespace) -> int:
    agents = await context.client.list_agents(experiment=args.experiment)
    rows = [
        {
            "name": barrier,
            "experiment": experiment,
            "count": max(arrival.count for _, arrival in came),
            "came": [{"container": agent.name, **output.plain(arrival)} for agent, arrival in came],
        }
        for (experiment, barrier), came in _by_barrier(agents).items()
    ]
    if context.output == "table":
        output.lines(text.table(BARRIER_HEADINGS, _barrier_rows(agents), width=output.width()))
    elif context.output == "name":
        output.lines(text.escape(str(row["name"])) for row in rows)
    else:
        output.write(output.encode(context.output, rows))
    return OK


def _by_barrier(agents: Sequence[Agent]) -> dict[tuple[str, str], list[tuple[Agent, Arrival]]]:
    found: dict[tuple[str, str], list[tuple[Agent, Arrival]]] = {}
    for agent in agents:
        for arrival in agent.arrivals:
            found.setdefault((agent.experiment, arrival.barrier), []).append((agent, arrival))
    return dict(sorted(found.items()))


def _barrier_rows(agents: Sequence[Agent]) -> Iterator[Sequence[str]]:
    now = time.time()
    for (experiment, barrier), came in _by_barrier(agents).items():
        first, last = min(each.time.seconds for _, each in came), min(each.deadline.seconds for _, each in came)
        who = " ".join(agent.name for agent, _ in came)
        count = max(each.count for _, each in came)
        yield barrier, experiment or "-", str(len(came)), str(count), who, f"{now - first:.0f}s", f"{max(0, last - now):.0f}s"


# ---------------------------------------------------------------- traffic


def _traffic_options(parser: Parser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="its name")
    parser.add_argument("names", nargs="*", metavar="ELEMENT", help="names or globs such as 'bot*'; all unless given")
    parser.add_argument("--interval", metavar="SECONDS", type=values.duration, default=1.0, help="time between measurements (1 s)")
    parser.add_argument("--no-stream", action="store_true", help="measure once and end")


async def _traffic(context: Context, args: Namespace) -> int:
    interval: Any = None if args.no_stream else args.interval
    with stream.while_read():
        async for response in context.client.traffic(args.experiment, args.names, interval_seconds=interval):
            if context.output == "table":
                output.lines(text.table(traffic.NIC_HEADINGS, traffic.nic_rows(response.stats), width=output.width()))
            elif context.output == "name":
                output.lines(text.escape(each.name) for each in response.stats)
            else:
                output.write(output.encode(context.output, [output.plain(each) for each in response.stats], stream=True))
    return OK


COMMANDS = {
    "agent ls": Command(
        _ls_options,
        _ls,
        "  nbctl agent ls\n  nbctl agent ls -x street 'bot*'",
        "LOST counts what was no report: floods, lines that are too long, no text. The fields are the latest value of each key.",
    ),
    "agent reports": Command(
        _reports_options,
        _reports,
        "  nbctl agent reports web\n  nbctl agent reports -f -n 0 -x street bot1",
        "Inside, `echo state=ready >/run/nestbed/agent/report` makes a report. They are events, too: nbctl events --type 'agent.*'",
    ),
    "agent tell": Command(
        _tell_options,
        _tell,
        "  nbctl agent tell web go on\n  nbctl agent tell -x street 'bot*' stop",
        "Inside, `tail -f /run/nestbed/agent/orders` reads orders.",
    ),
    "agent barriers": Command(
        _barriers_options,
        _barriers,
        "  nbctl agent barriers\n  nbctl agent barriers -x street",
        "Inside, `/run/nestbed/agent/barrier go 3` waits until three have come to the barrier `go`.",
    ),
    "agent traffic": Command(
        _traffic_options,
        _traffic,
        "  nbctl agent traffic street\n  nbctl agent traffic street server --no-stream -o json",
        "For containers without an experiment there is `nbctl stats --nics`.",
    ),
}
