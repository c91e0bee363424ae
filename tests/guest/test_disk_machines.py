"""Machines that start from disk images, as a user of nbctl sees them. One debian-12 is shared by most tests, which leave it as they found
it; one disk as distributions publish them is booted once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.guest import stock
from tests.guest.conftest import Site

from nestbed.linux.mount import MNT_DETACH, umount2
from nestbed.qemu import recipes

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

UID = 4242
_STARTER = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/passwd && mount --bind "$1" /etc/group && shift && exec "$@"')
"""A daemon sees a user of the testbed where the machine that runs the tests may have none."""


class DiskSite(Site):
    """A site whose node has a user tess, a debian-12, and the machine d1 made from that."""

    def __init__(self, base: Path, image: Path) -> None:
        self.image = image
        self.home = base / "home/tess"
        self.key = base / "key"
        self.base_mtime, self.off = 0, ""
        self._make_user(base)
        self.state_dir = base / "state"
        self.state_dir.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g", "tmpfs", self.state_dir], check=True)  # so that it can be full
        super().__init__(base, (*_STARTER, str(base / "passwd"), str(base / "group")))

    def _make_user(self, base: Path) -> None:
        self.home.mkdir(parents=True)
        (self.home / ".ssh").mkdir()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        shutil.copy(f"{self.key}.pub", self.home / ".ssh/authorized_keys")
        for path in (self.home, self.home / ".ssh", self.home / ".ssh/authorized_keys"):
            os.chown(path, UID, UID)
        user = f"tess:x:{UID}:{UID}:Tess of the testbed:{self.home}:/bin/bash\n"
        (base / "passwd").write_text(Path("/etc/passwd").read_text() + user)
        (base / "group").write_text(f"{_with_member('sudo', 'tess')}tess:x:{UID}:\nlab:x:4300:tess\n")

    def close(self) -> None:
        super().close()
        umount2(str(self.state_dir), MNT_DETACH)

    def boot(self) -> None:
        """Start d1, and wait until it is up: however long that takes here, no call has to last as long."""
        starting = self.begin("start", "d1")
        self.until_state("started")
        starting.wait(30)

    def base(self) -> Path:
        """The image's disk as d1 has it."""
        (path,) = self.machine.state_dir.glob("containers/*/vm/base")
        return path

    def go_through_much(self) -> None:
        """Have d1 keep a note while the daemon is killed, the image removed and d1 switched off; it is off then."""
        self.inside("d1", "sh", "-c", "echo kept >/srv/note; sync")
        self.base_mtime = self.base().stat().st_mtime_ns
        self.restart()
        assert self.inside("d1", "cat", "/srv/note") == "kept\n"
        self.nbctl("image", "rm", "debian-12")
        assert self.machine.nbctl("stop", "-t", "60", "d1", timeout_seconds=90).returncode == 0
        self.off = self.inspect("d1")["exit"]["message"]
        self.nbctl("image", "build", "debian-12")

    def boots(self, *words: str, code: int = 0) -> str:
        """Run a machine to its end; what it said."""
        result = self.machine.nbctl("run", "qemu", *words, timeout_seconds=280)
        assert result.returncode == code, f"{result.stdout}{result.stderr}"
        return result.stdout


def _with_member(name: str, member: str) -> str:
    lines = Path("/etc/group").read_text().splitlines()
    return "".join(f"{line}{member}\n" if line.startswith(f"{name}:") else f"{line}\n" for line in lines)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiskSite]:
    image = recipes.prebuilt(recipes.find("debian-12"))
    if image is None:
        pytest.skip("hack/setup built no debian-12: it needs root")
    site = DiskSite(tmp_path_factory.mktemp("disks"), image)
    try:
        site.furnish()
        site.nbctl("image", "build", "debian-12")
        site.nbctl("create", "qemu", "--name", "d1", "--lan", "lan0", "--image", "debian-12")
        site.boot()
        site.go_through_much()
        site.boot()
        yield site
    finally:
        site.close()


