"""Signals to the first process of a container."""

from __future__ import annotations

import signal

_HARMLESS_BY_DEFAULT = frozenset(
    {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
)


def is_swallowed(pid: int, number: int) -> bool:
    """Whether the kernel does not deliver this signal to process ``pid``, which it would end.

    The kernel does not deliver what the first process of a pid namespace has no handler for (pid_namespaces(7)). Where the default action
    is to end the process, it is to be ended, and its exit status to name the signal, as on any machine.
    """
    return number != signal.SIGKILL and number not in _HARMLESS_BY_DEFAULT and not _minds(pid, number)


def _minds(pid: int, number: int) -> bool:
    """Whether process ``pid`` catches, blocks or ignores the signal."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            masks = [int(line.split()[1], 16) for line in file if line.startswith((b"SigBlk", b"SigIgn", b"SigCgt"))]
    except OSError:
        return True
    return any(mask >> (number - 1) & 1 for mask in masks)
