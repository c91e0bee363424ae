"""The verb completion."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nbctl import output
from nbctl.commands import Command
from nbctl.failure import OK, Usage, nearest

if TYPE_CHECKING:
    from argparse import Namespace

    from nbctl.context import Context
    from nbctl.parser import Parser

_FILES = {"bash": "nbctl.bash", "zsh": "_nbctl"}


def shell(text: str) -> str:
    """A shell that completion exists for."""
    if text not in _FILES:
        meant = nearest(text, list(_FILES))
        raise Usage(f"there is no completion for '{text}'", remedy=f"did you mean {meant}?" if meant else "write bash or zsh")
    return text


def _options(parser: Parser) -> None:
    parser.add_argument("shell", metavar="SHELL", type=shell, help="bash or zsh")


def _completion(_: Context, args: Namespace) -> int:
    folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), "completion")
    with open(os.path.join(folder, _FILES[args.shell]), encoding="utf-8") as file:
        output.write(file.read())
    return OK


COMMANDS = {
    "completion": Command(
        _options,
        _completion,
        "  source <(nbctl completion bash)\n  nbctl completion zsh >~/.zfunc/_nbctl",
        "Names of containers and LANs are completed too.",
    )
}
