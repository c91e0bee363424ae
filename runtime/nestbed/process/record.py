"""What is kept of a container's runs: its ``status.json``, which a keeper adds to and the next one reads."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from nestbed.linux.path import contents
from nestbed.process.protocol import last_status

_STATUS_BYTES_MAX = 1 << 14
"""How long ``status.json`` may grow before it begins anew."""
_RETRY_SECONDS = 1.0

Later = Callable[[float, Callable[[], object]], None]


class Record:
    """Where a container is. On a full disk it is written later, again and again until it is."""

    def __init__(self, path: str, later: Later) -> None:
        """``path`` is that of ``status.json``; ``later`` calls a function after some seconds."""
        self._path = path
        self._later = later
        self._is_unsaved = False
        self.state = "created"
        self.pid = 0
        self.start_time = 0
        self.started_at = 0.0
        self.exit: dict[str, Any] | None = None
        self.restarts = 0
        self.bytes_lost = 0
        self.stop_asked = False
        self.holder: dict[str, Any] | None = None
        self.sources: Callable[[], Sequence[int]] = tuple
        """The read ends of the pipes that its output comes through now."""

    def status(self) -> dict[str, Any]:
        """As in ``status.json``."""
        return {
            "state": self.state,
            "pid": self.pid,
            "start_time": self.start_time,
            "started_at": self.started_at,
            "exit": self.exit,
            "restarts": self.restarts,
            "log_bytes_lost": self.bytes_lost,
            "stop_asked": self.stop_asked,
            "pipes": [os.fstat(fd).st_ino for fd in self.sources()],
            "holder": self.holder,
        }

    def save(self, **changes: Any) -> None:
        """Add to ``status.json``, with ``changes`` to what :meth:`status` says."""
        try:
            _append(self._path, json.dumps({**self.status(), **changes}).encode())
        except FileNotFoundError:  # it is being removed
            return
        except OSError:
            if not self._is_unsaved:
                self._is_unsaved = True
                self._later(_RETRY_SECONDS, self._save_again)

    def load(self) -> dict[str, Any] | None:
        """Take over what an earlier keeper wrote, and give it; None if it wrote nothing.

        Raises:
            OSError, ValueError, KeyError, TypeError: it is not there, or cannot be understood.
        """
        found = last_status(contents(self._path))
        if found is None:
            return None
        self.state = found["state"]
        self.pid, self.start_time = found["pid"], found["start_time"]
        self.started_at, self.exit = found["started_at"], found["exit"]
        self.restarts, self.bytes_lost = found["restarts"], found["log_bytes_lost"]
        self.stop_asked = found["stop_asked"]
        self.holder = found["holder"]
        return found

    def _save_again(self) -> None:
        self._is_unsaved = False
        self.save()


def exit_record(status: int | None, *, oom: bool) -> dict[str, Any]:
    """``exit`` of ``status.json`` for a wait status; None is unknown."""
    record: dict[str, Any] = {"code": None, "signal": None, "reason": "unknown", "message": "", "at": time.time()}
    if status is None:
        record["message"] = "it ended while no keeper was there to see how"
    elif os.WIFEXITED(status):
        record.update(code=os.WEXITSTATUS(status), reason="exited")
    else:
        record.update(signal=os.WTERMSIG(status), reason="oom-killed" if oom else "signaled")
    return record


def start_failed(step: str, text: str) -> dict[str, Any]:
    """``exit`` of ``status.json`` for a run that never began."""
    return {**exit_record(None, oom=False), "reason": "start-failed", "message": f"{step}: {text}"}


def _append(path: str, text: bytes) -> None:
    """Add a line, whole or not at all; nothing is renamed, which would take an inode each time. A file grown long begins anew.

    Raises:
        OSError: ENOSPC, or as the file system says.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size > _STATUS_BYTES_MAX:
            _append(f"{path}.new", text)
            os.rename(f"{path}.new", path)
        elif os.write(fd, b"\n%b\n" % text) < len(text) + 2:
            os.ftruncate(fd, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)
