"""Process descriptors: pidfd_getfd(2), exit information of a process that is not a child, and start times."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

from nestbed.linux.libc import call
from nestbed.linux.path import contents

_PIDFD_GETFD = 438
# struct pidfd_info of <linux/pidfd.h>: mask, cgroupid (u64), 11 ids from pid to fsgid (u32), exit_code (s32), then newer fields.
_INFO = struct.Struct("=QQ11Ii")
_INFO_BYTES = _INFO.size
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = 0xC0000000 | (_INFO_BYTES << 16) | (0xFF << 8) | 11


def pidfd_getfd(pidfd: int, target: int) -> int:
    """pidfd_getfd(2): a close-on-exec duplicate of descriptor ``target`` of the process."""
    return call("pidfd_getfd", _PIDFD_GETFD, ctypes.c_int(pidfd), ctypes.c_int(target), ctypes.c_uint(0))


def exit_information(pidfd: int) -> int | None:
    """The wait status of a process that ended and was reaped, as PIDFD_GET_INFO tells it (Linux 6.15); None if it cannot be told.

    The descriptor must have been opened before the process was reaped.
    """
    buffer = bytearray(_INFO_BYTES)
    _INFO.pack_into(buffer, 0, _PIDFD_INFO_EXIT, 0, *(0,) * 12)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    fields = _INFO.unpack_from(buffer)
    return fields[13] if fields[0] & _PIDFD_INFO_EXIT else None


def start_time(pid: int) -> int:
    """When process ``pid`` started, in clock ticks since boot (proc(5), stat field 22); with the pid it names a process for ever.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return int(_stat(pid)[19])


def zombie_status(pid: int) -> int | None:
    """The wait status of a process that ended and was not yet reaped (proc(5), stat field 52), whosever child it is; else None."""
    try:
        fields = _stat(pid)
    except ProcessLookupError:
        return None
    return int(fields[49]) if fields[0] == b"Z" else None


def _stat(pid: int) -> list[bytes]:
    """Fields 3 and on of ``/proc/PID/stat``; the second one is a name that may hold anything."""
    try:
        text = contents(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"no process {pid}") from error
    return text[text.rindex(b")") + 2 :].split()


def open_process(pid: int, started: int) -> int:
    """A pidfd of the process with this pid and start time.

    Raises:
        ProcessLookupError: it has ended (or another one has its pid).
    """
    pidfd = os.pidfd_open(pid)
    try:
        same = start_time(pid) == started
    except BaseException:
        os.close(pidfd)
        raise
    if not same:
        os.close(pidfd)
        raise ProcessLookupError(f"process {pid} is another one now")
    return pidfd
