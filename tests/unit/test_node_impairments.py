"""What is done to frames on purpose, as a node keeps it and tells its LAN plane."""

from __future__ import annotations

import pytest

from nestbed.errors import HostLacks, InvalidArgument, NotFound
from nestbed.lanmodel import NO_IMPAIRMENT, Direction, Impairment, ImpairmentChange, LanRequest, NicSpec

DELAY = ImpairmentChange(delay_us=10_000)
SLOW = Impairment(rate_bps=1_000_000)


@pytest.fixture
async def web(bench) -> str:
    """A container on lan0, and another one."""
    await bench.node.create_lan(LanRequest("lan0", "10.5.0.0/24"))
    await bench.create(name="irc", nics=(NicSpec("lan0"),))
    return await bench.create(name="web", nics=(NicSpec("lan0"), NicSpec("lan0")))


def in_force(bench) -> dict[str, tuple[Impairment, Impairment]]:
    """What the plane was told, by container and NIC."""
    members = bench.node.lan("lan0").members
    told = bench.plane.impaired
    return {f"{one.container}:{one.nic.name}": told[one.nic.port] for one in members if one.nic.port in told}


async def test_lan_is_shared_out_to_the_legs(bench, web) -> None:
    told = await bench.node.set_impairment("lan0", DELAY)
    assert told.view.lan.impairment == Impairment(delay_us=10_000)
    half = Impairment(delay_us=5_000)
    assert in_force(bench) == dict.fromkeys(("irc:eth0", "web:eth0", "web:eth1"), (half, half))
    assert [(port.member.container, port.to, port.from_) for port in told.ports] == [
        ("irc", half, half),
        ("web", half, half),
        ("web", half, half),
    ]
    assert all(port.achieved_to and port.achieved_from for port in told.ports)


async def test_change_keeps_what_is_not_named_and_zero_takes_it_off(bench, web) -> None:
    node = bench.node
    await node.set_impairment("lan0", ImpairmentChange(rate_bps=1_000_000), container="web", nic_name="eth0", direction=Direction.TO)
    await node.set_impairment("lan0", DELAY, container="web", nic_name="eth0")
    assert in_force(bench) == {"web:eth0": (Impairment(1_000_000, 10_000), Impairment(0, 10_000))}
    await node.set_impairment("lan0", ImpairmentChange(delay_us=0), container="web", direction=Direction.FROM)
    assert in_force(bench) == {"web:eth0": (Impairment(1_000_000, 10_000), NO_IMPAIRMENT)}
    told = await node.reset_impairment("lan0", container="web")
    assert (in_force(bench), [port.achieved_to for port in told.ports]) == ({}, [None, None])


async def test_port_adds_to_its_lan(bench, web) -> None:
    await bench.node.set_impairment("lan0", DELAY)
    await bench.node.set_impairment("lan0", ImpairmentChange(delay_us=1_000), container="irc", direction=Direction.FROM)
    assert in_force(bench)["irc:eth0"] == (Impairment(delay_us=5_000), Impairment(delay_us=6_000))
    await bench.node.reset_impairment("lan0")
    assert in_force(bench) == {}
    assert bench.node.lan("lan0").lan.impairment == NO_IMPAIRMENT
    assert bench.node.container("irc").spec.nics[0].impair_from == NO_IMPAIRMENT


async def test_impaired_from_the_beginning_and_forgotten_at_the_end(bench) -> None:
    await bench.node.create_lan(LanRequest("lan0"))
    await bench.create(name="web", nics=(NicSpec("lan0", impair_to=SLOW),))
    assert in_force(bench) == {"web:eth0": (SLOW, NO_IMPAIRMENT)}
    await bench.node.set_impairment("lan0", DELAY)
    await bench.create(name="irc")
    await bench.node.connect("irc", NicSpec("lan0", impair_from=SLOW))
    assert in_force(bench)["irc:eth0"] == (Impairment(delay_us=5_000), Impairment(1_000_000, 5_000))
    await bench.node.disconnect("irc", "lan0", "")
    await bench.node.delete("web", force=True)
    assert bench.plane.impaired == {}


