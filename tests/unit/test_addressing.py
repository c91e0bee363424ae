"""Addresses, MACs and names on a LAN."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestbed.errors import InvalidArgument
from nestbed.lan import addressing, nested
from nestbed.lan.addressing import AddressPool

TEXTS = st.text(max_size=80)


def test_derived_names_are_what_others_rely_on() -> None:
    assert addressing.derived_mac("lan0", "web") == "02:e0:e5:9d:d5:b6"
    assert addressing.derived_mac("lan0", "web", 1) != addressing.derived_mac("lan0", "web")
    assert addressing.derived_mac("lan0", "web") != addressing.derived_mac("lan1", "web")
    assert len(addressing.bridge_name("0123456789ab")) == 13
    ports = [addressing.port_name("0123456789ab", index) for index in (0, 9, 10, 35, 36, 36**4 - 1)]
    assert [port.removeprefix(addressing.port_prefix("0123456789ab")) for port in ports] == ["0", "9", "a", "z", "10", "zzzz"]
    assert max(map(len, ports)) == 15


@pytest.mark.parametrize(("given_mtu", "mtu"), [(0, 1500), (68, 68), (9000, 9000), (65535, 65535)])
def test_mtu(given_mtu: int, mtu: int) -> None:
    assert addressing.check_mtu(given_mtu) == mtu


@pytest.mark.parametrize("mtu", [-1, 1, 67, 65536, 1 << 40])
def test_bad_mtu(mtu: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        addressing.check_mtu(mtu)
    assert caught.value.reason == "BAD_MTU"
    assert caught.value.remedy


def test_ipv6_needs_1280() -> None:
    with pytest.raises(InvalidArgument):
        addressing.check_mtu(1279, has_subnet6=True)
    assert addressing.check_mtu(1280, has_subnet6=True) == 1280


@pytest.mark.parametrize("text", ["02:00:00:00:00:07", "02-00-00-00-00-07", "AA:BB:CC:DD:EE:FF"])
def test_mac(text: str) -> None:
    assert addressing.check_mac(text) == text.lower().replace("-", ":")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "01:00:00:00:00:07",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "02:00:00:00:00",
        "02:00:00:00:00:07:08",
        "2:0:0:0:0:7",
        "02:00:00:00:00:0g",
        "02:00:00:00:00:07\n",
        "٠٢:00:00:00:00:07",
        "x" * 10_000,
    ],
)
def test_bad_mac(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        addressing.check_mac(text)
    assert caught.value.reason == "BAD_MAC"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("text", "version", "canonical"),
    [
        ("10.5.0.0/24", 4, "10.5.0.0/24"),
        ("10.0.0.0/31", 4, "10.0.0.0/31"),
        ("FD00:5:0::/64", 6, "fd00:5::/64"),
        ("169.254.0.0/16", 4, None),
    ],
)
def test_subnet(text: str, version: int, canonical: str | None) -> None:
    assert addressing.check_subnet(text, version) == (canonical or text)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("10.5.0.7/24", 4),
        ("10.5.0.0", 4),
        ("10.5.0.0/33", 4),
        ("10.5.0.0/0", 4),
        ("0.0.0.0/0", 4),
        ("0.0.0.0/8", 4),
        ("127.0.0.0/8", 4),
        ("224.0.0.0/8", 4),
        ("fd00::/64", 4),
        ("10.5.0.0/24", 6),
        ("fd00::/128", 6),
        ("fe80::%eth0/64", 6),
        ("ff02::/64", 6),
        ("::ffff:10.0.0.0/120", 6),
        ("../24", 4),
        ("10.5.0.0/24\n", 4),
        ("٣.0.0.0/8", 4),
        ("9" * 10_000, 4),
    ],
)
def test_bad_subnet(text: str, version: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        addressing.check_subnet(text, version)
    assert caught.value.reason == "BAD_SUBNET"
    assert caught.value.remedy


def test_prefix_length_comes_from_the_subnet() -> None:
    network = ipaddress.ip_network("10.5.0.0/24")
    assert str(addressing.parse_interface("10.5.0.7", network)) == "10.5.0.7/24"
    assert str(addressing.parse_interface("10.5.0.7/16", network)) == "10.5.0.7/16"
    with pytest.raises(InvalidArgument):
        addressing.parse_interface("10.5.0.7")
    with pytest.raises(InvalidArgument):
        addressing.parse_interface("fd00::7", network)


@pytest.mark.parametrize(
    "text", ["10.5.0.0/24", "10.5.0.255/24", "127.0.0.1/8", "224.0.0.1/4", "0.0.0.0/0", "fd00::/64", "::1/128", "fe80::1%lo/64"]
)
def test_addresses_that_no_interface_can_have(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        addressing.parse_interface(text)
    assert caught.value.reason == "BAD_ADDRESS"


def test_destinations() -> None:
    assert str(addressing.parse_destination("default", 4)) == "0.0.0.0/0"
    assert str(addressing.parse_destination("default", 6)) == "::/0"
    assert str(addressing.parse_destination("10.6.0.9", 4)) == "10.6.0.9/32"
    for text, version in (("10.6.0.9/24", 4), ("10.6.0.0/24", 6), ("nowhere", 4)):
        with pytest.raises(InvalidArgument):
            addressing.parse_destination(text, version)


@given(TEXTS, st.sampled_from([4, 6]))
def test_any_text_is_taken_or_refused(text: str, version: int) -> None:
    for parse in (
        addressing.check_mac,
        addressing.parse_interface,
        addressing.parse_address,
        lambda text: addressing.check_subnet(text, version),
        lambda text: addressing.parse_destination(text, version),
    ):
        error = refusal(parse, text)
        assert error is None or (error.remedy and error.message.isprintable())


def refusal(parse: Callable[[str], object], text: str) -> InvalidArgument | None:
    try:
        parse(text)
    except InvalidArgument as error:
        return error
    return None


class Model:
    """The plain meaning of AddressPool."""

    def __init__(self, network: ipaddress.IPv4Network) -> None:
        self.usable = [int(address) for address in network.hosts()]
        self.taken: set[int] = set()
        self.reserved: list[int] = []

    def allocate(self) -> int | None:
        found = next((address for address in self.usable if address not in self.taken and address not in self.reserved), None)
        if found is not None:
            self.taken.add(found)
        return found


STEPS = st.lists(st.tuples(st.sampled_from(["allocate", "take", "release", "reserve", "unreserve"]), st.integers(0, 17)), max_size=80)


@given(STEPS)
def test_pool_hands_out_the_lowest_free_address(steps: list[tuple[str, int]]) -> None:
    network = ipaddress.ip_network("10.0.0.0/28")
    assert isinstance(network, ipaddress.IPv4Network)
    pool, model = AddressPool(network), Model(network)
    for step, offset in steps:
        address = int(network.network_address) + offset
        if step == "allocate":
            assert pool.allocate() == model.allocate()
        elif step == "take":
            pool.take(address)
            model.taken.add(address)
        elif step == "release":
            pool.release(address)
            model.taken.discard(address)
        elif step == "reserve":
            pool.reserve(address)
            model.reserved.append(address)
        elif address in model.reserved:
            pool.unreserve(address)
            model.reserved.remove(address)
        assert pool.is_taken(address) == (address in model.taken)


def test_pool_without_a_subnet_hands_out_nothing() -> None:
    pool = AddressPool(None)
    pool.take(7)
    assert pool.is_taken(7)
    pool.release(7)
    assert pool.allocate() is None


def test_two_address_subnets_are_used_whole() -> None:
    pool = AddressPool(ipaddress.ip_network("10.0.0.0/31"))
    assert [pool.allocate() for _ in range(3)] == [0x0A000000, 0x0A000001, None]


def test_pool_is_fast_when_full() -> None:
    pool = AddressPool(ipaddress.ip_network("10.0.0.0/16"))
    addresses = [pool.allocate() for _ in range(60_000)]
    began = time.perf_counter()
    for address in addresses[1000:2000]:
        assert address is not None
        pool.release(address)
        assert pool.allocate() == address
    assert time.perf_counter() - began < 0.5


def test_each_depth_of_nodes_inside_has_a_subnet_of_its_own() -> None:
    assert nested.subnet_below([]) == nested.subnet_below(["192.0.2.1", ""]) == "198.18.0.0/24"
    assert nested.subnet_below(["192.0.2.1", "198.18.0.2"]) == "198.18.1.0/24"
    assert nested.own_address(nested.lan_of("0123abcd", "198.18.1.0/24")) == "198.18.1.1/24"
    assert nested.lan_of("0123abcd", "").bridge != nested.lan_of("0123abce", "").bridge
