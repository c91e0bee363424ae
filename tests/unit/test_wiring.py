"""Which NICs and routes a container gets, and that a refusal takes nothing."""

from __future__ import annotations

import pytest

from nestbed.errors import AlreadyExists, InvalidArgument, NestbedError, NotFound, ResourceExhausted
from nestbed.lan import addressing
from nestbed.lanmodel import Lan, Nic, NicSpec
from nestbed.model import Route
from nestbed.node.segment import Segment
from nestbed.node.wiring import Owner, check_routes, next_hops, unwire, wire


def segment(name: str, subnet: str = "10.5.0.0/24", subnet6: str = "", mtu: int = 1500) -> Segment:
    lan_id = name.encode().hex().ljust(12, "0")[:12]
    return Segment(Lan(lan_id, name, addressing.bridge_name(lan_id), mtu, subnet, subnet6))


@pytest.fixture
def lans() -> dict[str, Segment]:
    return {"lan0": segment("lan0", subnet6="fd00:5::/64"), "lan1": segment("lan1", "10.6.0.0/30"), "bare": segment("bare", "")}


WEB = Owner("a" * 12, "web")
IRC = Owner("b" * 12, "irc")


def test_nic_is_completed(lans: dict[str, Segment]) -> None:
    (nic,) = wire(lans, WEB, [NicSpec("lan0")], [])
    assert nic == Nic(
        lan="lan0",
        lan_id=lans["lan0"].lan.id,
        name="eth0",
        mac=addressing.derived_mac("lan0", "web"),
        addresses=("10.5.0.1/24", "fd00:5::1/64"),
        mtu=1500,
        port=addressing.port_name(WEB.id, 0),
        bridge=lans["lan0"].lan.bridge,
    )
    assert lans["lan0"].size == 1


def test_several_nics(lans: dict[str, Segment]) -> None:
    nics = wire(lans, WEB, [NicSpec("lan0"), NicSpec("lan1", name="eth0"), NicSpec("lan0"), NicSpec("bare")], [])
    assert [nic.name for nic in nics] == ["eth1", "eth0", "eth2", "eth3"]
    assert [nic.addresses[:1] for nic in nics] == [("10.5.0.1/24",), ("10.6.0.1/30",), ("10.5.0.2/24",), ()]
    assert nics[2].mac == addressing.derived_mac("lan0", "web", 1)
    assert len({nic.port for nic in nics}) == 4


def test_given_values(lans: dict[str, Segment]) -> None:
    spec = NicSpec("lan0", "wan", "02:00:00:00:00:AA", ("10.5.0.77", "fd00:5::77/64"))
    (nic,) = wire(lans, WEB, [spec], [])
    assert (nic.name, nic.mac, nic.addresses) == ("wan", "02:00:00:00:00:aa", ("10.5.0.77/24", "fd00:5::77/64"))


def test_given_addresses_come_before_handed_out_ones(lans: dict[str, Segment]) -> None:
    nics = wire(lans, WEB, [NicSpec("lan0"), NicSpec("lan0", addresses=("10.5.0.1",))], [])
    assert [nic.addresses[0] for nic in nics] == ["10.5.0.2/24", "10.5.0.1/24"]


def test_next_hops_are_not_handed_out(lans: dict[str, Segment]) -> None:
    (nic,) = wire(lans, WEB, [NicSpec("lan0")], next_hops("10.5.0.1", []))
    assert nic.addresses[0] == "10.5.0.2/24"
    (other,) = wire(lans, IRC, [NicSpec("lan0")], [])
    assert other.addresses[0] == "10.5.0.3/24"
    router = Owner("c" * 12, "router")
    (given,) = wire(lans, router, [NicSpec("lan0", addresses=("10.5.0.1",))], [])
    assert given.addresses == ("10.5.0.1/24",)
    unwire({one.lan.id: one for one in lans.values()}, router, [given])
    unwire({one.lan.id: one for one in lans.values()}, WEB, [nic])
    (again,) = wire(lans, router, [NicSpec("lan0")], [])
    assert again.addresses[0] == "10.5.0.1/24"


def test_name_of_a_renamed_container_gets_another_mac(lans: dict[str, Segment]) -> None:
    (first,) = wire(lans, WEB, [NicSpec("lan0")], [])
    (second,) = wire(lans, Owner("c" * 12, "web"), [NicSpec("lan0")], [])
    assert first.mac != second.mac


