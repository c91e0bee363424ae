"""Headers of disk images: what is taken, and what is refused by its own words."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestbed.errors import InvalidArgument, NestbedError, ResourceExhausted
from nestbed.imagemodel import DiskFormat
from nestbed.qemu import disks

GIB = 1 << 30


def header(
    *,
    version: int = 3,
    backing: int = 0,
    cluster_bits: int = 16,
    disk_bytes: int = GIB,
    encryption: int = 0,
    features: int = 0,
    header_bytes: int = 104,
    extensions: bytes = b"\0" * 8,
) -> bytes:
    """The beginning of a qcow2 file, as docs/interop/qcow2.txt has it."""
    fields = (b"QFI\xfb", version, backing, 0, cluster_bits, disk_bytes, encryption, 1, 0x30000, 0x10000, 1, 0, 0)
    head = struct.pack(">4sIQIIQIIQQIIQ", *fields)
    if version == 3:
        head += struct.pack(">QQQII", features, 0, 0, 4, header_bytes)
    return (head + extensions).ljust(4096, b"\0")


@pytest.mark.parametrize("version", [2, 3])
def test_a_sound_qcow2_tells_its_size(version: int) -> None:
    assert disks.check(DiskFormat.QCOW2, header(version=version), 1 << 20).disk_bytes == GIB


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (header(backing=0x100), "BACKING_FILE"),
        (header(features=1 << 2), "EXTERNAL_DATA_FILE"),
        (header(extensions=struct.pack(">II8s", 0x44415441, 7, b"/etc/x\0\0") + b"\0" * 8), "EXTERNAL_DATA_FILE"),
        (header(extensions=struct.pack(">II8sII8s", 0xE2792ACA, 3, b"raw\0\0\0\0\0", 0x44415441, 6, b"/etc/x\0\0")), "EXTERNAL_DATA_FILE"),
        (header(version=2, extensions=struct.pack(">II8s", 0x44415441, 7, b"/etc/x\0\0")), "EXTERNAL_DATA_FILE"),
        (header(encryption=2), "ENCRYPTED_IMAGE"),
        (header(features=1 << 1), "IMAGE_CORRUPT"),
        (header(features=1 << 9), "UNKNOWN_FEATURE"),
        (header(version=4), "UNKNOWN_FEATURE"),
        (header(cluster_bits=40), "IMAGE_CORRUPT"),
        (header(disk_bytes=0), "IMAGE_CORRUPT"),
        (header(header_bytes=3), "IMAGE_CORRUPT"),
        (header(extensions=struct.pack(">II", 7, 0xFFFFFFFF)), "IMAGE_CORRUPT"),
        (header()[:60], "IMAGE_CORRUPT"),
        (header()[:90], "IMAGE_CORRUPT"),
        (b"KDMV" + bytes(508), "NOT_QCOW2"),
        (b"# Disk DescriptorFile\nversion=1\n", "NOT_QCOW2"),
        (b"", "NOT_QCOW2"),
        (bytes(4096), "NOT_QCOW2"),
    ],
)
def test_what_is_no_qcow2_that_stands_for_itself_is_refused(head: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        disks.check(DiskFormat.QCOW2, head, 1 << 20)
    assert caught.value.reason == reason
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("head", "kind"),
    [(header(), "qcow2"), (b"KDMV", "VMDK"), (b"vhdxfile", "VHDX"), (bytes(64) + b"\x7f\x10\xda\xbe", "VDI"), (b"\x1f\x8b", "gzip")],
)
def test_another_format_is_no_raw_disk(head: bytes, kind: str) -> None:
    with pytest.raises(InvalidArgument, match=kind) as caught:
        disks.check(DiskFormat.RAW, head, 4096)
    assert caught.value.reason == "NOT_RAW"


@pytest.mark.parametrize("size", [0, 1, 511, 1000])
def test_a_raw_disk_has_whole_sectors(size: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        disks.check(DiskFormat.RAW, bytes(min(size, 512)), size)
    assert caught.value.reason == "BAD_DISK_SIZE"
    assert disks.check(DiskFormat.RAW, bytes(512), 1024).disk_bytes == 1024


@pytest.mark.parametrize(
    ("disk_format", "head", "size"), [(DiskFormat.QCOW2, header(disk_bytes=1 << 42), 4096), (DiskFormat.RAW, b"", 1 << 42)]
)
def test_a_disk_can_be_too_large(disk_format: DiskFormat, head: bytes, size: int) -> None:
    with pytest.raises(ResourceExhausted) as caught:
        disks.check(disk_format, head, size)
    assert caught.value.reason == "DISK_TOO_LARGE"


@given(st.binary(max_size=400))
def test_whatever_follows_the_magic_is_taken_or_refused(rest: bytes) -> None:
    with contextlib.suppress(NestbedError):
        assert disks.check(DiskFormat.QCOW2, b"QFI\xfb\0\0\0\3" + rest, 1 << 20).disk_bytes
