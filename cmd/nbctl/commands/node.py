"""Verbs about the node and those inside it: info, node ls, events, audit, version."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Any

from nbctl import output, stream, text, values
from nbctl.commands import Command
from nbctl.failure import FAILED, OK, report
from nestbed import __version__
from nestbed.errors import NestbedError

if TYPE_CHECKING:
    from argparse import Namespace, _ArgumentGroup
    from collections.abc import Iterable, Iterator

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.node_pb2 import Ability, Event, NodeEntry, NodeFault, NodeInfo

EXPERIMENT = "nestbed.experiment"


def _no_options(_: Parser) -> None:
    """The verb has no options of its own."""


def add_node_option(group: Parser | _ArgumentGroup, meaning: str) -> None:
    """``--on NODE``: the path of a node inside a virtual machine, or the name of one."""
    group.add_argument("--on", metavar="NODE", type=lambda path: path.strip("/"), default="", help=meaning)


def _on_option(parser: Parser) -> None:
    add_node_option(parser, "of the node inside this virtual machine, such as vm1 or vm1/vm2")


def state(node: NodeEntry | NodeFault) -> str:
    """The state of a node in a word: ``ready``."""
    from nestbed.v1.node_pb2 import NodeState  # noqa: PLC0415 - loaded with the client

    return NodeState.Name(node.state).removeprefix("NODE_STATE_").lower()


def report_unreachable(faults: Iterable[NodeFault]) -> None:
    """Tell of nodes that could not be asked; of one whose machine does not run there is nothing to tell."""
    for fault in faults:
        if state(fault) != "stopped":
            report(f"node {fault.node} is {state(fault)}: {fault.detail}", "`nbctl node ls` shows when it is ready")


# ---------------------------------------------------------------- ls

HEADINGS = ("NODE", "ROLE", "STATE", "EXPERIMENT", "CONTAINERS", "RUNNING", "VERSION")


def _role(node: NodeEntry) -> str:
    """``node``: it only holds others; ``element``: a machine of an experiment; ``both``."""
    if not node.element:
        return "node"
    return "both" if node.node else "element"


async def _ls(context: Context, _: Namespace) -> int:
    nodes = await context.client.nodes()
    rows = [
        (
            "  " * node.depth + node.name,
            _role(node),
            state(node),
            node.labels.get(EXPERIMENT, "-"),
            str(node.containers) if node.version else "-",
            str(node.containers_running) if node.version else "-",
            node.version or "-",
        )
        for node in nodes
    ]
    output.show(context.output, nodes, lambda: text.table(HEADINGS, rows, width=output.width()))
    return OK


# ---------------------------------------------------------------- info


async def _info(context: Context, args: Namespace) -> int:
    info = await context.client.info(node=args.on)
    output.show(context.output, [info], lambda: _described(info, output.width() or 120), single=True)
    return OK


def _described(info: NodeInfo, width: int) -> Iterator[str]:
    facts = {
        "node": f"{info.name} (id {info.id})",
        "version": f"nestbed {info.version}, kernel {info.kernel}",
        "machine": f"{info.cpus} processors, {text.size(info.memory_bytes)} of memory",
        "directories": f"{info.run_dir} and {info.state_dir}",
        "containers": f"{info.containers}, of which {info.containers_running} run; kinds: {', '.join(info.kinds) or 'none'}",
        "LANs": str(info.lans),
        "since": info.start_time.ToJsonString(),
        "your role": info.role,
    }
    for name, value in facts.items():
        yield text.escape(f"{name:<14}{value}")
    names = max((len(ability.name) for ability in info.abilities), default=0) + 2
    for heading, available in (("It can:", True), ("It cannot:", False)):
        found = [ability for ability in info.abilities if ability.available is available]
        if found:
            yield ""
            yield heading
            for ability in found:
                yield from _ability(ability, names, width)


def _ability(ability: Ability, names: int, width: int) -> Iterator[str]:
    indent = " " * (names + 2)
    said = text.escape(ability.detail)
    if ability.consequence:
        said += f" -> {text.escape(ability.consequence)}" if said else text.escape(ability.consequence)
    first = f"  {text.escape(ability.name):<{names}}"
    yield from textwrap.wrap(said, max(width, 40), initial_indent=first, subsequent_indent=indent) or [first.rstrip()]


# ---------------------------------------------------------------- events


def _event_options(parser: Parser) -> None:
    parser.add_argument("--history", action="store_true", help="begin with what the node still has")
    parser.add_argument("--after", metavar="N", type=values.whole(0), default=0, help="begin after the event with this sequence number")
    parser.add_argument(
        "--type", dest="types", metavar="GLOB", action="append", default=[], help="only these, such as 'container.*' (may be repeated)"
    )


async def _events(context: Context, args: Namespace) -> int:
    with stream.while_read():
        async for response in context.client.events(after_sequence=args.after, types=args.types, history=args.history):
            if response.dropped:
                report(f"{response.dropped} events were dropped: nbctl or its reader was too slow")
            if context.output in {"json", "yaml"}:
                output.write(output.encode(context.output, output.plain(response.event), stream=True))
            else:
                output.lines([response.event.name if context.output == "name" else _event_line(response.event)])
    return OK


def _event_line(event: Event) -> str:
    attributes = " ".join(f"{key}={event.attributes[key]}" for key in sorted(event.attributes))
    return text.escape(" ".join(filter(None, [event.time.ToJsonString(), event.type, event.name or event.id, attributes])))


# ---------------------------------------------------------------- audit


async def _audit(context: Context, args: Namespace) -> int:
    found = await context.client.audit(node=args.on)
    report_unreachable(found.unreachable)
    if context.output in {"json", "yaml"}:
        output.write(output.encode(context.output, output.plain(found)))
    elif context.output == "name":
        output.lines(text.escape(leftover.name) for leftover in found.leftovers)
    elif found.leftovers:
        rows = ((leftover.problem, leftover.kind, leftover.name, leftover.detail) for leftover in found.leftovers)
        output.lines(text.table(("PROBLEM", "KIND", "NAME", "DETAIL"), rows, width=output.width()))
    else:
        output.lines([f"clean: {found.objects} objects compared"])
    return FAILED if found.leftovers else OK


# ---------------------------------------------------------------- metrics


async def _metrics(context: Context, args: Namespace) -> int:
    found = await context.client.metrics(node=args.on)
    output.write(output.encode(context.output, {"text": found}) if context.output in {"json", "yaml"} else found)
    return OK


# ---------------------------------------------------------------- version


async def _version(context: Context, _: Namespace) -> int:
    """The version of nbctl in any case; that of the node if it can be asked."""
    versions: dict[str, Any] = {"client": __version__}
    failure: NestbedError | None = None
    try:
        versions["node"] = (await context.client.info(with_abilities=False)).version
    except NestbedError as error:
        failure = error
    if context.output in {"json", "yaml"}:
        output.write(output.encode(context.output, versions))
    else:
        output.lines(_version_lines(versions))
    sys.stdout.flush()
    if failure is not None:
        raise failure
    return OK


def _version_lines(versions: dict[str, Any]) -> Iterable[str]:
    yield f"nbctl    {versions['client']}"
    if "node" in versions:
        yield text.escape(f"nestbedd {versions['node']}")


_INFO = Command(
    _on_option, _info, "  nbctl info\n  nbctl info --on vm1 -o json", "Tells what the kernel lacks, and what that means for you."
)
_EVENTS = Command(
    _event_options, _events, "  nbctl events\n  nbctl events --type 'container.*' -o json\n  nbctl events --history", "Ends with Ctrl-C."
)
_AUDIT = Command(
    _on_option,
    _audit,
    "  nbctl audit\n  nbctl audit --on vm1",
    "Prints what is in the kernel only or in the records only, of this node and all inside it, and ends with 1 if there is\n"
    "anything. A node that does not answer is told on standard error.",
)
COMMANDS = {
    "info": _INFO,
    "events": _EVENTS,
    "audit": _AUDIT,
    "node ls": Command(
        _no_options,
        _ls,
        "  nbctl node ls\n  nbctl node ls -o json",
        "ROLE tells whether a machine only holds others (node), is a virtual machine that belongs to an experiment as an\n"
        "element (element), or both.",
    ),
    "node info": _INFO,
    "node events": _EVENTS,
    "node audit": _AUDIT,
    "node metrics": Command(
        _on_option,
        _metrics,
        "  nbctl node metrics\n  nbctl node metrics >/var/lib/prometheus/node-exporter/nestbed.prom",
        "For the textfile collector of Prometheus' node exporter, or behind any web server.",
    ),
    "version": Command(_no_options, _version, "  nbctl version"),
}
