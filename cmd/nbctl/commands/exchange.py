"""Other tools' topology files: import, export. They need no node."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from nbctl import output
from nbctl.commands import Command
from nbctl.commands.topology import content
from nbctl.failure import OK

if TYPE_CHECKING:
    from argparse import Namespace

    from nbctl.context import Context
    from nbctl.parser import Parser

_DETAILS = "What has no counterpart is refused with its name; --skip WORD leaves it out."


def _options(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="what to read; - is standard input. The result goes to standard output")
    parser.add_argument("--skip", metavar="WORD", action="append", default=[], help="leave out what is called so (may be repeated)")


def _topdl_options(parser: Parser) -> None:
    _options(parser)
    parser.add_argument("--name", metavar="NAME", help="of the experiment; that of the file unless given")
    parser.add_argument("--ptopo", action="store_true", help="print the ptopo file for the partitions instead")


def _import_topdl(_: Context, args: Namespace) -> int:
    from nestbed.experiment.formats import topdl  # noqa: PLC0415 - reading files takes its time

    text, file = content(args.file)
    name = args.name or PurePath(args.file).stem.replace(".", "-").replace(" ", "-")
    output.write(topdl.placement_of(text, file) if args.ptopo else topdl.read(text, file, name, skipped=args.skip))
    return OK


def _import_containerlab(_: Context, args: Namespace) -> int:
    from nestbed.experiment.formats import containerlab  # noqa: PLC0415 - see above

    text, file = content(args.file)
    output.write(containerlab.read(text, file, skipped=args.skip))
    return OK


def _export_topdl(_: Context, args: Namespace) -> int:
    from nestbed.experiment import plan  # noqa: PLC0415 - see above
    from nestbed.experiment.formats import topdl  # noqa: PLC0415 - see above

    output.write(topdl.write(plan.understand(*content(args.file)), skipped=args.skip))
    return OK


def _export_containerlab(_: Context, args: Namespace) -> int:
    from nestbed.experiment import plan  # noqa: PLC0415 - see above
    from nestbed.experiment.formats import containerlab  # noqa: PLC0415 - see above

    output.write(containerlab.write(plan.understand(*content(args.file)), skipped=args.skip))
    return OK


COMMANDS = {
    "import topdl": Command(
        _topdl_options,
        _import_topdl,
        "  nbctl import topdl lab.xml > vtopo.yaml\n  nbctl import topdl lab.xml --ptopo > ptopo.yaml\n"
        "  nbctl import topdl lab.xml --skip startup > vtopo.yaml",
        _DETAILS,
    ),
    "import containerlab": Command(
        _options, _import_containerlab, "  nbctl import containerlab lab.clab.yml --skip image > vtopo.yaml", _DETAILS
    ),
    "export topdl": Command(_options, _export_topdl, "  nbctl export topdl vtopo.yaml > lab.xml", _DETAILS),
    "export containerlab": Command(_options, _export_containerlab, "  nbctl export containerlab vtopo.yaml > lab.clab.yml", _DETAILS),
}
