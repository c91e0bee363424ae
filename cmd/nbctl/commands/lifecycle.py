"""Verbs that change containers, most of them many at once: start, stop, kill, rm, wait, pause, unpause, update, rename."""

from __future__ import annotations

import contextlib
import functools
import signal
from typing import TYPE_CHECKING, Any

from nbctl import boot, output, select, values
from nbctl.commands import Command, selected
from nbctl.failure import Usage
from nbctl.select import Target

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Awaitable, Callable

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.container_pb2 import Container, ExitStatus


async def _each(context: Context, args: Namespace, do: Callable[[str], Awaitable[Container | None]], *, none_is_fine: bool = False) -> int:
    return await selected.act(context, args, selected.containers(context), do, none_is_fine=none_is_fine)


def _start_options(parser: Parser) -> None:
    select.add_options(parser)
    boot.add_option(parser)


async def _start(context: Context, args: Namespace) -> int:
    def is_meant(name: str) -> bool:
        return not args.names or any(select.matches_path(name, each) for each in args.names)

    start = functools.partial(context.client.start_container, wait=args.wait is not False)
    async with boot.told(context, is_meant) if boot.is_told(args) else contextlib.nullcontext():
        return await _each(context, args, start)


def _stop_options(parser: Parser) -> None:
    select.add_options(parser)
    parser.add_argument(
        "-t", "--time", metavar="SECONDS", type=values.duration, help="time between SIGTERM and SIGKILL (10 s), such as 3, 500ms, 1m"
    )


async def _stop(context: Context, args: Namespace) -> int:
    return await _each(context, args, functools.partial(context.client.stop_container, grace_seconds=args.time))


def _kill_options(parser: Parser) -> None:
    select.add_options(parser)
    parser.add_argument(
        "-s", "--signal", metavar="SIG", type=values.signal_number, default=int(signal.SIGKILL), help="name or number (KILL)"
    )


async def _kill(context: Context, args: Namespace) -> int:
    return await _each(context, args, functools.partial(context.client.kill_container, signal=args.signal))


def _rm_options(parser: Parser) -> None:
    select.add_options(parser)
    parser.add_argument("-f", "--force", action="store_true", help="also those that run; a glob that matches nothing is no error")


async def _rm(context: Context, args: Namespace) -> int:
    return await _each(context, args, functools.partial(context.client.delete_container, force=args.force), none_is_fine=args.force)


async def _pause(context: Context, args: Namespace) -> int:
    return await _each(context, args, context.client.pause_container)


async def _unpause(context: Context, args: Namespace) -> int:
    return await _each(context, args, context.client.resume_container)


def _wait_options(parser: Parser) -> None:
    select.add_options(parser)
    parser.add_argument("--ready", action="store_true", help="the names are experiments: wait until they are up and ready")


async def _wait(context: Context, args: Namespace) -> int:
    if args.ready:
        from nbctl.commands import experiment  # noqa: PLC0415 - few wait for experiments

        return await experiment.wait_ready(context, args)

    answers: list[dict[str, Any]] = []

    def done(target: Target, status: ExitStatus) -> None:
        if context.output in {"json", "yaml"}:
            answers.append({"name": target.shown, **output.plain(status)})
        else:
            output.lines([target.shown if context.output == "name" else str(status.shell_code)])

    chosen = await select.targets(args, selected.containers(context))
    code = await select.each(chosen, lambda target: context.client.wait_container(target.ref), done)
    if context.output in {"json", "yaml"}:
        output.write(output.encode(context.output, answers))
    return code


def add_limit_options(parser: Parser) -> None:
    """The limits that run, create and update share."""
    group = parser.add_argument_group("limits")
    group.add_argument("--cpus", metavar="N", type=values.cpus, help="processors, such as 0.5")
    group.add_argument("--memory", metavar="SIZE", type=values.size, help="memory with page cache, such as 64m or 1g")
    group.add_argument("--pids-limit", metavar="N", type=values.whole(1), help="threads and processes")
    group.add_argument("--io-weight", metavar="N", type=values.whole(1, 10000), help="share of block I/O, 1 to 10000")
    group.add_argument("--restart", metavar="POLICY", type=values.restart, help="no, on-failure[:N] or always (no)")


def _update_options(parser: Parser) -> None:
    select.add_options(parser)
    add_limit_options(parser)


async def _update(context: Context, args: Namespace) -> int:
    from nbctl import specs  # noqa: PLC0415 - gRPC's messages cost more than reading a command line

    resources, restart = specs.resources(args), specs.restart(args)
    if resources is None and restart is None:
        raise Usage("there is nothing to change", remedy="give --cpus, --memory, --pids-limit, --io-weight or --restart")
    return await _each(context, args, functools.partial(context.client.update_container, resources=resources, restart=restart))


def _rename_options(parser: Parser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="name or unique prefix of an id")
    parser.add_argument("name", metavar="NAME", help="the new name; MAC addresses and interface names stay")


async def _rename(context: Context, args: Namespace) -> int:
    if not args.name:
        raise Usage("the new name is empty", remedy="give a name of letters, digits, ., _ and -")
    container = await context.client.update_container(args.container, name=args.name)
    output.show(context.output, [container], lambda: [container.name], single=True)
    return 0


COMMANDS = {
    "start": Command(_start_options, _start, "  nbctl start web\n  nbctl start -l role=router\n  nbctl start --wait vm1"),
    "stop": Command(_stop_options, _stop, "  nbctl stop web\n  nbctl stop -t 2 'host*'"),
    "kill": Command(_kill_options, _kill, "  nbctl kill web\n  nbctl kill -s HUP router1 router2"),
    "rm": Command(_rm_options, _rm, "  nbctl rm web\n  nbctl rm -f 'host*'"),
    "wait": Command(
        _wait_options,
        _wait,
        "  nbctl wait client1 client2\n  nbctl wait --ready street",
        "Prints one status a line, in the order given: the code, 128 + signal, or 255 for unknown. With --ready the names are\n"
        "experiments: it ends when each is up and all its elements are ready, or with status 1 when one has failed.",
    ),
    "pause": Command(select.add_options, _pause, "  nbctl pause web"),
    "unpause": Command(select.add_options, _unpause, "  nbctl unpause web"),
    "update": Command(
        _update_options, _update, "  nbctl update --memory 128m --cpus 0.5 web\n  nbctl update --restart on-failure:3 'host*'"
    ),
    "rename": Command(_rename_options, _rename, "  nbctl rename web web-old"),
}
