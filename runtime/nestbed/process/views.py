"""Steps that give a container its own views of the kernel: /proc, /sys, /dev, the files of /etc that are its own, and a terminal."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import termios
from collections.abc import Sequence

from nestbed import agentdir
from nestbed.linux import mount
from nestbed.linux.libc import AT_EMPTY_PATH, AT_FDCWD
from nestbed.linux.path import openat2
from nestbed.process.mounting import (
    ANSWER,
    DEVPTS,
    FOUND,
    PROC,
    ROOT,
    STRICT,
    SYS,
    TREE,
    attach,
    copy_tree,
    look_up,
    make,
    mask,
    new_file_system,
    open_at,
    place,
    restrict,
)
from nestbed.process.places import BUNDLES, DEVICES, DEVICES_KVM, SCRATCH, TEMPLATE
from nestbed.process.program import Label, Program, Register, Steps
from nestbed.process.protocol import Launch

_LOCKED = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC
_PROC_READ_ONLY = ("bus", "fs", "irq", "pressure", "sysrq-trigger")
_PROC_HIDDEN = ("acpi", "asound", "scsi")
_PROC_HIDDEN_FILES = ("kcore", "keys", "latency_stats", "sched_debug", "timer_list", "timer_stats")
_SYS_HIDDEN = ("firmware", "devices/virtual/powercap", "kernel/debug", "kernel/tracing")
_RESOLV_CONF = b"# No name server: the members of this container's LANs are in /etc/hosts.\n"
_NO_PLACE = (errno.EROFS, errno.EEXIST, errno.ENOENT, errno.ENOTDIR)
_TIOCGPTPEER, _TIOCSPTLCK, _TIOCGPTN = 0x5441, 0x40045431, 0x80045430
_STATX_BASIC_STATS, _STATX_BYTES, _STATX_RDEV_AT = 0x7FF, 256, 0x80
_MASTER, _SLAVE = Register(8), Register(9)


def write_dev(program: Program, launch: Launch) -> None:
    """/dev, with DEVPTS in it."""
    create = launch["root"]["mode"] == "rootfs"
    devices = DEVICES_KVM if launch.get("kvm") else DEVICES
    program.add(program.memory.piece(("dev", create, devices), lambda steps: _dev(steps, devices, create=create)))


def write_kernel(program: Program, launch: Launch) -> None:
    """/proc and /sys, and the sysctls that are not the network's: those wait until the NICs are there."""
    create = launch["root"]["mode"] == "rootfs"
    program.add(program.memory.piece(("kernel", create), lambda steps: _kernel(steps, create=create)))
    write_sysctls(program, PROC, [sysctl for sysctl in launch["sysctls"] if not sysctl[0].startswith("net/")])


def write_sysctls(program: Program, proc: int, sysctls: Sequence[Sequence[str]]) -> None:
    """Through the descriptor ``proc`` of a procfs that was just made and cannot be a fake."""
    program.about = "sysctl"
    for path, value in sysctls:
        data = value.encode()
        open_at(program, proc, f"sys/{path}", os.O_WRONLY, to=FOUND)
        program.call("write", FOUND, program.data(data), len(data), subject=path)
        program.call("close", FOUND)


