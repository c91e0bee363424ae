"""Attacks by way of files: what a rootfs or a shared volume plants for set-up, and what of the node can be reached from inside."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import nestbed
from nestbed.errors import NestbedError
from nestbed.testing.inside import attempt, connect, read_at, syscall, write_at

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
    options = {"fs": "rootfs", "rootfs": str(hostile), "mounts": ("/usr:/usr:ro", mounts[0])}
    found = fort.inside(kernel_views, sysctls={"net.ipv4.ip_forward": "1"}, **options)
    assert found == [PROC_MAGIC, SYSFS_MAGIC, "1\n", "EROFS"]


def test_cve_2025_31133_dev_null_is_a_symbolic_link_when_paths_are_masked(fort, hostile) -> None:
    def look():
        number = os.stat("/dev/null").st_rdev
        written = [write_at(f"/proc/{name}") for name in ("sys/kernel/core_pattern", "sysrq-trigger")]
        return *written, read_at("/proc/keys"), os.major(number), os.minor(number)

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
    options = {"rootfs": str(fort.rootfs()), "mounts": (*mounts, "/usr:/usr:ro")} if mode == "rootfs" else {"mounts": mounts}
    outcomes = set()
    for _ in range(25):
        try:
            outcomes.add(fort.run("true", fs=mode, **options).code)
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
        sockets = {name: connect(f"{folder}/{name}", kind) for name, kind in (("early", 1), ("late", 1), ("datagram", 2))}
        return sockets | {"fifo": write_at(f"{folder}/fifo")}

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
        assert {name for name, error in reached.items() if error not in ("ECONNREFUSED", "ENXIO", "EROFS", "ENOENT")} == set()


@every_mode
def test_device_nodes_in_the_nodes_files(fort, mode) -> None:
    """The kernel's log has no cover of its own here: only the mount, or the devices cgroup, keeps it from being read."""

    def read(path):
        opened = attempt(lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        return opened, attempt(lambda: os.mknod("/tmp/node", 0o20666, os.makedev(1, 11))), bool(os.statvfs(path).f_flag & 4)  # ST_NODEV

    if mode == "host" and not Path("/sys/fs/cgroup/devices").exists():
        pytest.skip("no devices cgroup, and root with the node's file systems is root of the node")
    folder = fort.base / "devices"
    node = folder / "kmsg"
    if not node.exists():
        folder.mkdir()
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 11))
    inside_path = str(node)
    if mode == "rootfs":
        inside_path = "/kmsg"
        planted = fort.rootfs() / "kmsg"
        if not planted.exists():
            os.mknod(planted, stat.S_IFCHR | 0o666, os.makedev(1, 11))
    opened, made, is_without_devices = fort.inside(read, inside_path, fs=mode)
    assert opened in ("EACCES", "EPERM")
    assert made in ("EPERM", "EROFS")
    assert is_without_devices or mode == "host"
    if mode == "overlay":
        assert fort.inside(read, "/v/kmsg", mounts=(f"{folder}:/v",))[0] == "EACCES"


@every_mode
def test_views_of_the_kernel_that_are_mounted_elsewhere(fort, mode) -> None:
    """As in the directory of another root: a procfs of the node shows all its processes."""
    options = {"mounts": ("/usr:/usr:ro", f"{fort.base}:{fort.base}")} if mode == "rootfs" else {}
    assert fort.run("ls", f"{fort.base}/procfs", fs=mode, **options).out == b""


