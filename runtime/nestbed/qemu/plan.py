"""What the warden reads from the bundle at every start: ``plan``, what to execute, and ``program``, what to tell the agent. Pure."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nestbed.errors import InvalidArgument, NotFound, Unsupported, shown
from nestbed.lanmodel import Nic
from nestbed.model import Boot, ExecSpec, FsMode, Resources, Route, Spec
from nestbed.qemu import command, frames
from nestbed.qemu.command import Machine, NicDevice
from nestbed.qemu.frames import Type
from nestbed.qemu.inside import is_node

UID_FIRST = 0x70000000
OVERHEAD_BYTES = 384 << 20
"""What QEMU and virtiofsd may use beside the guest's memory, its translated code included."""
MEMORY_DEFAULT_BYTES = 512 << 20
MEMORY_MIN_BYTES = 128 << 20
BOOT_SECONDS = 300.0
"""How long a guest may take until its program runs, unless it is said."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LAST_CHANNEL, _NIC_CHANNEL = 1, 2
"""On which the warden hears that all was done that a machine without a program is told, and that a NIC was set up."""
_SYSCTL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@/-]{0,255}", re.ASCII)
_RESOLV_CONF = b"# No name server: the members of this container's LANs are in /etc/hosts.\n"
_SYSCTLS = (
    *(
        (f"net/ipv4/conf/{conf}/{name}", value)
        for conf in ("all", "default")
        for name, value in (("rp_filter", "0"), ("accept_redirects", "1"), ("send_redirects", "1"))
    ),
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/all/arp_announce", "2"),
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
)
_NODE_SYSCTLS = tuple(
    (f"net/ipv{version}/neigh/default/gc_thresh{number}", value)
    for version in (4, 6)
    for number, value in ((1, "4096"), (2, "32768"), (3, "65536"))
)
"""Of a kernel that holds the network namespaces of many containers: one table has all that they know of their neighbours."""
"""As a process container's network begins: what runs inside must not see of which kind its container is."""


def check_resources(resources: Resources) -> None:
    """Refuse limits with which no guest boots.

    Raises:
        InvalidArgument: reason BAD_LIMIT.
    """
    if resources.memory_bytes is not None and resources.memory_bytes < MEMORY_MIN_BYTES:
        raise InvalidArgument(
            f"{resources.memory_bytes} bytes of memory are too few for a virtual machine",
            reason="BAD_LIMIT",
            remedy=f"give it {MEMORY_MIN_BYTES >> 20} MiB at least",
            limit="memory",
            value=resources.memory_bytes,
        )


def check(spec: Spec) -> None:
    """Refuse what a virtual machine does not have.

    Raises:
        InvalidArgument: reason BAD_LIMIT, UNKNOWN_CAPABILITY, BAD_SYSCTL, BAD_MOUNT, TOO_MANY. NotFound: a mount's source
        (MOUNT_SOURCE_NOT_FOUND). Unsupported: a mount of a file, another root (reason NOT_FOR_MACHINES).
    """
    check_resources(spec.resources)
    process = spec.process
    for capability in (*process.cap_add, *process.cap_drop):
        raise InvalidArgument(
            f"a virtual machine's programs have every capability of their user: {shown(capability)} can be neither added nor dropped",
            reason="UNKNOWN_CAPABILITY",
            remedy="leave --cap-add and --cap-drop out",
            capability=shown(capability),
        )
    for key, value in process.sysctls:
        if not _SYSCTL.fullmatch(key) or ".." in key or "\0" in value:
            raise InvalidArgument(
                f"{shown(key)} is no sysctl setting", reason="BAD_SYSCTL", remedy="write it as net.ipv4.ip_forward=1", sysctl=shown(key)
            )
    for mount in process.mounts:
        if not os.path.lexists(mount.source):
            raise NotFound(
                f"there is no mount source {shown(mount.source)}",
                reason="MOUNT_SOURCE_NOT_FOUND",
                remedy="make it, or mount another one",
                path=shown(mount.source),
            )
        if not os.path.isdir(mount.source):
            raise Unsupported(
                f"{shown(mount.source)} is no directory: a virtual machine can share nothing else",
                reason="NOT_FOR_MACHINES",
                remedy="share its directory, or copy it with nbctl cp",
                path=shown(mount.source),
            )
        if not mount.destination.startswith("/") or mount.destination.split("/")[1] in ("", "proc", "sys", "dev"):
            raise InvalidArgument(
                f"nothing can be mounted at {shown(mount.destination)} of a virtual machine",
                reason="BAD_MOUNT",
                remedy="give an absolute path, not the root nor below /proc, /sys and /dev",
                path=shown(mount.destination),
            )
    if len(process.mounts) > command.SHARES_MAX:
        raise InvalidArgument(
            f"{len(process.mounts)} shared directories are more than a virtual machine takes",
            reason="TOO_MANY",
            remedy=f"share {command.SHARES_MAX} at most",
            count=len(process.mounts),
        )
    if process.fs is not FsMode.OVERLAY or process.overlay_dir or process.init:
        raise Unsupported(
            "a virtual machine has a first process of its own, and the node's file systems under changes of its own",
            reason="NOT_FOR_MACHINES",
            remedy="leave --fs and --init out",
        )