def write_files(program: Program, launch: Launch) -> None:
    """The container's own hosts, hostname and resolv.conf."""
    program.about = "files"
    root = launch["root"]
    goals = _goals(root["path"] if root["mode"] == "rootfs" else "")
    for name, text in (("hostname", f"{launch['hostname']}\n".encode()), ("resolv.conf", _RESOLV_CONF)):
        open_at(program, AT_FDCWD, f"{SCRATCH}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, to=FOUND)
        program.call("write", FOUND, program.data(text), len(text), subject=name)
        program.call("close", FOUND)
    copy_tree(program, AT_FDCWD, f"{BUNDLES}/{launch['id']}/hosts")
    may_create = root["mode"] in ("overlay", "rootfs")
    program.add(program.memory.piece(("files", may_create, goals), lambda steps: _files(steps, goals, may_create=may_create)))
    if not launch.get("kvm"):
        _write_report(program, launch["id"])


def _write_report(program: Program, id: str) -> None:
    """Show the FIFO of the bundle in the agent's directory: no program inside can take it away or put something else there.

    A bundle of an older version has none, and where /run is not the container's own there is no place for it.
    """
    absent = Label()
    copy_tree(program, AT_FDCWD, f"{BUNDLES}/{id}/{agentdir.REPORT}", allow=(errno.ENOENT,), orelse=absent)
    restrict(program, TREE, _LOCKED)
    place = f"{agentdir.DIRECTORY}/{agentdir.REPORT}".lstrip("/")
    look_up(program, ROOT, place, to=FOUND, resolve=STRICT, allow=(errno.ENOENT, errno.ENOTDIR, errno.ELOOP), orelse=absent)
    attach(program, TREE, FOUND)
    program.mark(absent)


def protect(steps: Steps) -> None:
    """Make of /proc read-only what a container has no business to change, and hide what it has none to read."""
    net = Register(8)
    steps.about = "mask"
    copy_tree(steps, PROC, "sys/net", to=net)
    for name in ("sys", *_PROC_READ_ONLY):
        absent = Label()
        copy_tree(steps, PROC, name, allow=(errno.ENOENT,), orelse=absent)
        restrict(steps, TREE, mount.MOUNT_ATTR_RDONLY)
        attach(steps, TREE, PROC, name)
        steps.mark(absent)
    attach(steps, net, PROC, "sys/net")
    for name in (*_PROC_HIDDEN, *_PROC_HIDDEN_FILES):
        mask(steps, PROC, name, is_directory=name in _PROC_HIDDEN)


def write_terminal(program: Program, launch: Launch, channel_fd: int) -> Register:
    """A new terminal in DEVPTS, this process's controlling one, whose other end goes over the channel: the register of its descriptor."""
    program.about = "terminal"
    look_up(program, DEVPTS, "ptmx", os.O_RDWR | os.O_NOCTTY, to=_MASTER, resolve=STRICT)
    _check_device(program)
    zero, number = (program.data(bytes(8)) for _ in range(2))
    program.call("ioctl", _MASTER, _TIOCSPTLCK, zero)
    program.call("ioctl", _MASTER, _TIOCGPTN, number)
    size = struct.pack("=HHHH", launch.get("rows", 24), launch.get("columns", 80), 0, 0)
    program.call("ioctl", _MASTER, termios.TIOCSWINSZ, program.data(size))
    program.call("ioctl", _MASTER, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, to=_SLAVE)
    program.call("fchown", _SLAVE, launch["uid"], 0xFFFFFFFF)
    _send_descriptor(program, channel_fd, _MASTER)
    program.call("ioctl", _SLAVE, termios.TIOCSCTTY, 0)
    program.load(number, 0xFFFFFFFF, to=ANSWER)
    return _SLAVE


def write_console(program: Program) -> None:
    """Show the terminal just made, which is the first one of a new DEVPTS, as /dev/console."""
    is_first = Label()
    program.when(ANSWER, 0, is_first)
    program.fail(errno.EBUSY, "a new devpts has a terminal already")
    program.mark(is_first)
    look_up(program, ROOT, "dev/console", to=FOUND, resolve=STRICT)
    copy_tree(program, DEVPTS, "0")
    attach(program, TREE, FOUND)


def _check_device(program: Program) -> None:
    """The terminal multiplexer is what it should be, and nothing that a container put there."""
    shape, is_right = program.data(bytes(_STATX_BYTES)), Label()
    program.call("statx", _MASTER, "", AT_EMPTY_PATH, _STATX_BASIC_STATS, shape)
    program.load(shape + _STATX_RDEV_AT, -1, to=ANSWER)
    program.when(ANSWER, 2 << 32 | 5, is_right)
    program.fail(errno.ENODEV, "/dev/pts/ptmx is no terminal multiplexer")
    program.mark(is_right)


def _send_descriptor(program: Program, channel_fd: int, sent: Register) -> None:
    """sendmsg(2) with SCM_RIGHTS."""
    text = program.data(b"t")
    vector = program.data(struct.pack("=QQ", text, 1))
    rights = program.data(struct.pack("=Qiiixxxx", socket.CMSG_LEN(array.array("i").itemsize), socket.SOL_SOCKET, socket.SCM_RIGHTS, -1))
    program.store(rights + 16, sent)
    message = struct.pack("=QIxxxxQQQQixxxx", 0, 0, vector, 1, rights, socket.CMSG_SPACE(4), 0)
    program.call("sendmsg", channel_fd, program.data(message), 0)


def _kernel(steps: Steps, *, create: bool) -> None:
    steps.about = "proc"
    new_file_system(steps, "proc", (), _LOCKED, to=PROC)
    place(steps, PROC, "proc", create=create)
    steps.about = "sys"
    new_file_system(steps, "sysfs", (), _LOCKED | mount.MOUNT_ATTR_RDONLY, to=SYS)
    place(steps, SYS, "sys", create=create)
    for name in _SYS_HIDDEN:
        mask(steps, SYS, name, is_directory=True)


def _dev(steps: Steps, devices: str, *, create: bool) -> None:
    steps.about = "dev"
    copy_tree(steps, AT_FDCWD, devices)
    place(steps, TREE, "dev", create=create)
    options = (("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5"))
    new_file_system(steps, "devpts", options, mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NOEXEC, to=DEVPTS)
    place(steps, DEVPTS, "dev/pts", create=False)
    copy_tree(steps, AT_FDCWD, f"{SCRATCH}/shm")
    place(steps, TREE, "dev/shm", create=False, or_leave=True)


def _goals(rootfs: str) -> tuple[str, ...]:
    """Where a file of /etc goes that cannot be reached: where its symbolic link leads, or where it would be."""
    goals = []
    root_fd = os.open(TEMPLATE, os.O_PATH | os.O_CLOEXEC)
    try:
        for name in ("hosts", "hostname", "resolv.conf"):
            try:
                link = openat2(root_fd, f"{rootfs}/etc/{name}", os.O_PATH | os.O_NOFOLLOW)
            except OSError:
                goals.append(f"/etc/{name}")
                continue
            try:
                goals.append(os.path.normpath(os.path.join("/etc", os.readlink("", dir_fd=link))))
            except OSError:
                goals.append(f"/etc/{name}")
            finally:
                os.close(link)
    finally:
        os.close(root_fd)
    return tuple(goals)


def _files(steps: Steps, goals: Sequence[str], *, may_create: bool) -> None:
    """Mount them where there is a place for them; TREE is the one of hosts."""
    steps.about = "files"
    for name, goal in zip(("hosts", "hostname", "resolv.conf"), goals, strict=True):
        missing, there, end = Label(), Label(), Label()
        if name != "hosts":
            copy_tree(steps, AT_FDCWD, f"{SCRATCH}/{name}")
        restrict(steps, TREE, mount.MOUNT_ATTR_RDONLY | _LOCKED)
        look_up(steps, ROOT, f"etc/{name}", to=FOUND, allow=(errno.ENOENT,), orelse=missing)
        steps.jump(there)
        steps.mark(missing)
        if may_create or goal.startswith("/run/"):
            make(steps, goal, directory=False, allow=_NO_PLACE, orelse=end)
        else:
            steps.jump(end)
        steps.mark(there)
        attach(steps, TREE, FOUND)
        steps.mark(end)
