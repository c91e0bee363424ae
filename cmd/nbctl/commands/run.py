"""Verbs that run programs: run, create, exec, attach."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from nbctl import boot, output, select, stream, terminal, values
from nbctl.commands import Command
from nbctl.commands.lifecycle import add_limit_options
from nbctl.commands.node import add_node_option
from nbctl.failure import BROKEN_PIPE, OK, OWN_FAILURE, Quit, Usage, report
from nestbed.errors import Busy, NestbedError, NotFound, WrongState

if TYPE_CHECKING:
    from argparse import Namespace

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.v1.container_pb2 import Container, ExitStatus, TerminalSize


def _program_options(parser: Parser) -> argparse._ArgumentGroup:
    """What run and exec share."""
    group = parser.add_argument_group("program")
    group.add_argument("-i", "--interactive", action="store_true", help="pass standard input")
    group.add_argument("-t", "--tty", action="store_true", help="give the program a terminal")
    group.add_argument(
        "-e",
        "--env",
        metavar="K=V",
        type=values.variable,
        action="append",
        default=[],
        help="set a variable; K alone passes nbctl's own value",
    )
    group.add_argument("--env-file", dest="env_files", metavar="FILE", action="append", default=[], help="variables, one K=V a line")
    group.add_argument("-w", "--workdir", metavar="DIR", default="", help="working directory")
    group.add_argument("-u", "--user", metavar="USER[:GROUP]", default="", help="names or numbers")
    return group


def _shared_options(parser: Parser) -> argparse._ArgumentGroup:
    """What containers of both kinds have; gives the group of the program."""
    program = _program_options(parser)
    group = parser.add_argument_group("container")
    group.add_argument("--name", metavar="NAME", default="", help="unique on the node; made up unless given")
    add_node_option(group, "make it on the node inside this virtual machine, such as vm1 or vm1/vm2; --name vm1/web means the same")
    group.add_argument("--rm", action="store_true", help="remove it when it has stopped for good")
    group.add_argument("--hostname", metavar="NAME", default="", help="host name inside (the container's name)")
    group.add_argument(
        "-l", "--label", dest="labels", metavar="K=V", type=values.pair, action="append", default=[], help="for selection (may be repeated)"
    )
    group = parser.add_argument_group("network")
    group.add_argument(
        "--lan",
        dest="lans",
        metavar="LAN[,KEY=VALUE]...",
        type=values.lan,
        action="append",
        default=[],
        help="a NIC on this LAN",
    )
    group.add_argument("--gateway", metavar="ADDRESS", default="", help="next hop of the default route")
    group.add_argument(
        "--route",
        dest="routes",
        metavar="DST,via=GW",
        type=values.route,
        action="append",
        default=[],
        help="such as 10.6.0.0/24,via=10.5.0.1",
    )
    group.add_argument(
        "--control",
        action=argparse.BooleanOptionalAction,
        help="a NIC `control` on the node's control network (virtual machines have one, processes have none)",
    )
    group.add_argument(
        "--sysctl", dest="sysctls", metavar="K=V", type=values.pair, action="append", default=[], help="such as net.ipv4.ip_forward=1"
    )
    return program


def _container_options(parser: Parser) -> None:
    program = _shared_options(parser)
    program.add_argument("--init", action="store_true", help="run the program under a small init that reaps orphans and passes signals on")
    group = parser.add_argument_group("file system")
    group.add_argument(
        "--fs", metavar="MODE", type=values.fs, help="host, host-ro, overlay[=DIR] or rootfs=DIR (host for admins, else overlay)"
    )
    _add_volume(group)
    group = parser.add_argument_group("privileges")
    group.add_argument("--cap-add", metavar="CAP", action="append", default=[], help="such as SYS_PTRACE")
    group.add_argument("--cap-drop", metavar="CAP", action="append", default=[], help="such as NET_RAW, or ALL")
    add_limit_options(parser)
    parser.add_argument("program", nargs="...", metavar="CMD", help="program and arguments")


def _add_volume(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-v",
        "--volume",
        dest="mounts",
        metavar="SRC:DST[:ro]",
        type=values.mount,
        action="append",
        default=[],
        help="show a path of the node inside",
    )


def _machine_options(parser: Parser) -> None:
    _shared_options(parser)
    group = parser.add_argument_group("machine")
    _add_volume(group)
    group.add_argument("--image", metavar="IMAGE", default="", help="what it starts from (host, the node's own root); see `nbctl image ls`")
    group.add_argument("--kernel", metavar="FILE", default="", help="a kernel on the node to boot the image's disk with; admins only")
    group.add_argument("--initrd", metavar="FILE", default="", help="the initial file system of that kernel, on the node; admins only")
    group.add_argument(
        "--boot-timeout", metavar="SECONDS", type=values.duration, help="how long it may take until its program runs (5m), such as 90s"
    )
    group.add_argument("--append", metavar="TEXT", default="", help="added to the command line of the guest's kernel")
    group.add_argument(
        "--node", action="store_true", help="run nestbedd inside: a node of its own, for what is made with --on; admins only"
    )
    add_limit_options(parser)
    parser.add_argument("program", nargs="...", metavar="CMD", help="program and arguments; without one the machine just stays up")


def _add_detach(parser: Parser) -> None:
    parser.add_argument("-d", "--detach", action="store_true", help="print the container's name and leave it running")


def _run_options(parser: Parser) -> None:
    _add_detach(parser)
    _container_options(parser)


def _run_machine_options(parser: Parser) -> None:
    _add_detach(parser)
    boot.add_option(parser)
    _machine_options(parser)


def _create_options(parser: Parser) -> None:
    _container_options(parser)


async def _created(context: Context, args: Namespace, kind: str, *, start: bool = False, wait: bool = True) -> Container:
    from nbctl import specs  # noqa: PLC0415 - gRPC's messages cost more than reading a command line

    if args.rm and args.restart and args.restart[0] != "no":
        raise Usage("--rm and --restart exclude each other", remedy="leave one of them out")
    spec = specs.container(args, kind)
    creating = asyncio.ensure_future(context.client.create_container(spec, request_id=secrets.token_hex(16), start=start, wait=wait))
    try:
        return await asyncio.shield(creating)
    except asyncio.CancelledError:
        # The node may have made it already, and nobody would know its name.
        with contextlib.suppress(NestbedError):
            await _discard(context, await creating)
        raise


async def _create(context: Context, args: Namespace) -> int:
    return await _make(context, args, "process")


async def _create_machine(context: Context, args: Namespace) -> int:
    return await _make(context, args, "qemu")


async def _make(context: Context, args: Namespace, kind: str) -> int:
    container = await _created(context, args, kind)
    output.show(context.output, [container], lambda: [container.name], single=True)
    return OK


async def _run(context: Context, args: Namespace) -> int:
    return await _make_and_run(context, args, "process", detach=args.detach)


async def _run_machine(context: Context, args: Namespace) -> int:
    return await _make_and_run(context, args, "qemu", detach=args.detach or not args.program)


async def _make_and_run(context: Context, args: Namespace, kind: str, *, detach: bool) -> int:
    raw = _is_raw(args)
    if detach and kind == "qemu":
        container = await _created_and_booted(context, args)
    else:
        container = await _created(context, args, kind, start=detach)
    if detach:
        output.show(context.output, [container], lambda: [container.name], single=True)
        return OK
    return await _run_in_front(context, args, container, raw=raw)


async def _created_and_booted(context: Context, args: Namespace) -> Container:
    """A virtual machine that is ready, or, without ``--wait``, one that boots; one that cannot be started is removed."""
    if not boot.is_told(args):
        return await _created(context, args, "qemu", start=True, wait=args.wait is not False)
    container = await _created(context, args, "qemu")
    try:
        async with boot.told(context, lambda name: name == container.name):
            return await context.client.start_container(container.id)
    except BaseException:
        await _discard(context, container)
        raise


async def _run_in_front(context: Context, args: Namespace, container: Container, *, raw: bool) -> int:
    from nestbed.v1.container_pb2 import AttachStart  # noqa: PLC0415 - as specs

    start = AttachStart(container=container.id, run=True, stdin=args.interactive, size=_terminal_size())
    started = False
    try:
        async with context.client.attach(start) as session:
            started = True
            talk = stream.Conversation(
                session,
                context.signals,
                interactive=args.interactive,
                raw=raw,
                detachable=True,
                send_signal=lambda number: context.client.kill_container(container.id, signal=number),
            )
            ended = await talk.hold()
    except BrokenPipeError:
        # As SIGPIPE would end the program; one that is to be kept runs on and writes to its log.
        if args.rm:
            await _discard(context, container)
        raise Quit(BROKEN_PIPE) from None
    except BaseException:
        if not started:
            await _discard(context, container)
        raise
    if not ended:
        return _detached(container.name)
    if args.rm:
        await _discard(context, container)
    return _exit_code(session.exit, container.name)


async def _discard(context: Context, container: Container) -> None:
    """Remove a container that shall not stay; the node may have been quicker."""
    try:
        await context.client.delete_container(container.id, force=True)
    except (NotFound, WrongState, Busy):
        return
    except NestbedError as error:
        report(f"{container.name} could not be removed: {error.message}", error.remedy)


def _detached(name: str) -> int:
    report(f"detached; {name} runs on", f"`nbctl attach {name}` comes back to it")
    return OK


def _exit_code(status: ExitStatus | None, name: str) -> int:
    """What nbctl ends with for the program; says what a number cannot."""
    if status is None or not (status.HasField("code") or status.HasField("signal")):
        why = status.message if status is not None else ""
        report(f"how {name} ended is not known" + (f": {why}" if why else ""), f"see `nbctl logs {name}`")
        return OWN_FAILURE
    if status.reason == "oom-killed":
        report(f"{name} was killed for want of memory", "give it more with --memory")
    return status.shell_code


def _is_raw(args: Namespace) -> bool:
    """Whether the terminal nbctl runs in becomes the program's.

    Raises:
        Usage: a terminal is asked for whose keys come from something else.
    """
    if not (args.tty and args.interactive) or getattr(args, "detach", False):
        return False
    if not os.isatty(0):
        raise Usage("standard input is not a terminal", remedy="leave out -t")
    return True


def _terminal_size() -> TerminalSize:
    from nestbed.v1.container_pb2 import TerminalSize  # noqa: PLC0415 - as specs

    rows, columns = terminal.size(0 if os.isatty(0) else 1)
    return TerminalSize(rows=rows, columns=columns)


def _exec_options(parser: Parser) -> None:
    _program_options(parser)
    select.add_label_option(parser, "instead of CONTAINER: in all that run and have this label (may be repeated)")
    parser.add_argument("container", metavar="CONTAINER", nargs="?", help="name or unique prefix of an id")
    parser.add_argument("program", nargs="...", metavar="CMD", help="program and arguments")


async def _exec(context: Context, args: Namespace) -> int:
    if args.labels:
        from nbctl.commands import many  # noqa: PLC0415 - most run a program in one container

        return await many.exec_in_all(context, args)
    if not args.container:
        raise Usage("no container is named", remedy="write nbctl exec CONTAINER CMD, or nbctl exec -l KEY=VALUE -- CMD")
    from nbctl import specs  # noqa: PLC0415 - gRPC's messages cost more than reading a command line
    from nestbed.v1.container_pb2 import ExecStart  # noqa: PLC0415 - as specs

    raw = _is_raw(args)
    start = ExecStart(
        container=args.container,
        args=args.program,
        env=specs.environment(args, os.environ),
        cwd=args.workdir,
        user=args.user,
        tty=args.tty,
        stdin=args.interactive,
        size=_terminal_size(),
    )
    async with context.client.exec(start) as session:
        talk = stream.Conversation(
            session, context.signals, interactive=args.interactive, raw=raw, detachable=False, send_signal=session.signal
        )
        await talk.hold()
    return _exit_code(session.exit, args.program[0])


def _attach_options(parser: Parser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="name or unique prefix of an id")
    parser.add_argument("--no-stdin", action="store_true", help="only watch")


async def _attach(context: Context, args: Namespace) -> int:
    from nestbed.v1.container_pb2 import AttachStart  # noqa: PLC0415 - as specs

    container = await context.client.get_container(args.container)
    program = container.spec.process
    interactive = program.stdin and not args.no_stdin
    start = AttachStart(container=container.id, stdin=interactive, size=_terminal_size())
    async with context.client.attach(start) as session:
        talk = stream.Conversation(
            session,
            context.signals,
            interactive=interactive,
            raw=interactive and program.tty and os.isatty(0),
            detachable=True,
            send_signal=lambda number: context.client.kill_container(container.id, signal=number),
        )
        if not await talk.hold():
            return _detached(container.name)
    return _exit_code(session.exit, container.name)


_SIGNALS = """\
Without -it, signals that nbctl gets go to the program: Ctrl-C, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and
SIGUSR2. Three times Ctrl-C within two seconds kills it. With -it every key goes to the program, and
Ctrl-P Ctrl-Q leaves it running."""

COMMANDS = {
    "run process": Command(
        _run_options,
        _run,
        """\
  nbctl run process -d --name web --lan lan0 -- python3 -m http.server 80
  nbctl run process --rm --lan lan0,ip=10.5.0.9/24 -- curl -s http://web/
  nbctl run process -it --rm --fs overlay -- bash
  nbctl run process -d --name r1 --lan lan0 --lan lan1 --sysctl net.ipv4.ip_forward=1 --init -- sleep infinity""",
        f"Without -d its output is shown, and nbctl ends with the program's exit status.\n{_SIGNALS}",
        usage="[OPTION]... [--] CMD [ARG]...",
        takes_program=True,
        own_failure=OWN_FAILURE,
    ),
    "create process": Command(
        _create_options,
        _create,
        "  nbctl create process --name web --lan lan0 -- python3 -m http.server 80\n  nbctl start web",
        usage="[OPTION]... [--] CMD [ARG]...",
        takes_program=True,
    ),
    "run qemu": Command(
        _run_machine_options,
        _run_machine,
        """\
  nbctl run qemu --name vm1 --lan lan0
  nbctl run qemu --name vm1 --node && nbctl run process -d --on vm1 --name web --lan lan0 -- sleep 1000
  nbctl run qemu --rm --memory 1g --cpus 2 -- make -C /src check
  nbctl run qemu -it --rm --lan lan0 -- bash""",
        "With a command the machine boots, runs it, and ends with it, as a process does; nbctl ends with its exit\n"
        "status. Without one it stays up, and `nbctl exec` runs programs in it. It sees the node's files under\n"
        f"changes of its own, which end with it.\n{_SIGNALS}",
        usage="[OPTION]... [[--] CMD [ARG]...]",
        takes_program=True,
        may_run_nothing=True,
        own_failure=OWN_FAILURE,
    ),
    "create qemu": Command(
        _machine_options,
        _create_machine,
        "  nbctl create qemu --name vm1 --lan lan0",
        usage="[OPTION]... [[--] CMD [ARG]...]",
        takes_program=True,
        may_run_nothing=True,
    ),
    "exec": Command(
        _exec_options,
        _exec,
        "  nbctl exec web ip address\n  nbctl exec -it web bash\n  nbctl exec -i web sh -c 'cat > /tmp/page' < page.html\n"
        "  nbctl exec -l nestbed.experiment=street -- ip -br address",
        "nbctl ends with the program's exit status. With -l each line is headed by the container's name, and it ends with 1\n"
        "if one of the programs ends other than with 0.",
        "[OPTION]... CONTAINER|-l KEY=VALUE [--] CMD [ARG]...",
        takes_program=True,
        own_failure=OWN_FAILURE,
    ),
    "attach": Command(
        _attach_options, _attach, "  nbctl attach web", f"nbctl ends with the program's exit status.\n{_SIGNALS}", own_failure=OWN_FAILURE
    ),
}
