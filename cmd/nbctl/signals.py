"""Signals that nbctl gets: they end it in good order, or go to the program it runs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from nbctl.failure import Quit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FURTHER = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def _is_wanted(number: int) -> bool:
    """Whether nbctl may handle a signal: a shell starts background jobs with SIGINT ignored, nohup with SIGHUP, and so it shall stay."""
    return signal.getsignal(number) != signal.SIG_IGN


class Signals:
    """Who gets the signals. Until :meth:`ending` is entered the kernel's defaults hold."""

    def __init__(self) -> None:
        self._receivers: list[Callable[[int], object]] = []

    @contextlib.contextmanager
    def ending(self, task: asyncio.Task[int]) -> Iterator[None]:
        """In this block the ENDING signals cancel ``task``.

        Raises:
            Quit: one did, with the exit code a shell shows for it; instead of CancelledError.
        """
        received: list[int] = []

        def end(number: int) -> None:
            received.append(number)
            task.cancel()

        self._receivers.append(end)
        with _handled(ENDING, self._arrive):
            try:
                yield
            except asyncio.CancelledError:
                if not received:
                    raise
                raise Quit(128 + received[0]) from None

    @contextlib.contextmanager
    def passed_to(self, receive: Callable[[int], object]) -> Iterator[None]:
        """In this block all signals go to ``receive`` instead."""
        self._receivers.append(receive)
        try:
            with _handled(FURTHER, self._arrive):
                yield
        finally:
            self._receivers.remove(receive)

    def _arrive(self, number: int) -> None:
        self._receivers[-1](number)


@contextlib.contextmanager
def _handled(numbers: tuple[signal.Signals, ...], act: Callable[[int], object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as undo:
        for number in filter(_is_wanted, numbers):
            loop.add_signal_handler(number, act, int(number))
            undo.callback(loop.remove_signal_handler, number)
        yield


KILL_COUNT = 3
KILL_SECONDS = 2.0


class Insistence:
    """Tells when Ctrl-C was pressed KILL_COUNT times within KILL_SECONDS: the program shall end now, whatever it thinks of signals."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def press(self, at: float) -> int:
        """How many more times it takes; ``at`` is a time in seconds."""
        self._times = [*(time for time in self._times if at - time <= KILL_SECONDS), at]
        return max(0, KILL_COUNT - len(self._times))
