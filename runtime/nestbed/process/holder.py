"""A process that holds one descriptor, so that it outlives keeper and nestbedd together.

A terminal whose master is closed hangs up on its session, and a pipe without writers ends standard input. For a container with
either, the keeper leaves its end with a clone that does nothing but wait for the container's end. A new keeper takes the
descriptor from there (pidfd_getfd(2)). Containers with neither have no holder.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from nestbed.linux.pidfd import open_process, pidfd_getfd, start_time
from nestbed.process.launch import write_holding
from nestbed.process.program import Memory

_HELD_FD = 3


def hold(memory: Memory, fd: int, pidfd: int) -> tuple[dict[str, Any], int]:
    """Hold ``fd`` until the process ``pidfd`` ends: the record by which to find it, and the holder's own pidfd."""
    pid, holder_pidfd = write_holding(memory, fd, pidfd).spawn(0, exit_signal=signal.SIGCHLD)
    return {"pid": pid, "start_time": start_time(pid)}, holder_pidfd


def take(record: dict[str, Any]) -> tuple[int, int]:
    """A duplicate of what the holder of this record holds, and the holder's pidfd.

    Raises:
        OSError: the holder is gone.
    """
    holder_pidfd = open_process(record["pid"], record["start_time"])
    try:
        return pidfd_getfd(holder_pidfd, _HELD_FD), holder_pidfd
    except BaseException:
        os.close(holder_pidfd)
        raise
