"""The seccomp programs, executed by an interpreter of classic BPF, and the capability sets."""

from __future__ import annotations

import errno
import platform
import struct
from pathlib import Path

import pyseccomp
import pytest

from nestbed.errors import InvalidArgument
from nestbed.process import sandbox

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are those of x86_64")

ALLOW = pyseccomp.ALLOW
KILL = pyseccomp.KILL_PROCESS
EPERM = pyseccomp.ERRNO(errno.EPERM)
ENOSYS = pyseccomp.ERRNO(errno.ENOSYS)
X86_64, I386 = 0xC000003E, 0x40000003
DEFAULT = sandbox.capability_mask((), ())


def verdict(program: bytes, number: int, *args: int, arch: int = X86_64) -> int:
    """What the kernel would answer: a seccomp filter uses only these instructions of classic BPF."""
    data = struct.pack("=iIQ6Q", number if number < 1 << 31 else number - (1 << 32), arch, 0, *(args + (0,) * 6)[:6])
    code = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x05:
            at += k
        elif operation == 0x06:
            return k
        else:
            true = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[operation]
            at += if_true if true else if_false


def call(name: str) -> int:
    return int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name))


@pytest.mark.parametrize(
    "name", ["mount", "setns", "bpf", "keyctl", "io_uring_setup", "open_by_handle_at", "kexec_load", "perf_event_open", "userfaultfd"]
)
def test_dangerous_calls_are_refused(name: str) -> None:
    assert verdict(sandbox.program(DEFAULT), call(name)) == EPERM


@pytest.mark.parametrize("name", ["read", "execve", "socket", "clone", "fork", "ioctl", "ptrace", "chroot", "unshare", "prctl", "seccomp"])
def test_ordinary_calls_are_allowed(name: str) -> None:
    assert verdict(sandbox.program(DEFAULT), call(name)) == ALLOW


@pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_no_new_namespaces(flag: int) -> None:
    program = sandbox.program(DEFAULT)
    for high_bits in (0, 1 << 40):
        assert verdict(program, call("clone"), flag | 17 | high_bits) == EPERM
        assert verdict(program, call("unshare"), flag | high_bits) == EPERM
    assert verdict(program, call("clone"), 17 | 0x80) == ALLOW
    assert verdict(program, call("clone3")) == ENOSYS


@pytest.mark.parametrize("request_number", [0x5412, 0x541C])
def test_terminal_injection_is_refused_whatever_the_upper_half(request_number: int) -> None:
    program = sandbox.program((1 << 41) - 1)
    for high_bits in (0, 1 << 32, 0xFFFFFFFF << 32):
        assert verdict(program, call("ioctl"), 0, request_number | high_bits) == EPERM
    assert verdict(program, call("ioctl"), 0, 0x5413) == ALLOW


def test_sockets_outside_the_network_namespace_are_refused() -> None:
    program = sandbox.program(DEFAULT)
    for family in (38, 40, 40 | 1 << 32):
        assert verdict(program, call("socket"), family) == pyseccomp.ERRNO(errno.EAFNOSUPPORT)
    for family in (1, 2, 10, 16, 17):
        assert verdict(program, call("socket"), family) == ALLOW


def test_limit_of_core_dumps_is_not_changed_and_nobody_minds() -> None:
    program = sandbox.program(DEFAULT)
    done, core, files = pyseccomp.ERRNO(0), 4, 7
    assert verdict(program, call("setrlimit"), core, 0x1000) == done
    assert verdict(program, call("prlimit64"), 0, 1 << 32 | core, 0x1000) == done
    assert verdict(program, call("prlimit64"), 0, core, 0, 0x1000) == ALLOW
    assert verdict(program, call("prlimit64"), 0, files, 0x1000) == ALLOW
    assert verdict(program, call("setrlimit"), files, 0x1000) == ALLOW


def test_only_harmless_personalities() -> None:
    program = sandbox.program(DEFAULT)
    for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF):
        assert verdict(program, call("personality"), value) == ALLOW, hex(value)
    for value in (1, 0x40000, 0x400000, 0x0040_0008, 0xFFFFFFFE, 0xFFFDFFF7, 0x80000000, 0xFFFFFFF7, 0xFFFDFFFF, 0x7FFFFFFF):
        assert verdict(program, call("personality"), value) == EPERM, hex(value)


def test_capabilities_open_what_they_are_for() -> None:
    program = sandbox.program(sandbox.capability_mask(("SYS_ADMIN",), ()))
    for name in ("mount", "setns", "bpf", "clone3"):
        assert verdict(program, call(name)) == ALLOW
    assert verdict(program, call("clone"), 0x10000000) == ALLOW
    assert verdict(program, call("kexec_load")) == EPERM
    assert verdict(sandbox.program(sandbox.capability_mask(("BPF",), ())), call("bpf")) == ALLOW
    assert verdict(sandbox.program(sandbox.capability_mask((), ("SYS_CHROOT",))), call("chroot")) == EPERM


def test_foreign_abis_and_unknown_calls() -> None:
    program = sandbox.program(DEFAULT)
    assert verdict(program, 3, arch=I386) == KILL
    assert verdict(program, 0x40000000 | 0) == ENOSYS
    assert verdict(program, 467) == ENOSYS
    assert verdict(program, 0xFFFFFFFF) == ENOSYS
    assert verdict(program, 466) == ALLOW


def test_program_is_small_and_written_once(tmp_path: Path) -> None:
    assert len(sandbox.program(DEFAULT)) < 8 * 500
    name = sandbox.publish(tmp_path, DEFAULT)
    assert (tmp_path / name).read_bytes() == sandbox.program(DEFAULT)
    written = (tmp_path / name).stat().st_mtime_ns
    assert sandbox.publish(tmp_path, DEFAULT) == name
    assert (tmp_path / name).stat().st_mtime_ns == written
    assert sandbox.publish(tmp_path, sandbox.capability_mask(("ALL",), ())) != name
    assert len(list(tmp_path.iterdir())) == 2


def names(mask: int) -> set[str]:
    return {name for name in sandbox.CAPABILITIES if sandbox.has_capability(mask, name)}


def test_capability_sets() -> None:
    assert names(DEFAULT) == set(sandbox.DEFAULT_CAPABILITIES)
    assert {"NET_ADMIN", "NET_RAW"} <= names(DEFAULT)
    assert not {"SYS_ADMIN", "SYS_PTRACE", "MKNOD", "DAC_READ_SEARCH"} & names(DEFAULT)
    assert names(sandbox.capability_mask((), ("ALL",))) == set()
    assert names(sandbox.capability_mask(("CHOWN",), ("ALL",))) == {"CHOWN"}
    assert names(sandbox.capability_mask(("ALL",), ("SYS_ADMIN",))) == set(sandbox.CAPABILITIES) - {"SYS_ADMIN"}
    assert "NET_RAW" not in names(sandbox.capability_mask((), ("NET_RAW",)))


@pytest.mark.parametrize("name", ["", "chown", "CAP_CHOWN", "NOSUCH", "CHOWN ", "../CHOWN"])
def test_unknown_capability_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        sandbox.capability_mask((name,), ())
    assert caught.value.reason == "UNKNOWN_CAPABILITY"