def test_members_reach_each_other_by_name(site: DiskSite) -> None:
    for source, goal in (("d1", "web"), ("web", "d1")):
        for version in ("-4", "-6"):
            assert "1 received" in site.inside(source, "ping", version, "-c", "1", "-W", "10", goal)


def test_it_is_a_distribution_that_knows_who_it_is(site: DiskSite) -> None:
    assert site.inside("d1", "hostname") == "d1\n"
    assert site.inside("d1", "cat", "/etc/hostname", "/proc/1/comm") == "d1\nsystemd\n"
    assert "Debian" in site.inside("d1", "cat", "/etc/os-release")
    assert "/dev/vda / ext4 rw" in site.inside("d1", "cat", "/proc/mounts")
    interface = json.loads(site.inside("d1", "ip", "-j", "address", "show", "eth0"))[0]
    assert (interface["operstate"], interface["mtu"]) == ("UP", 1500)
    assert interface["address"] == site.inspect("d1")["nics"][0]["mac"]
    found = site.inside("d1", "find", "/", "-xdev", "-iname", "*nestbed*", "-not", "-path", "/tmp/*")
    assert found == "/etc/sudoers.d/nestbed\n", "nothing else of nestbed is on the disk"


def test_programs_have_streams_and_a_status(site: DiskSite) -> None:
    result = site.machine.nbctl("exec", "d1", "--", "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (result.stdout, result.stderr.splitlines()[0], result.returncode) == ("out\n", "err", 5)
    words = [Path(sys.executable).parent / "nbctl", "-H", site.machine.address, "exec", "-i", "d1", "--", "tr", "a-z", "A-Z"]
    piped = site.machine.popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert piped.communicate(b"through and back", timeout=60)[0] == b"THROUGH AND BACK"
    assert "tty" not in site.inside("d1", "sh", "-c", "tty || true").replace("not a tty", "")
    assert site.machine.nbctl("exec", "d1", "--", "nosuch").returncode == 127


def test_files_go_in_and_out(site: DiskSite, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "file").write_bytes(data)
    site.nbctl("cp", str(tmp_path / "file"), "d1:/srv/")
    site.nbctl("cp", "d1:/srv/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data


def test_figures(site: DiskSite) -> None:
    (figures,) = json.loads(site.nbctl("-o", "json", "stats", "--no-stream", "d1"))
    assert figures["memory_bytes"] > 64 << 20
    assert figures["cpu_seconds"] > 1


def test_file_systems_of_the_testbed_are_shared(site: DiskSite) -> None:
    site.nbctl("exec", "-u", "tess", "d1", "--", "sh", "-c", f"echo from vm >{site.proj}/note")
    assert (site.proj / "note").read_text() == "from vm\n"
    assert (site.proj / "note").stat().st_uid == UID
    assert site.nbctl("run", "process", "--rm", "--", "cat", f"{site.proj}/note") == "from vm\n"
    (site.proj / "reply").write_text("from the node\n")
    assert site.inside("d1", "cat", f"{site.proj}/reply") == "from the node\n"


def test_users_of_the_testbed_are_its_users(site: DiskSite) -> None:
    assert site.inside("d1", "getent", "passwd", "tess") == f"tess:x:{UID}:{UID}:Tess of the testbed:{site.home}:/bin/bash\n"
    assert set(site.nbctl("exec", "-u", "tess", "d1", "--", "id", "-Gn").split()) == {"tess", "lab", "sudo"}
    assert site.nbctl("exec", "-u", "tess", "d1", "--", "sudo", "-n", "id", "-u") == "0\n"
    assert site.inside("d1", "stat", "-c", "%u:%g %a", str(site.home)) == f"{UID}:{UID} 755\n"
    assert site.inside("d1", "visudo", "-cq") == ""


def test_a_user_logs_in_over_the_control_network(site: DiskSite) -> None:
    address = site.inspect("d1")["control"]["addresses"][0].partition("/")[0]
    site.until_listening("d1", 22)
    options = ("UserKnownHostsFile=/dev/null", "StrictHostKeyChecking=no", "LogLevel=ERROR", "BatchMode=yes")
    words = ("ssh", "-F", "none", "-i", str(site.key), *(word for option in options for word in ("-o", option)), f"tess@{address}")
    result = site.machine.run(*words, "id -un; hostname", timeout_seconds=60)
    assert (result.stdout, result.returncode) == ("tess\nd1\n", 0), result.stderr


def test_nics_come_and_go_while_it_runs(site: DiskSite) -> None:
    site.nbctl("lan", "create", "more", "--subnet", "10.6.0.0/24")
    site.nbctl("lan", "connect", "more", "d1")
    site.nbctl("lan", "connect", "more", "web")
    assert "10.6.0.1/24" in site.inside("d1", "ip", "-br", "address", "show", "eth1")
    assert "1 received" in site.inside("web", "ping", "-c", "1", "-W", "10", "10.6.0.1")
    for name in ("d1", "web"):
        site.nbctl("lan", "disconnect", "more", name)
    assert "10.6." not in site.inside("d1", "ip", "-br", "-4", "address")
    site.nbctl("lan", "rm", "more")


def test_pause_stops_and_unpause_goes_on(site: DiskSite) -> None:
    site.nbctl("pause", "d1")
    assert site.machine.nbctl("exec", "d1", "--", "true").returncode != 0
    site.nbctl("unpause", "d1")
    site.inside("d1", "true")


def test_qemu_has_its_disk_and_nothing_else_of_the_node(site: DiskSite) -> None:
    (pid,) = site.processes("d1", "qemu-system-x86_64")
    opened = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    files = {path for path in opened if path.startswith("/") and not path.startswith(("/dev/", "/memfd:"))}
    assert files == {"/vm/base", "/vm/disk.qcow2"}
    uid = str(os.stat(f"/proc/{pid}").st_uid)
    enter = ("nsenter", f"--target={pid}", "--mount", "--root", f"--setuid={uid}", f"--setgid={uid}", "--", "/usr/bin/test")
    writable = [
        path
        for path in ("/vm/base", "/vm/image.json", "/vm", "/vm/plan")
        if subprocess.run([*enter, "-w", path], check=False).returncode == 0
    ]
    assert writable == []
    assert subprocess.run([*enter, "-e", "/export/root"], check=False).returncode == 1, "the node's root is not there"
    for thread in Path(f"/proc/{pid}/task").iterdir():
        status = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line)
        assert (int(status["CapEff"], 16), status["NoNewPrivs"], status["Seccomp"]) == (0, "1", "2")


def test_what_is_written_stays_and_the_image_does_not_change(site: DiskSite) -> None:
    """Though the daemon was killed, the image was removed, and the machine was switched off."""
    assert site.inside("d1", "cat", "/srv/note") == "kept\n"
    assert site.off == "the guest switched itself off"
    assert site.base().stat().st_mtime_ns == site.base_mtime
    assert site.base().stat().st_mode & 0o777 == 0o444
    assert site.machine.nbctl("audit").returncode == 0


def test_a_full_disk_of_the_node_is_an_error_of_the_guests_disk(site: DiskSite) -> None:
    free = os.statvfs(site.state_dir)
    filler = site.state_dir / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (2 << 20))
    try:
        write = "dd if=/dev/urandom of=/srv/big bs=1M count=16 2>&1; sync /srv/big"
        result = site.machine.nbctl("exec", "d1", "--", "sh", "-c", write, timeout_seconds=60)
        assert result.returncode == 1
        assert "Input/output error" in result.stdout + result.stderr
        assert site.inside("d1", "echo", "alive") == "alive\n"
    finally:
        filler.unlink()
    site.inside("d1", "sh", "-c", "rm /srv/big; echo again >/srv/small; sync /srv/small; rm /srv/small")


