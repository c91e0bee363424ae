"""A machine's own NIC becomes a port of a bridge and is itself again, while TCP connections by it go on, whenever a daemon is killed."""

from __future__ import annotations

import difflib
import json
import os
import re
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nestbed.errors import HostLacks, InvalidArgument, NestbedError, NotFound, WrongState
from nestbed.lan.adoption import Adoption
from nestbed.linux.devices import bridge, link_up
from nestbed.linux.rtnl import Rtnl
from nestbed.testing.machine import Machine

NIC, BRIDGE = "eth0", "br0"
OPTION = ("--control-nic", NIC)
IN_USE = ("link add br1 type bridge", "link add v0 type veth peer name v1", "link set v0 master br1")
SETUP = """
link set lo up
link set eth0 up
address add 192.0.2.10/24 dev eth0
address add 192.0.2.11/24 dev eth0 label eth0:second
address add 198.51.100.1/32 dev eth0
address add 10.7.0.1 peer 10.7.0.2/32 dev eth0
address add 2001:db8::10/64 dev eth0 nodad
address add 2001:db8:9::10/64 dev eth0 nodad noprefixroute valid_lft 3000 preferred_lft 2000
route add default via 192.0.2.1 dev eth0 metric 100
route add 203.0.113.0/24 via 192.0.2.1 src 192.0.2.11 mtu 1400
route add 203.0.113.128/25 nexthop via 192.0.2.1 weight 2 nexthop via 192.0.2.2 weight 1
route add 172.20.0.0/16 dev eth0 scope link table 77
route add default via 192.0.2.2 dev eth0 table 77
-6 route add default via 2001:db8::1 dev eth0 metric 50
-6 route add 2001:db8:9::/64 dev eth0 metric 7
-6 route add 2001:db8:77::/48 via 2001:db8::1 table 77
neighbour add 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
neighbour add 2001:db8::77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
"""


