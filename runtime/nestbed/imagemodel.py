"""The values of disk images: as ``nestbed.model``, frozen, plain, free of I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass

HOST = "host"
"""The image that is always there: the node's own root."""


class ImageOrigin(enum.StrEnum):
    """Where an image comes from: it is the node's own root, was built here, or was imported."""

    HOST = "host"
    BUILT = "built"
    IMPORTED = "imported"


class DiskFormat(enum.StrEnum):
    """How a disk is stored. Always told, never guessed."""

    RAW = "raw"
    QCOW2 = "qcow2"


class BootWay(enum.StrEnum):
    """What a machine boots with: a kernel beside the disk, or what the firmware finds on it."""

    KERNEL = "kernel"
    FIRMWARE = "firmware"


@dataclass(frozen=True, slots=True)
class Image:
    """An image. ``stored_bytes`` is what it takes on the node, ``disk_bytes`` the size of the disk that a machine sees; ``sha256`` is of
    the file that was imported, ``recipe`` what it was built by. The node's own root has neither format nor sizes.
    """

    name: str
    origin: ImageOrigin
    boot: BootWay
    format: DiskFormat | None = None
    stored_bytes: int = 0
    disk_bytes: int = 0
    sha256: str = ""
    recipe: str = ""
    created_at: float = 0.0