def test_a_disk_as_distributions_publish_it_boots(site: DiskSite, tmp_path: Path) -> None:
    """By its own boot loader and kernel; cloud-init is told by a second disk, the agent comes with that."""
    disk = stock.make(site.image, tmp_path)
    site.nbctl("image", "import", str(disk), "--format", "qcow2", "--name", "stock")
    disk.unlink()
    script = (
        "hostname; cat /proc/cmdline; ip -br -4 address show eth0; ping -4 -c 1 -W 10 web; getent passwd tess; "
        f"cat {site.proj}/for-stock; lsblk -no NAME,TYPE; id -Gn tess; echo err >&2; exit 7"
    )
    (site.proj / "for-stock").write_text("shared\n")
    said = site.boots("--rm", "--name", "s1", "--lan", "lan0", "--memory", "768m", "--image", "stock", "--", "sh", "-c", script, code=7)
    lines = said.splitlines()
    assert lines[0] == "s1"
    assert lines[1].startswith("BOOT_IMAGE=/boot/vmlinuz-")
    assert "10.5.0." in lines[2]
    assert "1 received" in said
    assert f"tess:x:{UID}:{UID}:" in said
    assert "shared" in lines
    assert "vda1 part" in " ".join(said.split())
    assert set(lines[-1].split()) == {"tess", "lab", "sudo"}
    assert site.machine.nbctl("inspect", "s1").returncode == 1
    site.nbctl("image", "rm", "stock")
    assert site.machine.nbctl("audit").returncode == 0


