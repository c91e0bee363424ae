"""Attacks by way of files: what a rootfs or a shared volume plants for set-up, and what of the node can be reached from inside."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import nestbed
from nestbed.errors import NestbedError
from nestbed.linux import mount
from nestbed.linux.namespace import CLONE_NEWNS, setns, unshare
from nestbed.testing.inside import attempt, connect, link_of, read_at, syscall, write_at
from nestbed.v1 import container_pb2 as api

pytestmark = pytest.mark.net

MODES = ("host", "host-ro", "overlay", "rootfs")
every_mode = pytest.mark.parametrize("mode", MODES)
PROC_MAGIC, SYSFS_MAGIC = 0x9FA0, 0x62656572


@pytest.fixture
def outside(fort) -> Iterator[Path]:
    """A directory of the node into which attacks try to lead; it must stay as it is."""
    path = fort.base / "outside"
    shutil.rmtree(path, ignore_errors=True)
    (path / "kernel").mkdir(parents=True)
    (path / "file").write_text("precious")
    yield path
    assert sorted(str(found.relative_to(path)) for found in path.rglob("*")) == ["file", "kernel"]
    assert (path / "file").read_text() == "precious"


@pytest.fixture
def hostile(fort, tmp_path) -> Path:
    """A rootfs to be made hostile."""
    return fort.rootfs(f"hostile-{tmp_path.name}")


@contextlib.contextmanager
def in_mounts_of(pid: int) -> Iterator[None]:
    """Be in the mount namespace of the process, with this thread, for the block."""
    own = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    other = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    try:
        setns(other, CLONE_NEWNS)
        yield
    finally:
        setns(own, CLONE_NEWNS)
        os.close(own)
        os.close(other)


# ---------------------------------------------------------------- what a rootfs plants


@pytest.mark.parametrize("name", ["proc", "sys", "dev", "run"])
@pytest.mark.parametrize("target", ["absolute", "climbing", "inner"])
def test_cve_2019_16884_and_2023_28642_kernel_mount_point_is_a_symbolic_link(fort, hostile, outside, name, target) -> None:
    (hostile / "fake").mkdir()
    goal = {"absolute": str(outside), "climbing": f"../../../../../..{outside}", "inner": "fake"}[target]
    (hostile / name).symlink_to(goal)
    with pytest.raises(NestbedError):
        fort.run("true", fs="rootfs", rootfs=str(hostile), mounts=("/usr:/usr:ro",), sysctls={"net.ipv4.ip_forward": "1"})
    assert list((hostile / "fake").iterdir()) == []


def test_cve_2026_41579_dev_is_a_symbolic_link_out_of_the_rootfs(fort, hostile, outside) -> None:
    (hostile / "dev").symlink_to(f"/../../..{outside}")
    for options in ({}, {"tty": True}):
        with pytest.raises(NestbedError):
            fort.run("true", fs="rootfs", rootfs=str(hostile), mounts=("/usr:/usr:ro",), **options)


def test_cve_2019_19921_and_2025_52881_volume_is_a_fake_procfs(fort, hostile, outside, tmp_path) -> None:
    """A volume mounted on /proc by a symbolic link, with writes of sysctls led astray."""

    def kernel_views():
        import ctypes
        import struct

        def kind(path):
            buffer = ctypes.create_string_buffer(256)
            assert ctypes.CDLL(None).statfs(path.encode(), buffer) == 0
            return struct.unpack_from("q", buffer)[0]

        return kind("/proc"), kind("/sys"), read_at("/proc/sys/net/ipv4/ip_forward"), write_at("/proc/sys/kernel/core_pattern")

    fake = tmp_path / "fake"
    (fake / "sys/net/ipv4").mkdir(parents=True)
    (fake / "sys/net/ipv4/ip_forward").symlink_to(outside / "file")
    (fake / "sys/kernel").symlink_to(outside / "kernel")
    for name in ("proc", "sys"):
        (hostile / name).mkdir()
    (hostile / "alias").symlink_to("proc")
    mounts = (f"{fake}:/alias", f"{fake}:/sys-alias/../alias2")
    with pytest.raises(NestbedError):
        fort.run("true", fs="rootfs", rootfs=str(hostile), mounts=mounts)
    for destination in ("/proc", "/proc/sys", "/sys", "//proc/", "/./proc", "/dev"):
        with pytest.raises(NestbedError):
            fort.run("true", mounts=(f"{fake}:{destination}",))
    found = fort.inside(kernel_views, fs="rootfs", rootfs=str(hostile), mounts=("/usr:/usr:ro", mounts[0]), sysctls={"net.ipv4.ip_forward": "1"})
    assert found == [PROC_MAGIC, SYSFS_MAGIC, "1\n", "EROFS"]


def test_cve_2025_31133_dev_null_is_a_symbolic_link_when_paths_are_masked(fort, hostile) -> None:
    def look():
        shape = os.stat("/dev/null")
        return [write_at("/proc/sys/kernel/core_pattern"), write_at("/proc/sysrq-trigger"), read_at("/proc/keys"), os.major(shape.st_rdev), os.minor(shape.st_rdev)]

    (hostile / "dev").mkdir()
    (hostile / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    refused, trigger, keys, *numbers = fort.inside(look, fs="rootfs", rootfs=str(hostile), mounts=("/usr:/usr:ro",))
    assert (refused, keys, numbers) == ("EROFS", "", [1, 3])
    assert trigger in ("EROFS", "ENOENT")


def test_cve_2025_52565_dev_console_is_swapped_when_a_terminal_is_mounted(fort, hostile, outside) -> None:
    def swap():
        shape, terminal = os.stat("/dev/console"), os.stat("/dev/pts/0")
        swaps = [attempt(lambda path=path: os.rename(path, f"{path}-old")) for path in ("/dev/console", "/dev/pts", "/dev/null")]
        links = [attempt(lambda path=path: os.symlink("/proc/sys/kernel/core_pattern", path)) for path in ("/dev/x", "/dev/pts/1")]
        return shape.st_rdev == terminal.st_rdev, swaps, links

    (hostile / "dev/pts").mkdir(parents=True)
    (hostile / "dev/console").symlink_to(outside / "file")
    (hostile / "dev/pts/0").symlink_to("/proc/sys/kernel/core_pattern")
    (hostile / "dev/ptmx").symlink_to(outside / "file")
    options = {"fs": "rootfs", "rootfs": str(hostile), "mounts": ("/usr:/usr:ro",), "tty": True}
    same, swaps, links = fort.inside(swap, **options)
    assert same
    assert set(swaps) <= {"EBUSY", "EROFS"}
    assert set(links) <= {"EPERM", "EROFS", "EACCES"}
    container = fort.start("sleep", "100", **options)
    assert fort.exec(container, "tty", tty=True).out == b"/dev/pts/1\r\n"


@pytest.mark.parametrize("mode", ["overlay", "rootfs"])
def test_cve_2021_30465_and_2024_45310_symbolic_link_is_swapped_while_mounts_are_made(fort, outside, tmp_path, mode) -> None:
    def swap(shared):
        while not os.path.exists(f"{shared}/enough"):
            syscall("renameat2", -100, f"{shared}/a".encode(), -100, f"{shared}/b".encode(), 2)  # RENAME_EXCHANGE

    shared, volume = tmp_path / "shared", tmp_path / "volume"
    (shared / "a").mkdir(parents=True)
    (shared / "b").symlink_to(f"../../../../../../../..{outside}")
    (volume / "inner").mkdir(parents=True)
    swapper = fort.start(*fort.program(swap, "/shared"), mounts=(f"{shared}:/shared",))
    mounts = (f"{shared}:/shared", f"{volume}:/shared/a/made", f"{volume}:/shared/b")
    outcomes = set()
    for _ in range(25):
        try:
            outcomes.add(fort.run("true", fs=mode, mounts=(*mounts, "/usr:/usr:ro") if mode == "rootfs" else mounts, rootfs=str(fort.rootfs()) if mode == "rootfs" else "").code)
        except NestbedError as error:
            outcomes.add(error.reason)
    (shared / "enough").touch()
    assert fort.call(lambda client: client.wait_container(swapper)).code == 0
    assert 0 in outcomes


# ---------------------------------------------------------------- what of the node can be reached


@pytest.mark.parametrize("mode", ["host-ro", "overlay"])
def test_read_only_does_not_reach_what_is_mounted_below(fort, mode) -> None:
    def write(paths):
        return [attempt(lambda path=path: open(f"{path}/written", "x").close()) for path in paths]

    paths = [str(fort.base), f"{fort.base}/submount", "/tmp", "/etc"]
    found = fort.inside(write, paths, fs=mode)
    assert found == (["EROFS"] * 4 if mode == "host-ro" else [""] * 4)
    volume = fort.inside(write, ["/v", "/v/submount"], mounts=(f"{fort.base}:/v:ro",))
    assert volume == ["EROFS"] * 2
    assert not any(Path(f"/proc/{fort.machine.daemon.pid}/root{path}/written").exists() for path in paths)


@pytest.mark.parametrize("mode", ["host-ro", "overlay"])
def test_sockets_and_fifos_of_the_node(fort, mode) -> None:
    def reach(folder):
        return {name: connect(f"{folder}/{name}", kind) for name, kind in (("early", 1), ("late", 1), ("datagram", 2))} | {"fifo": write_at(f"{folder}/fifo")}

    folder = fort.base / f"sockets-{mode}"
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    reader = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)

        def listen(name: str, kind: int) -> None:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            listener.bind(str(folder / name))
            if kind == socket.SOCK_STREAM:
                listener.listen()

        listen("early", socket.SOCK_STREAM)
        listen("datagram", socket.SOCK_DGRAM)
        container = fort.start("sleep", "100", fs=mode)
        listen("late", socket.SOCK_STREAM)
        reached = fort.inside_of(container, reach, str(folder))
        assert "" not in reached.values(), reached
        assert {name for name, error in reached.items() if error not in ("ECONNREFUSED", "ENXIO", "EROFS", "ENOENT")} == set()


@every_mode
def test_device_nodes_in_the_nodes_files(fort, mode) -> None:
    """The kernel's log has no cover of its own here: only the mount, or the devices cgroup, keeps it from being read."""

    def read(path):
        return attempt(lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK)), attempt(lambda: os.mknod("/tmp/node", 0o20666, os.makedev(1, 11)))

    if mode == "host" and not Path("/sys/fs/cgroup/devices").exists():
        pytest.skip("no devices cgroup, and root with the node's file systems is root of the node")
    folder = fort.base / "devices"
    node = folder / "kmsg"
    if not node.exists():
        folder.mkdir()
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 11))
    inside_path = str(node)
    mounts: tuple[str, ...] = ()
    if mode == "rootfs":
        shutil.copytree(folder, fort.rootfs() / "devices", dirs_exist_ok=True, copy_function=shutil.copystat) if False else None
        inside_path = "/kmsg"
        planted = fort.rootfs() / "kmsg"
        if not planted.exists():
            os.mknod(planted, stat.S_IFCHR | 0o666, os.makedev(1, 11))
    opened, made = fort.inside(read, inside_path, fs=mode, mounts=mounts)
    assert opened in ("EACCES", "EPERM")
    assert made in ("EPERM", "EROFS")
    if mode == "overlay":
        assert fort.inside(read, "/v/kmsg", mounts=(f"{folder}:/v",))[0] == "EACCES"


