"""Verbs that show containers as they are: ps, inspect."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nbctl import output, select, text
from nbctl.commands import Command, selected
from nbctl.commands.node import report_unreachable
from nbctl.failure import OK

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Sequence

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.container_pb2 import Container, ExitStatus, Nic
    from nestbed.v1.node_pb2 import NodeFault

COMMAND_CELLS = 32
HEADINGS = ("NAME", "KIND", "STATE", "EXIT", "LANS", "ADDRESSES", "CONTROL", "COMMAND", "AGE")
_UP = {"starting", "running"}
_SETTLED = {"created", "stopped"}


def state(container: Container) -> str:
    """The state in a word: ``running``."""
    from nestbed.v1.container_pb2 import ContainerState  # noqa: PLC0415 - loaded with the client

    return ContainerState.Name(container.state).removeprefix("CONTAINER_STATE_").lower()


def _progress(container: Container) -> str:
    """The state, and how far a virtual machine has come: ``booting``, ``answering``, ``addressed``, then ``ready``."""
    from nestbed.v1.container_pb2 import BootPhase  # noqa: PLC0415 - loaded with the client

    word = state(container)
    return BootPhase.Name(container.boot).removeprefix("BOOT_PHASE_").lower() if container.boot and word in _UP else word


def _kind(container: Container) -> str:
    from nestbed.v1.container_pb2 import ContainerKind  # noqa: PLC0415 - loaded with the client

    return ContainerKind.Name(container.spec.kind).removeprefix("CONTAINER_KIND_").lower()


def _exit(status: ExitStatus) -> str:
    if status.HasField("code") or status.HasField("signal"):
        return str(status.shell_code)
    return "!" if status.reason == "start-failed" else "?"


def _addresses(nics: Iterable[Nic], *, in_full: bool) -> str:
    addresses = [address for nic in nics for address in nic.addresses]
    return ",".join(addresses if in_full else [address.partition("/")[0] for address in addresses]) or "-"


def rows(containers: Iterable[Container], *, now: float, in_full: bool) -> Iterable[Sequence[str]]:
    """The lines of ``ps``: one a container, addresses without their prefix length and commands cut unless ``in_full``."""
    for container in containers:
        nics = container.nics
        command = text.escape(text.command(container.spec.process.args))
        yield (
            container.name,
            _kind(container),
            _progress(container),
            _exit(container.exit) if container.HasField("exit") else "-",
            ",".join(dict.fromkeys(nic.lan for nic in nics)) or "-",
            _addresses(nics, in_full=in_full),
            _addresses([container.control] if container.HasField("control") else [], in_full=in_full),
            command if in_full else text.cut(command, COMMAND_CELLS),
            text.age(now - container.create_time.seconds),
        )


def _ps_options(parser: Parser) -> None:
    select.add_options(parser)
    parser.add_argument("-a", "--all", action="store_true", help="also those that do not run; implied by names")
    parser.add_argument("-q", "--quiet", action="store_true", help="only ids")
    parser.add_argument("--no-trunc", action="store_true", help="cut nothing off")


async def _ps(context: Context, args: Namespace) -> int:
    unreachable: list[NodeFault] = []
    found = await context.client.list_containers(labels=dict(args.labels), unreachable=unreachable)
    if args.names:
        found = select.choose(args.names, found, none_is_fine=True)
    elif not args.all:
        found = [container for container in found if state(container) not in _SETTLED]
    if args.quiet:
        output.lines(container.id for container in found)
    else:
        width = None if args.no_trunc else output.width()
        output.show(context.output, found, lambda: text.table(HEADINGS, rows(found, now=time.time(), in_full=args.no_trunc), width=width))
    report_unreachable(unreachable)
    return OK


async def _inspect(context: Context, args: Namespace) -> int:
    def table(found: list[Container]) -> list[str]:
        return text.table(HEADINGS, rows(found, now=time.time(), in_full=True), width=output.width())

    return await selected.inspect(context, args, selected.containers(context), context.client.get_container, table)


COMMANDS = {
    "ps": Command(
        _ps_options,
        _ps,
        "  nbctl ps\n  nbctl ps -a -l role=router\n  nbctl ps -a -o name\n  nbctl rm -f $(nbctl ps -aq)",
        "EXIT is the last run's exit status as a shell shows it: ? if it is not known, ! if the program could not be started.\n"
        "What is on nodes inside virtual machines comes last, by its path; a node that does not answer is told on standard error.",
    ),
    "inspect": Command(
        select.add_options,
        _inspect,
        "  nbctl inspect web\n  nbctl inspect -o yaml 'host*'",
        "Prints JSON unless told otherwise: the message of the API for one name, a list for several, a glob or a label.",
    ),
}
