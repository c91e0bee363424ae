"""Word of what wardens write: one inotify instance for all machines of a node."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from nestbed.errors import translated
from nestbed.linux.inotify import IN_MOVED_TO, inotify_add_watch, inotify_init, inotify_rm_watch, read_changes


class News:
    """Calls back when a file is renamed into a watched directory. :meth:`open` first, in the event loop."""

    def __init__(self) -> None:
        self._fd = -1
        self._listeners: dict[int, Callable[[], object]] = {}

    def open(self) -> None:
        """Begin."""
        with translated("watching virtual machines"):
            self._fd = inotify_init()
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def close(self) -> None:
        """End. Idempotent."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._listeners.clear()

    def watch(self, directory: Path, listener: Callable[[], object]) -> int:
        """Call ``listener`` at every change; the watch's number."""
        with translated(f"watching {directory}", path=directory):
            number = inotify_add_watch(self._fd, str(directory), IN_MOVED_TO)
        self._listeners[number] = listener
        return number

    def unwatch(self, number: int) -> None:
        """End a watch. The kernel may have ended it with its directory."""
        if self._listeners.pop(number, None) is not None and self._fd >= 0:
            with contextlib.suppress(OSError):
                inotify_rm_watch(self._fd, number)

    def _read(self) -> None:
        for number in {change.watch for change in read_changes(self._fd)}:
            # After an overflow nobody knows whose change was lost.
            for listener in list(self._listeners.values()) if number < 0 else [self._listeners.get(number)]:
                if listener is not None:
                    listener()
