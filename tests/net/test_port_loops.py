"""Containers that bridge what is joined already: a real plane and real ports, no daemon."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping

import pytest

from nestbed.lan.addressing import bridge_name, port_name
from nestbed.lan.plane import Plane
from nestbed.lanmodel import Impairment, Lan, Nic, NicImpairment
from nestbed.linux.rtnl import Rtnl
from nestbed.process.ports import Ports
from nestbed.testing.machine import Machine
from nestbed.testing.station import Station

NODE = "0123abcd"
LANS = {name: Lan(f"6c616e30000{name}", f"lan-{name}", bridge_name(f"6c616e30000{name}")) for name in "ab"}
EVERYBODY = b"\xff" * 6
CUT_AFTER = 16
"""Frames that came round."""
ROUNDS = 100
"""More of a frame than that is a storm."""


def frame(source: bytes, text: str, *, to: bytes = EVERYBODY, tag: int = 0) -> bytes:
    """A frame of an EtherType for experiments."""
    tagged = b"\x81\x00" + tag.to_bytes(2, "big") if tag else b""
    return to + source + tagged + b"\x88\xb5" + text.encode().ljust(46)


class Lab:
    """LANs ``a`` and ``b`` on one node, and containers with NICs on them, ``a0``, ``b0``... whose kernels say nothing by themselves."""

    def __init__(self, machines: Callable[[str], Machine]) -> None:
        self._machines = machines
        self.node = machines("node")
        self.node.run_dir.mkdir(parents=True)
        self.events: list[tuple[str, str, Mapping[str, object]]] = []
        self.plane = Plane(node_id=NODE, run_dir=self.node.run_dir)
        self._ports = Ports(NODE, self.plane)
        self._numbers = itertools.count(1)
        self._stations: list[Station] = []
        self.nics: dict[tuple[str, str], Nic] = {}

    async def open(self) -> None:
        await self.plane.open(lambda kind, lan_id, known: self.events.append((kind, lan_id, known)))
        for lan in LANS.values():
            await self.plane.create(lan)
        await self.plane.sweep_ports()
        self._ports.open()

    async def close(self) -> None:
        for station in self._stations:
            station.close()
        for nic in self.nics.values():
            await self.plane.impair([NicImpairment(nic)])
            self._ports.unplug(nic.port)
        self._ports.close()
        for lan in LANS.values():
            await self.plane.delete(lan)
        await self.plane.aclose()

    def container(self, name: str, *nics: str) -> Machine:
        """A container with these NICs; the first letter of each is its LAN."""
        machine = self._machines(name)
        assert machine.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1").returncode == 0
        with machine.entered():
            inside = Rtnl()
        with contextlib.closing(inside):
            for nic_name in nics:
                number, lan = next(self._numbers), LANS[nic_name[0]]
                mac, container_id = f"02:00:00:00:00:{number:02x}", f"{number:012x}"
                nic = Nic(lan.name, lan.id, nic_name, mac, (), 1500, port_name(container_id, 0), lan.bridge)
                self._ports.plug(container_id, nic, [], machine.netns_fd, inside)
                self.nics[name, nic_name] = nic
        return machine

    def station(self, name: str, nic: str) -> Station:
        """One in a container of its own, or an interface of one that is there."""
        machine = self.container(name, nic) if (name, nic) not in self.nics else self._machines(name)
        return self.listen(machine, nic)

    def listen(self, machine: Machine, interface: str) -> Station:
        self._stations.append(Station(machine.netns_fd, interface))
        return self._stations[-1]

    def bridge(self, name: str, *nics: str) -> Machine:
        """A container that is a bridge."""
        machine = self.container(name, *nics)
        ip(machine, "link add br0 type bridge mcast_snooping 0 forward_delay 0")
        for nic in nics:
            ip(machine, f"link set {nic} master br0")
        ip(machine, "link set br0 up")
        return machine

    async def drops(self, name: str, nic: str) -> tuple[int, int]:
        """Frames dropped because of a loop: that came from a NIC, and that went to it."""
        port = self.nics[name, nic].port
        stats = (await self.plane.port_counters([port]))[port]
        return tuple(sum(drop.frames for drop in side.drops if drop.reason == "loop") for side in (stats.tx, stats.rx))  # type: ignore[return-value]

    async def is_cut(self, name: str, *nics: str) -> bool:
        """Whether an event told that a port of this container was cut."""
        ports = {self.nics[name, nic].port for nic in nics}
        async with asyncio.timeout(5):
            while not any(kind == "lan.loop" and known["refused"] in ports for kind, _, known in self.events):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return True


def ip(machine: Machine, line: str) -> None:
    result = machine.run("ip", *line.split())
    assert result.returncode == 0, result.stderr


def quiet(station: Station, sent: Collection[bytes]) -> dict[bytes, int]:
    """How often each of these frames came, until all was quiet; it has to become so."""
    came = dict.fromkeys(sent, 0)
    for _ in range(ROUNDS * (len(sent) + 1)):
        received = station.receive(0.2)
        if received is None:
            return came
        if received in came:
            came[received] += 1
    raise AssertionError("frames go round for ever")


@contextlib.contextmanager
def forwarding(incoming: Station, outgoing: Station, change: Callable[[bytes], bytes | None] = lambda frame: frame) -> Iterator[None]:
    """A program that sends by one NIC what another receives, or what ``change`` makes of it."""
    over = threading.Event()

    def forward() -> None:
        while not over.is_set():
            received = incoming.receive(0.05)
            sent = None if received is None else change(received)
            if sent is not None:
                outgoing.send(sent)

    thread = threading.Thread(target=forward)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.fixture
async def lab(machines: Callable[[str], Machine]) -> AsyncIterator[Lab]:
    lab = Lab(machines)
    with lab.node.entered():
        await lab.open()
        yield lab
        await lab.close()


async def test_bridge_between_two_nics_of_one_lan(lab: Lab) -> None:
    one, two = lab.station("one", "a0"), lab.station("two", "a0")
    lab.bridge("loop", "a0", "a1")
    sent = [frame(one.mac, f"to all {number}") for number in range(40)] + [frame(one.mac, "to one unknown", to=b"\x02" + bytes(5))]
    for each in sent:
        one.send(each)
    assert set(quiet(two, sent).values()) == {1}
    assert await lab.is_cut("loop", "a0", "a1")
    assert {nic.port for nic in lab.nics.values()} >= set(lab.plane.cut(LANS["a"])) != set()
    assert lab.plane.cut(LANS["b"]) == set()
    assert sum(await lab.drops("loop", "a0")) + sum(await lab.drops("loop", "a1")) >= CUT_AFTER
    two.send(answer := frame(two.mac, "to the one", to=one.mac))
    assert one.expect(answer)


async def test_what_the_bridge_itself_says_goes_round_until_it_is_cut(lab: Lab) -> None:
    one = lab.station("one", "a0")
    own = lab.listen(lab.bridge("loop", "a0", "a1"), "br0")
    sent = frame(own.mac, "of the bridge")
    own.send(sent)
    assert 1 <= quiet(one, [sent])[sent] <= 3 * CUT_AFTER
    assert await lab.is_cut("loop", "a0", "a1")
    own.send(again := frame(own.mac, "by the other port"))
    assert one.expect(again)


@pytest.mark.parametrize("at", ["a", "b"])
async def test_two_bridges_between_two_lans(lab: Lab, at: str) -> None:
    """The one that is left is a bridge as before."""
    one, two = lab.station("one", f"{at}0"), lab.station("two", "b0")
    for name in ("first", "second"):
        lab.bridge(name, "a0", "b0")
    sent = [frame(one.mac, f"to all {number}") for number in range(40)]
    for each in sent:
        one.send(each)
    assert set(quiet(two, sent).values()) <= {1, 2}
    assert await lab.is_cut("first", "a0", "b0") or await lab.is_cut("second", "a0", "b0")
    two.send(answer := frame(two.mac, "to the one", to=one.mac))
    assert one.expect(answer)


async def test_what_goes_round_one_way_only(lab: Lab) -> None:
    one, two = lab.station("one", "a0"), lab.station("two", "a0")
    mirror = lab.container("mirror", "a0", "a1")
    sent = [frame(one.mac, f"to all {number}") for number in range(40)]
    with forwarding(lab.listen(mirror, "a0"), lab.listen(mirror, "a1")):
        for each in sent:
            one.send(each)
        assert set(quiet(two, sent).values()) == {1}
        assert await lab.is_cut("mirror", "a1")


async def test_loop_with_a_delay_and_impairments_that_stay(lab: Lab) -> None:
    one, two = lab.station("one", "a0"), lab.station("two", "a0")
    lab.bridge("loop", "a0", "a1")
    delayed = Impairment(delay_us=100_000)
    await lab.plane.impair([NicImpairment(lab.nics["loop", nic], delayed, delayed) for nic in ("a0", "a1")])
    sent = [frame(one.mac, f"to all {number}") for number in range(40)]
    for each in sent:
        one.send(each)
    assert set(quiet(two, sent).values()) == {1}
    assert await lab.is_cut("loop", "a0", "a1")
    (achieved, _), (other, _) = [await lab.plane.achieved(lab.nics["loop", nic]) for nic in ("a0", "a1")]
    assert achieved is not None
    assert other is not None


async def test_next_daemon_tells_of_a_loop_that_began_without_it(lab: Lab) -> None:
    one = lab.station("one", "a0")
    lab.bridge("loop", "a0", "a1")
    for number in range(40):
        one.send(frame(one.mac, f"to all {number}"))
    events: list[tuple[str, str]] = []
    second = Plane(node_id=NODE, run_dir=lab.node.run_dir)
    await second.open(lambda kind, lan_id, _: events.append((kind, lan_id)))
    for nic in lab.nics.values():
        second.port_found(nic, index_of(nic.port))
    async with asyncio.timeout(5):
        while ("lan.loop", LANS["a"].id) not in events:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert second.cut(LANS["a"]) != set()
    await second.aclose()


async def test_cut_port_is_tried_again(lab: Lab) -> None:
    one, two = lab.station("one", "a0"), lab.station("two", "a0")
    loop = lab.bridge("loop", "a0", "a1")
    for number in range(40):
        one.send(frame(one.mac, f"to all {number}"))
    cut = set(lab.plane.cut(LANS["a"]))
    assert cut
    ip(loop, "link set a1 nomaster")
    ip(loop, "link set a0 nomaster")
    for nic in ("a0", "a1"):
        station = lab.listen(loop, nic)
        async with asyncio.timeout(15):
            while not two.expect(sent := frame(station.mac, "here again"), 0.2):
                station.send(sent)
                await asyncio.sleep(0.05)
    assert lab.plane.cut(LANS["a"]) == set()


# ---- what is no loop


async def passes(lab: Lab, two: Station, sent: list[bytes]) -> None:
    """All of these frames came, and nothing was dropped or cut."""
    came = quiet(two, set(sent))
    assert came == {each: sent.count(each) for each in sent}
    assert [await lab.drops(*key) for key in lab.nics] == [(0, 0)] * len(lab.nics)
    assert [lab.plane.cut(lan) for lan in LANS.values()] == [set(), set()]


async def test_frames_that_are_all_the_same(lab: Lab) -> None:
    one, two = lab.station("one", "a0"), lab.station("two", "a0")
    sent = [frame(one.mac, "again and again")] * ROUNDS
    for each in sent:
        one.send(each)
    await passes(lab, two, sent)


async def test_bridge_between_lans_that_nothing_else_joins(lab: Lab) -> None:
    one, two = lab.station("one", "a0"), lab.station("two", "b0")
    lab.bridge("switch", "a0", "b0")
    sent = [frame(one.mac, f"to all {number}") for number in range(40)]
    for each in sent:
        one.send(each)
    await passes(lab, two, sent)


async def test_bridge_between_vlans_of_one_lan(lab: Lab) -> None:
    one, two = lab.station("one", "a0"), lab.station("two", "a0")
    switch = lab.container("switch", "a0", "a1")

    def translated(received: bytes) -> bytes | None:
        return received.replace(b"\x81\x00\x00\x0a", b"\x81\x00\x00\x14") if b"\x81\x00\x00\x0a" in received else None

    with forwarding(lab.listen(switch, "a0"), lab.listen(switch, "a1"), translated):
        for number in range(40):
            one.send(frame(one.mac, f"to all {number}", tag=10))
        await passes(lab, two, [frame(one.mac, f"to all {number}", tag=tag) for number in range(40) for tag in (10, 20)])


async def test_one_address_in_two_places(lab: Lab) -> None:
    """As with anycast, bonds, virtual routers, and somebody who takes another's address: none says what the other just said."""
    stations, two = [lab.station(name, "a0") for name in ("one", "other")], lab.station("two", "a0")
    mac = bytes.fromhex("00005e000101")
    sent = [frame(mac, f"to all {number}") for number in range(100)]
    for number, each in enumerate(sent):
        stations[number % 2].send(each)
    await passes(lab, two, sent)


async def test_virtual_router_whose_other_half_takes_over(lab: Lab) -> None:
    """Its announcements are the same as those of the first."""
    first, second = (lab.station(name, "a0") for name in ("one", "other"))
    two = lab.station("two", "a0")
    mac = bytes.fromhex("00005e000101")
    announcement = frame(mac, "here is 10.5.0.1")
    for name, station in (("first", first), ("second", second)):
        for number in range(5):
            station.send(announcement)
            station.send(frame(mac, f"{number} of the {name}"))
        assert two.expect(frame(mac, f"4 of the {name}"))
        assert not lab.plane.cut(LANS["a"])


def index_of(name: str) -> int:
    with contextlib.closing(Rtnl()) as rtnl:
        return rtnl.link_index(name)
