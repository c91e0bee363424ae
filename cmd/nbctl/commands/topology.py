"""What can be said of an experiment's files without a node: validate, graph."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from nbctl import output
from nbctl.commands import Command
from nbctl.failure import OK, Failure, Usage
from nestbed.errors import translated

if TYPE_CHECKING:
    from argparse import Namespace

    from nbctl.context import Context
    from nbctl.parser import Parser
    from nestbed.experiment.plan import Plan

PICTURES = ("svg", "png", "dot", "mermaid")
WHAT = ("vtopo", "ptopo", "both")


def file_options(parser: Parser) -> None:
    """The two files of an experiment."""
    parser.add_argument(
        "-f", "--file", dest="vtopo", metavar="VTOPO", required=True, help="file with the virtual topology; - is standard input"
    )
    parser.add_argument(
        "--on", dest="ptopo", metavar="PTOPO", help="file with the nodes that hold it; without one, the node asked holds all"
    )


def content(path: str) -> tuple[str, str]:
    """The text of a file, and its name for messages.

    Raises:
        Failure, NestbedError: it cannot be read.
    """
    try:
        if path == "-":
            return sys.stdin.read(), "standard input"
        with translated(f"reading {path}", path=path), open(path, encoding="utf-8") as file:
            return file.read(), path
    except UnicodeDecodeError as error:
        raise Failure(f"{path} is not UTF-8 text", remedy="convert it with iconv") from error


def sources(vtopo: str, path: str) -> dict[str, bytes]:
    """What the files hold that the vtopo with this text, at this path, names for its elements.

    Raises:
        NestbedError: the vtopo is wrong, or one of them cannot be read or is too large.
    """
    if "source" not in vtopo:
        return {}
    from nestbed.experiment import files  # noqa: PLC0415 - reading files takes its time
    from nestbed.experiment import vtopo as words  # noqa: PLC0415 - see above

    found = {}
    for name in files.sources(words.read(vtopo, path)[0]):
        where = os.path.join(os.path.dirname("" if path == "-" else path), name)
        with translated(f"reading {where}", path=where), open(where, "rb") as file:
            found[name] = file.read(files.SOURCE_BYTES_MAX + 1)
        if len(found[name]) > files.SOURCE_BYTES_MAX:
            raise Failure(
                f"{where} is larger than {files.SOURCE_BYTES_MAX >> 10} KiB", remedy="copy it with nbctl cp, or mount its directory"
            )
    return found


def read_plan(args: Namespace) -> Plan:
    """The plan for the files that were named.

    Raises:
        Failure, NestbedError: a file cannot be read, or holds a mistake.
    """
    from nestbed.experiment import plan  # noqa: PLC0415 - reading files takes its time

    vtopo = content(args.vtopo)
    return plan.make(vtopo, content(args.ptopo) if args.ptopo else None, sources(vtopo[0], args.vtopo))


def _validate(context: Context, args: Namespace) -> int:
    plan = read_plan(args)
    if context.output in {"json", "yaml"}:
        output.write(output.encode(context.output, plan.document()))
    elif context.output == "name":
        output.lines([plan.name])
    else:
        counts = ((len(plan.elements), "elements"), (len(plan.lans), "LANs"), (len(plan.nodes), "nodes"))
        told = ", ".join(f"{count} {what if count != 1 else what[:-1]}" for count, what in counts)
        output.lines([f"{plan.name}: {told}; no mistake found"])
    return OK


def _graph_options(parser: Parser) -> None:
    parser.add_argument("what", metavar="WHAT", nargs="?", default="vtopo", choices=WHAT, help="vtopo, ptopo or both (vtopo)")
    file_options(parser)
    parser.add_argument("--to", metavar="FILE", help="where to write the picture; to standard output unless given")
    parser.add_argument("--expand", action="store_true", help="draw each element of a large range for itself")


def _graph(context: Context, args: Namespace) -> int:
    from nestbed.experiment import drawing  # noqa: PLC0415 - reading files takes its time

    form = context.given_output or "svg"
    plan = read_plan(args)
    if form == "mermaid":
        picture = drawing.mermaid(plan, args.what, expand=args.expand).encode()
    else:
        text = drawing.draw(plan, args.what, expand=args.expand)
        picture = text.encode() if form == "dot" else drawing.render(text, form)
    if args.to:
        with translated(f"writing {args.to}", path=args.to), open(args.to, "wb") as file:
            file.write(picture)
    elif form == "png" and sys.stdout.isatty():
        raise Usage("a PNG picture does not belong on a terminal", remedy="write --to FILE, or > FILE")
    else:
        sys.stdout.buffer.write(picture)
        sys.stdout.flush()
    return OK


COMMANDS = {
    "validate": Command(
        file_options,
        _validate,
        "  nbctl validate -f vtopo.yaml\n  nbctl validate -f vtopo.yaml --on ptopo.yaml -o json",
        "Nothing is made, and no node is asked. With -o json or yaml it prints the plan: every address, route, MAC and node.",
    ),
    "graph": Command(
        _graph_options,
        _graph,
        "  nbctl graph -f vtopo.yaml > vtopo.svg\n  nbctl graph both -f vtopo.yaml --on ptopo.yaml -o png --to both.png",
        "Red dashed lines are LANs between nodes. A range of many elements on the same LANs is drawn as one stack.",
        outputs=PICTURES,
    ),
}