def the_daemons_own(fort) -> dict[str, list[str]]:
    """Everything of the daemon that has a path, and what is there to be seen."""
    code = Path(nestbed.__file__).parent
    cmd = Path(sys.modules["nestbed"].__file__).parents[2] / "cmd"
    return {
        str(fort.machine.run_dir): ["admin.sock", "nestbed.sock", "node.json", "keeper.json", "lock"],
        str(fort.machine.state_dir): ["containers", "lans", "lock"],
        sys.prefix: ["bin/nestbedd", "bin/python", "pyvenv.cfg"],
        str(code): ["errors.py", "process/keeper.py"],
        str(cmd / "nestbedd"): ["__main__.py"],
        f"{fort.base}/key.pem": [""],
        "/etc/shadow": [""],
    }


def look_for(places):
    """What can be read or written of it, and which sockets answer. An empty cover is nothing."""
    found = []
    for path, names in places.items():
        with contextlib.suppress(OSError):
            found += [f"{path} lists {name}" for name in os.listdir(path)]
        for name in names:
            full = f"{path}/{name}" if name else path
            with contextlib.suppress(OSError):
                shape = os.stat(full)
                if shape.st_size or not (shape.st_mode & 0o100000):
                    found.append(f"{full} is there")
            if full.endswith(".sock") and connect(full) == "":
                found.append(f"{full} answers")
    return found


