"""Attributes of files, as chattr(1) sets them: FS_IOC_GETFLAGS and FS_IOC_SETFLAGS, ioctl_iflags(2)."""

from __future__ import annotations

import fcntl
import struct

_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FS_TOPDIR_FL = 0x00020000


def set_top_of_hierarchies(directory_fd: int) -> None:
    """Tell the file system that the directories in this one have nothing to do with each other: ext4 then spreads them over the disk.

    Raises:
        OSError: ENOTTY or EOPNOTSUPP, the file system has no such attribute.
    """
    (flags,) = struct.unpack("=l", fcntl.ioctl(directory_fd, _FS_IOC_GETFLAGS, bytes(struct.calcsize("=l"))))
    if not flags & _FS_TOPDIR_FL:
        fcntl.ioctl(directory_fd, _FS_IOC_SETFLAGS, struct.pack("=l", flags | _FS_TOPDIR_FL))
