"""Telling how virtual machines come up while a verb waits for them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from nbctl import text
from nestbed.errors import NestbedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nbctl.context import Context

_PHASES = {"booting": "its kernel boots", "answering": "it answers", "addressed": "its NICs have their addresses", "ready": "it is ready"}
EVENT = "container.boot"


def add_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--wait`` and ``--no-wait``."""
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        help="tell how a virtual machine comes up until it is ready; or do not wait for it (wait, and tell it to a terminal)",
    )


def is_told(args: argparse.Namespace) -> bool:
    """Whether to tell it."""
    return args.wait if args.wait is not None else os.isatty(2)


@contextlib.asynccontextmanager
async def told(context: Context, is_meant: Callable[[str], bool]) -> AsyncIterator[None]:
    """While the block runs, tell on standard error how the machines come up whose names ``is_meant`` takes."""
    telling = asyncio.ensure_future(_tell(context, is_meant))
    try:
        yield
        # What was said before the answer came is on its way.
        await asyncio.wait((telling,), timeout=0.1)
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _tell(context: Context, is_meant: Callable[[str], bool]) -> None:
    with contextlib.suppress(NestbedError):  # the verb itself tells what is wrong
        async for response in context.client.events(types=(EVENT,)):
            event = response.event
            if is_meant(event.name):
                sys.stderr.write(line(event.name, event.attributes["phase"], event.attributes["console"]) + "\n")
                sys.stderr.flush()


def line(name: str, phase: str, console: str) -> str:
    """``vm1: its kernel boots: Loading, please wait...``"""
    return text.escape(": ".join(filter(None, [name, _PHASES.get(phase, phase), console])))
