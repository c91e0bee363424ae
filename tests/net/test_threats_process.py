"""Attacks from inside a container on whoever starts programs in it, and on the kernel's interfaces. One test for each known threat."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

import nestbed
from nestbed.errors import InvalidArgument
from nestbed.linux.inotify import inotify_add_watch, inotify_init, read_changes
from nestbed.testing.inside import attempt, connect, link_of, read_at, syscall, write_at
from nestbed.v1 import container_pb2 as api

pytestmark = pytest.mark.net

MODES = ("host", "host-ro", "overlay", "rootfs")
every_mode = pytest.mark.parametrize("mode", MODES)
IN_OPEN = 0x20


# ---------------------------------------------------------------- what a program that joins brings along


@pytest.mark.parametrize("capabilities", [(), ("SYS_PTRACE",)], ids=["default", "with-ptrace"])
def test_cve_2016_9962_a_joining_process_is_looked_into(fort, capabilities) -> None:
    def probe(run_dir):
        found, own = set(), str(os.getpid())
        while not os.path.exists("/run/enough"):
            for pid in [name for name in os.listdir("/proc") if name.isdigit() and name != own]:
                names = [f"/proc/{pid}/{kind}" for kind in ("cwd", "root")]
                with contextlib.suppress(OSError):
                    names += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
                links = {link_of(name) for name in names}
                found |= {link for link in links if link.startswith(("mnt:", "net:", "socket:", "anon_inode:")) or "log" in link}
                found |= {
                    f"{name} leads to the daemon" for name in names for path in (run_dir, "") if os.path.exists(f"{name}{path}/node.json")
                }
        return sorted(found)

    container = fort.start(*fort.program(probe, str(fort.machine.run_dir)), cap_add=capabilities)
    for _ in range(100):
        assert fort.exec(container, "true").code == 0
    fort.exec(container, "touch", "/run/enough")
    assert fort.call(lambda client: client.wait_container(container)).code == 0
    assert fort.logged(container) == []


@every_mode
def test_cve_2024_21626_descriptors_that_leaked(fort, mode) -> None:
    def descriptors():
        return {fd: link_of(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}

    for found in (fort.inside(descriptors, fs=mode), fort.inside_of(fort.start("sleep", "100", fs=mode), descriptors)):
        assert sorted(found) == ["0", "1", "2"]
        assert all(link == "/dev/null" or link.startswith("pipe:[") for link in found.values())


def test_cve_2024_21626_working_directory_in_a_leaked_descriptor(fort) -> None:
    container = fort.start("sleep", "100")
    for number in range(3, 24):
        with pytest.raises(Exception, match=f"/proc/self/fd/{number}|cwd"):
            fort.exec(container, "ls", cwd=f"/proc/self/fd/{number}")
    for number in (3, 5, 7, 9, 11):
        with pytest.raises(Exception, match=f"/proc/self/fd/{number}|cwd"):
            fort.run("ls", cwd=f"/proc/self/fd/{number}")


@every_mode
def test_standard_streams_are_no_file_of_the_node(fort, mode) -> None:
    """A descriptor of the node's /dev/null would let root inside change its mode for everybody."""

    def change():
        return [attempt(lambda fd=fd: os.fchmod(fd, 0o666)) for fd in range(3) if link_of(f"/proc/self/fd/{fd}").startswith("/")]

    before = os.stat("/dev/null").st_ctime_ns
    assert fort.inside(change, fs=mode) == ["EROFS"]
    assert fort.inside_of(fort.start("sleep", "100", fs=mode), change) == []
    assert os.stat("/dev/null").st_ctime_ns == before


# ---------------------------------------------------------------- who runs the container's code, whose code runs


def digests() -> dict[str, str]:
    """Of everything that nestbed runs."""
    code = [*Path(nestbed.__file__).parent.rglob("*.py"), Path(sys.executable).resolve(), Path(sys.executable).parent / "nestbedd"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in code}


