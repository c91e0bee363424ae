"""The relay process by itself: two machines with a bridge each, whose members are taps that the test holds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from nestbed.lan import netfilter, traffic
from nestbed.lan.relay.wanted import RelayedLan
from nestbed.lan.relay_client import RelayClient
from nestbed.lanmodel import Traffic
from nestbed.linux import tun
from nestbed.testing.machine import Machine

GROUP, PORT = "239.1.2.3", 5000
WAIT_SECONDS = 5.0
ONE, TWO, THREE = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x03"
ALL = b"\xff" * 6
ARP, IPV4, IPV6, VLAN, LLDP, TEST = b"\x08\x06", b"\x08\0", b"\x86\xdd", b"\x81\0", b"\x88\xcc", b"\x88\xb5"


def frame(dst: bytes, src: bytes, kind: bytes = TEST, payload: bytes = b"payload", length: int = 60) -> bytes:
    return (dst + src + kind + payload).ljust(length, b"\0")


def ipv4(protocol: int, length: int = 60) -> bytes:
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, length - 14, 0, 0, 64, protocol, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")


def ipv6(protocol: int) -> bytes:
    return struct.pack("!IHBB16s16s", 6 << 28, 0, protocol, 64, b"\xfd".ljust(16, b"\0"), b"\xfd".ljust(16, b"\1"))


class Node:
    """A machine with one relayed LAN, of which the test is a member."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.events: list[tuple[str, str, dict[str, str]]] = []
        machine.run_dir.mkdir(parents=True)
        with machine.entered():
            for scope in ("all", "default"):
                Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1")
            netfilter.keep_out()
            self.member = tun.open_tap("member0")
        for line in (
            "link set lo up",
            "link add bridge0 type bridge mcast_snooping 0 forward_delay 0 group_fwd_mask 0xfff8",
            "link set bridge0 mtu 9000 up",
            "tuntap add tap0 mode tap",
            *(f"link set {tap} mtu 9000 master bridge0 up" for tap in ("tap0", "member0")),
        ):
            self.ip(line)
        self.ip("link set bridge0 mtu 9000")
        self.client = RelayClient(machine.run_dir, self._listen)

    def _listen(self, kind: str, lan_id: str, told: Any) -> None:
        self.events.append((kind, lan_id, dict(told)))

    def ip(self, line: str) -> None:
        result = self.machine.run("ip", *line.split())
        assert result.returncode == 0, (line, result.stderr)

    def lan(self, **changes: Any) -> RelayedLan:
        return RelayedLan(**{"id": "lan0", "tap": "tap0", "mtu": 9000, "group": GROUP, "port": PORT, "underlays": ("u0",), **changes})

    async def relay(self, **changes: Any) -> None:
        with self.machine.entered():
            self.client.set_lan(self.lan(**changes))
            await self.client.settle()
        self.client.check("lan0")

    def send(self, data: bytes) -> None:
        os.write(self.member, data)

    async def receive(self, is_wanted: Callable[[bytes], bool] = lambda data: data[12:14] == TEST) -> bytes:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                await readable(self.member)
                with contextlib.suppress(BlockingIOError):
                    data = os.read(self.member, 70_000)
                    if is_wanted(data):
                        return data

    async def hears_nothing_but(self, last: bytes) -> None:
        """The next of the test's frames is this one: what was sent before it did not come."""
        assert await self.receive() == last

    @property
    def received(self) -> Traffic:
        return traffic.decode([(self.client.traffic("lan0") or (b"", b""))[0]])

    @property
    def sent(self) -> Traffic:
        return traffic.decode([(self.client.traffic("lan0") or (b"", b""))[1]])

    def drops(self, which: str = "received") -> dict[str, int]:
        return {drop.reason: drop.frames for drop in getattr(self, which).drops}

    def socket(self, *, bound_to: tuple[str, int] | None = None, joined: bool = False) -> socket.socket:
        """A plain socket on the machine: a member of the group as a script has it."""
        with self.machine.entered():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            address = self.machine.run("ip", "-4", "-br", "addr", "show", "u0").stdout.split()[2].split("/")[0]
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
            if bound_to:
                sock.bind(bound_to)
            if joined:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + socket.inet_aton(address))
        sock.setblocking(False)
        return sock

    async def close(self) -> None:
        self.client.drop_lan("lan0")
        os.close(self.member)
        await until(lambda: not self.client.is_running)
        self.client.close()


