"""From a clone of the keeper to the user's program: what the new process does, one step after the other.

Everything here writes steps (``nestbed.process.program``); nothing runs in a clone but these. The first process of a container sets it
up and waits for the word before it executes; a further program (``exec``) joins what is there. The order of the steps is the kernel's:

* cgroups are joined before the cgroup namespace is made, so that its root is the container's own cgroup;
* sources of mounts are opened before anything is mounted over them;
* sysctls are written through a procfs that was just made and cannot be a fake, and before it is made read-only;
* all is set up before the process waits for the word to go: NICs are plugged meanwhile, and their sysctls written after;
* descriptors are closed before the working directory is entered, so that no path reaches an old one (CVE-2024-21626);
* the capability bounding set is cut while the process may still do so, the seccomp filter comes last.

An error travels to the keeper over a close-on-exec pipe (``Program.explain``); its end of file says that the program runs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Sequence

import prctl

from nestbed.linux import mount
from nestbed.linux.descriptors import CLOSE_RANGE_UNSHARE
from nestbed.linux.libc import AT_EMPTY_PATH, AT_FDCWD
from nestbed.linux.namespace import CLONE_NEWCGROUP, CLONE_NEWNET, CLONE_PARENT, CloneArgs
from nestbed.process.mounting import ANSWER, DEVPTS, FOUND, FREE, PROC, ROOT, STRICT, look_up, open_at
from nestbed.process.program import Label, Memory, Program, Register, Steps
from nestbed.process.protocol import Launch
from nestbed.process.roots import Covers, write_mounts, write_root
from nestbed.process.views import protect, write_console, write_dev, write_files, write_kernel, write_sysctls, write_terminal

_ARGV, _ENV = Register(FREE), Register(FREE + 1)
NOT_WANTED = 125
"""The exit code of a process that never executed: not 0, which would read as success."""

_F_DUPFD_CLOEXEC, _KEYCTL_JOIN_SESSION_KEYRING = 1030, 1
_PR_SET_NAME, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_FILTER = 15, 22, 24, 38, 2
_SIG_SETMASK, _SIGNAL_SET_BYTES = 2, 8
_X_OK, _POLLIN = 1, 1
_EVERY_FD = 0xFFFFFFFF
_PATH_BYTES = 4096
_CAPABILITY_VERSION_3 = 0x20080522
_JOINING = 1 << prctl.CAP_CHOWN | 1 << prctl.CAP_SETUID | 1 << prctl.CAP_SETGID
"""What a process that joins a container still needs there before it takes its credentials."""


class Prepared:
    """What the keeper made ready before it clones; descriptors belong to the keeper, which closes its copies afterwards."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.error_fd = -1
        self.stdio: tuple[int, int, int] | None = None
        """Standard streams; a stdin of -1 is the container's /dev/null."""
        self.terminal_fd = -1
        """With a terminal instead of stdio: the socket over which its master is sent to the keeper."""
        self.netns_fd = -1
        self.go_fd = -1
        """Where the process waits, all set up, for one byte before it executes; its end of file means that it is not wanted."""
        self.task_fds: list[int] = []
        """``tasks`` files of v1 cgroups."""
        self.init_fd = -1
        self.spare_fd = -1
        """Any descriptor of the keeper's that the new process may put another one in the place of."""
        self.apart_fd = -1
        """An eventfd(2) by which the first process tells that it has descriptors of its own, until when it shares the keeper's."""
        self.seccomp = b""
        self.covers = Covers((), ())


