"""What a process container may do: capability sets and seccomp programs. Pure but for :func:`publish`.

**Capabilities.** The default set is what container engines give (as podman's), with NET_ADMIN and NET_RAW, which act only in the
container's own network namespace. Without MKNOD: on a host whose cgroups cannot filter devices nothing else would keep a container
from making the node's disk appear in one of the node's own file systems.

**Seccomp.** Everything is allowed but what is named here, and system calls newer than this list was reviewed for. What only a capability
makes dangerous is denied unless that capability was given. Denied is EPERM, as the engines have it; what a program can do without
is ENOSYS, so that its library falls back. A 32-bit argument is always compared under a mask: the kernel ignores the upper half, the
filter would not (CVE-2019-10063). A foreign ABI (i386) has other numbers, so a program that uses one is killed; x32 does
not exist (ENOSYS).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import resource
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyseccomp

from nestbed.errors import InvalidArgument, translated

CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
    "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
    "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
    "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
"""Names by number, capabilities(7)."""

DEFAULT_CAPABILITIES = (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID",
    "SETPCAP", "SETUID", "SYS_CHROOT",
)  # fmt: skip

ALL = "ALL"

_NUMBERS = {name: number for number, name in enumerate(CAPABILITIES)}


def capability_mask(add: Iterable[str], drop: Iterable[str]) -> int:
    """The bit mask of the default set with ``add`` given and ``drop`` taken away. ``ALL`` is every one; a name in both is taken away,
    but one that is added by name survives ``drop`` of ALL.

    Raises:
        InvalidArgument: an unknown name (reason UNKNOWN_CAPABILITY).
    """
    added, dropped = set(add), set(drop)
    for name in sorted(added | dropped):
        if name != ALL and name not in _NUMBERS:
            raise InvalidArgument(
                f"{name!r} is no capability",
                reason="UNKNOWN_CAPABILITY",
                remedy="use a name of capabilities(7) in capitals without CAP_, such as NET_ADMIN, or ALL",
                capability=name,
            )
    wanted = set() if ALL in dropped else set(CAPABILITIES if ALL in added else DEFAULT_CAPABILITIES)
    wanted = (wanted | added) - dropped - {ALL}
    return sum(1 << _NUMBERS[name] for name in wanted)


def has_capability(mask: int, name: str) -> bool:
    """Whether ``mask`` includes the capability."""
    return bool(mask >> _NUMBERS[name] & 1)


@dataclass(frozen=True, slots=True)
class Rule:
    """Refuse ``call`` (name or number) with ``error`` (0: do nothing and say that it was done); if ``mask`` is set only where argument
    ``argument`` & mask == value, and only where the arguments ``given`` are not 0.
    """

    call: str | int
    error: int = errno.EPERM
    argument: int = 0
    mask: int = 0
    value: int = 0
    given: tuple[int, ...] = ()


_REVIEWED = 466
"""The newest system call (removexattrat) this list was made for; from 424 up numbers are the same on every architecture."""

_DENIED = (
    # the kernel's keyrings are not namespaced
    "add_key", "keyctl", "request_key",
    # large attack surface, no use for what runs here
    "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "kexec_load", "kexec_file_load", "uselib", "ustat", "sysfs",
    "_sysctl", "afs_syscall", "create_module", "get_kernel_syms", "getpmsg", "nfsservctl", "putpmsg", "query_module", "security", "tuxcall",
    "vserver", "lookup_dcookie", "pivot_root", "swapon", "swapoff", "migrate_pages", "move_pages",
    # lsm_get_self_attr, lsm_set_self_attr, lsm_list_modules: newer than libseccomp's names
    459, 460, 461,
)  # fmt: skip

_DENIED_WITHOUT: dict[str, tuple[str | int, ...]] = {
    "SYS_ADMIN": (
        "mount", "umount2", "mount_setattr", "move_mount", "open_tree", "fsopen", "fsmount", "fsconfig", "fspick", "setns",
        "fanotify_init", "quotactl", "quotactl_fd", "sethostname", "setdomainname",
    ),
    "DAC_READ_SEARCH": ("open_by_handle_at",),
    "SYS_BOOT": ("reboot",),
    "SYS_CHROOT": ("chroot",),
    "SYS_MODULE": ("init_module", "finit_module", "delete_module"),
    "SYS_NICE": ("mbind", "get_mempolicy", "set_mempolicy", "set_mempolicy_home_node"),
    "SYS_PACCT": ("acct",),
    "SYS_PTRACE": ("kcmp", "pidfd_getfd", "process_madvise"),
    "SYS_RAWIO": ("iopl", "ioperm"),
    "SYS_TIME": ("settimeofday", "clock_settime"),
    "SYS_TTY_CONFIG": ("vhangup",),
}  # fmt: skip

_DENIED_WITHOUT_BOTH: dict[tuple[str, str], tuple[str, ...]] = {
    ("SYS_ADMIN", "BPF"): ("bpf",),
    ("SYS_ADMIN", "PERFMON"): ("perf_event_open",),
    ("SYS_ADMIN", "SYSLOG"): ("syslog",),
}

_LOW_32_BITS = 0xFFFFFFFF
# CLONE_NEW: NS, CGROUP, UTS, IPC, USER, PID, NET
_NAMESPACE_FLAGS = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
_CLONE_NEWTIME = 0x80  # unshare only: clone has the exit signal there
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_ALG, _AF_VSOCK = 38, 40
_PERSONALITY_ALLOWED = 0x20008  # UNAME26 | PER_LINUX32; PER_LINUX is 0; all ones asks without setting


def rules(capabilities: int) -> Iterator[Rule]:
    """What is refused to a container with this capability mask, of the system calls known when this was written."""
    for call in _DENIED:
        yield Rule(call)
    for capability, calls in _DENIED_WITHOUT.items():
        if not has_capability(capabilities, capability):
            yield from (Rule(call) for call in calls)
    for (one, other), calls in _DENIED_WITHOUT_BOTH.items():
        if not (has_capability(capabilities, one) or has_capability(capabilities, other)):
            yield from (Rule(call) for call in calls)
    if not has_capability(capabilities, "SYS_ADMIN"):
        # the flags of clone3 stand in memory, out of a filter's sight
        yield Rule("clone3", errno.ENOSYS)
        yield from (Rule("clone", mask=flag, value=flag) for flag in _NAMESPACE_FLAGS)
        yield from (Rule("unshare", mask=flag, value=flag) for flag in (*_NAMESPACE_FLAGS, _CLONE_NEWTIME))
    for request in (_TIOCSTI, _TIOCLINUX):
        yield Rule("ioctl", argument=1, mask=_LOW_32_BITS, value=request)
    # A limit of 1 stops core dumps through a pipe to a program of the node; 0 does not (core(5)), and many programs set that, for safety.
    yield Rule("setrlimit", 0, mask=_LOW_32_BITS, value=resource.RLIMIT_CORE)
    yield Rule("prlimit64", 0, argument=1, mask=_LOW_32_BITS, value=resource.RLIMIT_CORE, given=(2,))
    for family in (_AF_ALG, _AF_VSOCK):
        # neither belongs to a network namespace
        yield Rule("socket", errno.EAFNOSUPPORT, mask=_LOW_32_BITS, value=family)
    yield from _odd_personalities()


def _odd_personalities() -> Iterator[Rule]:
    # A rule can only say "these bits are so". A value with a forbidden bit set is either all ones, which is allowed, or has somewhere in
    # the cycle of forbidden bits one that is set before one that is clear, or has all of them set and an allowed one clear.
    forbidden = [1 << n for n in range(32) if not _PERSONALITY_ALLOWED >> n & 1]
    allowed = [1 << n for n in range(32) if _PERSONALITY_ALLOWED >> n & 1]
    pairs = [*zip(forbidden, forbidden[1:] + forbidden[:1], strict=True), *((forbidden[0], bit) for bit in allowed)]
    for is_set, is_clear in pairs:
        yield Rule("personality", mask=is_set | is_clear, value=is_set)


_SOCK_FILTER = struct.Struct("=HBBI")
# libseccomp cannot say "all numbers above": load the number; above the reviewed ones go on, else skip one; return ENOSYS. Jumps are
# relative, so its own program follows unchanged. x32 calls have bit 30 set and end here too.
_NEWER_IS_ENOSYS = (
    _SOCK_FILTER.pack(0x20, 0, 0, 0)
    + _SOCK_FILTER.pack(0x25, 0, 1, _REVIEWED)
    + _SOCK_FILTER.pack(0x06, 0, 0, pyseccomp.ERRNO(errno.ENOSYS))
)


@functools.cache
def program(capabilities: int) -> bytes:
    """The compiled BPF program (an array of ``struct sock_filter``) for a container with this capability mask; 3 ms, then cached."""
    seccomp = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    seccomp.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    seccomp.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)
    for rule in rules(capabilities):
        number = _number(rule.call)
        if number >= 0:
            arguments = [pyseccomp.Arg(rule.argument, pyseccomp.MASKED_EQ, rule.mask, rule.value)] if rule.mask else []
            arguments += [pyseccomp.Arg(argument, pyseccomp.NE, 0) for argument in rule.given]
            seccomp.add_rule(pyseccomp.ERRNO(rule.error), number, *arguments)
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    with open(fd, "rb") as file:
        seccomp.export_bpf(file)
        file.seek(0)
        return _NEWER_IS_ENOSYS + file.read()


def publish(run_dir: Path, capabilities: int) -> str:
    """Write the program into the run directory, once, and return the name of its file, which tells its content."""
    name = _name(capabilities)
    path = run_dir / name
    if not path.exists():
        with translated("writing a seccomp program", path=path):
            unfinished = path.with_suffix(".new")
            unfinished.write_bytes(program(capabilities))
            unfinished.replace(path)
    return name


@functools.cache
def _name(capabilities: int) -> str:
    return f"seccomp-{hashlib.sha256(program(capabilities)).hexdigest()[:16]}.bpf"


def _number(call: str | int) -> int:
    if isinstance(call, int):
        return call
    return int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, call))