async def readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def until(fact: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not fact():  # noqa: ASYNC110 - counters and files do not call
            await asyncio.sleep(0.002)


async def received(sock: socket.socket) -> tuple[bytes, Any]:
    async with asyncio.timeout(WAIT_SECONDS):
        return await asyncio.get_running_loop().sock_recvfrom(sock, 70_000)


@pytest.fixture
async def nodes(machines) -> AsyncIterator[tuple[Node, Node]]:
    """Two, on one underlay ``u0`` with an MTU of 1500: 192.0.2.1 and .2; nothing is relayed yet."""
    made = tuple(Node(machines(name)) for name in ("one", "two"))
    connect(*made, "u0", "192.0.2")
    for node in made:
        with node.machine.entered():
            node.client.open()
    yield made  # type: ignore[misc]
    for node in made:
        await node.close()


def connect(one: Node, two: Node, name: str, prefix: str) -> None:
    result = one.machine.run(
        "ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", f"/proc/{os.getpid()}/fd/{two.machine.netns_fd}"
    )
    assert result.returncode == 0, result.stderr
    for number, node in enumerate((one, two), 1):
        node.ip(f"addr add {prefix}.{number}/24 dev {name}")
        node.ip(f"link set {name} up")


@pytest.fixture
async def pair(nodes) -> tuple[Node, Node]:
    """As ``nodes``, and the LAN is relayed."""
    for node in nodes:
        await node.relay()
    return nodes


FRAMES = {
    "arp": frame(ALL, ONE, ARP),
    "ipv4-udp": frame(TWO, ONE, IPV4, ipv4(17)),
    "ipv4-tcp": frame(TWO, ONE, IPV4, ipv4(6)),
    "ipv6-icmp": frame(TWO, ONE, IPV6, ipv6(58)),
    "multicast": frame(b"\x01\0\x5e\x01\x02\x03", ONE, IPV4, ipv4(17)),
    "broadcast": frame(ALL, ONE),
    "vlan": frame(TWO, ONE, VLAN, b"\0\x07" + IPV4 + ipv4(6)),
    "lldp": frame(b"\x01\x80\xc2\0\0\x0e", ONE, LLDP),
    "shortest": frame(TWO, ONE, payload=b"", length=14),
    "full": frame(TWO, ONE, length=1514),
    "jumbo": frame(TWO, ONE, payload=os.urandom(8000), length=9014),
    "jumbo-vlan": frame(TWO, ONE, VLAN, b"\0\x07" + TEST, length=9018),
}
CLASSES = {
    "arp": {"arp", "broadcast"},
    "ipv4-udp": {"ipv4", "udp"},
    "ipv4-tcp": {"ipv4", "tcp"},
    "ipv6-icmp": {"ipv6", "icmp"},
    "multicast": {"ipv4", "udp", "multicast"},
    "broadcast": {"broadcast", "other"},
    "vlan": {"ipv4", "tcp"},
    "lldp": {"multicast", "other"},
}


@pytest.mark.parametrize("name", FRAMES)
async def test_frames_of_every_kind_arrive_as_they_were(pair: tuple[Node, Node], name: str) -> None:
    one, two = pair
    one.send(FRAMES[name])
    assert await two.receive(lambda data: data[6:12] == ONE) == FRAMES[name]
    await until(lambda: two.received.frames and one.sent.frames)
    assert {each.name for each in two.received.classes if each.frames} == CLASSES.get(name, {"other"})
    assert (two.received.frames, two.received.bytes) == (one.sent.frames, one.sent.bytes) == (1, len(FRAMES[name]))


async def test_the_wire_has_bare_frames_and_a_script_is_a_member(pair: tuple[Node, Node]) -> None:
    one, two = pair
    script = two.socket(bound_to=(GROUP, PORT), joined=True)
    with script:
        # On another machine: its own is a node, too, that hears the same.
        one.send(FRAMES["broadcast"])
        data, source = await received(script)
        assert (data, source[0]) == (FRAMES["broadcast"], "192.0.2.1")
        assert await two.receive() == FRAMES["broadcast"]
        script.sendto(answer := frame(ALL, THREE), (GROUP, PORT))
        assert await one.receive() == answer
        assert await two.receive() == answer  # beside it, on its machine


async def test_a_member_on_the_node_s_own_machine_hears_and_is_heard(pair: tuple[Node, Node]) -> None:
    one, two = pair
    with one.socket(bound_to=(GROUP, PORT), joined=True) as script:
        script.sendto(hello := frame(ALL, THREE), (GROUP, PORT))
        assert await one.receive() == hello
        assert await two.receive() == hello
        assert (await received(script))[0] == hello  # its own comes back, as stock members know
        for data in (FRAMES["full"], FRAMES["jumbo"]):
            one.send(data)
            assert (await received(script))[0] == data
            assert await two.receive() == data


async def test_nothing_comes_back_to_who_sent_it(pair: tuple[Node, Node]) -> None:
    one, two = pair
    with one.socket(bound_to=(GROUP, PORT), joined=True) as script:
        script.sendto(frame(ALL, THREE), (GROUP, PORT))
        await one.receive()
        one.send(mine := frame(ALL, ONE))
        assert await two.receive(lambda data: data[6:12] == ONE) == mine
        two.send(theirs := frame(ALL, TWO))
        await one.hears_nothing_but(theirs)
        assert one.drops() == {"own": 1}  # looped for the script's sake


async def test_garbage_is_dropped_and_counted(pair: tuple[Node, Node]) -> None:
    one, two = pair
    with one.socket() as script:
        for size in range(14):
            script.sendto(os.urandom(size), (GROUP, PORT))
        script.sendto(frame(TWO, ONE, length=9019), (GROUP, PORT))
        script.sendto(frame(TWO, b"\x03" + ONE[1:]), (GROUP, PORT))
        script.sendto(frame(TWO, bytes(6)), (GROUP, PORT))
        script.sendto(good := frame(TWO, THREE), (GROUP, PORT))
    await two.hears_nothing_but(good)
    assert two.drops() == {"runt": 14, "giant": 1, "malformed": 2}


async def test_a_loop_is_cut(pair: tuple[Node, Node]) -> None:
    one, two = pair
    two.send(frame(ALL, TWO))
    await one.receive()
    with one.socket() as script:
        for number in range(1, 41):
            script.sendto(frame(ALL, TWO), (GROUP, PORT))
            await until(lambda number=number: two.received.frames + two.drops().get("loop", 0) == number)
            two.send(frame(ALL, TWO))
            await until(lambda number=number: two.sent.frames + two.drops("sent").get("loop", 0) == number + 1)
        await until(lambda: any(kind == "lan.loop" for kind, _, _ in two.events))
    _, lan_id, told = next(event for event in two.events if event[0] == "lan.loop")
    assert (lan_id, told["mac"]) == ("lan0", TWO.hex(":"))
    assert {told["kept"], told["refused"]} == {"local", "192.0.2.1"}
    assert two.drops().get("loop", 0) + two.drops("sent").get("loop", 0) > 0
    one.send(other := frame(ALL, ONE))
    assert await two.receive(lambda data: data[6:12] == ONE) == other


async def test_peers_get_what_concerns_them(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    await one.relay(peers=("192.0.2.2",))
    await two.relay(peers=("192.0.2.1", "192.0.2.9"))
    one.send(FRAMES["broadcast"])
    assert await two.receive() == FRAMES["broadcast"]
    two.send(back := frame(ONE, TWO, payload=os.urandom(3000)))
    assert await one.receive() == back
    with two.socket() as stranger:
        with two.machine.entered():
            two.ip("addr add 192.0.2.77/24 dev u0")
        stranger.bind(("192.0.2.77", 0))
        stranger.sendto(frame(ALL, THREE), ("192.0.2.1", PORT))
        await until(lambda: one.drops() == {"stranger": 1})


async def test_underlay_goes_and_comes_back(pair: tuple[Node, Node]) -> None:
    one, two = pair
    one.ip("link set u0 down")
    await until(lambda: one.client.fault("lan0", "u0") == "is down")
    one.send(FRAMES["broadcast"])
    await until(lambda: one.drops("sent") == {"underlay-down": 1})
    one.ip("link set u0 up")
    await until(lambda: one.client.fault("lan0", "u0") == "")
    await two_way(one, two)
    one.ip("link del u0")
    await until(lambda: one.client.fault("lan0", "u0") == two.client.fault("lan0", "u0") == "does not exist")
    connect(one, two, "u0", "198.51.100")
    await until(lambda: one.client.fault("lan0", "u0") == two.client.fault("lan0", "u0") == "")
    await two_way(one, two)


async def two_way(one: Node, two: Node) -> None:
    """Once both have carriers a frame gets from each to the other; what is sent before may be lost."""
    for sender, receiver, src in ((one, two, ONE), (two, one, TWO)):
        sent = set()
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                sender.send(data := frame(ALL, src, payload=os.urandom(16)))
                sent.add(data)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        if await receiver.receive() in sent:  # one of before may be late
                            break


async def test_underlays_to_the_same_machines_are_not_used_twice(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    connect(one, two, "u1", "198.51.100")
    for node in nodes:
        node.ip("link add segment type bridge")
        node.ip("link set segment up")
    # u0 and u1 of one end in one segment, to which two has only u0.
    two.ip("link set u0 master segment")
    two.ip("link set u1 master segment")
    two.ip("addr add 192.0.2.2/24 dev segment")
    await one.relay(underlays=("u0", "u1"))
    await two.relay(underlays=("segment",))
    two.send(frame(ALL, TWO))
    await until(lambda: "set aside" in one.client.fault("lan0", "u1"))
    assert one.client.fault("lan0", "u0") == ""
    await until(
        lambda: [event for event in one.events if event[0] == "lan.loop"] == [("lan.loop", "lan0", {"underlay": "u1", "kept": "u0"})]
    )


async def test_killed_it_is_back_within_a_second(pair: tuple[Node, Node]) -> None:
    one, two = pair
    pid = one.client.pid
    one.send(FRAMES["broadcast"])
    await two.receive()
    with one.machine.entered():
        os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        await two_way(one, two)
    assert time.monotonic() - begin < 1.0
    assert [kind for kind, *_ in one.events] == ["relay.started", "relay.lost", "relay.started"]
    assert one.sent.frames >= 2  # counted on


async def test_it_goes_on_without_a_daemon_and_is_taken_up(pair: tuple[Node, Node]) -> None:
    one, two = pair
    pid = one.client.pid
    one.client.close()
    await two_way(one, two)
    one.client = RelayClient(one.machine.run_dir, one._listen)
    with one.machine.entered():
        one.client.open()
        await one.relay()
    assert one.client.pid == pid
    await two_way(one, two)


async def test_a_damaged_request_harms_nothing(pair: tuple[Node, Node]) -> None:
    one, two = pair
    damaged = one.machine.run_dir / "damaged"
    damaged.write_text('{"version": 1, "lans": [')
    damaged.rename(one.machine.run_dir / "relay.json")
    await two_way(one, two)
    await until(lambda: b'"version": 1, "generation"' in (one.machine.run_dir / "relay.json").read_bytes())
    one.client.close()
    one.machine.kill_relay()
    (one.machine.run_dir / "relay.json").write_text("\0garbage")
    one.client = RelayClient(one.machine.run_dir, one._listen)
    with one.machine.entered():
        one.client.open()
        await one.relay()
    await two_way(one, two)
