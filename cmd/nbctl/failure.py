"""How a command ends other than well: exit codes, and errors in one line of cause and one of remedy."""

from __future__ import annotations

import sys

OK = 0
FAILED = 1
USAGE = 2
OWN_FAILURE = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127
INTERRUPTED = 130
BROKEN_PIPE = 141


class Failure(Exception):
    """nbctl's own failure, with the exit code it ends with; None leaves the code to the verb."""

    def __init__(self, message: str, *, remedy: str = "", code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code


class Usage(Failure):
    """The command line is wrong in itself."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy, code=USAGE)


class Quit(Exception):
    """Ends the command with ``code`` and without a word: what there was to say has been said."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def nearest(word: str, known: list[str]) -> str:
    """The known word that ``word`` was probably meant to be, or nothing."""
    import difflib  # noqa: PLC0415 - only an error pays for it

    found = difflib.get_close_matches(word, known, n=1, cutoff=0.55)
    return found[0] if found else ""


def report(message: str, remedy: str = "") -> None:
    """Write the line of cause and, if there is one, the line of remedy to standard error."""
    from nbctl.text import escape  # noqa: PLC0415 - only an error pays for it

    lines = f"nbctl: {escape(message)}\n" + (f"remedy: {escape(remedy)}\n" if remedy else "")
    try:
        sys.stderr.write(lines)
        sys.stderr.flush()
    except OSError:
        pass