@every_mode
def test_the_daemons_sockets_directories_code_and_keys(fort, mode) -> None:
    places = the_daemons_own(fort)
    options = {"mounts": ("/usr:/usr:ro", "/:/node"), "rootfs": str(fort.rootfs())} if mode == "rootfs" else {"mounts": (f"{fort.base}:{fort.base}/submount",)}
    prefixes = ["/node"] if mode == "rootfs" else [""]
    prefixes += [f"/proc/{who}/{link}{prefix}" for who in ("self", "1") for link in ("root", "cwd") for prefix in prefixes]
    everywhere = {f"{prefix}{path}": names for prefix in prefixes for path, names in places.items()}
    inner = {path.removeprefix(str(fort.base)): names for path, names in places.items() if path.startswith(f"{fort.base}/")}
    if mode == "rootfs":
        everywhere |= {f"/node{fort.base}/alias{path}": names for path, names in inner.items()}
        everywhere |= {f"/node{fort.base}/procfs/{fort.machine.daemon.pid}/root{path}": names for path, names in places.items()}
    else:
        everywhere |= {f"{fort.base}/submount{path}": names for path, names in inner.items()}
        everywhere |= {f"{fort.base}/alias{path}": names for path, names in inner.items()}
        everywhere |= {f"{fort.base}/procfs/{fort.machine.daemon.pid}/root{path}": names for path, names in places.items()}
    assert fort.inside(look_for, everywhere, fs=mode, **options) == []
    container = fort.start("sleep", "100", fs=mode, **options)
    assert fort.inside_of(container, look_for, everywhere) == []