@every_mode
def test_cve_2019_5736_overwriting_the_runtime_through_proc_self_exe(fort, mode) -> None:
    def overwrite():
        fd = os.open("/proc/self/exe", os.O_PATH)
        changes = [lambda: os.chmod("/proc/self/exe", 0o777), lambda: os.utime(f"/proc/self/fd/{fd}")]
        return [bool(os.statvfs(fd).f_flag & os.ST_RDONLY), write_at("/proc/self/exe"), *map(attempt, changes)]

    before = digests()
    _, *arguments = fort.program(overwrite)
    script = str(fort.script_file("/proc/self/exe"))
    spec = {"fs": mode, "mounts": (f"{script}:{script}",) if mode == "rootfs" else ()}
    container = fort.start("sleep", "100", **spec)
    refused = [True, "ETXTBSY", "EROFS", "EROFS"]
    # The program is the interpreter of whoever executes it; what it does is what the arguments say.
    assert fort.answer(fort.run("/proc/self/exe", *arguments, **spec)) == refused
    assert fort.answer(fort.exec(container, "/proc/self/exe", *arguments)) == refused
    for result in (fort.run(script, **spec), fort.exec(container, script)):
        assert result.code in (0, 1)
    assert digests() == before


def planted(root: Path) -> list[Path]:
    """Everything that an interpreter or a C library would load, as a trap."""
    version = f"python3.{sys.version_info.minor}"
    names = [
        *(f"usr/lib/{version}/{name}" for name in ("sitecustomize.py", "os.py", "site.py", "encodings/__init__.py", "encodings/idna.py")),
        *(f"usr/lib/{version}/lib-dynload/{name}.so" for name in ("_ctypes", "_socket", "resource")),
        *(f"usr/lib/x86_64-linux-gnu/{name}" for name in ("libnss_files.so.2", "libnss_compat.so.2", "libc.so.6", "gconv/gconv-modules")),
        *(f"{Path(nestbed.__file__).parent}/{name}"[1:] for name in ("errors.py", "process/launch.py")),
        *("etc/ld.so.preload", "etc/ld.so.cache", "etc/nsswitch.conf", "etc/localtime", "usr/lib/locale/locale-archive"),
    ]
    paths = [root / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('trap')\n")
    return paths


@pytest.mark.parametrize("how", ["run", "init", "terminal", "exec", "exec-terminal", "copy"])
def test_cve_2019_14271_code_of_the_container_is_loaded_by_the_runtime(fort, tmp_path, how) -> None:
    root = tmp_path / "rootfs"
    traps = planted(root)
    shutil.copy("/sbin/ldconfig", root / "prog")  # linked statically: it loads nothing by itself
    os.mkfifo(root / "wait")
    (root / "tmp").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("evil:x:0:0::/:/prog\n")
    watcher = inotify_init()
    try:
        for path in traps:
            inotify_add_watch(watcher, str(path), IN_OPEN)
        waiting = ("/prog", "-N", "-X", "-f", "/wait")
        container = fort.start(*waiting, fs="rootfs", rootfs=str(root), user="evil", tty=how == "terminal", init=how == "init")
        if how.startswith("exec"):
            assert fort.exec(container, "/prog", "--version", user="evil", tty=how == "exec-terminal").code == 0
        elif how == "copy":
            fort.copy_in(container, "/tmp", fort.copy_out(container, "/prog"))
        assert fort.call(lambda client: client.get_container(container)).state == api.CONTAINER_STATE_RUNNING
        assert [(traps[change.watch - 1], change.mask) for change in read_changes(watcher)] == []
    finally:
        os.close(watcher)


# ---------------------------------------------------------------- credentials


@every_mode
@pytest.mark.parametrize("user", ["", "1000:1000"], ids=["root", "user"])
def test_cve_2022_27650_capabilities_are_inherited(fort, mode, user) -> None:
    def status():
        with open("/proc/self/status") as file:
            return dict(line.split(":\t", 1) for line in file.read().splitlines())

    container = fort.start("sleep", "100", fs=mode, user=user)
    for found in (fort.inside(status, fs=mode, user=user), fort.inside_of(container, status)):
        assert (int(found["CapInh"], 16), int(found["CapAmb"], 16)) == (0, 0)
        assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
        assert int(found["CapEff"], 16) == (0xA00435FB if not user else 0)


def test_setuid_program_gives_no_right(fort) -> None:
    program = fort.base / "setuid-id"
    shutil.copy("/usr/bin/id", program)
    program.chmod(0o4755)
    for mode in ("host", "host-ro", "overlay"):
        assert fort.run(str(program), "-u", fs=mode, user="1000:1000").out == b"1000\n"
    assert fort.run("/program", "-u", fs="rootfs", mounts=(f"{program}:/program",), user="1000:1000").out == b"1000\n"


@pytest.mark.parametrize("user", ["0x0", "-1", " 1", "1:", ":1", "+0", "4294967295", "4294967296", "\u0660", "0\n", "1.0", "root:x", "1_0"])
def test_cve_2026_30892_odd_user_becomes_another_one(fort, user) -> None:
    with pytest.raises(InvalidArgument):
        fort.run("id", user=user)
    container = fort.start("sleep", "100", user="1000:1000")
    with pytest.raises(InvalidArgument):
        fort.exec(container, "id", user=user)


@every_mode
def test_cve_2014_8989_user_namespace_to_drop_groups_or_gain_rights(fort, mode) -> None:
    def enter():
        flags = (0x10000000, 0x10020000, 0x50020000, 0x12000000)  # CLONE_NEWUSER alone and with others
        refused = {syscall("unshare", flag) for flag in flags} | {syscall("clone", flag | 17, 0, 0, 0, 0) for flag in flags}
        return sorted(refused | {syscall("unshare", flag | 1 << 32) for flag in flags}), syscall("clone3", 0, 0)

    assert fort.inside(enter, fs=mode, user="") == [["EPERM"], "ENOSYS"]
    assert fort.inside(enter, fs=mode, user="1000") == [["EPERM"], "ENOSYS"]


# ---------------------------------------------------------------- system calls


@every_mode
@pytest.mark.parametrize("user", ["", "1000"], ids=["root", "user"])
def test_system_calls_that_open_the_kernel(fort, mode, user) -> None:
    def refused():
        names = (
            "add_key", "keyctl", "request_key", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "kexec_load",
            "open_by_handle_at", "mount", "umount2", "pivot_root", "setns", "init_module", "finit_module", "open_tree", "move_mount",
            "fsopen", "fsmount", "mount_setattr", "reboot", "swapon", "syslog", "setdomainname", "quotactl", "acct", "pidfd_getfd",
        )  # fmt: skip
        calls = {name: syscall(name, 0, 0, 0, 0, 0) for name in names}
        flags = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x20000000, 0x40000000)
        spaces = {f"unshare {flag:#x}": syscall("unshare", flag) for flag in flags}
        families = {family: attempt(lambda family=family: socket.socket(family, socket.SOCK_RAW)) for family in (38, 40)}  # ALG, VSOCK
        return calls | spaces, families

    calls, families = fort.inside(refused, fs=mode, user=user)
    assert {name: error for name, error in calls.items() if error != "EPERM"} == {}
    assert set(families.values()) == {"EAFNOSUPPORT"}


