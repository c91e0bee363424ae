"""nestbedd inside a virtual machine, as a user of the node outside sees it. Tests of this module share one daemon and the node ``vm1``
inside it, which boots once, and leave them as they found them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guest.conftest import Site

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def nest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with a LAN, a process on it, and a node inside a virtual machine that answers."""
    site = Site(tmp_path_factory.mktemp("nest"))
    try:
        site.furnish()
        site.nbctl("run", "qemu", "--node", "--name", "vm1", "--memory", "640m", "--cpus", "2")
        until_there(site, "vm1/db")
        yield site
    finally:
        site.close()


@pytest.fixture(scope="module")
def nest_on_lan(nest: Site) -> Site:
    """The LAN reaches the node inside: from then on the daemon has a relay, which is no test's."""
    nest.nbctl("run", "process", "-d", "--name", "vm1/near", "--lan", "lan0", "--", "sleep", "1000")
    return nest


def until_there(site: Site, container: str) -> None:
    """Make a container inside: that waits for the node inside to answer."""
    site.patiently("run", "process", "-d", "--name", container, "--", "sleep", "1000")


def until_answering(site: Site, container: str) -> None:
    """Wait until a container inside can be asked again; the node outside waits a second for it each time."""
    while site.machine.nbctl("exec", container, "--", "true").returncode:
        continue


def test_what_is_inside_has_a_path_and_is_used_as_anything_else(nest: Site) -> None:
    nest.nbctl("run", "process", "-d", "--on", "vm1", "--name", "web", "--", "sh", "-c", "echo begun; exec sleep 1000")
    assert nest.inside("vm1/web", "hostname") == "web\n"
    assert nest.nbctl("ps", "-o", "name").split() == ["web", "vm1", "vm1/db", "vm1/web"]
    assert "begun" in nest.nbctl("logs", "vm1/web")
    assert nest.inspect("vm1/web")["id"].count("/") == 1
    assert "vm1/web" in nest.nbctl("stats", "--no-stream")
    assert nest.nbctl("audit").startswith("clean")
    nest.nbctl("rename", "vm1/web", "page")
    assert nest.machine.nbctl("run", "process", "--name", "vm1/page", "--", "true").returncode == 125
    nest.nbctl("rm", "-f", "vm1/page")


def test_files_go_in_and_out(nest: Site, tmp_path: Path) -> None:
    (tmp_path / "page").write_text("hello")
    nest.nbctl("cp", str(tmp_path / "page"), "vm1/db:/tmp/page")
    assert nest.inside("vm1/db", "cat", "/tmp/page") == "hello"
    nest.nbctl("cp", "vm1/db:/tmp/page", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "hello"


def test_the_exit_status_comes_through(nest: Site) -> None:
    result = nest.machine.nbctl("run", "process", "--rm", "--on", "vm1", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.returncode, result.stdout, result.stderr) == (7, "out\n", "err\n")


def test_limits_and_delays_are_the_guest_kernels(nest: Site) -> None:
    """Its control groups are of version 2 alone, and its kernel has netem: neither is so on every machine."""
    abilities = {one["name"]: one for one in json.loads(nest.nbctl("-o", "json", "info", "--on", "vm1"))["abilities"]}
    assert abilities["cgroups"]["detail"] == "v2"
    assert abilities["netem"]["available"]
    assert abilities["limit-memory"]["available"]
    result = nest.machine.nbctl("run", "process", "--rm", "--on", "vm1", "--memory", "32m", "--", "python3", "-c", "bytearray(200 << 20)")
    assert result.returncode == 137


def test_nodes_are_listed_with_what_they_are(nest: Site) -> None:
    lines = nest.nbctl("node", "ls").splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["node1", "node", "ready"], ["vm1", "node", "ready"]]


def test_secrets_of_the_node_outside_are_not_in_the_guest(nest: Site) -> None:
    """The code is there and cannot be changed for others; directories, sockets and keys are not."""
    run, state = nest.machine.run_dir, nest.machine.state_dir
    assert nest.inside("vm1", "sh", "-c", f"ls -A {run} {state} 2>/dev/null | grep -v : | wc -w") == "0\n"
    assert "BEGIN" not in nest.inside("vm1", "cat", "/proc/cmdline")
    assert nest.inside("vm1", "stat", "-c", "%a", "/run/nestbed-node.key") == "600\n"
    assert "BEGIN" not in "".join(path.read_text(errors="replace") for path in state.glob("containers/*/vm/console.log"))
    assert nest.inside("vm1/db", "sh", "-c", "ls -A /run; ls /sys/fs/cgroup | wc -l").split()[-1] == "0"


