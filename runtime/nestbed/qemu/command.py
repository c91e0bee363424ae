"""QEMU's command line from what a machine is: pure, tested as text.

Every file is given by a path that is the sandbox's own, every format is named, nothing is taken from a configuration file.
Descriptors are the warden's (``c/warden.c``): 10 the agent's port for the program, 11 the console, 12 the agent's port for
nestbedd, 13 QMP, from 14 on the sockets of virtiofsd.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass

QEMU = "/usr/bin/qemu-system-x86_64"
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
ROOT_TAG = "nestbed-root"
EXPORT = "/export"
_MAIN_FD, _CONSOLE_FD, _CONTROL_FD, _QMP_FD, _SHARE_FD = 10, 11, 12, 13, 14
_CONTROL_SLOT, _ROOT_SLOT, _SHARE_SLOT, _NIC_SLOT = 2, 5, 6, 8
DISK_DEVICE = "/dev/vda"
"""What a guest calls its disk."""
SHARES_MAX = 8
SLOTS = 32 - _NIC_SLOT
"""How many NICs on LANs a machine takes: slots of its bus that nothing else has."""
CONTROL = SLOTS
"""The number of the NIC on the control network, which has a slot of its own."""


@dataclass(frozen=True, slots=True)
class NicDevice:
    """A NIC as QEMU has it. ``number`` (below SLOTS, or CONTROL) is its slot, its tap and part of its ids."""

    number: int
    mac: str
    mtu: int

    @property
    def tap(self) -> str:
        """The tap in the sandbox's network namespace."""
        return f"nbtap{self.number}"

    @property
    def id(self) -> str:
        """The device's id in QEMU; its backend's is the same with ``-net``."""
        return f"nic{self.number}"

    @property
    def slot(self) -> int:
        """Where it is on the machine's bus."""
        return _CONTROL_SLOT if self.number == CONTROL else _NIC_SLOT + self.number


class Loader(enum.Enum):
    """What starts a guest: our initial file system, whose first process is the agent; a kernel that was given, with or without an initial
    file system of its own; or what the firmware finds on the disk.
    """

    OURS = 1
    KERNEL = 2
    KERNEL_AND_INITRD = 3
    FIRMWARE = 4


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk of a machine: its own changes over an image of the format ``base_format``, and how it starts.

    Unless that is by our own initial file system, a second disk tells cloud-init who the machine is.
    """

    base_format: str
    loader: Loader = Loader.OURS


@dataclass(frozen=True, slots=True)
class Machine:
    """What a virtual machine is to QEMU. ``accelerator`` is ``kvm`` or ``tcg``; ``shares`` is how many directories it shares.

    Without a ``disk`` its root is the node's.
    """

    name: str
    memory_mib: int
    vcpus: int
    accelerator: str
    nics: tuple[NicDevice, ...] = ()
    shares: int = 0
    append: str = ""
    disk: Disk | None = None


def qemu(machine: Machine) -> list[str]:
    """The command line of QEMU."""
    memory = f"memory-backend-memfd,id=ram,size={machine.memory_mib}M,share=on"
    return [
        QEMU,
        *("-name", f"guest={escaped(machine.name)}"),
        *("-no-user-config", "-nodefaults", "-no-reboot", "-display", "none"),
        *("-sandbox", SANDBOX),
        *("-machine", "pc,memory-backend=ram,usb=off,vmport=off,graphics=off"),
        *("-accel", "kvm" if machine.accelerator == "kvm" else "tcg,thread=multi,tb-size=128"),
        *("-cpu", "host" if machine.accelerator == "kvm" else "max"),
        *("-smp", str(machine.vcpus), "-m", f"{machine.memory_mib}M"),
        *("-object", memory),
        *_kernel(machine),
        *_channel(f"socket,id=console,fd={_CONSOLE_FD}"),
        *("-serial", "chardev:console"),
        *("-device", "virtio-serial-pci,id=ports,addr=3,disable-legacy=on"),
        *_port("main", f"socket,id=main,fd={_MAIN_FD}", 1),
        *_port("control", f"socket,id=control,fd={_CONTROL_FD},server=on,wait=off", 2),
        *_channel(f"socket,id=qmp,fd={_QMP_FD},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng,addr=4,disable-legacy=on"),
        *(_disk(machine.disk) if machine.disk else _root()),
        *(word for number in range(machine.shares) for word in _share(number, _SHARE_FD + number + (machine.disk is None))),
        *(word for nic in machine.nics for word in _nic(nic)),
    ]


def share_tag(number: int) -> str:
    """By which the guest mounts a shared directory."""
    return f"nestbed-{number}"


def share_path(number: int) -> str:
    """Where a shared directory is in the sandbox."""
    return f"/share/{number}"


def _kernel(machine: Machine) -> list[str]:
    loader = machine.disk.loader if machine.disk else Loader.OURS
    if loader is Loader.FIRMWARE:
        return []
    line = "console=ttyS0 panic=-1"
    if loader is Loader.OURS:
        # cloud-init has nothing to do where the agent does it.
        root = f"disk:{DISK_DEVICE} cloud-init=disabled" if machine.disk else f"virtiofs:{ROOT_TAG}"
        line = f"console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check nestbed.root={root}"
    initrd = [] if loader is Loader.KERNEL else ["-initrd", "/vm/initrd"]
    return ["-kernel", "/vm/vmlinuz", *initrd, "-append", f"{line} {machine.append}".rstrip()]


def _root() -> list[str]:
    """The node's own root."""
    device = f"vhost-user-fs-pci,chardev=root,tag={ROOT_TAG},addr={_ROOT_SLOT},queue-size=1024"
    return [*_channel(f"socket,id=root,fd={_SHARE_FD}"), "-device", device]