def candidates(argv0: str, env: list[str]) -> tuple[bytes, ...]:
    """Where a program of this name is looked for, as execvp(3) does with the PATH of ``env``."""
    name = os.fsencode(argv0)
    if b"/" in name:
        return (name,)
    path = next((item[5:] for item in env if item.startswith("PATH=")), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    return tuple(os.path.join(os.fsencode(directory) or b".", name) for directory in path.split(":"))


def write_first(memory: Memory, prepared: Prepared) -> Program:
    """The first process of a container: sets it up, waits for the word, executes its program."""
    launch, program = prepared.launch, Program(memory, prepared.error_fd)
    _take_descriptors(program, prepared)
    program.add(memory.piece("signals", _reset_signals))
    _enter_cgroups(program, prepared)
    program.call("unshare", CLONE_NEWCGROUP)
    program.about = "netns"
    program.call("setns", prepared.netns_fd, CLONE_NEWNET)
    program.call("setsid")
    write_root(program, launch, prepared.covers, prepared.spare_fd)
    write_dev(program, launch)
    write_mounts(program, launch)
    write_kernel(program, launch)
    write_files(program, launch)
    stdio: Sequence[int] = prepared.stdio or ()
    if prepared.terminal_fd >= 0:
        stdio = (write_terminal(program, launch, prepared.terminal_fd),) * 3
        write_console(program)
    program.add(memory.piece("protect", protect))
    program.add(memory.piece("pivot", _pivot))
    _set_hostname(program, launch["hostname"])
    _, init_fd, go_fd, proc_fd = _arm(program, launch, stdio, (prepared.error_fd, prepared.init_fd, prepared.go_fd, PROC))
    program.add(memory.piece(("bound", launch["caps"]), lambda steps: _bound(steps, launch["caps"])))
    _wait_for_go(program, go_fd)
    sysctls = [sysctl for sysctl in launch["sysctls"] if sysctl[0].startswith("net/")]
    write_sysctls(program, proc_fd, sysctls)
    for fd in (go_fd, proc_fd):
        program.call("close", fd)
    _become(program, launch)
    _execute(program, prepared, init_fd)
    return program


def write_joining(memory: Memory, prepared: Prepared, pidfd: int, namespaces: int, answer_fd: int) -> Program:
    """A further program in the namespaces of the process ``pidfd``.

    A process enters a pid namespace only by being born there: so the clone joins the namespaces and clones once more, with the keeper as
    the parent; it writes the number of that process to ``answer_fd`` and ends. What is born inside can be seen there, and with
    SYS_PTRACE be looked into (CVE-2016-9962): before that goes every descriptor but the program's own, and every right that is not the
    container's.
    """
    launch, program = prepared.launch, Program(memory, prepared.error_fd)
    _enter_cgroups(program, prepared)
    for number, fd in enumerate(prepared.stdio or (prepared.terminal_fd,) * 3):
        program.call("dup3", fd, number, 0)
    kept = _keep_only(program, (prepared.error_fd, prepared.terminal_fd, pidfd, answer_fd))
    program.about = "namespaces"
    program.call("setns", kept[2], namespaces)
    program.call("close", kept[2])
    program.add(memory.piece(("bound", launch["caps"]), lambda steps: _bound(steps, launch["caps"])))
    _set_capabilities(program, launch["caps"] | _JOINING)
    _be_born_inside(program, kept[3])
    program.add(memory.piece("signals", _reset_signals))
    open_at(program, AT_FDCWD, "/", os.O_PATH, to=ROOT)
    program.call("setsid")
    program.call("umask", 0o022)
    stdio: Sequence[int] = ()
    if kept[1] >= 0:
        program.about = "terminal"
        look_up(program, ROOT, "dev/pts", os.O_PATH | os.O_DIRECTORY, to=DEVPTS, resolve=STRICT)
        stdio = (write_terminal(program, launch, kept[1]),) * 3
    _arm(program, launch, stdio, (kept[0],))
    _become(program, launch)
    _execute(program, prepared, -1)
    return program


def write_holding(memory: Memory, fd: int, until: int) -> Program:
    """A process that holds ``fd``, as its descriptor 3, until ``until`` can be read."""
    program = Program(memory, -1)
    program.call("setsid")
    program.call("prctl", _PR_SET_NAME, "nestbed-holder")
    _, watched = _keep_only(program, (fd, until), reports=False)
    for number in range(3):
        program.call("close", number, allow=(errno.EBADF,))
    program.call("ppoll", program.data(struct.pack("=ihh", watched, _POLLIN, 0)), 1, 0, 0, _SIGNAL_SET_BYTES)
    program.call("exit_group", 0)
    return program


# ---- pieces


def _reset_signals(steps: Steps) -> None:
    """A program begins with nothing ignored and nothing blocked, whatever the keeper inherited or Python set."""
    steps.about = "clone"
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN:
            steps.call("rt_sigaction", int(number), steps.data(bytes(32)), 0, _SIGNAL_SET_BYTES)
    steps.call("rt_sigprocmask", _SIG_SETMASK, steps.data(bytes(_SIGNAL_SET_BYTES)), 0, _SIGNAL_SET_BYTES)


def _take_descriptors(program: Program, prepared: Prepared) -> None:
    """Take along what is prepared, and leave what the keeper holds of every container: to copy and close it all takes a millisecond."""
    program.about = "clone"
    last = max(
        prepared.error_fd,
        prepared.terminal_fd,
        prepared.netns_fd,
        prepared.go_fd,
        prepared.init_fd,
        prepared.spare_fd,
        prepared.apart_fd,
        *(prepared.stdio or ()),
        *prepared.task_fds,
    )
    program.call("close_range", last + 1, _EVERY_FD, CLOSE_RANGE_UNSHARE)
    program.call("write", prepared.apart_fd, program.data(struct.pack("=Q", 1)), 8)


def _enter_cgroups(program: Program, prepared: Prepared) -> None:
    program.about = "cgroup"
    for fd in prepared.task_fds:
        program.call("write", fd, "0", 1)


def _be_born_inside(program: Program, answer_fd: int) -> None:
    """Clone; the new process goes on, this one tells its number and ends."""
    inner, inside = Register(FREE), Label()
    args = CloneArgs(flags=CLONE_PARENT)
    program.call("clone3", program.data(bytes(args)), ctypes.sizeof(args), to=inner)
    program.when(inner, 0, inside)
    answer = program.data(bytes(4))
    program.store(answer, inner)
    program.call("write", answer_fd, answer, 4)
    program.call("exit_group", 0)
    program.mark(inside)


def _pivot(steps: Steps) -> None:
    steps.about = "pivot"
    steps.call("fchdir", ROOT)
    steps.call("pivot_root", ".", ".")
    steps.call("umount2", ".", mount.MNT_DETACH)
    steps.call("chdir", "/")


def _set_hostname(program: Program, name: str) -> None:
    program.about = "hostname"
    program.call("sethostname", name, len(os.fsencode(name)))


def _arm(program: Program, launch: Launch, stdio: Sequence[int], kept: Sequence[int]) -> list[int]:
    """Streams and limits that can be had before the word to go; every descriptor is closed but those kept: their new numbers."""
    for number, fd in enumerate(stdio):
        if fd < 0:
            open_at(program, AT_FDCWD, "/dev/null", os.O_RDONLY, to=FOUND)
        program.call("dup3", FOUND if fd < 0 else fd, number, 0)
    numbers = _keep_only(program, kept)
    rlimits = tuple(map(tuple, launch["rlimits"]))
    program.add(program.memory.piece(("rlimits", rlimits), lambda steps: _limit(steps, rlimits)))
    return numbers


def _limit(steps: Steps, rlimits: Sequence[tuple[int, ...]]) -> None:
    steps.about = "rlimit"
    for kind, soft, hard in rlimits:
        steps.call("prlimit64", 0, kind, steps.data(struct.pack("=qq", soft, hard)), 0)
    steps.call("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, 0)


def _keep_only(program: Program, fds: Sequence[int], *, reports: bool = True) -> list[int]:
    """Close every descriptor but the standard ones and these, which move to 3 and up, close-on-exec; -1 stays -1.

    ``reports`` says that the first one is that for reports.
    """
    present = [fd for fd in fds if fd >= 0]
    for place, fd in enumerate(present):
        program.call("fcntl", fd, _F_DUPFD_CLOEXEC, 64, to=Register(FREE + place))
    for place in range(len(present)):
        program.call("dup3", Register(FREE + place), 3 + place, os.O_CLOEXEC)
    if reports:
        program.reports_to(3)
    program.call("close_range", 3 + len(present), _EVERY_FD, 0)
    numbers = iter(range(3, 3 + len(present)))
    return [next(numbers) if fd >= 0 else -1 for fd in fds]


def _bound(steps: Steps, caps: int) -> None:
    """No more rights from here on, whatever is executed."""
    steps.about = "capabilities"
    steps.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(prctl.CAP_LAST_CAP + 1):
        if not caps >> capability & 1:
            steps.call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)


def _wait_for_go(program: Program, go_fd: int) -> None:
    program.about = "clone"
    wanted = Label()
    program.call("read", go_fd, program.data(bytes(1)), 1, to=ANSWER)
    program.when(ANSWER, 1, wanted)
    program.call("exit_group", NOT_WANTED)
    program.mark(wanted)


def _become(program: Program, launch: Launch) -> None:
    """Credentials and working directory."""
    uid, gid, groups, caps, cwd = launch["uid"], launch["gid"], tuple(launch["groups"]), launch["caps"], launch["cwd"]
    key = ("become", uid, gid, groups, caps, cwd)
    program.add(program.memory.piece(key, lambda steps: _take_credentials(steps, uid, gid, groups, caps, cwd)))


def _take_credentials(steps: Steps, uid: int, gid: int, groups: Sequence[int], caps: int, cwd: str) -> None:
    steps.about = "credentials"
    steps.call("setgroups", len(groups), steps.data(struct.pack(f"={len(groups)}I", *groups)))
    steps.call("setresgid", gid, gid, gid)
    steps.call("setresuid", uid, uid, uid)
    steps.about = "capabilities"
    _set_capabilities(steps, caps if uid == 0 else 0)
    steps.about = "cwd"
    steps.call("chdir", cwd, subject=cwd)
    path, is_inside = steps.data(bytes(_PATH_BYTES)), Label()
    steps.call("getcwd", path, _PATH_BYTES, subject=cwd)
    steps.load(path, 0xFF, to=ANSWER)
    steps.when(ANSWER, ord("/"), is_inside)
    steps.fail(errno.ENOENT, f"{cwd} is outside the container's root")
    steps.mark(is_inside)


def _set_capabilities(steps: Steps, mask: int) -> None:
    """capset(2): effective and permitted are ``mask``, inheritable is empty."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = steps.data(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    steps.call("capset", header, steps.data(struct.pack("=6I", low, low, 0, high, high, 0)))


def _execute(program: Program, prepared: Prepared, init_fd: int) -> None:
    launch = prepared.launch
    program.about = "seccomp"
    if prepared.seccomp:
        # struct sock_fprog: number of instructions of 8 bytes, and where they are
        filters = program.memory.constant(prepared.seccomp)
        fprog = program.data(struct.pack("=HxxxxxxQ", len(prepared.seccomp) // 8, filters))
        program.call("prctl", _PR_SET_SECCOMP, _SECCOMP_FILTER, fprog, 0, 0)
    program.about = "execve"
    argv = [os.fsencode(word) for word in launch["argv"]]
    argv_at = _strings(program, [b"init", b"--", *argv] if init_fd >= 0 else argv)
    env_at = _strings(program, [os.fsencode(item) for item in launch["env"]])
    vectors = program.data(struct.pack("=QQ", argv_at, env_at))
    program.load(vectors, -1, to=_ARGV)
    program.load(vectors + 8, -1, to=_ENV)
    name, paths = launch["argv"][0], candidates(launch["argv"][0], launch["env"])
    program.add(program.memory.piece(("execute", name, paths, init_fd), lambda steps: _try_paths(steps, name, paths, init_fd)))


def _try_paths(steps: Steps, name: str, paths: Sequence[bytes], init_fd: int) -> None:
    """Execute whichever of the paths can be, as execvp(3) does: what may not be executed is told if there is no other."""
    steps.about = "execve"
    worst = steps.data(struct.pack("=q", errno.ENOENT))
    steps.store(worst, errno.ENOENT)
    for path in paths:
        elsewhere, next_one = Label(), Label()
        allowed = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)
        if init_fd >= 0:
            steps.call("faccessat", AT_FDCWD, path, _X_OK, to=ANSWER, allow=allowed, orelse=elsewhere)
            steps.call("execveat", init_fd, "", _ARGV, _ENV, AT_EMPTY_PATH, subject=path)
        else:
            steps.call("execve", path, _ARGV, _ENV, to=ANSWER, allow=allowed, orelse=elsewhere, subject=path)
        steps.mark(elsewhere)
        steps.when(ANSWER, -errno.ENOENT, next_one)
        steps.when(ANSWER, -errno.ENOTDIR, next_one)
        steps.store(worst, errno.EACCES)
        steps.mark(next_one)
    steps.load(worst, 0xFFFFFFFF, to=ANSWER)
    steps.fail(ANSWER, name)


def _strings(program: Program, words: Sequence[bytes]) -> int:
    """A vector of strings that ends with a null pointer."""
    joined = b"\0".join(words) + b"\0"
    address = program.data(joined)
    pointers = []
    for word in words:
        pointers.append(address)
        address += len(word) + 1
    return program.data(struct.pack(f"={len(pointers) + 1}Q", *pointers, 0))
