"""A real daemon and virtual machines on its LANs, as a user sees them. Tests of this module share one daemon, its LAN and one machine
that stays up, and leave these as they found them.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.guest.conftest import Site

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]


def test_members_reach_each_other_by_name(site: Site) -> None:
    for source, goal in (("vm1", "web"), ("web", "vm1")):
        assert "1 received" in site.inside(source, "ping", "-4", "-c", "1", "-W", "5", goal)
        assert "1 received" in site.inside(source, "ping", "-6", "-c", "1", "-W", "5", goal)


SERVE = """
import socket
connection, _ = socket.create_server(('', {port})).accept()
print(sum(len(data) for data in iter(lambda: connection.recv(65536), b'')), end='')
"""
SEND = "import socket;s=socket.create_connection(('{goal}',{port}));[s.sendall(b'x'*65536) for _ in range({count})]"


@pytest.mark.parametrize(("server", "sender"), [("vm1", "web"), ("web", "vm1")])
def test_streams_of_tcp_arrive_whole(site: Site, server: str, sender: str) -> None:
    """Frames bigger than the MTU pass between veth and tap, as the sender's kernel hands them over."""
    count, port = 256, 4000 if server == "vm1" else 4001
    serving = site.begin("exec", server, "--", "python3", "-c", SERVE.format(port=port), stdout=subprocess.PIPE)
    site.until_listening(server, port)
    site.inside(sender, "python3", "-c", SEND.format(goal=server, port=port, count=count))
    assert serving.communicate(timeout=60)[0] == str(count * 65536).encode()


LISTEN = """
import socket
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind(('', {port}))
heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('239.5.5.5') + socket.inet_aton('0.0.0.0'))
heard.settimeout(60)
print(sorted(heard.recv(100) for _ in range(2)), end='')
"""
SPEAK = """
import socket
said = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
said.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
said.sendto(b'all', ('10.5.0.255', {port}))
said.sendto(b'many', ('239.5.5.5', {port}))
"""


@pytest.mark.parametrize(("listener", "speaker"), [("vm1", "web"), ("web", "vm1")])
def test_broadcast_and_multicast_arrive(site: Site, listener: str, speaker: str) -> None:
    port = 5000 if listener == "vm1" else 5001
    for member in (listener, speaker):
        site.inside(member, "ip", "route", "replace", "239.0.0.0/8", "dev", "eth0")
    listening = site.begin("exec", listener, "--", "python3", "-c", LISTEN.format(port=port), stdout=subprocess.PIPE)
    site.until_listening(listener, port, protocol="u")
    site.inside(speaker, "python3", "-c", SPEAK.format(port=port))
    assert listening.communicate(timeout=60)[0] == b"[b'all', b'many']"


