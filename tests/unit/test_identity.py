"""Which group and peers a LAN has, and what is refused."""

from __future__ import annotations

import ipaddress

import pytest

from nestbed.errors import AlreadyExists, HostLacks, InvalidArgument, NestbedError
from nestbed.lan import identity
from nestbed.lanmodel import Lan, LanRequest, Underlay
from nestbed.node.identity import identify
from nestbed.plain import from_json, to_json

GOOD = Underlay("u1", exists=True, is_up=True, has_multicast=True, address="192.0.2.1", mtu=1500)
LAN = Lan("0123456789ab", "lan0", "nbb0")
GROUP = "239.1.2.3:5000"


def test_derived_group_is_the_same_for_ever() -> None:
    assert identity.default_group("0123456789ab") == "239.193.251.105:64566"


def test_derived_groups_are_in_scope_and_apart() -> None:
    groups = [identity.default_group(f"{number:012x}") for number in range(1000)]
    for group in groups:
        address, _, port = group.rpartition(":")
        assert ipaddress.ip_address(address) in ipaddress.ip_network("239.192.0.0/14")
        assert 49152 <= int(port) <= 65535
    assert len(set(groups)) == len(groups)


def test_lan_on_a_node_with_underlays_has_a_group() -> None:
    made = identify(LAN, LanRequest("lan0"), [], [GOOD])
    assert (made.group, made.peers, made.ttl) == (identity.default_group(LAN.id), (), 1)
    assert made.group_address == made.group.split(":")[0]
    assert made.group_port == int(made.group.split(":")[1])


def test_derived_group_that_is_taken_is_left() -> None:
    other = Lan("b" * 12, "other", "nbb1", group=identity.default_group(LAN.id))
    assert identify(LAN, LanRequest("lan0"), [other], [GOOD]).group == identity.default_group(LAN.id, 1)


def test_lan_stays_on_a_node_without_underlays_or_if_local() -> None:
    assert identify(LAN, LanRequest("lan0"), [], []) == LAN
    assert identify(LAN, LanRequest("lan0", is_local=True), [], [GOOD]) == LAN
    assert not LAN.is_relayed


def test_given_values() -> None:
    request = LanRequest("lan0", group="239.1.2.3:05000", peers=("192.0.2.9", "192.0.2.9"), ttl=7)
    made = identify(LAN, request, [], [GOOD])
    assert (made.group, made.peers, made.ttl) == (GROUP, ("192.0.2.9",), 7)
    assert from_json(Lan, to_json(made)) == made


def test_same_address_with_another_port_is_another_group() -> None:
    other = Lan("b" * 12, "other", "nbb1", group=GROUP)
    assert identify(LAN, LanRequest("lan0", group="239.1.2.3:5001"), [other], [GOOD]).group == "239.1.2.3:5001"


def test_record_of_a_time_without_groups_is_read() -> None:
    data = {"id": LAN.id, "name": "lan0", "bridge": "nbb0", "mtu": 1500, "subnet": "", "subnet6": "", "labels": [], "created_at": 1}
    assert from_json(Lan, data) == Lan(LAN.id, "lan0", "nbb0", created_at=1.0)


BAD_GROUPS = [
    "",
    "239.1.2.3",
    "239.1.2.3:",
    "239.1.2.3:0",
    "239.1.2.3:65536",
    "239.1.2.3:-1",
    "239.1.2.3:5000:1",
    "239.1.2.3:٣",
    "239.1.2.3:" + "0" * 200 + "1",
    "10.0.0.1:5000",
    "224.0.0.5:5000",
    "255.255.255.255:5000",
    "ff02::1:5000",
    "[ff02::1]:5000",
    "host:5000",
    " 239.1.2.3:5000",
]


@pytest.mark.parametrize("text", BAD_GROUPS)
def test_bad_group(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        identity.check_group(text)
    assert caught.value.reason == "BAD_GROUP"
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text", ["", "239.1.2.3", "127.0.0.1", "0.0.0.0", "255.255.255.255", "fd00::1", "host", "192.0.2.1/24", "192.0.2.1:5"]
)
def test_bad_peer(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        identity.check_peer(text)
    assert caught.value.reason == "BAD_PEER"


def changed(**changes: object) -> Underlay:
    return Underlay(**{"name": "u1", "exists": True, "is_up": True, "has_multicast": True, "address": "192.0.2.1", "mtu": 1500, **changes})  # type: ignore[arg-type]


TAKEN = Lan("b" * 12, "other", "nbb1", group=GROUP)
PEERED = Lan("b" * 12, "other", "nbb1", group=GROUP, peers=("192.0.2.9",))


@pytest.mark.parametrize(
    ("request_", "others", "underlays", "error", "reason"),
    [
        (LanRequest("lan0", group=GROUP), [], [], HostLacks, "NO_UNDERLAY"),
        (LanRequest("lan0", peers=("192.0.2.9",)), [], [], HostLacks, "NO_UNDERLAY"),
        (LanRequest("lan0", ttl=1), [], [], HostLacks, "NO_UNDERLAY"),
        (LanRequest("lan0", group=GROUP, is_local=True), [], [GOOD], InvalidArgument, "CONFLICTING_OPTIONS"),
        (LanRequest("lan0", group=GROUP), [TAKEN], [GOOD], AlreadyExists, "GROUP_IN_USE"),
        (LanRequest("lan0", group="239.9.9.9:5000", peers=("192.0.2.8",)), [PEERED], [GOOD], AlreadyExists, "GROUP_IN_USE"),
        (LanRequest("lan0", peers=("192.0.2.1",)), [], [GOOD], InvalidArgument, "BAD_PEER"),
        (LanRequest("lan0", peers=tuple(f"192.0.2.{n}" for n in range(2, 67))), [], [GOOD], InvalidArgument, "TOO_MANY"),
        (LanRequest("lan0", ttl=256), [], [GOOD], InvalidArgument, "BAD_TTL"),
        (LanRequest("lan0"), [], [Underlay("u1")], HostLacks, "BAD_UNDERLAY"),
        (LanRequest("lan0"), [], [changed(address="")], HostLacks, "BAD_UNDERLAY"),
        (LanRequest("lan0"), [], [changed(has_multicast=False)], HostLacks, "BAD_UNDERLAY"),
        (LanRequest("lan0"), [], [GOOD, changed(name="u2", mtu=500)], HostLacks, "BAD_UNDERLAY"),
    ],
)
def test_refusals(request_: LanRequest, others: list[Lan], underlays: list[Underlay], error: type[NestbedError], reason: str) -> None:
    with pytest.raises(error) as caught:
        identify(LAN, request_, others, underlays)
    assert caught.value.reason == reason
    assert caught.value.remedy


def test_mtu_that_fits_no_datagram() -> None:
    with pytest.raises(InvalidArgument) as caught:
        identify(Lan(LAN.id, "lan0", "nbb0", mtu=65490), LanRequest("lan0"), [], [GOOD])
    assert caught.value.reason == "BAD_MTU"
    identify(Lan(LAN.id, "lan0", "nbb0", mtu=65489), LanRequest("lan0"), [], [GOOD])


def test_peers_need_no_multicast_and_an_underlay_may_be_down() -> None:
    identify(LAN, LanRequest("lan0", peers=("192.0.2.9",)), [], [changed(has_multicast=False)])
    identify(LAN, LanRequest("lan0"), [], [changed(is_up=False)])
