"""Verbs that show the use of resources: stats, top."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, Literal

from nbctl import output, select, stream, terminal, text, traffic, values
from nbctl.commands import Command
from nbctl.failure import OK, Usage

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Coroutine, Sequence

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.container_pb2 import ContainerStats

HEADINGS = ("NAME", "CPU", "MEMORY", "LIMIT", "PIDS", "RECEIVED", "SENT", "READ", "WRITTEN")
SAMPLE_SECONDS = 0.25
"""Time between the two measurements from which a single answer tells the use of processors."""


class Processors:
    """How much of a processor each container uses, from one measurement to the next."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}
        self.share: dict[str, float] = {}
        """By id: 1.0 is one processor in full. Who was measured once only is missing."""

    def measure(self, stats: Sequence[ContainerStats]) -> None:
        """Take the next measurement in."""
        current = {item.id: (item.time.ToNanoseconds() / 1e9, item.cpu_seconds) for item in stats if item.HasField("cpu_seconds")}
        self.share = {
            key: max(0.0, (used - self._last[key][1]) / (at - self._last[key][0]))
            for key, (at, used) in current.items()
            if key in self._last and at > self._last[key][0]
        }
        self._last = current


def _amount(item: ContainerStats, field: Literal["memory_bytes", "memory_limit_bytes", "io_read_bytes", "io_write_bytes"]) -> str:
    return text.size(getattr(item, field)) if item.HasField(field) else "-"


def _row(item: ContainerStats, share: float | None) -> Sequence[str]:
    return (
        item.name,
        "-" if share is None else f"{share:.1%}",
        _amount(item, "memory_bytes"),
        _amount(item, "memory_limit_bytes"),
        str(item.pids) if item.HasField("pids") else "-",
        text.size(sum(nic.rx_bytes for nic in item.nics)),
        text.size(sum(nic.tx_bytes for nic in item.nics)),
        _amount(item, "io_read_bytes"),
        _amount(item, "io_write_bytes"),
    )


SORTS: dict[str, Callable[[ContainerStats, float], object]] = {
    "cpu": lambda item, share: (-share, item.name),
    "memory": lambda item, _: (-item.memory_bytes, item.name),
    "pids": lambda item, _: (-item.pids, item.name),
    "name": lambda item, _: item.name,
}


def lines(stats: Sequence[ContainerStats], processors: Processors, *, sort: str = "", width: int | None = None) -> list[str]:
    """The table, in the node's order or sorted."""
    share = processors.share
    ordered = sorted(stats, key=lambda item: SORTS[sort](item, share.get(item.id, 0.0))) if sort else stats  # type: ignore[arg-type, return-value]
    return text.table(HEADINGS, (_row(item, share.get(item.id)) for item in ordered), width=width)


def _interval(parser: Parser) -> None:
    parser.add_argument("--interval", metavar="SECONDS", type=values.duration, default=1.0, help="time between measurements (1 s)")


def _check_interval(args: Namespace) -> None:
    if args.interval < 0.1:
        raise Usage("the interval is too short", remedy="give 100ms or more")


def _stats_options(parser: Parser) -> None:
    select.add_options(parser)
    parser.add_argument("--no-stream", action="store_true", help="measure once and end")
    parser.add_argument("--nics", action="store_true", help="frames of each NIC instead, by class, and drops by reason")
    _interval(parser)


async def _stats(context: Context, args: Namespace) -> int:
    _check_interval(args)
    names = list(args.names)
    if args.labels or any(map(select.is_glob, names)):
        found = await context.client.list_containers(labels=dict(args.labels))
        names = [item.id for item in (select.choose(names, found) if names else found)]
        if not names:
            return _show_once(context, [], Processors())
    if args.nics and context.output == "table":
        return await _nics(context, names, args)
    if args.no_stream:
        return await _stats_once(context, names)
    if context.output == "table" and sys.stdout.isatty():
        return await _live(context, names, args.interval, sort="", title=None)
    processors = Processors()
    with stream.while_read():
        async for response in context.client.stats(names, interval_seconds=args.interval):
            processors.measure(response.stats)
            if context.output in {"json", "yaml"}:
                output.write(output.encode(context.output, [output.plain(item) for item in response.stats], stream=True))
            else:
                _show_once(context, response.stats, processors)
    return OK


async def _nics(context: Context, names: Sequence[str], args: Namespace) -> int:
    with stream.while_read():
        async for response in context.client.stats(names, interval_seconds=None if args.no_stream else args.interval):
            output.lines(text.table(traffic.NIC_HEADINGS, traffic.nic_rows(response.stats), width=output.width()))
    return OK


