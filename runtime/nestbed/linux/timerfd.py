"""timerfd_create(2): a descriptor that becomes readable at a time of CLOCK_MONOTONIC. (``os.timerfd_*`` came with Python 3.13.)"""

from __future__ import annotations

import ctypes
import os
import time

from nestbed.linux.libc import LIBC, checked

_TFD_TIMER_ABSTIME = 1
_SECOND_NS = 1_000_000_000


class _ItimerSpec(ctypes.Structure):
    """``struct itimerspec``; the interval stays 0."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("interval_seconds", "interval_ns", "seconds", "nanoseconds"))


class Timer:
    """A timer that fires once; wait for ``fd`` to be readable. ``set`` costs about 1 us."""

    def __init__(self) -> None:
        self.fd = checked("timerfd_create", LIBC.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        self._value = _ItimerSpec()
        self._settime = LIBC.timerfd_settime
        self._reference = ctypes.byref(self._value)

    def set(self, at_ns: int) -> None:
        """Fire at this time (at once if it is past), instead of what was set before. 0: not at all."""
        self._value.seconds, self._value.nanoseconds = divmod(at_ns, _SECOND_NS)
        checked("timerfd_settime", self._settime(self.fd, _TFD_TIMER_ABSTIME, self._reference, None))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