def _disk(disk: Disk) -> list[str]:
    """The disk and what is under it. Every format is named, and that nothing is under the image: what files say of that does not count."""
    under: dict[str, object] = {"backing": None} if disk.base_format == "qcow2" else {}
    words = [
        *_block("base-file", driver="file", filename="/vm/base", read_only=True),
        *_block("base", driver=disk.base_format, file="base-file", read_only=True, **under),
        *_block("disk-file", driver="file", filename="/vm/disk.qcow2", discard="unmap"),
        *_block("disk", driver="qcow2", file="disk-file", backing="base", discard="unmap"),
        *_block_device("disk", f"{_ROOT_SLOT}.0,multifunction=on,werror=report,rerror=report"),
    ]
    if disk.loader is Loader.OURS:
        return words
    seed = _block("seed-file", driver="file", filename="/vm/seed.iso", read_only=True)
    return [*words, *seed, *_block("seed", driver="raw", file="seed-file", read_only=True), *_block_device("seed", f"{_ROOT_SLOT}.1")]


def _block(name: str, **options: object) -> list[str]:
    return ["-blockdev", json.dumps({"node-name": name, **{key.replace("_", "-"): value for key, value in options.items()}})]


def _block_device(name: str, place: str) -> list[str]:
    return ["-device", f"virtio-blk-pci,drive={name},disable-legacy=on,addr={place}"]


def _share(number: int, fd: int) -> list[str]:
    place = f"addr={_SHARE_SLOT}.{number}" + (",multifunction=on" if number == 0 else "")
    chardev = f"socket,id=share{number},fd={fd}"
    return ["-chardev", chardev, "-device", f"vhost-user-fs-pci,chardev=share{number},tag={share_tag(number)},{place},queue-size=1024"]


def share_virtiofsd(number: int) -> list[str]:
    """The command line of the virtiofsd of a shared directory: what the guest's users may do to its files they do as themselves."""
    options = f"source={share_path(number)},sandbox=chroot,cache=auto,no_posix_lock,no_flock"
    return [VIRTIOFSD, "--fd=10", "-o", options, "-o", "modcaps=-MKNOD:-SETFCAP"]


def virtiofsd() -> list[str]:
    """The command line of the virtiofsd that shows the prepared tree: read-only as it is mounted, without any right."""
    return [
        VIRTIOFSD,
        "--fd=10",
        "-o",
        f"source={EXPORT},sandbox=chroot,cache=always,no_posix_lock,no_flock",
        "-o",
        f"modcaps={':'.join(f'-{name}' for name in _FILE_RIGHTS)}",
    ]


_FILE_RIGHTS = ("CHOWN", "DAC_OVERRIDE", "FSETID", "SETGID", "SETUID", "MKNOD", "SETFCAP")


def nic_backend(nic: NicDevice) -> dict[str, object]:
    """The arguments of QMP's ``netdev_add``."""
    return {"type": "tap", "id": f"{nic.id}-net", "ifname": nic.tap, "script": "no", "downscript": "no"}


def nic_device(nic: NicDevice) -> dict[str, object]:
    """The arguments of QMP's ``device_add``."""
    return {
        "driver": "virtio-net-pci",
        "id": nic.id,
        "netdev": f"{nic.id}-net",
        "mac": nic.mac,
        "addr": f"{nic.slot:x}",
        "host_mtu": nic.mtu,
        "disable-legacy": "on",
        "romfile": "",
    }


def _nic(nic: NicDevice) -> list[str]:
    return ["-netdev", _options(nic_backend(nic), "type"), "-device", _options(nic_device(nic), "driver")]


def _options(values: dict[str, object], first: str) -> str:
    return ",".join([str(values[first]), *(f"{key}={escaped(str(value))}" for key, value in values.items() if key != first)])


def _channel(chardev: str) -> Sequence[str]:
    return ("-chardev", chardev)


def _port(name: str, chardev: str, number: int) -> list[str]:
    return ["-chardev", chardev, "-device", f"virtserialport,bus=ports.0,nr={number},chardev={name},name=nestbed.{name}"]


def escaped(value: str) -> str:
    """A value of a QEMU option: a comma is written twice."""
    return value.replace(",", ",,")