async def test_next_daemon_has_it_in_force(bench, web) -> None:
    await bench.node.set_impairment("lan0", DELAY)
    await bench.node.set_impairment("lan0", ImpairmentChange(loss=0.5), container="web", nic_name="eth1")
    before = in_force(bench)
    await bench.restart()
    assert in_force(bench) == before
    await bench.reboot()
    assert in_force(bench) == before
    assert before["web:eth1"] == (Impairment(delay_us=5_000, loss=0.5), Impairment(delay_us=5_000, loss=0.5))


async def test_refused_change_changes_nothing(bench, web) -> None:
    node = bench.node
    await node.set_impairment("lan0", DELAY)
    before = in_force(bench)
    for container in ("", "web"):
        bench.kernel.fail_next("impair", HostLacks("no delays", reason="NO_NETEM", remedy="none"))
        with pytest.raises(HostLacks):
            await node.set_impairment("lan0", ImpairmentChange(jitter_us=0, delay_us=20_000), container=container)
        assert in_force(bench) == before
    assert node.lan("lan0").lan.impairment == Impairment(delay_us=10_000)
    await bench.restart()
    assert in_force(bench) == before


async def test_refused_creation_leaves_nothing(bench) -> None:
    await bench.node.create_lan(LanRequest("lan0"))
    await bench.create(name="irc")
    for attempt in (
        lambda: bench.create(name="web", nics=(NicSpec("lan0", impair_to=SLOW),)),
        lambda: bench.node.connect("irc", NicSpec("lan0", impair_to=SLOW)),
    ):
        bench.kernel.fail_next("impair", HostLacks("no rates"))
        with pytest.raises(HostLacks):
            await attempt()
        assert bench.node.lan("lan0").members == ()
    assert len(bench.bundles()) == 1


async def test_what_cannot_be_in_force_any_more_is_told(bench, web) -> None:
    await bench.node.set_impairment("lan0", DELAY, container="irc")
    bench.kernel.fail_next("impair", HostLacks("no delays", reason="NO_NETEM"), times=2)  # of all at once, and of it alone
    await bench.restart()
    attributes = await bench.until("lan.impairment-lost")
    assert (attributes["container"], attributes["reason"]) == ("irc", "NO_NETEM")


@pytest.mark.parametrize(
    ("target", "change", "error", "reason"),
    [
        ({"lan": "lan1"}, DELAY, NotFound, "LAN_NOT_FOUND"),
        ({"container": "mail"}, DELAY, NotFound, "CONTAINER_NOT_FOUND"),
        ({"container": "web", "nic_name": "eth9"}, DELAY, NotFound, "NIC_NOT_FOUND"),
        ({"nic_name": "eth0"}, DELAY, InvalidArgument, "CONFLICTING_OPTIONS"),
        ({"direction": Direction.TO}, DELAY, InvalidArgument, "CONFLICTING_OPTIONS"),
        ({}, ImpairmentChange(), InvalidArgument, "NOTHING_TO_CHANGE"),
        ({}, ImpairmentChange(loss=1.01), InvalidArgument, "BAD_IMPAIRMENT"),
        ({}, ImpairmentChange(loss=float("nan")), InvalidArgument, "BAD_IMPAIRMENT"),
        ({}, ImpairmentChange(rate_bps=1), InvalidArgument, "BAD_IMPAIRMENT"),
        ({"container": "web"}, ImpairmentChange(jitter_us=1), InvalidArgument, "BAD_IMPAIRMENT"),
    ],
)
async def test_refusals(bench, web, target, change, error, reason) -> None:
    with pytest.raises(error) as caught:
        await bench.node.set_impairment(**{"lan": "lan0", "change": change, **target})
    assert caught.value.reason == reason
    assert caught.value.remedy
    assert in_force(bench) == {}


async def test_list(bench, web) -> None:
    await bench.node.create_lan(LanRequest("lan1"))
    assert [each.view.lan.name for each in await bench.node.impairments()] == ["lan0", "lan1"]
    (only,) = await bench.node.impairments(container="web", nic_name="eth1")
    assert [(port.member.nic.name, port.achieved_to) for port in only.ports] == [("eth1", None)]
    with pytest.raises(NotFound):
        await bench.node.impairments(lan="lan1", container="web")