LISTEN = """
import socket, struct, sys
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind(('', 5000))
group = struct.pack('=4s4si', socket.inet_aton('239.5.5.5'), bytes(4), socket.if_nametoindex('eth0'))
heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
heard.settimeout(150)
server = socket.create_server(('', 6000))
missing = {f'{kind} {name}'.encode() for name in sys.argv[1:] for kind in ('all', 'many')}
while missing:
    missing.discard(heard.recv(100))
server.settimeout(150)
for _ in sys.argv[1:]:
    connection, _ = server.accept()
    assert len(b''.join(iter(lambda: connection.recv(65536), b''))) == 100000
"""
SPEAK = """
import socket, struct, sys
said = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
said.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
said.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack('=4s4si', bytes(4), bytes(4), socket.if_nametoindex('eth0')))
said.sendto(b'all ' + sys.argv[1].encode(), ('10.5.0.255', 5000))
said.sendto(b'many ' + sys.argv[1].encode(), ('239.5.5.5', 5000))
for name in sys.argv[2:]:
    with socket.create_connection((name, 6000), timeout=60) as connection:
        connection.sendall(b'x' * 100000)
"""


def test_a_lan_of_a_machine_and_two_processes_in_another_one(nest_on_lan: Site) -> None:
    """The page's second realisation: two virtual machines, one of which only holds the two processes. Everybody reaches everybody."""
    nest_on_lan.nbctl("run", "qemu", "--name", "vm", "--memory", "192m", "--lan", "lan0")
    for name in ("vm1/a", "vm1/b"):
        nest_on_lan.nbctl("run", "process", "-d", "--name", name, "--lan", "lan0", "--", "sleep", "1000")
    members = {"vm": "vm", "a": "vm1/a", "b": "vm1/b"}
    listed = json.loads(nest_on_lan.nbctl("-o", "json", "lan", "inspect", "lan0"))["members"]
    assert sorted(member["container"] for member in listed) == ["vm", "vm1/a", "vm1/b", "vm1/near", "web"]
    for source, path in members.items():
        for name in members.keys() - {source}:
            assert "1 received" in nest_on_lan.inside(path, "ping", "-4", "-c", "1", "-W", "10", name)
            assert "1 received" in nest_on_lan.inside(path, "ping", "-6", "-c", "1", "-W", "10", name)
    listening = [
        nest_on_lan.begin("exec", path, "--", "python3", "-c", LISTEN, *(members.keys() - {name})) for name, path in members.items()
    ]
    for path in members.values():
        nest_on_lan.until_listening(path, 6000)
    for source, path in members.items():
        nest_on_lan.inside(path, "python3", "-c", SPEAK, source, *(members.keys() - {source}))
    assert [listener.wait(timeout=120) for listener in listening] == [0] * len(members)
    nest_on_lan.nbctl("rm", "-f", "vm", "vm1/a", "vm1/b")
    assert nest_on_lan.nbctl("audit").startswith("clean")


def test_a_node_inside_that_is_killed_comes_back_and_its_containers_run_on(nest_on_lan: Site) -> None:
    before = nest_on_lan.inspect("vm1/db")["pid"]
    nest_on_lan.inside("vm1", "pkill", "-KILL", "-f", "nestbedd --name")
    until_answering(nest_on_lan, "vm1/db")
    assert nest_on_lan.inspect("vm1/db")["pid"] == before
    assert nest_on_lan.nbctl("audit").startswith("clean")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    "NESTBED_DEPTH3" not in os.environ, reason="a machine emulated in an emulated one takes many minutes: NESTBED_DEPTH3=1 asks for it"
)
def test_a_process_in_a_machine_in_a_machine(fresh_site: Site) -> None:
    """Depth 3, emulated twice: a process on a node inside a node, on a LAN of the outermost one."""
    site = fresh_site
    site.nbctl("run", "qemu", "--node", "--name", "vm1", "--cpus", "2", "--memory", "1400m")
    site.patiently("run", "qemu", "--node", "--on", "vm1", "--name", "vm2", "--memory", "384m")
    site.patiently("run", "process", "-d", "--on", "vm1/vm2", "--name", "deep", "--lan", "lan0", "--", "sleep", "1000")
    assert site.inside("vm1/vm2/deep", "hostname") == "deep\n"
    assert "1 received" in site.inside("vm1/vm2/deep", "ping", "-4", "-c", "1", "-W", "20", "web")
    assert "1 received" in site.inside("web", "ping", "-6", "-c", "1", "-W", "20", "deep")
    lines = site.nbctl("node", "ls").splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["node1", "vm1", "vm1/vm2"]
    site.nbctl("rm", "-f", "vm1")


def test_nodes_inside_outlive_the_daemon_outside_and_not_their_machine(fresh_site: Site) -> None:
    site = fresh_site
    site.nbctl("run", "qemu", "--node", "--name", "vm1", "--cpus", "2")
    until_there(site, "vm1/db")
    before = site.inspect("vm1/db")["pid"]
    site.restart()
    until_answering(site, "vm1/db")
    assert site.inspect("vm1/db")["pid"] == before
    watching = site.begin("events", "--type", "container.lost", "-o", "json", stdout=subprocess.PIPE)
    assert watching.stdout is not None
    with watching.stdout as lines:
        site.nbctl("kill", "vm1")
        event = json.loads(lines.readline())
        watching.kill()
    watching.wait()
    assert event["name"] == "vm1/db"
    site.nbctl("wait", "vm1")
    assert "does not run" in site.machine.nbctl("exec", "vm1/db", "--", "true").stderr
    assert site.inside("web", "hostname") == "web\n"
    site.nbctl("rm", "vm1")
    assert site.nbctl("audit").startswith("clean")