def the_daemons_own(fort) -> dict[str, list[str]]:
    """Everything of the daemon that has a path, and what is there to be seen."""
    code = Path(nestbed.__file__).parent
    daemon = Path(find_spec("nestbedd").origin).parent
    return {
        str(fort.machine.run_dir): ["admin.sock", "nestbed.sock", "node.json", "keeper.json", "lock"],
        str(fort.machine.state_dir): ["containers", "lans", "lock"],
        sys.prefix: ["bin/nestbedd", "bin/python", "pyvenv.cfg"],
        str(code): ["errors.py", "process/keeper.py"],
        str(daemon): ["__main__.py"],
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
    base, node, mounts = str(fort.base), "", (f"{fort.base}:{fort.base}/submount",)
    if mode == "rootfs":
        node, mounts = "/node", ("/usr:/usr:ro", "/:/node")
    prefixes = [node, *(f"/proc/{who}/{link}{node}" for who in ("self", "1") for link in ("root", "cwd"))]
    prefixes.append(f"{node}{base}/procfs/{fort.machine.daemon.pid}/root")
    everywhere = {f"{prefix}{path}": names for prefix in prefixes for path, names in places.items()}
    inner = {path.removeprefix(base): names for path, names in places.items() if path.startswith(f"{base}/")}
    everywhere |= {f"{node}{base}/{name}{path}": names for name in ("alias", "submount") for path, names in inner.items()}
    assert fort.inside(look_for, everywhere, fs=mode, mounts=mounts) == []
    container = fort.start("sleep", "100", fs=mode, mounts=mounts)
    assert fort.inside_of(container, look_for, everywhere) == []


def test_the_daemons_own_as_the_source_of_a_mount_or_a_rootfs(fort) -> None:
    link = fort.base / "link"
    link.symlink_to(fort.machine.run_dir)
    run = str(fort.machine.run_dir)
    sources = [*the_daemons_own(fort), str(link), f"{link}/admin.sock", f"{run}/../run", f"{run}/admin.sock", f"{fort.base}/alias/run"]
    sources += [f"/proc/{fort.machine.daemon.pid}/root{run}", f"/proc/self/root{run}"]
    for source in sources:
        with pytest.raises(NestbedError):
            fort.run("true", mounts=(f"{source}:/stolen",))
        with pytest.raises(NestbedError):
            fort.run("true", fs="rootfs", rootfs=source)
        with pytest.raises(NestbedError):
            fort.run("true", fs="overlay", overlay_dir=source)


def test_changes_kept_by_an_overlay_reach_the_node(fort) -> None:
    kept = fort.base / "kept"
    kept.mkdir()
    assert fort.run("sh", "-c", "echo words > /etc/nestbed-threat", overlay_dir=str(kept)).code == 0
    assert fort.run("cat", "/etc/nestbed-threat", overlay_dir=str(kept)).out == b"words\n"
    assert not Path("/etc/nestbed-threat").exists()
    assert [str(path.relative_to(kept)) for path in kept.glob("*/*/nestbed-threat")] == ["upper0/etc/nestbed-threat"]


@every_mode
def test_key_is_replaced_by_renaming_another_over_it(fort, mode) -> None:
    """The cover of a file goes with the file: whoever starts later must find a new one."""
    key = fort.base / "key.pem"
    options = {"mounts": ("/usr:/usr:ro", f"{fort.base}:/node")} if mode == "rootfs" else {}
    places = {str(key): [""], f"{fort.base}/alias/key.pem": [""], "/node/key.pem": [""]}
    (fort.base / "new.pem").write_text("the new key\n")
    (fort.base / "new.pem").rename(key)
    assert fort.inside(look_for, places, fs=mode, **options) == []
    key.unlink()
    fort.run("true")
    key.write_text("one that came after there was nothing to cover\n")
    assert fort.inside(look_for, places, fs=mode, **options) == []


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
    node = ("nsenter", f"--mount=/proc/{fort.machine.daemon.pid}/ns/mnt", "--")
    subprocess.run([*node, "mount", "--bind", str(precious), f"{bundle}/mounted"], check=True)
    try:
        with pytest.raises(NestbedError):
            fort.call(lambda client: client.delete_container(container.id, force=True))
        assert (precious / "file").read_text() == "x"
    finally:
        subprocess.run([*node, "umount", f"{bundle}/mounted"], check=True)
    fort.call(lambda client: client.delete_container(container.id, force=True))
    assert not bundle.exists()
    assert (precious / "file").read_text() == "x"
