"""The disk of one machine, in its bundle below ``vm/``.

``image.json`` says what the image is, ``base`` is a hard link to its disk, read-only, and ``disk.qcow2`` has what the machine wrote: it is
the machine's user's, and names no file below it, so that whatever is written into it leads nowhere.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

from nestbed.errors import CorruptState, HostLacks, InvalidArgument, NotFound, Unsupported, shown, translated
from nestbed.imagemodel import BootWay, DiskFormat, Image
from nestbed.model import QemuSpec
from nestbed.plain import from_json, to_json
from nestbed.qemu import building, confined
from nestbed.qemu.command import Disk, Loader

BASE, OVERLAY = "base", "disk.qcow2"
_RECORD = "image.json"
_SECONDS = 60.0


def check(spec: QemuSpec) -> None:
    """Refuse what does not go together.

    Raises:
        InvalidArgument: reason KERNEL_OF_HOST_IMAGE, INITRD_WITHOUT_KERNEL. NotFound: no such file (KERNEL_NOT_FOUND).
        Unsupported: a node inside (NODE_ON_DISK).
    """
    if spec.has_disk and spec.node:
        raise Unsupported(
            "a node inside a machine runs on the node's own root", reason="NODE_ON_DISK", remedy="leave --image out, or --node"
        )
    if not spec.has_disk and (spec.kernel or spec.initrd):
        raise InvalidArgument(
            "a machine on the node's own root has the node's kernel for machines",
            reason="KERNEL_OF_HOST_IMAGE",
            remedy="leave --kernel and --initrd out, or give an --image",
        )
    if spec.initrd and not spec.kernel:
        raise InvalidArgument(
            "an initial file system goes with a kernel", reason="INITRD_WITHOUT_KERNEL", remedy="give --kernel too, or leave --initrd out"
        )
    for path in filter(None, (spec.kernel, spec.initrd)):
        if not path.startswith("/") or not os.path.isfile(path):
            raise NotFound(
                f"there is no file {shown(path)} on the node",
                reason="KERNEL_NOT_FOUND",
                remedy="give the absolute path of a file",
                path=shown(path),
            )


def check_image(spec: QemuSpec, image: Image) -> None:
    """Refuse what the image does not have.

    Raises:
        InvalidArgument: reason NO_KERNEL_LINE.
    """
    if spec.append and loader(spec, image) is Loader.FIRMWARE:
        raise InvalidArgument(
            f"the image {image.name} boots by what is on its disk, which has the kernel's command line",
            reason="NO_KERNEL_LINE",
            remedy="leave --append out, or give --kernel and --initrd",
            image=image.name,
        )


def loader(spec: QemuSpec, image: Image) -> Loader:
    """What starts the machine."""
    if spec.kernel:
        return Loader.KERNEL_AND_INITRD if spec.initrd else Loader.KERNEL
    return Loader.OURS if image.boot is BootWay.KERNEL else Loader.FIRMWARE


def disk(spec: QemuSpec, image: Image) -> Disk:
    """The machine's disk as QEMU has it."""
    return Disk((image.format or DiskFormat.RAW).value, loader(spec, image))


async def make(directory: Path, spec: QemuSpec, image: Image, source: Path, uid: int) -> None:
    """Make the disk in the machine's directory: of the image in ``source``, for the user ``uid``.

    Raises:
        HostLacks: qemu-img is missing or fails. ResourceExhausted: the node's disk is full.
    """
    with translated(f"making the disk in {directory}", path=directory):
        (directory / _RECORD).write_text(json.dumps(to_json(image)))
        _link(source, directory / BASE)
        for path, name in ((spec.kernel, "vmlinuz"), (spec.initrd, "initrd")):
            if path:
                _copy(path, directory / name)
    overlay = directory / OVERLAY
    code, text = await confined.said(
        ("qemu-img", "create", "-q", "-f", "qcow2", str(overlay), str(image.disk_bytes)), seconds=_SECONDS, directory=directory
    )
    if code == confined.NOT_FOUND:
        raise confined.missing("qemu-img", "")
    if code:
        why = text.strip().rpartition("\n")[2]
        raise HostLacks(f"the disk cannot be made: {why}", reason="DISK_FAILED", remedy="see the node's disk", cause=why)
    with translated(f"making the disk in {directory}", path=directory):
        os.chown(overlay, uid, uid)
        overlay.chmod(0o600)


def read(directory: Path) -> Image:
    """The image that the machine in this directory was made from.

    Raises:
        CorruptState: that is not known.
    """
    path = directory / _RECORD
    try:
        return from_json(Image, json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise CorruptState(
            f"the bundle cannot be understood: {path}: {error}",
            reason="CORRUPT_BUNDLE",
            remedy="delete the container",
            path=path,
            cause=error,
        ) from error


def _link(source: Path, target: Path) -> None:
    """A hard link, or where another file system begins a copy."""
    try:
        os.link(source, target)
    except OSError:
        building.copy_sparse(source, target)
        target.chmod(0o444)


def _copy(source: str, target: Path) -> None:
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as reading, target.open("xb") as writing:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError(source)
        shutil.copyfileobj(reading, writing)
    target.chmod(0o644)