def test_a_kernel_that_cannot_read_the_disk_is_told_by_its_console(site: DiskSite) -> None:
    """Debian's has virtio as modules, which without an initial file system nobody loads."""
    kernel = str(site.image / "vmlinuz")
    words = ("--name", "bare", "--image", "debian-12", "--kernel", kernel, "--append", "root=/dev/vda")
    result = site.machine.nbctl("run", "qemu", *words, "--", "true", timeout_seconds=120)
    assert result.returncode == 125
    cause, remedy = result.stderr.splitlines()
    assert "panic" in cause
    assert remedy.startswith("remedy: ")
    assert site.machine.nbctl("inspect", "bare").returncode == 1
    assert site.machine.nbctl("audit").returncode == 0


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (("--image", "nosuch"), "there is no image nosuch"),
        (("--kernel", "/etc/hostname"), "the node's kernel for machines"),
        (("--image", "debian-12", "--initrd", "/etc/hostname"), "goes with a kernel"),
        (("--image", "debian-12", "--kernel", "/nonexistent"), "there is no file /nonexistent"),
        (("--image", "debian-12", "--node"), "on the node's own root"),
        (("--image", "flat", "--append", "debug"), "by what is on its disk"),
    ],
)
def test_what_does_not_go_together_is_refused(site: DiskSite, tmp_path: Path, words: tuple[str, ...], cause: str) -> None:
    (tmp_path / "flat").write_bytes(bytes(1 << 20))
    site.nbctl("image", "import", str(tmp_path / "flat"), "--format", "raw", "--name", "flat")
    result = site.machine.nbctl("run", "qemu", "--name", "none", *words, "--", "true")
    site.nbctl("image", "rm", "flat")
    assert (result.returncode, result.stdout) == (125, "")
    assert cause in result.stderr.splitlines()[0]
    assert result.stderr.splitlines()[1].startswith("remedy: ")
    assert site.machine.nbctl("inspect", "none").returncode == 1


def test_only_admins_take_a_kernel_from_the_node(site: DiskSite) -> None:
    operator = f"unix:{site.machine.run_dir}/nestbed.sock"
    words = ("create", "qemu", "--name", "none", "--image", "debian-12", "--kernel", "/etc/shadow")
    result: Any = site.machine.run(Path(sys.executable).parent / "nbctl", "-H", operator, *words)
    assert result.returncode != 0
    assert "only admin may make a container with a kernel that is a file of the node" in result.stderr