def test_the_daemons_own_as_the_source_of_a_mount_or_a_rootfs(fort) -> None:
    link = fort.base / "link"
    link.symlink_to(fort.machine.run_dir)
    sources = [*the_daemons_own(fort), str(link), f"{link}/admin.sock", f"{fort.machine.run_dir}/../run", f"{fort.machine.run_dir}/admin.sock", f"{fort.base}/alias/run"]
    sources += [f"/proc/{fort.machine.daemon.pid}/root{fort.machine.run_dir}", f"/proc/self/root{fort.machine.run_dir}"]
    for source in sources:
        try:
            found = fort.inside(look_for, {"/stolen": ["", "admin.sock", "node.json", "lock"]}, mounts=(f"{source}:/stolen",))
            assert found in ([], ["/stolen/ is there"]) , source
        except NestbedError:
            pass
        with pytest.raises(NestbedError):
            fort.run("true", fs="rootfs", rootfs=source)
        with pytest.raises(NestbedError):
            fort.run("true", fs="overlay", overlay_dir=source)


@every_mode
def test_key_is_replaced_by_renaming_another_over_it(fort, mode) -> None:
    """The cover of a file goes with the file: whoever starts later must find a new one."""
    key = fort.base / "key.pem"
    (fort.base / "new.pem").write_text("the new key\n")
    (fort.base / "new.pem").rename(key)
    options = {"mounts": ("/usr:/usr:ro", f"{fort.base}:/node")} if mode == "rootfs" else {}
    places = {str(key): [""], f"{fort.base}/alias/key.pem": [""], "/node/key.pem": [""]}
    assert fort.inside(look_for, places, fs=mode, **options) == []


def test_secret_that_appears_later(fort) -> None:
    """A cover made while there was nothing to cover must come when there is."""
    fort.run("true")
    secret = fort.base / "ca.pem"
    assert fort.run("cat", str(secret)).out == b"the ca\n"  # no secret: what is handed out to clients
    shadow = Path("/etc/gshadow-")
    if not shadow.exists():
        pytest.skip("this machine has no /etc/gshadow-")
    assert fort.run("cat", str(shadow)).out == b""


@every_mode
def test_sockets_of_another_daemon(fort, machines, mode) -> None:
    other = machines("other")
    other.daemon.start()
    paths = [f"{other.run_dir}/{name}" for name in ("admin.sock", "nestbed.sock")]
    options = {"mounts": ("/usr:/usr:ro", "/:/node")} if mode == "rootfs" else {}

    def talk(paths):
        answers = []
        for path in paths:
            with socket.socket(socket.AF_UNIX) as end:
                end.settimeout(5)
                with contextlib.suppress(OSError):
                    end.connect(path)
                    end.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                    answers.append(len(end.recv(100)))
        return sum(answers)

    assert fort.inside(talk, [f"/node{path}" if mode == "rootfs" else path for path in paths], fs=mode, **options) == 0


def test_delete_never_crosses_a_mount(fort) -> None:
    container = fort.container(fort.start("sleep", "100"))
    bundle = fort.machine.state_dir / "containers" / container.id
    precious = fort.base / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (bundle / "mounted").mkdir()
    failed: list[str] = []

    def remove() -> None:
        with in_mounts_of(fort.machine.daemon.pid):
            mount.mount(str(precious), str(bundle / "mounted"), "", mount.MS_BIND)
        try:
            fort.call(lambda client: client.delete_container(container.id, force=True))
        except NestbedError as error:
            failed.append(error.reason)
        with in_mounts_of(fort.machine.daemon.pid):
            mount.umount2(str(bundle / "mounted"))

    unshared(remove)
    assert (precious / "file").read_text() == "x"
    assert failed != []
    fort.call(lambda client: client.delete_container(container.id, force=True))
    assert not bundle.exists()


def unshared(act) -> None:
    """Call ``act`` in a thread with file system attributes of its own, as setns(2) into a mount namespace demands."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            unshare(0x200)  # CLONE_FS
            act()
        except BaseException as error:  # noqa: BLE001 - carried to the caller
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