def test_cve_2022_0492_release_agent(fort) -> None:
    def escape():
        refused = {syscall("mount", b"none", b"/mnt", b"cgroup", 0, options) for options in (b"memory", b"rdma", b"none,name=x")}
        refused.add(syscall("unshare", 0x12020000))  # user, mount and cgroup namespaces: unshare -UrmC
        with open("/proc/self/mountinfo") as file:
            mounts = [line for line in file if " - cgroup" in line]
        agents = [os.path.join(top, name) for top, _, names in os.walk("/sys") for name in names if name == "release_agent"]
        return sorted(refused), mounts, agents

    for mode in MODES:
        assert fort.inside(escape, fs=mode) == [["EPERM"], [], []]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kernel.core_pattern", "|/tmp/evil"),
        ("kernel/core_pattern", "|/tmp/evil"),
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/tmp/evil"),
        ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/tmp/evil"),
        ("net.ipv4.ip_forward/../../../kernel/core_pattern", "|/tmp/evil"),
        ("net/../kernel/core_pattern", "|/tmp/evil"),
        ("net.ipv4.ip_forward=1+kernel.core_pattern", "x"),
        ("kernel.modprobe", "/tmp/evil"),
        ("vm.overcommit_memory", "1"),
        ("fs.binfmt_misc.register", ":x:"),
    ],
)
def test_cve_2022_0811_sysctl_of_the_whole_machine(fort, key, value) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    with pytest.raises(InvalidArgument):
        fort.run("true", sysctls={key: value})
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


@every_mode
def test_cve_2019_10063_tiocsti_pushes_input_whatever_the_high_bits(fort, mode) -> None:
    def push():
        refused = {syscall("ioctl", 0, request | high << 32, b"x") for request in (0x5412, 0x541C) for high in (0, 1, 0xFFFFFFFF)}
        return sorted(refused), os.getsid(0) == os.getpid(), os.ttyname(0)

    assert fort.inside(push, fs=mode, tty=True) == [["EPERM"], True, "/dev/pts/0"]


# ---------------------------------------------------------------- what the kernel shares


