"""The verbs, by subject: each module has a table ``COMMANDS`` from verb to :class:`Command`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from argparse import Namespace

    from nbctl.context import Context
    from nbctl.parser import Parser


class Command(NamedTuple):
    """A verb: its options, what it does, and what its help says beside the options.

    ``act`` returns the exit code; a coroutine is run in an event loop. ``takes_program`` collects the end of the command line in
    ``args.program``, which ``may_run_nothing`` lets be empty. ``own_failure`` is the exit code for failures of nestbed itself.
    ``outputs`` are forms of output other than the usual ones.
    """

    options: Callable[[Parser], None]
    act: Callable[[Context, Namespace], Coroutine[Any, Any, int] | int]
    examples: str
    details: str = ""
    usage: str = ""
    takes_program: bool = False
    own_failure: int = 1
    outputs: tuple[str, ...] = ()
    may_run_nothing: bool = False
