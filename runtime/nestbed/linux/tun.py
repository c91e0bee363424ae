"""tap devices: /dev/net/tun of the kernel's Documentation/networking/tuntap.rst. One function per step; OSError only."""

from __future__ import annotations

import fcntl
import os
import struct

TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 0x1, 0x2, 0x4, 0x8
VNET_HEADER_BYTES = 10
"""``struct virtio_net_hdr``, before every frame of a tap that is opened with ``vnet_header``."""

_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOFFLOAD = 0x400454CA, 0x400454CB, 0x400454D0
_NAME_BYTES = 16
_IFREQ = struct.Struct("=16sH22x")


def open_tap(name: str, *, vnet_header: bool = False) -> int:
    """A non-blocking, close-on-exec descriptor of the tap, in this thread's network namespace; the device is made if there is none.

    Each read(2) takes one frame and each write(2) gives one, without anything before it but, with ``vnet_header``, that.
    A device that was not made persistent is gone once the descriptor is closed.

    Raises:
        OSError: EBUSY if another descriptor holds it; EINVAL if a device of that name is no tap; ENAMETOOLONG.
    """
    encoded = name.encode()
    if len(encoded) >= _NAME_BYTES:
        raise OSError(36, "the name of an interface has at most 15 bytes", name)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(encoded, _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_header else 0)))
    except BaseException:
        os.close(fd)
        raise
    return fd


def set_persistent(fd: int, *, persistent: bool) -> None:
    """Whether the device outlives its descriptor. Without one it has no carrier."""
    fcntl.ioctl(fd, _TUNSETPERSIST, int(persistent))


def set_offloads(fd: int, offloads: int) -> None:
    """Which unfinished frames (TUN_F_*) the reader takes; others the kernel finishes first. Needs ``vnet_header``."""
    fcntl.ioctl(fd, _TUNSETOFFLOAD, offloads)
