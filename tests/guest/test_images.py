"""Disk images on a real daemon, as a user of nbctl sees them: what is taken, what is refused, and that nothing is left. Boots nothing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nestbed.linux.mount import MNT_DETACH, umount2
from nestbed.qemu import building, recipes
from nestbed.qemu.recipes import Recipe
from nestbed.testing.machine import Machine

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

MIB = 1 << 20
SECRET = b"the node's secret" * 64


class Room:
    """A machine with a daemon, and disks to import."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine = machine
        self.folder = folder
        self.raw = folder / "disk.raw"
        self.raw.write_bytes(os.urandom(2 * MIB) + bytes(6 * MIB))
        self.qcow2 = self.converted("qcow2")

    def converted(self, disk_format: str) -> Path:
        path = self.folder / f"disk.{disk_format}"
        self.qemu_img("convert", "-f", "raw", "-O", disk_format, str(self.raw), str(path))
        return path

    def qemu_img(self, *words: str) -> None:
        subprocess.run(["qemu-img", *words], check=True, stdout=subprocess.DEVNULL)

    def nbctl(self, *args: str) -> str:
        result = self.machine.nbctl(*args)
        assert result.returncode == 0, f"{args}: {result.stdout}{result.stderr}"
        return result.stdout

    def take(self, path: Path, disk_format: str, name: str = "stock") -> subprocess.CompletedProcess[str]:
        return self.machine.nbctl("image", "import", str(path), "--format", disk_format, "--name", name)

    def refused(self, path: Path, disk_format: str, word: str) -> None:
        """The file is refused with a line of cause that has this word in it and a line of remedy, and nothing of it is left."""
        result = self.take(path, disk_format)
        assert (result.returncode, result.stdout) == (1, "")
        cause, remedy = result.stderr.splitlines()
        assert word in cause, cause
        assert remedy.startswith("remedy: ")
        self.is_clean()

    def is_clean(self, *names: str) -> None:
        assert sorted(os.listdir(self.machine.state_dir / "vm/images")) == sorted(names)
        assert self.machine.nbctl("audit").returncode == 0

    def inspect(self, name: str) -> Any:
        return json.loads(self.nbctl("image", "inspect", name))


@pytest.fixture
def room(machine: Machine, tmp_path: Path) -> Room:
    machine.daemon.start()
    folder = tmp_path / "disks"
    folder.mkdir()
    return Room(machine, folder)


def test_disks_of_both_formats_are_taken(room: Room) -> None:
    assert room.take(room.qcow2, "qcow2", "one").stdout == "one\n"
    assert room.take(room.raw, "raw", "two").stdout == "two\n"
    assert (room.inspect("one")["format"], room.inspect("one")["disk_bytes"]) == ("DISK_FORMAT_QCOW2", 8 * MIB)
    assert room.inspect("two")["stored_bytes"] < 8 * MIB
    disk = room.machine.state_dir / "vm/images/one/disk"
    assert disk.read_bytes() == room.qcow2.read_bytes()
    assert (disk.stat().st_mode & 0o777, disk.stat().st_uid) == (0o444, 0)
    room.is_clean("one", "two")
    result = room.take(room.raw, "raw", "two")
    assert "there is an image two already" in result.stderr
    room.nbctl("image", "rm", "one", "two")
    room.is_clean()