class Pair:
    """A machine with a NIC, and a peer at its other end with which it holds a connection of each IP version."""

    def __init__(self, machine: Machine, peer: Machine) -> None:
        self.machine, self.peer = machine, peer
        self.record = machine.run_dir / "adoption.json"
        machine.run_dir.mkdir(parents=True)
        machine.run("ip", "link", "add", NIC, "type", "veth", "peer", "name", "eth0", "netns", f"/proc/{os.getpid()}/fd/{peer.netns_fd}")
        for line in SETUP.strip().splitlines():
            result = machine.run("ip", *line.split())
            assert result.returncode == 0, f"{line}: {result.stderr}"
        for words in ("link set eth0 up", "address add 192.0.2.1/24 dev eth0", "address add 2001:db8::1/64 dev eth0 nodad"):
            peer.run("ip", *words.split())
        for one in (machine, peer):  # a link-local address counts once nobody else was found to have it
            while "tentative" in one.run("ip", "-6", "address").stdout:
                pass
        self.connections = [self._connect(socket.AF_INET, "192.0.2.1"), self._connect(socket.AF_INET6, "2001:db8::1")]

    def _connect(self, family: int, address: str) -> tuple[socket.socket, socket.socket]:
        with self.peer.entered():
            listener = socket.create_server((address, 9000), family=family)
        with self.machine.entered():
            near = socket.create_connection((address, 9000), timeout=10)
        far, _ = listener.accept()
        listener.close()
        return near, far

    def close(self) -> None:
        for pair in self.connections:
            for end in pair:
                end.close()

    def check_connected(self) -> None:
        """Both connections carry data both ways, and nothing was lost on the way."""
        for near, far in self.connections:
            for source, target in ((near, far), (far, near)):
                source.sendall(b"x")
                assert select.select([target], [], [], 10)[0], "the connection does not carry data any more"
                assert target.recv(10) == b"x"

    def state(self) -> str:
        """All that the machine has, but for what passes."""
        words = (
            "address",
            "route show table all",
            "-6 route show table all",
            "neighbour show nud permanent",
            "-6 neighbour show nud permanent",
        )
        shown = "".join(self.machine.run("ip", *word.split()).stdout for word in words)
        return re.sub(r"(valid_lft|preferred_lft|expires) \d+s(ec)?|promiscuity \d+|allmulti \d+|qdisc \w+", "", shown)

    def check_state(self, wanted: str, when: str = "") -> None:
        now = self.state()
        assert now == wanted, when + "".join(difflib.unified_diff(wanted.splitlines(True), now.splitlines(True)))

    def work(self, *words: str, steps: int = -1) -> int:
        """Adopt or release as a daemon does that is killed after so many steps; how it ended, as os.waitpid tells."""
        pid = os.fork()  # noqa: TID251 - it has nothing of gRPC
        if pid:
            return os.waitpid(pid, 0)[1]
        left = steps

        def on_step(_: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        with self.machine.entered():
            adoption = Adoption(self.record, Rtnl(), on_step=on_step)
            getattr(adoption, words[0])(*words[1:])
        os._exit(0)

    def make_bridge(self) -> None:
        with self.machine.entered():
            rtnl = Rtnl()
        rtnl.batch([bridge(BRIDGE, mtu=1500)])
        rtnl.batch([link_up(rtnl.link_index(BRIDGE))])
        rtnl.close()


@pytest.fixture
def pair(machines: Callable[[str], Machine]) -> Iterator[Pair]:
    pair = Pair(machines("machine"), machines("peer"))
    yield pair
    pair.close()


def test_all_goes_to_the_bridge_and_back(pair) -> None:
    before = pair.state()
    pair.make_bridge()
    assert pair.work("adopt", NIC, BRIDGE) == 0
    pair.check_connected()
    shown = pair.machine.run("ip", "-o", "address", "show", "dev", NIC).stdout
    assert shown == ""
    for text in ("192.0.2.10/24", "secondary br0:second", "peer 10.7.0.2/32", "2001:db8:9::10/64", "fe80::"):
        assert text in pair.machine.run("ip", "-o", "address", "show", "dev", BRIDGE).stdout, text
    routes = (
        pair.machine.run("ip", "route", "show", "table", "all").stdout
        + pair.machine.run("ip", "-6", "route", "show", "table", "all").stdout
    )
    assert NIC not in routes
    for text in (
        "default via 192.0.2.1 dev br0 metric 100",
        "src 192.0.2.11 mtu 1400",
        "nexthop via 192.0.2.2 dev br0 weight 1",
        "default via 192.0.2.2 dev br0 table 77",
        "default via 2001:db8::1 dev br0 metric 50",
        "2001:db8:9::/64 dev br0 metric 7",
    ):
        assert text in routes, text
    assert "192.0.2.77 dev br0" in pair.machine.run("ip", "neighbour", "show", "nud", "permanent").stdout
    assert pair.work("adopt", NIC, BRIDGE) == 0  # again
    pair.check_connected()
    assert pair.work("release") == 0
    pair.check_connected()
    pair.machine.run("ip", "link", "delete", BRIDGE)
    pair.check_state(before)
    pair.check_connected()


def test_it_goes_on_or_back_after_every_step(pair) -> None:
    before = pair.state()
    for then in ("adopt", "release"):
        steps = 0
        while True:
            steps += 1
            pair.make_bridge()
            ended = pair.work("adopt", NIC, BRIDGE, steps=steps)
            pair.check_connected()
            if ended == 0:
                break
            if then == "adopt":
                assert pair.work("adopt", NIC, BRIDGE) == 0
                pair.check_connected()
            assert pair.work("release") == 0
            pair.check_connected()
            pair.machine.run("ip", "link", "delete", BRIDGE)
            pair.check_state(before, f"killed after {steps} steps")
        assert pair.work("release") == 0
        pair.machine.run("ip", "link", "delete", BRIDGE)
        assert steps > len(SETUP.splitlines())


def test_release_is_finished_after_every_step(pair) -> None:
    before = pair.state()
    steps = 0
    while True:
        steps += 1
        pair.make_bridge()
        assert pair.work("adopt", NIC, BRIDGE) == 0
        pair.check_connected()
        ended = pair.work("release", steps=steps)
        pair.check_connected()
        assert pair.work("release") == 0
        pair.machine.run("ip", "link", "delete", BRIDGE)
        pair.check_state(before, f"killed after {steps} steps")
        pair.check_connected()
        if ended == 0:
            break
    assert steps > len(SETUP.splitlines())


def _refusal(pair: Pair, nic: str) -> NestbedError:
    with pair.machine.entered():
        rtnl = Rtnl()
        with pytest.raises(NestbedError) as caught:
            Adoption(pair.record, rtnl).adopt(nic, BRIDGE)
        rtnl.close()
    return caught.value


def test_what_cannot_be_adopted_is_refused_and_left_alone(pair) -> None:
    pair.make_bridge()
    for words in (
        "link add br1 type bridge",
        "link add v0 type veth peer name v1",
        "link set v0 master br1",
        "route add 192.88.99.0/24 dev eth0",
    ):
        pair.machine.run("ip", *words.split())
    before = pair.state()
    for nic, kind, why in (
        ("eth9", NotFound, "has no NIC eth9"),
        ("lo", InvalidArgument, "is no Ethernet interface"),
        ("br1", InvalidArgument, "is a bridge itself"),
        ("v0", WrongState, "belongs to a bridge or bond already"),
    ):
        error = _refusal(pair, nic)
        assert isinstance(error, kind)
        assert why in error.message
        assert error.remedy
    pair.machine.run("ip", "nexthop", "add", "id", "7", "via", "192.0.2.1", "dev", NIC)
    pair.machine.run("ip", "route", "add", "192.31.196.0/24", "nhid", "7")
    assert isinstance(_refusal(pair, NIC), HostLacks)
    pair.machine.run("ip", "route", "delete", "192.31.196.0/24")
    pair.machine.run("ip", "nexthop", "delete", "id", "7")
    assert not Path(pair.record).exists()
    pair.check_state(before)


# ---- by nestbedd --control-nic


def nbctl(pair: Pair, *args: str) -> str:
    result = pair.machine.nbctl(*args)
    assert result.returncode == 0, f"{args}: {result.stderr}{pair.machine.daemon.log[-5:]}"
    return result.stdout


def once(pair: Pair, *options: str) -> str:
    """Run nestbedd to its end."""
    directories = ("--run-dir", str(pair.machine.run_dir), "--state-dir", str(pair.machine.state_dir))
    result = pair.machine.run(Path(sys.executable).parent / "nestbedd", *directories, *options)
    return f"{result.returncode} {result.stderr}"


def test_the_machine_keeps_its_connections_and_containers_are_reached_by_its_nic(pair) -> None:
    before = pair.state()
    daemon = pair.machine.daemon
    daemon.start(*OPTION, "--control-subnet", "192.0.2.128/25")
    pair.check_connected()
    nbctl(pair, "run", "process", "-d", "--control", "--name", "web", "--", "sleep", "1000")
    # The subnet is a part of the NIC's: whoever is there reaches the container at once.
    control = json.loads(nbctl(pair, "-o", "json", "inspect", "web"))["control"]
    assert control["addresses"] == ["192.0.2.130/24"]
    for machine in (pair.machine, pair.peer):
        assert machine.run("ping", "-c", "1", "-W", "2", "192.0.2.130").returncode == 0
    nbctl(pair, "audit")
    assert "control-nic" in nbctl(pair, "info")
    daemon.kill()
    pair.check_connected()
    daemon.start(*OPTION, "--control-subnet", "192.0.2.128/25")
    pair.check_connected()
    nbctl(pair, "audit")
    nbctl(pair, "rm", "-f", "web")
    nbctl(pair, "audit")
    pair.check_connected()
    daemon.stop()
    daemon.start()  # without the option
    pair.check_connected()
    nbctl(pair, "audit")
    daemon.stop()
    pair.check_state(before)


def test_it_is_released_by_a_command_and_the_network_stays_for_its_members(pair) -> None:
    before = pair.state()
    daemon = pair.machine.daemon
    daemon.start(*OPTION)
    nbctl(pair, "run", "process", "-d", "--control", "--name", "web", "--", "sleep", "1000")
    address = json.loads(nbctl(pair, "-o", "json", "inspect", "web"))["control"]["addresses"][0].partition("/")[0]
    assert once(pair, "--release-control-nic").startswith("1 ")  # the daemon runs
    daemon.stop()
    assert once(pair, "--release-control-nic") == "0 "
    assert once(pair, "--release-control-nic") == "0 "
    pair.check_connected()
    assert "control0" not in pair.machine.run("ip", "-o", "link", "show", NIC).stdout
    assert pair.machine.run("ping", "-c", "1", "-W", "2", address).returncode == 0
    daemon.start()
    nbctl(pair, "audit")
    nbctl(pair, "rm", "-f", "web")
    nbctl(pair, "audit")
    daemon.stop()
    pair.check_state(before)
    daemon.start(*OPTION)
    daemon.stop()
    assert once(pair, "--release-control-nic") == "0 "
    pair.check_connected()
    pair.check_state(before)


def test_a_daemon_goes_on_with_what_one_before_began(pair) -> None:
    """The steps one by one are in test_adoption; here a daemon finds an adoption, and then a release, that was cut short."""
    before = pair.state()
    daemon = pair.machine.daemon
    pair.record = pair.machine.run_dir / "control-nic.json"
    daemon.start(*OPTION)
    daemon.stop()
    for steps in (5, 15, 30, 40):
        pair.check_connected()
        pair.work("release", steps=steps)
        pair.check_connected()
        daemon.start(*OPTION)
        pair.check_connected()
        nbctl(pair, "audit")
        daemon.stop()
        pair.check_connected()
        pair.work("release", steps=steps)
        daemon.start()
        nbctl(pair, "audit")
        pair.check_connected()
        daemon.stop()
        pair.check_state(before)
        daemon.start(*OPTION)
        daemon.stop()
    assert once(pair, "--release-control-nic") == "0 "


@pytest.mark.parametrize(
    ("nic", "said"),
    [("eth9", "the node has no NIC eth9"), ("lo", "the NIC lo is no Ethernet interface"), ("v0", "the NIC v0 belongs to a bridge or bond")],
)
def test_a_daemon_refuses_a_nic_that_cannot_be_adopted(pair, nic: str, said: str) -> None:
    for words in IN_USE:
        pair.machine.run("ip", *words.split())
    before = pair.state()
    text = once(pair, "--control-nic", nic)
    assert text.startswith("1 ")
    assert said in text
    assert "remedy: " in text
    pair.check_state(before)
    assert "is no underlay" in once(pair, "--control-nic", NIC, "--underlay", NIC)