def test_programs_have_streams_and_a_status(site: Site) -> None:
    result = site.machine.nbctl("exec", "vm1", "--", "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (result.stdout, result.stderr.splitlines()[0], result.returncode) == ("out\n", "err", 5)
    assert site.inside("vm1", "hostname") == "vm1\n"
    assert site.inside("vm1", "sh", "-c", "echo $$ | grep -q . && id -u") == "0\n"


def test_machine_runs_a_program_as_a_process_does(site: Site) -> None:
    result = site.machine.nbctl("run", "qemu", "--rm", "--name", "once", "-e", "A=b c", "--", "sh", "-c", 'echo "$A"; echo err >&2; exit 7')
    assert (result.stdout, result.stderr.splitlines()[:1], result.returncode) == ("b c\n", ["err"], 7)
    assert "once" not in site.nbctl("ps", "-a", "-o", "name")


def test_files_go_in_and_out(site: Site, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "one").write_bytes(content)
    site.nbctl("cp", str(tmp_path / "one"), "vm1:/tmp/one")
    site.nbctl("cp", "vm1:/tmp/one", str(tmp_path / "two"))
    assert (tmp_path / "two").read_bytes() == content


def test_changes_stay_in_the_machine(site: Site) -> None:
    site.inside("vm1", "sh", "-c", "echo changed >/etc/motd && touch /usr/bin/nestbed-was-here")
    assert not Path("/usr/bin/nestbed-was-here").exists()
    assert site.inside("vm1", "cat", "/etc/motd") == "changed\n"


def test_file_systems_of_the_testbed_are_shared(site: Site) -> None:
    nobody = 65534
    site.nbctl("exec", "-u", str(nobody), "vm1", "--", "sh", "-c", f"echo from vm >{site.proj}/note")
    assert (site.proj / "note").read_text() == "from vm\n"
    assert (site.proj / "note").stat().st_uid == nobody
    assert site.nbctl("run", "process", "--rm", "--", "cat", f"{site.proj}/note") == "from vm\n"
    (site.proj / "reply").write_text("from the node\n")
    assert site.inside("vm1", "cat", f"{site.proj}/reply") == "from the node\n"
    (site.proj / "mine").write_text("x")
    (site.proj / "mine").chmod(0o600)
    assert site.machine.nbctl("exec", "-u", str(nobody), "vm1", "--", "cat", f"{site.proj}/mine").returncode != 0
    assert site.machine.nbctl("exec", "-u", str(nobody), "vm1", "--", "rm", f"{site.proj}/mine").returncode != 0


def test_directories_are_shared_read_only_where_it_says_so(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    result = site.machine.nbctl(
        "run", "qemu", "--rm", "-v", f"{tmp_path}:/mnt/in:ro", "--", "sh", "-c", "cat /mnt/in/file; echo x >/mnt/in/file"
    )
    assert result.stdout == "kept"
    assert result.returncode != 0
    assert (tmp_path / "file").read_text() == "kept"


def test_pause_stops_and_unpause_goes_on(site: Site) -> None:
    site.nbctl("pause", "vm1")
    assert site.machine.nbctl("exec", "vm1", "--", "true").returncode != 0
    site.nbctl("unpause", "vm1")
    site.inside("vm1", "true")


def test_nics_come_and_go_while_it_runs_many_of_them(site: Site) -> None:
    lans = [f"more{number}" for number in range(9)]
    for number, lan in enumerate(lans):
        site.nbctl("lan", "create", lan, "--subnet", f"10.6.{number}.0/24")
        site.nbctl("lan", "connect", lan, "vm1")
    site.nbctl("lan", "connect", "more8", "web")
    shown = site.inside("vm1", "ip", "-br", "-4", "address")
    assert all(f"10.6.{number}.1/24" in shown for number in range(9))
    assert "1 received" in site.inside("web", "ping", "-c", "1", "-W", "5", "10.6.8.1")
    for lan in lans:
        site.nbctl("lan", "disconnect", lan, "vm1")
    site.nbctl("lan", "disconnect", "more8", "web")
    assert "10.6." not in site.inside("vm1", "ip", "-br", "-4", "address")
    for lan in lans:
        site.nbctl("lan", "rm", lan)
    assert site.machine.nbctl("audit").returncode == 0


@pytest.mark.parametrize("program", ["qemu-system-x86_64", "virtiofsd"])
def test_death_of_a_part_is_told_as_what_it_is(site: Site, program: str) -> None:
    site.nbctl("run", "qemu", "-d", "--name", "doomed", "--lan", "lan0", "--", "sleep", "1000")
    (pid, *_) = site.processes("doomed", program)
    os.kill(pid, signal.SIGKILL)
    assert site.nbctl("wait", "doomed") == "255\n"
    ended = site.inspect("doomed")["exit"]
    assert ended["reason"] == "unknown"
    assert "signal 9" in ended["message"]
    assert site.machine.nbctl("audit").returncode == 0
    site.nbctl("rm", "doomed")


def test_stop_switches_a_machine_without_program_off(site: Site) -> None:
    site.nbctl("run", "qemu", "--name", "idle")
    site.nbctl("stop", "idle")
    shown = site.inspect("idle")
    assert shown["exit"]["code"] == 0
    site.nbctl("start", "idle")
    site.inside("idle", "true")
    site.nbctl("rm", "-f", "idle")


def test_guest_without_memory_is_told_with_its_console(site: Site) -> None:
    result = site.machine.nbctl("run", "qemu", "--rm", "--append", "rdinit=/nonexistent init=/nonexistent", "--", "true")
    assert result.returncode == 125
    assert "did not come up" in result.stderr
    assert "panic" in result.stderr


# ---------------------------------------------------------------- THREATS 2.4


_SETTING_UP = 1 << 8 | 1 << 18
"""SETPCAP, SYS_CHROOT: what a thread of virtiofsd that does nothing has from before it changed its root."""
_FOWNER, _FILES = 1 << 3, 0xDB
"""CHOWN DAC_OVERRIDE FOWNER FSETID SETGID SETUID: to act for the guest's users in what is shared with them."""


def status_of(thread: Path) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line)


def test_what_stands_before_the_node_has_no_rights(site: Site) -> None:
    own = {os.stat(f"/proc/{pid}").st_uid for pid in site.processes("vm1", "qemu-system-x86_64")}
    assert len(own) == 1
    assert min(own) >= 0x70000000
    allowed = {("qemu-system-x86_64", uid): 0 for uid in own} | {("virtiofsd", uid): _FOWNER | _SETTING_UP for uid in own}
    allowed["virtiofsd", 0] = _FILES | _SETTING_UP
    for program in ("qemu-system-x86_64", "virtiofsd"):
        for pid in site.processes("vm1", program):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                status = status_of(thread)
                (uid,) = {int(word) for word in status["Uid"].split() + status["Gid"].split()}
                rights = allowed[program, uid]
                assert (int(status["CapEff"], 16) | int(status["CapPrm"], 16)) & ~rights == 0
                assert status["Groups"].strip() == ""
                assert status["NoNewPrivs"] == "1"
                assert status["Seccomp"] == "2"


def test_virtiofsd_sees_nothing_but_its_tree(site: Site) -> None:
    roots = {os.readlink(f"/proc/{pid}/root") for pid in site.processes("vm1", "virtiofsd")}
    assert all(root == "/export" or root.startswith("/share/") for root in roots), roots


def test_machines_have_users_of_their_own(site: Site) -> None:
    site.nbctl("run", "qemu", "--name", "other")
    (one, *_), (other, *_) = (site.processes(name, "qemu-system-x86_64") for name in ("vm1", "other"))
    assert os.stat(f"/proc/{one}").st_uid != os.stat(f"/proc/{other}").st_uid
    assert os.stat(f"/proc/{one}/ns/net").st_ino != os.stat(f"/proc/{other}/ns/net").st_ino
    site.nbctl("rm", "-f", "other")


def test_qemu_sees_nothing_it_can_write(site: Site) -> None:
    (pid, *_) = site.processes("vm1", "qemu-system-x86_64")
    uid = str(os.stat(f"/proc/{pid}").st_uid)
    enter = ("nsenter", f"--target={pid}", "--mount", "--root", f"--setuid={uid}", f"--setgid={uid}", "--")
    for path in ("/vm/plan", "/vm/state", "/vm", "/", "/etc", "/usr", "/export/root/etc", "/export/root/tmp", "/export/modules"):
        assert subprocess.run([*enter, "/usr/bin/test", "-w", path], check=False).returncode == 1, path
    for path in ("/export/root/etc/shadow", f"/export/root{site.machine.run_dir}/admin.sock", "/vm/plan", "/vm/agent.sock.new"):
        assert subprocess.run([*enter, "/usr/bin/test", "-r", path], check=False).returncode == 1, path


def test_qemu_has_nothing_of_the_node_open(site: Site) -> None:
    (pid, *_) = site.processes("vm1", "qemu-system-x86_64")
    fds = Path(f"/proc/{pid}/fd")
    opened = {os.readlink(fds / name).partition(":")[0] for name in os.listdir(fds)}
    assert opened <= {"socket", "pipe", "anon_inode", "/dev/null", "/dev/net/tun", "/memfd"}, opened
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert [entry.partition(b"=")[0] for entry in environment if entry] == [b"PATH"]
    own = Path("/proc/self/cgroup").read_text()
    assert Path(f"/proc/{pid}/cgroup").read_text() != own


def test_secrets_of_the_node_are_not_in_the_guest(site: Site) -> None:
    mounted = "mkdir -p /tmp/raw && mount -t virtiofs nestbed-root /tmp/raw && cd /tmp/raw/root"
    hidden = f"{str(site.machine.state_dir).lstrip('/')} proc sys run dev"
    script = f"{mounted} && wc -c <etc/shadow; ls root/.ssh 2>&1; ls {hidden} | sort -u; umount -l /tmp/raw"
    shown = site.inside("vm1", "sh", "-c", script)
    assert "vm" not in shown.split()
    entries = site.inside("vm1", "cat", "/etc/shadow").splitlines()  # the guest's own: users, none with a password
    assert {entry.split(":")[1] for entry in entries} == {"*"}
    assert "self" not in shown
    assert site.machine.nbctl("exec", "vm1", "--", "sh", "-c", f"{mounted} && touch tmp/raw-was-here").returncode != 0
    assert not Path("/tmp/raw-was-here").exists()


def test_monitor_cannot_be_reached_from_inside(site: Site) -> None:
    (pid, *_) = site.processes("vm1", "qemu-system-x86_64")
    listening = Path(f"/proc/{pid}/net/unix").read_text()
    assert "@" not in "".join(line.split()[-1] for line in listening.splitlines() if line.endswith("qmp.sock"))
    bundle = site.machine.state_dir / "containers"
    for path in bundle.glob("*/vm/qmp.sock"):
        assert path.parent.parent.stat().st_mode & 0o777 == 0o700
    ports = site.inside("vm1", "sh", "-c", "cat /sys/class/virtio-ports/*/name")
    assert sorted(ports.split()) == ["nestbed.control", "nestbed.main"]


def test_flooded_console_is_bounded(site: Site) -> None:
    site.inside("vm1", "sh", "-c", "head -c 1500000 /dev/zero | tr '\\0' x >/dev/console")
    sizes = [path.stat().st_size for path in site.machine.state_dir.glob("containers/*/vm/console.log*")]
    assert sizes
    assert max(sizes) <= 1 << 20


def test_cables_are_plugged_in_and_out(site: Site) -> None:
    """The guest sees it, nothing passes, and the paused machine sees it when it goes on."""

    def carrier() -> str:
        return site.inside("vm1", "cat", "/sys/class/net/eth0/carrier").strip()

    site.nbctl("lan", "down", "--port", "vm1:eth0")
    assert carrier() == "0"
    assert site.machine.nbctl("exec", "web", "--", "ping", "-c1", "-W1", "vm1").returncode == 1
    site.nbctl("pause", "vm1")
    site.nbctl("lan", "up", "--port", "vm1")
    site.nbctl("unpause", "vm1")
    assert carrier() == "1"
    assert "1 received" in site.inside("web", "ping", "-c", "1", "-W", "5", "vm1")