def test_a_backing_file_is_refused_and_not_read(room: Room) -> None:
    secret = room.folder / "secret"
    secret.write_bytes(SECRET.ljust(MIB, b"\0"))
    overlay = room.folder / "overlay.qcow2"
    room.qemu_img("create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(overlay))
    room.refused(overlay, "qcow2", "backing file")
    # Said to be raw, it is seen through, too.
    room.refused(overlay, "raw", "qcow2")


def test_external_data_is_refused(room: Room) -> None:
    disk = room.folder / "external.qcow2"
    room.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={room.folder / 'data'},data_file_raw=on", str(disk), "1M")
    room.refused(disk, "qcow2", "external data file")


@pytest.mark.parametrize("disk_format", ["vmdk", "vdi", "vhdx"])
def test_other_formats_are_refused(room: Room, disk_format: str) -> None:
    disk = room.converted(disk_format)
    room.refused(disk, "raw", disk_format.upper())
    room.refused(disk, "qcow2", disk_format.upper())
    result = room.take(disk, disk_format)
    assert result.returncode == 2
    assert "qcow2" in result.stderr


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.9])
def test_a_disk_that_was_cut_short_is_refused(room: Room, keep: float) -> None:
    whole = room.qcow2.read_bytes()
    short = room.folder / "short.qcow2"
    short.write_bytes(whole[: int(len(whole) * keep)])
    room.refused(short, "qcow2", "damaged or cut short")


def test_a_damaged_disk_is_refused(room: Room) -> None:
    data = bytearray(room.qcow2.read_bytes())
    refcounts = int.from_bytes(data[48:56], "big")
    data[refcounts : refcounts + 65536] = os.urandom(65536)
    bad = room.folder / "bad.qcow2"
    bad.write_bytes(data)
    room.refused(bad, "qcow2", "damaged")
    empty = room.folder / "empty"
    empty.touch()
    room.refused(empty, "qcow2", "no qcow2")
    room.refused(empty, "raw", "no raw disk")


def test_a_disk_can_be_too_large(room: Room) -> None:
    disk = room.folder / "large.qcow2"
    room.qemu_img("create", "-q", "-f", "qcow2", str(disk), "3T")
    room.refused(disk, "qcow2", "more than")


@pytest.fixture
def small_room(machine: Machine, tmp_path: Path) -> Iterator[Room]:
    """A room whose state directory is on a file system with little space."""
    machine.state_dir.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", machine.state_dir], check=True)
    try:
        machine.daemon.start()
        yield Room(machine, tmp_path)
    finally:
        machine.daemon.stop()
        machine.kill_keeper()
        umount2(str(machine.state_dir), MNT_DETACH)


def test_a_full_disk_is_told(small_room: Room) -> None:
    big = small_room.folder / "big.raw"
    big.write_bytes(os.urandom(MIB) * 32)
    small_room.refused(big, "raw", "is full")
    assert small_room.take(small_room.raw, "raw").returncode == 0
    result = small_room.machine.nbctl("image", "build", "debian-12", "--fresh")
    assert result.returncode == 1
    assert "has not the" in result.stderr
    small_room.is_clean("stock")


def test_a_daemon_that_is_killed_meanwhile_leaves_nothing(room: Room) -> None:
    reading, writing = os.pipe()
    words = [
        Path(sys.executable).parent / "nbctl",
        "-H",
        room.machine.address,
        "image",
        "import",
        "-",
        "--format",
        "raw",
        "--name",
        "stock",
    ]
    importing = room.machine.popen(words, stdin=reading, stderr=subprocess.DEVNULL)
    os.close(reading)
    os.write(writing, bytes(65536))
    directory = room.machine.state_dir / "vm/images"
    while not list(directory.glob(".new-*/disk")):
        os.sched_yield()
    assert "extra" not in room.nbctl("audit")
    room.machine.daemon.kill()
    os.close(writing)
    assert importing.wait(30) != 0
    assert list(directory.iterdir())
    room.machine.daemon.start()
    room.is_clean()


def test_an_image_is_built_of_what_set_up_left(room: Room) -> None:
    if recipes.prebuilt(recipes.find("debian-12")) is None:
        pytest.skip("hack/setup built no debian-12: it needs root")
    assert room.nbctl("image", "build", "debian-12", "--name", "mine") == "mine\n"
    made = room.inspect("mine")
    assert (made["origin"], made["boot"], made["recipe"]) == (
        "IMAGE_ORIGIN_BUILT",
        "BOOT_WAY_KERNEL",
        f"debian-12-{recipes.find('debian-12').digest}",
    )
    assert made["stored_bytes"] < made["disk_bytes"] / 8
    room.is_clean("mine")
    room.nbctl("image", "rm", "mine")


