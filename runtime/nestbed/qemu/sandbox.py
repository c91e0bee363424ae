"""The sandbox of a virtual machine: a container of another runtime that runs the warden, which runs QEMU.

The contract is all that is known of that runtime. It gives the machine a network namespace with its NICs, a root with nothing in it but
what is listed here, cgroups, a log, an exit status and restarts, and it survives nestbedd; see ``docs/decisions/0006``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from nestbed.lanmodel import Nic
from nestbed.model import Bundle, FsMode, Kind, Mount, ProcessSpec, Resources, Spec
from nestbed.qemu.command import EXPORT, share_path
from nestbed.qemu.inside import is_node
from nestbed.qemu.plan import MEMORY_DEFAULT_BYTES, OVERHEAD_BYTES
from nestbed.runtime import Container, HostsAware, Leftover, Pausable, StatusListener, Updatable

DIRECTORY = "vm"
"""The machine's directory in the bundle, which it sees as ``/vm``."""
ROOT = "root"
WARDEN = f"/{DIRECTORY}/warden"

_LINKS = (("bin", "usr/bin"), ("lib", "usr/lib"), ("lib32", "usr/lib32"), ("lib64", "usr/lib64"), ("sbin", "usr/sbin"))
_COVERED = ("run", "dev", "proc", "sys")
"""What of the node's root a guest does not see: it has its own."""
_DROPPED = ("AUDIT_WRITE", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP")
_FOR_SHARES = ("CHOWN", "DAC_OVERRIDE", "FSETID")
"""What only a machine that shares directories needs."""
_SYSCTLS = (("net.ipv6.conf.all.disable_ipv6", "1"), ("net.ipv6.conf.default.disable_ipv6", "1"))
"""The sandbox itself says nothing on the LANs: all that leaves by its NICs is the guest's."""


class Sandbox(Container, Pausable, Updatable, HostsAware, Protocol):
    """A container that a machine can live in."""


class Sandboxes(Protocol):
    """The runtime that makes sandboxes, a part of ``nestbed.runtime.Runtime``. A container of another kind than its own may mount
    what is in its own bundle, and nestbed's code read-only.
    """

    def listen(self, kind: Kind, listener: StatusListener) -> None:
        """Tell ``listener`` of the containers of that kind."""
        ...

    async def create(self, spec: Spec, bundle: Bundle) -> Sandbox:
        """As ``Runtime.create``."""
        ...

    async def recover(self, spec: Spec, bundle: Bundle) -> Sandbox:
        """As ``Runtime.recover``."""
        ...

    async def discard(self, bundle: Bundle) -> None:
        """As ``Runtime.discard``."""
        ...

    async def audit(self, containers: Sequence[Container]) -> Sequence[Leftover]:
        """As ``Runtime.audit``."""
        ...


def spec_of(spec: Spec, bundle: Bundle, code: Sequence[str] = ()) -> Spec:
    """The spec of the sandbox of a machine, whose guest sees nestbed's own ``code`` at the same place if it is a node."""
    directory = bundle.path / DIRECTORY
    process = ProcessSpec(
        args=(WARDEN, "run"),
        fs=FsMode.ROOTFS,
        rootfs=str(directory / ROOT),
        mounts=(
            Mount("/usr", "/usr", read_only=True),
            Mount(str(directory), f"/{DIRECTORY}"),
            *(() if spec.qemu is not None and spec.qemu.has_disk else _export(directory, code if is_node(spec) else ())),
            *(Mount(mount.source, share_path(number), mount.read_only) for number, mount in enumerate(spec.process.mounts)),
        ),
        cap_drop=(*_DROPPED, *(() if spec.process.mounts else _FOR_SHARES)),
        sysctls=_SYSCTLS,
        tty=spec.process.tty,
        stdin=spec.process.stdin,
    )
    nics = tuple(nic_of(nic) for nic in spec.interfaces)
    return replace(
        spec,
        process=process,
        resources=resources_of(spec.resources),
        nics=nics,
        control=None,
        underlay=None,
        routes=(),
        gateway="",
        hostname=spec.name,
    )


def _export(directory: Path, code: Sequence[str]) -> Sequence[Mount]:
    """What a machine without a disk has as its root."""
    return (
        Mount("/", f"{EXPORT}/root", read_only=True),
        *(Mount(path, f"{EXPORT}/root{path}", read_only=True) for path in code),
        *(Mount(str(directory / "empty"), f"{EXPORT}/root/{name}", read_only=True) for name in _COVERED),
        Mount(str(directory / "modules"), f"{EXPORT}/modules", read_only=True),
    )


def nic_of(nic: Nic) -> Nic:
    """A machine's NIC as its sandbox has it: the addresses are the guest's alone."""
    return replace(nic, addresses=())


def resources_of(resources: Resources) -> Resources:
    """Limits of the sandbox: the guest's memory and what QEMU needs besides."""
    return replace(resources, memory_bytes=(resources.memory_bytes or MEMORY_DEFAULT_BYTES) + OVERHEAD_BYTES, pids=resources.pids or None)


def make_root(directory: Path) -> None:
    """The empty root of a sandbox, and what covers parts of the node's."""
    root = directory / ROOT
    for path in (root, directory / "empty", *(root / name for name in ("usr", "etc", DIRECTORY, EXPORT.strip("/")))):
        path.mkdir(mode=0o755)
        path.chmod(0o755)
    for name, target in _LINKS:
        (root / name).symlink_to(target)
