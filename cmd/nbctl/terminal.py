"""The terminal nbctl runs in: raw mode that is always undone, its size, a full screen that is always left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType


def size(fd: int) -> tuple[int, int]:
    """Rows and columns of the terminal ``fd``; 24 and 80 if it does not tell."""
    try:
        found = os.get_terminal_size(fd)
    except OSError:
        return 24, 80
    return found.lines or 24, found.columns or 80


class Mode:
    """A changed mode of a terminal. Leaving the block restores what was, also after an error or a signal that ends nbctl.

    ``raw`` passes every key on as a byte, Ctrl-C too; without it keys come one by one and unseen, but Ctrl-C still is a signal. After
    SIGCONT the mode is set again: the shell has changed it in the meantime.
    """

    def __init__(self, fd: int, *, raw: bool) -> None:
        self._fd = fd
        self._raw = raw
        self._saved: list[Any] = []

    def __enter__(self) -> Self:
        self._saved = termios.tcgetattr(self._fd)
        self._set()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCONT, self._set)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCONT)
        with contextlib.suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)

    def _set(self) -> None:
        # At once: draining would wait for a terminal held by Ctrl-S, flushing would lose what was typed ahead.
        if self._raw:
            tty.setraw(self._fd, termios.TCSANOW)
        else:
            tty.setcbreak(self._fd, termios.TCSANOW)


@contextlib.contextmanager
def resized(act: Callable[[], object]) -> Iterator[None]:
    """Call ``act`` whenever the terminal changes its size."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, act)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


_ENTER_SCREEN = "\x1b[?1049h\x1b[?25l"
_LEAVE_SCREEN = "\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
_CLEAR_TO_END_OF_LINE = "\x1b[K"
_CLEAR_TO_END_OF_SCREEN = "\x1b[J"


@contextlib.contextmanager
def screen() -> Iterator[None]:
    """Draw on the terminal's other screen, without a cursor; what was there before comes back at the end."""
    sys.stdout.write(_ENTER_SCREEN)
    sys.stdout.flush()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.write(_LEAVE_SCREEN)
            sys.stdout.flush()


def draw(lines: list[str], rows: int) -> None:
    """Show ``lines``, as many as fit, from the top; nothing flickers because nothing is cleared before it is overwritten."""
    shown = f"{_CLEAR_TO_END_OF_LINE}\r\n".join(lines[:rows])
    sys.stdout.write(f"{_HOME}{shown}{_CLEAR_TO_END_OF_LINE}{_CLEAR_TO_END_OF_SCREEN}")
    sys.stdout.flush()
