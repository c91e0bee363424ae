"""Experiments on a node: up, down, status, diff."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbctl import output, text
from nbctl.commands import Command
from nbctl.commands.topology import content, file_options, read_plan, sources
from nbctl.failure import FAILED, OK, Failure, Usage, report
from nestbed.errors import translated

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.experiment_pb2 import Change, DownResponse, Element, ElementProgress, Experiment, UpResponse

HEADINGS = ("NAME", "STATE", "ELEMENTS", "LANS", "NODES", "AGE")
ELEMENT_HEADINGS = ("ELEMENT", "KIND", "STATE", "NODE", "ADDRESSES", "DETAIL")
_SIGNS = {"CHANGE_KIND_MAKE": "+", "CHANGE_KIND_REMOVE": "-", "CHANGE_KIND_REPLACE": "~", "CHANGE_KIND_START": ">"}


def _files(args: Namespace) -> tuple[tuple[str, str], tuple[str, str] | None, dict[str, bytes]]:
    """The files as the API takes them: name and text, and the sources that the vtopo names."""
    vtopo, name = content(args.vtopo)
    contents = sources(vtopo, args.vtopo)
    if not args.ptopo:
        return (name, vtopo), None, contents
    ptopo, ptopo_name = content(args.ptopo)
    return (name, vtopo), (ptopo_name, ptopo), contents


def _word(enum: str, number: int) -> str:
    """A state as people read it: ``ready`` for ELEMENT_STATE_READY."""
    from nestbed.v1 import experiment_pb2  # noqa: PLC0415 - loaded with the client

    kind: Any = getattr(experiment_pb2, enum)
    return str(kind.Name(number)).rpartition("_")[2].lower()


class _Display:
    """One line of standard error that tells how far it is; on something other than a terminal nothing, or with ``all_steps`` each step."""

    def __init__(self, *, all_steps: bool) -> None:
        self._all_steps = all_steps
        self._is_live = sys.stderr.isatty() and not all_steps
        self._states: dict[str, str] = {}
        self._began = time.monotonic()

    def add(self, steps: Iterable[ElementProgress]) -> None:
        for step in steps:
            state = _word("ElementState", step.state)
            self._states[step.element] = state
            if self._all_steps:
                seconds = time.monotonic() - self._began
                sys.stderr.write(
                    f"{seconds:7.2f} {text.escape(step.element)} {state}{' ' if step.detail else ''}{text.escape(step.detail)}\n"
                )
        if self._is_live:
            counts = Counter(self._states.values())
            told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
            sys.stderr.write(f"\r\x1b[K{text.cut(told, (output.width() or 80) - 1)}")
            sys.stderr.flush()

    def end(self) -> None:
        if self._is_live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


async def _follow(responses: AsyncGenerator[UpResponse, None] | AsyncGenerator[DownResponse, None], *, all_steps: bool) -> Experiment:
    display, found = _Display(all_steps=all_steps), None
    try:
        async for response in responses:
            display.add(response.progress)
            if response.HasField("experiment"):
                found = response.experiment
    finally:
        display.end()
    if found is None or not found.name:
        raise Failure("the node stopped before it was done", remedy="it goes on when nestbedd is back; see `nbctl status`")
    return found


def _tell(problems: Iterable[str]) -> None:
    for problem in problems:
        message, *rest = problem.split("\n")
        remedy = next((line.removeprefix("remedy: ") for line in rest if line.startswith("remedy: ")), "")
        report(message, remedy)
        sys.stderr.write("".join(f"{text.escape(line)}\n" for line in rest if not line.startswith("remedy: ")))


def _steps_option(parser: Parser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="show each step of each element, with the time")


def _up_options(parser: Parser) -> None:
    file_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan as JSON; make nothing, ask no node")
    parser.add_argument("--keep", action="store_true", help="if something fails, keep what was made, and go on with what can be")
    _steps_option(parser)


def _up(context: Context, args: Namespace) -> Any:
    if args.dry_run:
        output.write(read_plan(args).text())
        return OK
    return _bring_up(context, args)


async def _bring_up(context: Context, args: Namespace) -> int:
    vtopo, ptopo, contents = _files(args)
    found = await _follow(context.client.up(vtopo, ptopo, sources=contents, keep=args.keep), all_steps=args.verbose)
    state = _word("ExperimentState", found.state)
    seconds = found.rise_duration.seconds + found.rise_duration.nanos / 1e9
    ends = {
        "up": f"up after {seconds:.1f} s",
        "down": "not up; what was made is removed again (--keep keeps it)",
        "rising": "not up yet: it was stopped",
    }
    line = f"{found.name}: {found.element_count} elements, {found.lan_count} LANs {ends.get(state, state)}"
    output.show(context.output, [found], lambda: [line], single=True)
    _tell(found.problems)
    return OK if state == "up" else FAILED


def _down_options(parser: Parser) -> None:
    parser.add_argument("experiments", metavar="EXPERIMENT", nargs="*", help="names")
    parser.add_argument("-f", "--file", dest="vtopo", metavar="VTOPO", help="the experiment of this file")
    parser.add_argument("--force", action="store_true", help="forget it even if a node cannot be reached; its containers there stay")
    _steps_option(parser)


async def _down(context: Context, args: Namespace) -> int:
    names = list(args.experiments)
    if args.vtopo:
        from nestbed.experiment import vtopo  # noqa: PLC0415 - reading files takes its time

        names.append(vtopo.read(*content(args.vtopo))[0].experiment)
    if not names:
        raise Usage("no experiment is named", remedy="give names, or -f VTOPO; see `nbctl status`")
    code, gone = OK, []
    for name in names:
        found = await _follow(context.client.down(name, force=args.force), all_steps=args.verbose)
        if _word("ExperimentState", found.state) != "down":
            _tell(found.problems)
            code = FAILED
            continue
        gone.append(found)
    output.show(context.output, gone, lambda: [found.name for found in gone])
    return code


def _status_options(parser: Parser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="name; all, without their elements, unless given")


async def _status(context: Context, args: Namespace) -> int:
    if args.experiment is None:
        found = await context.client.list_experiments()
        output.show(context.output, found, lambda: _table(found))
        return OK
    one = await context.client.get_experiment(args.experiment)
    output.show(context.output, [one], lambda: _whole(one), single=True)
    return OK


def _table(experiments: Iterable[Experiment]) -> list[str]:
    now = time.time()
    rows: list[Sequence[str]] = [
        (
            one.name,
            _word("ExperimentState", one.state),
            str(one.element_count),
            str(one.lan_count),
            str(len(one.nodes)),
            text.age(now - one.start_time.seconds),
        )
        for one in experiments
    ]
    return text.table(HEADINGS, rows, width=output.width())


def _whole(one: Experiment) -> list[str]:
    rows: list[Sequence[str]] = [
        (each.name, each.kind, _word("ElementState", each.state), each.node, " ".join(each.addresses) or "-", _detail(each))
        for each in one.elements
    ]
    lines = [f"{one.name} is {_word('ExperimentState', one.state)}", *text.table(ELEMENT_HEADINGS, rows, width=output.width())]
    lines += [f"node {node.name} is the element {node.element}, too" for node in one.nodes if node.element]
    lines += [f"node {node.name} cannot be reached: {text.escape(node.problem)}" for node in one.nodes if node.problem]
    return lines + [text.escape(line) for problem in one.problems for line in problem.split("\n")]


def _detail(element: Element) -> str:
    down = f"{' '.join(element.nics_down)} down" if element.nics_down else ""
    return ", ".join(filter(None, (element.detail, down))) or "-"


async def _diff(context: Context, args: Namespace) -> int:
    vtopo, ptopo, contents = _files(args)
    changes: list[Change] = await context.client.diff_experiment(vtopo, ptopo, sources=contents)
    output.show(context.output, changes, lambda: [_change(change) for change in changes])
    return FAILED if changes else OK


def _verify_options(parser: Parser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="name")
    parser.add_argument("--save", metavar="FILE", help="write the observation there: the same on whatever nodes the experiment is")


async def _verify(context: Context, args: Namespace) -> int:
    found = await context.client.verify_experiment(args.experiment)
    if args.save:
        import asyncio  # noqa: PLC0415 - few verbs need it here

        with translated(f"writing {args.save}", path=args.save):
            await asyncio.to_thread(Path(args.save).write_text, found.observation, encoding="utf-8")
    if context.output in {"json", "yaml"}:
        output.write(output.encode(context.output, output.plain(found)))
    else:
        calls = len(found.times)
        verdict = "no deviation" if not found.deviations else f"{len(found.deviations)} deviations"
        output.lines([f"{args.experiment}: {calls} calls answered, {verdict}", *map(text.escape, found.deviations)])
    return FAILED if found.deviations else OK


async def wait_ready(context: Context, args: Namespace) -> int:
    """``wait --ready``: until nothing is under way with the experiments."""
    if not args.names:
        raise Usage("no experiment is named", remedy="give names; see `nbctl status`")
    found = [await context.client.wait_experiment(name) for name in args.names]
    output.show(context.output, found, lambda: [f"{one.name} {_word('ExperimentState', one.state)}" for one in found])
    for one in found:
        _tell(one.problems)
    return OK if all(_word("ExperimentState", one.state) == "up" for one in found) else FAILED


def _change(change: Change) -> str:
    from nestbed.v1 import experiment_pb2  # noqa: PLC0415 - loaded with the client

    return f"{_SIGNS[experiment_pb2.ChangeKind.Name(change.kind)]} {change.noun} {change.name} on {change.node}"


COMMANDS = {
    "up": Command(
        _up_options,
        _up,
        "  nbctl up -f vtopo.yaml\n  nbctl up -f vtopo.yaml --on ptopo.yaml --keep\n  nbctl up -f vtopo.yaml --dry-run",
        "What is right already stays as it is; what the files changed is made again. If something fails, an experiment that was\n"
        "not there before is removed again, unless --keep. The node goes on by itself if nbctl is ended.",
    ),
    "down": Command(_down_options, _down, "  nbctl down street\n  nbctl down -f vtopo.yaml"),
    "status": Command(_status_options, _status, "  nbctl status\n  nbctl status street -o json"),
    "verify": Command(
        _verify_options,
        _verify,
        "  nbctl verify street\n  nbctl verify street --save one.json",
        "Interfaces, MACs, MTUs, addresses, routes, names, neighbours; of all pairs, by IPv4 and IPv6, whether they answer, TTL, path\n"
        "MTU and delay; on each LAN rate, loss and duplicates; frames from strangers. Elements need python3. Exit status 1 if anything\n"
        "deviates.",
    ),
    "diff": Command(
        file_options,
        _diff,
        "  nbctl diff -f vtopo.yaml",
        "+ would be made, - removed, ~ removed and made again, > started. Exit status 1 if there is anything.",
    ),
}
