"""Entry point: reads the command line, runs the verb, turns every end into an exit code and at most two lines."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from nbctl import failure
from nbctl.context import Context
from nbctl.failure import Failure, Quit
from nbctl.parser import output_form, parse
from nestbed.errors import NestbedError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType

_BY_REASON = {"PROGRAM_NOT_FOUND": failure.NOT_FOUND, "NOT_EXECUTABLE": failure.NOT_EXECUTABLE}


def main() -> NoReturn:
    """The executable: never shows a traceback unless NBCTL_DEBUG is set."""
    if not os.environ.get("NBCTL_DEBUG"):
        sys.excepthook = _apologise
    # Most commands are over before there is garbage; whoever talks to a node switches it on again.
    gc.disable()
    if sys.stdout is None:  # the caller closed it
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = failure.BROKEN_PIPE
    except OSError as error:
        failure.report(f"the output cannot be written: {os.strerror(error.errno or 0).lower()}", "free space, or write elsewhere")
        code = failure.FAILED
    # The interpreter would take 30 ms to tear down what the kernel tears down by itself.
    os._exit(code)


def run(argv: list[str]) -> int:
    """Do what ``argv`` asks for and return the exit code."""
    own_failure = failure.FAILED
    try:
        _, command, args = parse(argv)
        own_failure = command.own_failure
        output = args.output
        if output is None and not command.outputs and os.environ.get("NBCTL_OUTPUT"):
            output = output_form(os.environ["NBCTL_OUTPUT"])
        context = Context(host=args.host, output=output, environment=os.environ)
        result = command.act(context, args)
        return result if isinstance(result, int) else _run_in_loop(context, result)
    except Quit as quit_:
        return quit_.code
    except Failure as error:
        failure.report(error.message, error.remedy)
        return own_failure if error.code is None else error.code
    except NestbedError as error:
        failure.report(error.message, error.remedy)
        return _BY_REASON.get(error.reason, own_failure) if own_failure == failure.OWN_FAILURE else own_failure
    except UnicodeEncodeError as error:
        failure.report(f"{error.object!r} is not UTF-8 text", "the API knows only such text: use other names")
        return failure.USAGE
    except KeyboardInterrupt:
        return failure.INTERRUPTED
    except BrokenPipeError:
        return failure.BROKEN_PIPE


def _run_in_loop(context: Context, work: Coroutine[Any, Any, int]) -> int:
    import asyncio  # noqa: PLC0415 - what does not talk to a node does not pay for it

    return asyncio.run(_supervised(context, work))


async def _supervised(context: Context, work: Coroutine[Any, Any, int]) -> int:
    """Run ``work`` so that a signal that ends nbctl lets it clean up first."""
    import asyncio  # noqa: PLC0415 - see above

    task = asyncio.ensure_future(work)
    try:
        with context.signals.ending(task):
            return await task
    finally:
        await context.aclose()


def _apologise(kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    failure.report(f"this is a defect of nbctl: {kind.__name__}: {error}", "report it with what NBCTL_DEBUG=1 shows in addition")


if __name__ == "__main__":
    main()
