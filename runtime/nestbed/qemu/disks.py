"""What a file says it is before anything but this module has looked at it: headers of disk images. Pure.

qcow2: QEMU's docs/interop/qcow2.txt. Other formats are only recognised, so that they are refused by name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from nestbed.errors import InvalidArgument, NestbedError, ResourceExhausted
from nestbed.imagemodel import DiskFormat

HEAD_BYTES = 1 << 16
"""How much of a file :func:`check` looks at. A header with its extensions is in the first cluster; one that is longer is refused."""
DISK_BYTES_MAX = 2 << 40
"""The largest disk a machine may see."""
SECTOR_BYTES = 512

_QCOW2 = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">QQQII")
_MAGIC = b"QFI\xfb"
_CORRUPT, _EXTERNAL_DATA, _KNOWN_FEATURES = 1 << 1, 1 << 2, (1 << 5) - 1
_EXTENSION_END, _EXTENSION_DATA_FILE = 0, 0x44415441
_SIGNATURES = (
    (0, _MAGIC, "qcow2"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"QED\0", "QED"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"PK\x03\x04", "zip"),
)
"""Where files of other formats have what, and how they are called."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk as its file has it."""

    disk_bytes: int


def check(disk_format: DiskFormat, head: bytes, file_bytes: int) -> Disk:
    """The disk in a file that is said to be of ``disk_format``: ``head`` is its beginning (HEAD_BYTES, or all there is).

    Raises:
        InvalidArgument: it is none (reason NOT_QCOW2, NOT_RAW, IMAGE_CORRUPT, BAD_DISK_SIZE), needs another file (BACKING_FILE,
        EXTERNAL_DATA_FILE), or what this node does not read (ENCRYPTED_IMAGE, UNKNOWN_FEATURE). ResourceExhausted: DISK_TOO_LARGE.
    """
    disk_bytes = _check_qcow2(head) if disk_format is DiskFormat.QCOW2 else _check_raw(head, file_bytes)
    if disk_bytes > DISK_BYTES_MAX:
        raise ResourceExhausted(
            f"the disk of the image has {disk_bytes} bytes, more than the {DISK_BYTES_MAX} a machine may have",
            reason="DISK_TOO_LARGE",
            remedy="import a smaller one",
            disk_bytes=disk_bytes,
            limit=DISK_BYTES_MAX,
        )
    return Disk(disk_bytes)


def _check_raw(head: bytes, file_bytes: int) -> int:
    kind = _recognised(head)
    if kind:
        raise InvalidArgument(
            f"the file is no raw disk: it begins as a {kind} file",
            reason="NOT_RAW",
            remedy="give --format qcow2" if kind == "qcow2" else "unpack or convert it first: qemu-img convert -O qcow2",
            kind=kind,
        )
    if not file_bytes or file_bytes % SECTOR_BYTES:
        raise InvalidArgument(
            f"the file is no raw disk: its {file_bytes} bytes are not whole sectors of {SECTOR_BYTES}",
            reason="BAD_DISK_SIZE",
            remedy="import all of the disk: is the file cut short?",
            bytes=file_bytes,
        )
    return file_bytes


def _recognised(head: bytes) -> str:
    return next((kind for at, magic, kind in _SIGNATURES if head[at : at + len(magic)] == magic), "")


def _check_qcow2(head: bytes) -> int:
    if head[:4] != _MAGIC:
        kind = _recognised(head)
        raise InvalidArgument(
            "the file is no qcow2 disk" + (f": it begins as a {kind} file" if kind else ""),
            reason="NOT_QCOW2",
            remedy="convert it first: qemu-img convert -O qcow2" if kind else "give --format raw if it holds the bytes of a disk",
            kind=kind,
        )
    if len(head) < _QCOW2.size:
        raise _corrupt("the header is cut short")
    fields = _QCOW2.unpack_from(head)
    version, backing, cluster_bits, disk_bytes, encryption = fields[1], fields[2], fields[4], fields[5], fields[6]
    if version not in (2, 3):
        raise _unknown(f"version {version}")
    if backing:
        raise _names_file("a backing file", "BACKING_FILE")
    if encryption:
        raise InvalidArgument("the image is encrypted", reason="ENCRYPTED_IMAGE", remedy="convert it with qemu-img, without encryption")
    if not 9 <= cluster_bits <= 21 or not disk_bytes:
        raise _corrupt(f"clusters of 2^{cluster_bits} bytes, a disk of {disk_bytes}")
    extensions_at = _QCOW2.size
    if version == 3:
        extensions_at = _check_features(head)
    _check_extensions(head, extensions_at)
    return int(disk_bytes)


def _check_features(head: bytes) -> int:
    """Refuse what cannot be read; where the extensions begin."""
    if len(head) < _QCOW2.size + _FEATURES.size:
        raise _corrupt("the header is cut short")
    needed, _, _, _, header_bytes = _FEATURES.unpack_from(head, _QCOW2.size)
    if needed & _EXTERNAL_DATA:
        raise _names_file("an external data file", "EXTERNAL_DATA_FILE")
    if needed & _CORRUPT:
        raise _corrupt("it is marked as corrupt")
    if needed & ~_KNOWN_FEATURES:
        raise _unknown(f"features {needed:#x}")
    if header_bytes < _QCOW2.size + _FEATURES.size or header_bytes % 8:
        raise _corrupt(f"a header of {header_bytes} bytes")
    return int(header_bytes)


def _check_extensions(head: bytes, at: int) -> None:
    while True:
        if at + 8 > len(head):
            raise _corrupt("the header does not end")
        kind, length = struct.unpack_from(">II", head, at)
        if kind == _EXTENSION_END:
            return
        if kind == _EXTENSION_DATA_FILE:
            raise _names_file("an external data file", "EXTERNAL_DATA_FILE")
        at += 8 + (length + 7) // 8 * 8


def _names_file(what: str, reason: str) -> NestbedError:
    return InvalidArgument(
        f"the image names {what}, which it would read from this node",
        reason=reason,
        remedy="make it stand for itself: qemu-img convert -O qcow2",
    )


def _corrupt(why: str) -> NestbedError:
    return InvalidArgument(
        f"the image is damaged: {why}", reason="IMAGE_CORRUPT", remedy="fetch it again, and compare checksums", cause=why
    )


def _unknown(what: str) -> NestbedError:
    return InvalidArgument(
        f"the image has {what}, which this node does not know",
        reason="UNKNOWN_FEATURE",
        remedy="convert it with an older version: qemu-img convert -O qcow2",
        feature=what,
    )