async def _stats_once(context: Context, names: Sequence[str]) -> int:
    processors = Processors()
    measured = 0
    async with contextlib.aclosing(context.client.stats(names, interval_seconds=SAMPLE_SECONDS)) as responses:
        async for response in responses:
            processors.measure(response.stats)
            measured += 1
            if measured == 2 or context.output != "table" or not response.stats:
                return _show_once(context, response.stats, processors)
    return OK


def _show_once(context: Context, stats: Sequence[ContainerStats], processors: Processors) -> int:
    output.show(context.output, stats, lambda: lines(stats, processors, width=output.width()))
    return OK


def _top_options(parser: Parser) -> None:
    parser.add_argument("--sort", choices=SORTS, default="cpu", help="column to sort by: cpu, memory, pids or name (cpu)")
    _interval(parser)


async def _top(context: Context, args: Namespace) -> int:
    _check_interval(args)
    if not (sys.stdout.isatty() and os.isatty(0)):
        raise Usage("top needs a terminal", remedy="use `nbctl stats`")
    node = await context.client.info()

    def title(count: int) -> str:
        return text.escape(f"{node.name}: {count} running, {node.cpus} processors, {text.size(node.memory_bytes)} of memory")

    return await _live(context, (), args.interval, sort=args.sort, title=title)


_SORT_KEYS = {b"c": "cpu", b"m": "memory", b"p": "pids", b"n": "name"}
_HELP = "c m p n: sort by cpu, memory, pids, name   q: end"


class _View:
    """What is on the screen: the last measurement, sorted as the last key said."""

    def __init__(self, *, sort: str, title: Callable[[int], str] | None) -> None:
        self._sort = sort
        self._title = title
        self._processors = Processors()
        self._stats: Sequence[ContainerStats] = ()

    def take(self, stats: Sequence[ContainerStats]) -> None:
        """Show a new measurement."""
        self._stats = stats
        self._processors.measure(stats)
        self.draw()

    def draw(self) -> None:
        """Show it again: the terminal or the order has changed."""
        rows, columns = terminal.size(sys.stdout.fileno())
        terminal.draw(self.lines(columns), rows)

    def lines(self, columns: int) -> list[str]:
        """What the screen shows."""
        table = lines(self._stats, self._processors, sort=self._sort, width=columns)
        return table if self._title is None else [text.cut(self._title(len(self._stats)), columns), text.cut(_HELP, columns), "", *table]

    def press(self, key: bytes) -> bool:
        """Do what a key says; whether it says to end."""
        if key in _SORT_KEYS and self._title is not None:
            self._sort = _SORT_KEYS[key]
            self.draw()
        return key in {b"q", b"Q", b"\x1b"}


async def _live(context: Context, names: Sequence[str], interval_seconds: float, *, sort: str, title: Callable[[int], str] | None) -> int:
    """Show measurements in place until q or Ctrl-C is pressed; ``stats`` (without a title) leaves the last one on the terminal."""
    view = _View(sort=sort, title=title)

    async def measure() -> None:
        async for response in context.client.stats(names, interval_seconds=interval_seconds):
            view.take(response.stats)

    work = [measure()]
    try:
        with contextlib.ExitStack() as undo:
            if os.isatty(0):
                undo.enter_context(terminal.Mode(0, raw=False))
                work.append(_keys(view))
            undo.enter_context(terminal.screen())
            undo.enter_context(terminal.resized(view.draw))
            await _until_one_ends(work)
    finally:
        if title is None:
            output.lines(view.lines(terminal.size(sys.stdout.fileno())[1]))
    return OK


async def _keys(view: _View) -> None:
    async with contextlib.aclosing(stream.read(0)) as pieces:
        async for piece in pieces:
            for key in piece:
                if view.press(bytes([key])):
                    return


async def _until_one_ends(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


COMMANDS = {
    "stats": Command(
        _stats_options,
        _stats,
        "  nbctl stats\n  nbctl stats --no-stream 'host*'\n  nbctl stats --nics --no-stream web\n  nbctl stats -o json --interval 5s web",
        "On a terminal the figures change in place until q or Ctrl-C; elsewhere a table is added for each measurement.",
    ),
    "top": Command(_top_options, _top, "  nbctl top\n  nbctl top --sort memory", f"Keys: {_HELP}."),
}
