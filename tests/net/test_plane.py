"""LANs as bridges in a network namespace of the test's own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestbed.errors import AlreadyExists
from nestbed.lan import nested, netfilter
from nestbed.lan.addressing import bridge_name
from nestbed.lan.plane import Plane
from nestbed.lanmodel import Lan, PathKind, RelayMode
from nestbed.linux import bpf
from nestbed.linux.rtnl import Link, Rtnl
from nestbed.model import Ability


def lan(name: str, mtu: int = 1500) -> Lan:
    lan_id = name.encode().hex().ljust(12, "0")
    return Lan(lan_id, name, bridge_name(lan_id), mtu)


@pytest.fixture
def inside(machine) -> Iterator[None]:
    with machine.entered():
        yield


def bridges() -> dict[str, Link]:
    rtnl = Rtnl()
    try:
        return {link.name: link for link in rtnl.links() if link.kind == "bridge"}
    finally:
        rtnl.close()


def sends_no_ipv6(bridge: str) -> bool:
    return Path(f"/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6").read_text() == "1\n"


def transparency(plane: Plane) -> Ability:
    return next(ability for ability in plane.abilities() if ability.name == "lan-transparency")


async def test_bridge_adds_and_holds_back_nothing(inside) -> None:
    plane = Plane(node_id="0123abcd", run_dir=Path("/run/none"))
    await plane.open(lambda *_: None)
    wanted = lan("lan0", 9000)
    await plane.create(wanted)
    made = bridges()[wanted.bridge]
    assert (made.mtu, made.up, made.alias) == (9000, True, f"nestbed:0123abcd:{wanted.id}")
    assert sends_no_ipv6(wanted.bridge)
    assert list(await plane.audit([wanted])) == []
    await plane.ensure(wanted)
    await plane.delete(wanted)
    await plane.delete(wanted)
    assert bridges() == {}
    await plane.aclose()
    await plane.aclose()


async def test_missing_and_extra_bridges_are_found(inside) -> None:
    plane = Plane(node_id="0123abcd", run_dir=Path("/run/none"))
    await plane.open(lambda *_: None)
    one, two = lan("one"), lan("two")
    await plane.create(one)
    assert [(left.problem, left.name) for left in await plane.audit([one, two])] == [("missing", two.bridge)]
    assert [(left.problem, left.name) for left in await plane.audit([])] == [("extra", one.bridge)]
    await plane.ensure(two)
    await plane.sweep([two])
    assert list(bridges()) == [two.bridge]
    await plane.sweep([])
    assert bridges() == {}
    await plane.aclose()


async def test_bridge_of_an_earlier_life_is_taken_over(inside) -> None:
    old, new = Plane(node_id="0123abcd", run_dir=Path("/run/none")), Plane(node_id="4567cdef", run_dir=Path("/run/none"))
    await old.open(lambda *_: None)
    await new.open(lambda *_: None)
    wanted = lan("lan0")
    await old.create(wanted)
    await new.ensure(wanted)
    assert list(await new.audit([wanted])) == []
    await new.delete(wanted)
    await old.aclose()
    await new.aclose()


async def test_interface_of_somebody_else_is_left_alone(inside) -> None:
    plane = Plane(node_id="0123abcd", run_dir=Path("/run/none"))
    await plane.open(lambda *_: None)
    wanted = lan("lan0")
    rtnl = Rtnl()
    rtnl.add_bridge(wanted.bridge, mtu=1500)
    rtnl.bring_up(wanted.bridge, alias="mine")
    for make in (plane.create, plane.ensure):
        with pytest.raises(AlreadyExists) as caught:
            await make(wanted)
        assert caught.value.reason == "LINK_EXISTS"
    await plane.sweep([])
    assert bridges()[wanted.bridge].alias == "mine"
    rtnl.delete_link(wanted.bridge)
    rtnl.close()
    await plane.aclose()


async def test_pins_stay_as_long_as_a_lan_does(machine) -> None:
    wanted, pins = lan("lan0"), machine.run_dir / "bpf"
    machine.run_dir.mkdir(parents=True)
    with machine.entered():
        for step in (Plane.create, Plane.delete):
            plane = Plane(node_id="0123abcd", run_dir=machine.run_dir)
            await plane.open(lambda *_: None)
            assert bpf.is_bpffs(pins)
            await step(plane, wanted)
            await plane.aclose()
            assert pins.exists() == (step is Plane.create)


def firewall_settings() -> list[str]:
    return [path.read_text().strip() for path in sorted(Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"))]


async def test_firewall_of_an_own_namespace_sees_no_frames(machine) -> None:
    outside = firewall_settings()
    if not outside:
        pytest.skip("the kernel has no br_netfilter")
    with machine.entered():
        for path in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):  # noqa: ASYNC240
            path.write_text("1")
        plane = Plane(node_id="0123abcd", run_dir=Path("/run/none"))
        ability = netfilter.ability()
        assert not ability.available
        assert "sysctl -w" in ability.consequence
        await plane.open(lambda *_: None)
        assert set(firewall_settings()) == {"0"}
        assert transparency(plane).available
        await plane.aclose()
    assert firewall_settings() == outside


async def test_abilities_tell_what_they_mean(inside) -> None:
    plane = Plane(node_id="0123abcd", run_dir=Path("/run/none"))
    await plane.open(lambda *_: None)
    for ability in plane.abilities():
        assert ability.available or ability.consequence
    await plane.aclose()


async def test_nodes_inside_are_one_more_underlay_while_there_are_some(inside, machine) -> None:
    machine.run_dir.mkdir(parents=True, exist_ok=True)
    plane = Plane(node_id="0123abcd", run_dir=machine.run_dir, relay=RelayMode.KERNEL)
    await plane.open(lambda *_: None)
    assert list(plane.underlays()) == []
    below = nested.lan_of("0123abcd", plane.choose_nested())
    for _ in range(2):
        await plane.ensure_nested(below)
    (underlay,) = plane.underlays()
    assert (underlay.name, underlay.address, underlay.mtu, underlay.has_multicast) == (below.bridge, "198.18.0.1", nested.MTU, True)
    wanted = dataclasses.replace(lan("lan0"), group="239.192.0.9:50001")
    await plane.create(wanted)
    assert [(path.underlay, path.kind) for path in plane.paths(wanted)] == [(below.bridge, PathKind.KERNEL)]
    assert list(await plane.audit([wanted])) == []
    assert list(await plane.audit_nested(below)) == []
    assert [left.problem for left in await plane.audit_nested(None)] == ["extra"]
    await plane.delete(wanted)
    await plane.remove_nested()
    assert bridges() == {}
    assert list(plane.underlays()) == []
    assert list(await plane.audit([])) == []
    await plane.aclose()


async def test_how_many_neighbours_the_kernel_can_know_is_told(inside) -> None:
    """The limit is the kernel's, in whatever namespace one looks; here it is as the machine has it."""
    plane = Plane(node_id="0123abcd", run_dir=Path("/run/none"))
    await plane.open(lambda *_: None)
    told = next(ability for ability in plane.abilities() if ability.name == "large-lans")
    limits = re.findall(r"net\.ipv([46])\.neigh\.default\.gc_thresh3 is (\d+)", told.detail)
    assert told.available == (not limits)
    assert all(int(limit) < 8192 and f"net.ipv{version}.neigh.default.gc_thresh3=8192" in told.consequence for version, limit in limits)
    await plane.aclose()