@pytest.mark.parametrize(
    ("specs", "error", "reason"),
    [
        ([NicSpec("lan0"), NicSpec("none")], NotFound, "LAN_NOT_FOUND"),
        ([NicSpec("lan0"), NicSpec("lan0", addresses=("10.5.1.1/24",))], InvalidArgument, "ADDRESS_OUTSIDE_SUBNET"),
        ([NicSpec("lan0", addresses=("10.5.0.0/24",))], InvalidArgument, "BAD_ADDRESS"),
        ([NicSpec("lan0", addresses=("10.5.0.255",))], InvalidArgument, "BAD_ADDRESS"),
        ([NicSpec("lan0", addresses=("10.5.0.9",)), NicSpec("lan0", addresses=("10.5.0.9/16",))], AlreadyExists, "ADDRESS_TAKEN"),
        ([NicSpec("lan0", addresses=("10.5.0.200",))], AlreadyExists, "ADDRESS_TAKEN"),
        ([NicSpec("bare", addresses=("10.5.0.200",))], InvalidArgument, "BAD_ADDRESS"),
        ([NicSpec("lan0", mac="02:00:00:00:00:01")], AlreadyExists, "MAC_TAKEN"),
        ([NicSpec("lan0", mac="02:00:00:00:00:02"), NicSpec("lan0", mac="02:00:00:00:00:02")], AlreadyExists, "MAC_TAKEN"),
        ([NicSpec("lan0", mac="03:00:00:00:00:02")], InvalidArgument, "BAD_MAC"),
        ([NicSpec("lan0", name="x"), NicSpec("lan1", name="x")], AlreadyExists, "NIC_EXISTS"),
        ([NicSpec("lan1"), NicSpec("lan1"), NicSpec("lan1")], ResourceExhausted, "SUBNET_FULL"),
    ],
)
def test_refusal_takes_nothing(lans: dict[str, Segment], specs: list[NicSpec], error: type[NestbedError], reason: str) -> None:
    wire(lans, IRC, [NicSpec("lan0", mac="02:00:00:00:00:01", addresses=("10.5.0.200",))], [])
    with pytest.raises(error) as caught:
        wire(lans, WEB, specs, next_hops("10.5.0.1", []))
    assert caught.value.reason == reason
    assert caught.value.remedy
    assert [one.size for one in lans.values()] == [1, 0, 0]
    nics = wire(lans, WEB, [NicSpec("lan0"), NicSpec("lan1"), NicSpec("lan1")], [])
    assert [nic.addresses[0] for nic in nics] == ["10.5.0.1/24", "10.6.0.1/30", "10.6.0.2/30"]


def test_small_mtu_has_no_ipv6() -> None:
    lans = {"small": segment("small", "", mtu=1000)}
    with pytest.raises(InvalidArgument):
        wire(lans, WEB, [NicSpec("small", addresses=("fd00::1/64",))], [])


def test_bridge_takes_1023_ports() -> None:
    lans = {"big": segment("big", "10.0.0.0/16")}
    for number in range(1023):
        wire(lans, Owner(f"{number:012x}", f"c{number}"), [NicSpec("big")], [])
    with pytest.raises(ResourceExhausted) as caught:
        wire(lans, WEB, [NicSpec("big")], [])
    assert caught.value.reason == "LAN_FULL"
    assert lans["big"].size == 1023


def test_hosts_lines_follow_members(lans: dict[str, Segment]) -> None:
    lan = lans["lan0"]
    (web,) = wire(lans, WEB, [NicSpec("lan0", addresses=("10.5.0.9",))], [])
    wire(lans, IRC, [NicSpec("lan0", addresses=("10.5.0.8",)), NicSpec("lan0", addresses=("10.5.0.7",))], [])
    assert lan.hosts_of_others("web") == "10.5.0.8\tirc irc-lan0\n10.5.0.7\tirc irc-lan0\n"
    version = lan.version
    lan.rename(web.port, "www")
    assert lan.version > version
    assert lan.hosts_of_others("irc") == "10.5.0.9\twww www-lan0\n"
    lan.leave(web.port)
    lan.leave(web.port)
    assert lan.hosts_of_others("irc") == ""
    assert lan.member_ids() == [IRC.id]


def test_routes_are_made_canonical(lans: dict[str, Segment]) -> None:
    nics = wire(lans, WEB, [NicSpec("lan0", addresses=("10.5.0.9", "fd00:5::9/64"))], [])
    routes = (Route("10.7.0.0/16", "10.5.0.2"), Route("FD00:0::/32", "fd00:5:0::2"), Route("default", "fd00:5::3"))
    gateway, checked = check_routes("10.5.0.1", routes, nics)
    assert gateway == "10.5.0.1"
    assert checked == (Route("10.7.0.0/16", "10.5.0.2"), Route("fd00::/32", "fd00:5::2"), Route("default", "fd00:5::3"))
    assert check_routes("", (), ()) == ("", ())


@pytest.mark.parametrize(
    ("gateway", "routes", "reason"),
    [
        ("10.9.0.1", (), "UNREACHABLE_NEXT_HOP"),
        ("10.5.0.9", (), "OWN_NEXT_HOP"),
        ("nobody", (), "BAD_ADDRESS"),
        ("10.5.0.1/24", (), "BAD_ADDRESS"),
        ("", (Route("10.7.0.1/16", "10.5.0.2"),), "BAD_ROUTE"),
        ("", (Route("fd00::/32", "10.5.0.2"),), "BAD_ROUTE"),
        ("10.5.0.1", (Route("default", "10.5.0.2"),), "DUPLICATE_ROUTE"),
        ("", (Route("10.7.0.0/16", "10.5.0.2"), Route("10.7.0.0/16", "10.5.0.3")), "DUPLICATE_ROUTE"),
    ],
)
def test_bad_routes(lans: dict[str, Segment], gateway: str, routes: tuple[Route, ...], reason: str) -> None:
    nics = wire(lans, WEB, [NicSpec("lan0", addresses=("10.5.0.9",))], [])
    with pytest.raises(InvalidArgument) as caught:
        check_routes(gateway, routes, nics)
    assert caught.value.reason == reason
    assert caught.value.remedy