def test_a_node_that_reaches_no_mirror_says_so(room: Room) -> None:
    result = room.machine.nbctl("image", "build", "debian-12", "--fresh", timeout_seconds=90)
    assert result.returncode == 1
    cause, remedy = result.stderr.splitlines()[-2:]
    assert "cannot be built" in cause or "no source" in cause
    assert "apt-get update" in remedy
    room.is_clean()


CONFINED = """
import asyncio, sys
from pathlib import Path
from nestbed.qemu import confined
async def main():
    words = ("sh", "-c", "sleep 1000 & echo $$ $! $(touch /usr/x 2>&1) $(touch here && echo made); wait")
    async with confined.running(words, seconds=100, directory=Path(sys.argv[1])) as program:
        async for line in program.lines():
            print(line, flush=True)
asyncio.run(main())
"""


def test_what_a_build_runs_ends_with_the_daemon_and_writes_nothing_but_the_image(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", CONFINED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.readline()
    assert "Read-only file system" in said
    assert said.endswith("made\n")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    inside = os.stat(f"/proc/{children[0]}/ns/pid_for_children").st_ino
    fds = [os.pidfd_open(int(pid)) for pid in filter(str.isdecimal, os.listdir("/proc")) if is_in(pid, inside)]
    assert len(fds) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for fd in fds:
        assert select.select([fd], [], [], 30)[0], "it lives on"
        os.close(fd)


def is_in(pid: str, namespace: int) -> bool:
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/pid").st_ino == namespace
    return False


def reaches_a_mirror() -> bool:
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    found = subprocess.run(words, check=False, capture_output=True, text=True).stdout.split()
    place = urllib.parse.urlsplit(found[0]) if found else None
    if place is None or place.hostname is None:
        return False
    try:
        socket.create_connection((place.hostname, place.port or 80), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.timeout(400)
def test_the_same_packages_give_the_same_disk(tmp_path: Path) -> None:
    """But for time stamps. Of a small recipe, for it is built twice."""
    if not reaches_a_mirror():
        pytest.skip("no mirror of packages is reached from here")
    recipe = dataclasses.replace(recipes.find("debian-12"), packages=("openssh-server",), disk_mib=1024)
    one, two = (sorted(built(recipe, tmp_path / name)) for name in ("one", "two"))
    assert len(one) > 1000
    assert one == two
    assert not [line for line in one if "ssh_host" in line]


def built(recipe: Recipe, folder: Path) -> Iterator[str]:
    """What is on the disk that a recipe makes."""
    (folder / "out").mkdir(parents=True)
    asyncio.run(build(recipe, folder))
    subprocess.run(["debugfs", "-R", f"rdump / {folder / 'out'}", folder / "disk"], check=True, capture_output=True)
    yield from described(folder / "out")


async def build(recipe: Recipe, folder: Path) -> None:
    async with contextlib.aclosing(building.make_tree(recipe, folder / "tree")) as steps:
        async for _ in steps:
            pass
    await building.make_disk(recipe, folder / "tree", folder / "disk")


def described(top: Path) -> Iterator[str]:
    """Every file below a folder with all that a build could do to it but for its times."""
    for folder, folders, names in os.walk(top):
        for path in (Path(folder, name) for name in (*folders, *names)):
            status = path.lstat()
            what = f"{path.relative_to(top)} {status.st_mode:o} {status.st_uid}:{status.st_gid} {status.st_rdev}"
            if path.is_symlink():
                what += f" {path.readlink()}"
            elif path.is_file():
                what += f" {hashlib.sha256(path.read_bytes()).hexdigest()}"
            yield what