def uid_of(container_id: str) -> int:
    """The user and group that QEMU and its virtiofsd run as: one for each machine, none that a node has."""
    return UID_FIRST + int(container_id[:7], 16)


def vcpus_of(cpus: float | None) -> int:
    """How many processors a guest sees: its limit, rounded up."""
    return max(1, -int(-(cpus or 1) // 1))


def warden(*, uid: int, machine: Machine, taps: Iterable[tuple[str, NicDevice]], has_program: bool, has_input: bool) -> bytes:
    """``plan``: ``taps`` are interfaces of the sandbox with the devices that are joined to them."""
    words = [
        *("uid", str(uid)),
        *(["program"] if has_program else []),
        *(["input"] if has_input else []),
        *(word for interface, device in taps for word in ("tap", interface, device.tap)),
        *(("share", *command.virtiofsd(), "") if machine.disk is None else ()),
        *(word for number in range(machine.shares) for word in ("files", *command.share_virtiofsd(number), "")),
        *("qemu", *command.qemu(machine), ""),
    ]
    return b"".join(word.encode() + b"\0" for word in words)


def routes_of(nic: Nic, spec: Spec) -> list[tuple[str, str]]:
    """The routes ``(destination, via)`` whose next hop is in a subnet of this NIC."""
    networks = [ipaddress.ip_interface(cidr).network for cidr in nic.addresses]
    wanted = [*spec.routes, *([Route("default", spec.gateway)] if spec.gateway else [])]
    return [(route.destination, route.via) for route in wanted if any(ipaddress.ip_address(route.via) in network for network in networks)]


def nic_frame(channel: int, nic: Nic, spec: Spec) -> bytes:
    """What tells the agent to name and configure a NIC."""
    return frames.nic(channel, mac=nic.mac, name=nic.name, mtu=nic.mtu, addresses=nic.addresses, routes=routes_of(nic, spec))


def program(spec: Spec, nics: Sequence[Nic], hosts: bytes, inside: bytes = b"", beside: bytes = b"") -> bytes:
    """``program``: the guest's names, files and interfaces, what else is to be ``inside`` (users, a node), then what it runs, and what it
    need not wait for (``beside``).
    """
    hostname = spec.hostname or spec.name
    process = spec.process
    own = (*_SYSCTLS, *_NODE_SYSCTLS) if is_node(spec) else _SYSCTLS
    sysctls = (*own, *((key.replace(".", "/") if "/" not in key else key, value) for key, value in process.sysctls))
    told = [
        frames.frame(Type.HOSTNAME, 0, hostname.encode()),
        frames.write(0, "/etc/hostname", f"{hostname}\n".encode()),
        hosts_frame(0, hosts),
        frames.write(0, "/etc/resolv.conf", _RESOLV_CONF),
        *(frames.write(0, f"/proc/sys/{path}", value.encode()) for path, value in sysctls),
        *(
            frames.mount(0, command.share_tag(number), mount.destination, read_only=mount.read_only)
            for number, mount in enumerate(process.mounts)
        ),
        *(nic_frame(_NIC_CHANNEL, nic, spec) for nic in nics),
        inside,
    ]
    if process.args:
        env = (("PATH", PATH), ("HOSTNAME", hostname), *process.env)
        told.append(frames.run(0, ExecSpec(process.args, tuple(dict(env).items()), process.cwd, process.user, process.tty, process.stdin)))
    else:
        told.append(frames.write(_LAST_CHANNEL, "/run/nestbed-ready", b""))
    return b"".join((*told, beside))


def hosts_frame(channel: int, hosts: bytes) -> bytes:
    """What tells the agent the content of ``/etc/hosts``; what does not fit into a frame is left out, by whole lines."""
    room = frames.FRAME_BYTES_MAX - 64
    if len(hosts) > room:
        hosts = hosts[: hosts.rindex(b"\n", 0, room) + 1]
    return frames.write(channel, "/etc/hosts", hosts)


@dataclass(frozen=True, slots=True)
class Word:
    """What the warden wrote last: ``what`` is the first word of ``state``, ``number`` the second if it is one."""

    what: str
    number: int = 0
    rest: str = ""


UNDER_WAY = ("booting", "answering", "addressed")
"""What the warden writes before the guest is up, in this order."""


def boot_of(word: Word) -> Boot | None:
    """How far a guest is, of what the warden wrote last."""
    if word.what == "started":
        return Boot.READY
    return Boot(word.what) if word.what in UNDER_WAY else None


def boot_seconds_of(spec: Spec) -> float:
    """How long a guest may take until its program runs."""
    return (spec.qemu.boot_seconds if spec.qemu is not None else 0.0) or BOOT_SECONDS


def parse_state(text: str) -> Word:
    """The content of ``state``; ``none`` for what is not understood."""
    what, _, rest = text.strip().partition(" ")
    first, _, after = rest.partition(" ")
    if what in ("started", "exited", "signaled", "failed") and first.isdecimal():
        return Word(what, int(first), after)
    if what in (*UNDER_WAY, "off", "lost"):
        return Word(what, 0, rest)
    return Word("none")