@every_mode
def test_masked_and_read_only_parts_of_proc_and_sys(fort, mode) -> None:
    def look():
        names = ("kcore", "keys", "timer_list", "sched_debug", "latency_stats", "kmsg")
        read = {name: read_at(f"/proc/{name}") for name in names}
        folders = ("/proc/acpi", "/proc/scsi", "/proc/asound", "/sys/firmware", "/sys/kernel/debug", "/sys/kernel/tracing")
        listed = [names for path in folders if os.path.isdir(path) and (names := os.listdir(path))]
        written = []
        for top in ("/proc", "/sys"):
            for folder, folders, files in os.walk(top):
                if folder == "/proc":
                    folders[:] = [name for name in folders if not name.isdigit() and name not in ("self", "thread-self")]
                folders[:] = [name for name in folders if f"{folder}/{name}" != "/proc/sys/net"]
                paths = [path for name in files if not os.path.islink(path := f"{folder}/{name}")]
                written += [path for path in paths if os.lstat(path).st_mode & 0o222 and not write_at(path)]
        return {name: text[:9] for name, text in read.items() if text not in ("", "EACCES", "EPERM", "ENOENT")}, listed, written

    read, listed, written = fort.inside(look, fs=mode)
    assert (read, listed) == ({}, [])
    assert set(written) <= {"/proc/mtrr"}  # the kernel asks who writes for CAP_SYS_ADMIN


@every_mode
def test_cve_2020_15257_abstract_sockets_of_the_node(fort, mode) -> None:
    def reach(name):
        with open("/proc/net/unix") as file:
            return connect(f"\0{name}"), [line for line in file if "@" in line]

    with fort.machine.entered(), socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0nestbed-threat")
        listener.listen()
        assert fort.inside(reach, "nestbed-threat", fs=mode) == ["ECONNREFUSED", []]


def test_ipc_objects_of_the_node(fort) -> None:
    def look():
        lines = [read_at(f"/proc/sysvipc/{kind}").count("\n") for kind in ("shm", "sem", "msg")]
        return lines, os.listdir("/dev/shm"), os.path.exists("/dev/mqueue")

    shared = Path("/dev/shm/nestbed-threat")
    libc = ctypes.CDLL(None)
    segment = libc.shmget(0, 4096, 0o1600)
    shared.write_text("x")
    try:
        for mode in MODES:
            assert fort.inside(look, fs=mode) == [[1, 1, 1], [], False]
    finally:
        shared.unlink()
        libc.shmctl(segment, 0, None)


def test_cve_2020_14370_environment_of_another_container(fort) -> None:
    def environments():
        return sorted(os.environ), read_at("/proc/1/environ").count("SECRET"), [pid for pid in os.listdir("/proc") if pid.isdigit()]

    first = fort.start("sleep", "100", env={"SECRET": "hunter2"})
    for mode in MODES:
        names, count, pids = fort.inside(environments, fs=mode)
        assert set(names) <= {"PATH", "HOME", "USER", "HOSTNAME", "LC_CTYPE"}
        assert (count, len(pids)) == (0, 1)
    assert fort.exec(fort.start("sleep", "100"), "env").out.count(b"SECRET") == 0
    assert fort.exec(first, "env").out.count(b"SECRET=hunter2") == 1


def test_core_dump_runs_a_program_on_the_node(fort) -> None:
    """A limit of 0 does not stop a dump through a pipe, a limit of 1 does (core(5)): so nothing inside may make it 0."""

    def lower():
        import resource

        for limits in ((0, 0), (0, 1)):
            attempt(lambda limits=limits: resource.setrlimit(resource.RLIMIT_CORE, limits))
        return resource.getrlimit(resource.RLIMIT_CORE)

    assert fort.inside(lower) == [1, 1]
    assert fort.inside_of(fort.start("sleep", "100", user="1000"), lower) == [1, 1]
    assert fort.run("sh", "-c", "ulimit -c 0; ulimit -c").code == 0


def test_processes_and_memory_without_limit(fort) -> None:
    container = fort.start("sleep", "100")

    async def stats(client):
        return [used async for response in client.stats([container]) for used in response.stats]

    (used,) = fort.call(stats)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < used.pids_limit <= 4096
    assert 0 < used.memory_limit_bytes < total


def test_fork_bomb_is_bounded(fort) -> None:
    def bomb():
        import subprocess

        made = []
        while len(made) < 200 and not attempt(lambda: made.append(subprocess.Popen(["/bin/sleep", "30"]))):
            pass
        return len(made)

    assert 0 < fort.inside(bomb, resources=api.Resources(pids=50)) < 50
