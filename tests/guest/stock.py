"""A disk as a distribution publishes it for clouds, made of what hack/setup built: a boot loader, a partition, cloud-init, no agent."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from nestbed.qemu import building

_GRUB = Path("/usr/lib/grub/i386-pc")
_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "boot", "echo")
_SECTOR, _PARTITION_AT = 512, 2048
_CONFIG = """\
set root=(hd0,msdos1)
linux /boot/{kernel} root=/dev/vda1 ro console=ttyS0
initrd /boot/{initrd}
boot
"""


def make(image: Path, folder: Path) -> Path:
    """A qcow2 file: GRUB, started by the BIOS, loads the kernel of the root file system that is the first partition of the disk."""
    raw, qcow2 = folder / "stock.raw", folder / "stock.qcow2"
    core = _core(image / "disk", folder)
    building.copy_sparse(image / "disk", raw, _PARTITION_AT * _SECTOR)
    with raw.open("r+b") as disk:
        sectors = os.fstat(disk.fileno()).st_size // _SECTOR - _PARTITION_AT
        boot = (_GRUB / "boot.img").read_bytes()[:440]
        partition = struct.pack("<B3sB3sII", 0x80, b"\0" * 3, 0x83, b"\0" * 3, _PARTITION_AT, sectors)
        disk.write(boot + b"nest\0\0" + partition + bytes(48) + b"\x55\xaa" + core)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True)
    raw.unlink()
    return qcow2


def _core(disk: Path, folder: Path) -> bytes:
    """GRUB's second stage, which the BIOS's one expects in the sectors that follow it."""
    listed = subprocess.run(["debugfs", "-R", "ls -p /boot", disk], check=True, capture_output=True, text=True).stdout
    names = [line.split("/")[5] for line in listed.splitlines() if line.count("/") > 5]
    kernel, initrd = (next(name for name in names if name.startswith(start)) for start in ("vmlinuz-", "initrd.img-"))
    (folder / "grub.cfg").write_text(_CONFIG.format(kernel=kernel, initrd=initrd))
    words = ["grub-mkimage", "-O", "i386-pc", "-p", "/boot/grub", "-c", folder / "grub.cfg", "-o", folder / "core.img", *_MODULES]
    subprocess.run(words, check=True)
    core = (folder / "core.img").read_bytes()
    assert len(core) < (_PARTITION_AT - 1) * _SECTOR
    return core
