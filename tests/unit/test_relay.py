"""The relay's parts that need no kernel object: what is asked, classes, stations, counters. And the wire format as stock QEMU writes it."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestbed.lan import traffic
from nestbed.lan.relay import frames, macs, tally, wanted
from nestbed.lan.relay.macs import LOCAL, MacTable
from nestbed.lan.relay.members import local_members
from nestbed.lan.relay.tally import Tally
from nestbed.lan.relay.wanted import DelayLeg, RelayedLan, Wanted
from nestbed.lanmodel import TRAFFIC_CLASSES

LAN = RelayedLan("0123456789ab", "nbt0", 1500, "239.1.2.3", 5000, ("eth1", "eth2"), ("192.0.2.7",), 1, is_fast=True)
LEG = DelayLeg("nbd0", 5000, 1000, 0.25, 100, 3)
MAC = b"\x02\0\0\0\0\x01"

# What came out of `qemu-system-x86_64 -device e1000,netdev=n0 -netdev socket,id=n0,mcast=239.1.2.3:5000 -boot n` (7.2.22) as the datagrams'
# payload when its network boot ROM asked for an address: bare frames, no header before them.
QEMU_DATAGRAMS = {
    "33330000000252540012345686dd6000000000103afffe80000000000000505400fffe123456ff020000000000000000000000000002850071b50000"
    "00000101525400123456": {"ipv6", "icmp", "multicast"},
    "ffffffffffff5254001234560800450001ac010000004011784200000000ffffffff004400430198651401010600d8db5e1e00040000000000000000"
    "000000000000000000005254001234560000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000063825363350101390205c05d0200005e030102013c20"
    "505845436c69656e743a417263683a30303030303a554e44493a3030323030314d04695058453717010306070c0f111a2b3c42437780818283848586"
    "87afcbaf30b105018086100eeb030100001701012201011301011101012701011901012901011001022101011501011801011201013d070152540012"
    "345661110000000000000000000000000000000000ff": {"ipv4", "udp", "broadcast"},
}  # fmt: skip


def classes_of(frame: bytes) -> set[str]:
    return {TRAFFIC_CLASSES[(cell - tally.CLASSES_AT) // 2] for cell in frames.cells_of(frame)}


@pytest.mark.parametrize("data", QEMU_DATAGRAMS, ids=["router-solicitation", "dhcp-discover"])
def test_datagrams_of_stock_qemu_are_frames(data: str) -> None:
    frame = bytes.fromhex(data)
    assert frame[6:12] == bytes.fromhex("525400123456")
    assert classes_of(frame) == QEMU_DATAGRAMS[data]


@pytest.mark.parametrize(
    ("kind_and_payload", "classes"),
    [
        ("0800" + "45" + "00" * 8 + "06", {"ipv4", "tcp"}),
        ("0800", {"ipv4"}),
        ("86dd" + "60" + "00" * 5 + "06", {"ipv6", "tcp"}),
        ("86dd" + "60" + "00" * 5 + "00" + "00" * 33 + "3a00", {"ipv6", "icmp"}),
        ("86dd60", {"ipv6"}),
        ("8100" + "0007" + "0800" + "45" + "00" * 8 + "11", {"ipv4", "udp"}),
        ("88a8" + "0007" + "8100" + "0008" + "86dd" + "60" + "00" * 5 + "11", {"ipv6", "udp"}),
        ("8100" + "0007" + "8100" + "0008" + "8100" + "0009" + "0800", {"other"}),
        ("8100" + "00", {"other"}),
        ("88cc", {"other"}),
        ("0806", {"arp"}),
    ],
)
def test_classes(kind_and_payload: str, classes: set[str]) -> None:
    frame = bytes(6) + MAC + bytes.fromhex(kind_and_payload)
    assert classes_of(frame) == classes
    assert classes_of(b"\xff" * 6 + frame[6:]) == classes | {"broadcast"}
    assert classes_of(b"\x01" * 6 + frame[6:]) == classes | {"multicast"}


@given(st.binary(min_size=14, max_size=80), st.sampled_from(["", "0800", "86dd", "8100", "88a8", "81000007", "810000070800"]))
def test_no_frame_is_too_strange(data: bytes, kind: str) -> None:
    frame = data[:12] + bytes.fromhex(kind) + data[12:]
    assert 1 <= len(classes_of(frame)) <= 3
    assert 14 <= frames.header_bytes(frame) <= 22


def test_what_is_asked_is_read_as_it_was_written(tmp_path) -> None:
    assert not wanted.read(tmp_path)
    asked = Wanted(7, (LAN,), (LEG,))
    wanted.write(tmp_path, asked)
    assert wanted.read(tmp_path) == asked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"version":2}',
        '{"version":1,"generation":1,"lans":[{}],"legs":[]}',
        '{"version":1,"lans":[],"legs":[1]}',
    ],
)
def test_a_damaged_request_is_refused(tmp_path, text: str) -> None:
    (tmp_path / wanted.FILE).write_text(text)
    with pytest.raises(ValueError, match=wanted.FILE):
        wanted.read(tmp_path)


def test_a_station_may_move_now_and_then() -> None:
    table = MacTable(0.0)
    for number in range(100):
        assert table.admits(MAC, "192.0.2.1" if number % 2 else LOCAL, number * 0.3)
    assert table.loops == []


def test_what_is_in_two_places_at_once_is_taken_where_it_came_from_first() -> None:
    table = MacTable(0.0)
    for number in range(100):
        assert table.admits(MAC, LOCAL, number * 0.01)
        assert not table.admits(MAC, "192.0.2.1", number * 0.01)
    assert [(loop.mac, loop.origin, loop.other) for loop in table.loops] == [(MAC.hex(":"), LOCAL, "192.0.2.1")]
    assert table.admits(b"\x02\0\0\0\0\x02", "192.0.2.1", 0.1)


def test_a_restless_station_is_pinned_as_long_as_both_are_heard() -> None:
    table, times = MacTable(0.0), [number * 0.06 for number in range(200)]
    passed = [table.admits(MAC, "192.0.2.1" if number % 2 else LOCAL, now) for number, now in enumerate(times)]
    assert passed[: macs.MOVES_MAX + 1] == [True] * (macs.MOVES_MAX + 1)
    kept = macs.MOVES_MAX % 2
    until = int(macs.PIN_SECONDS / 0.06)
    assert [number % 2 for number in range(macs.MOVES_MAX + 1, until) if passed[number]] == [kept] * len(
        range(macs.MOVES_MAX + 2, until, 2)
    )
    assert not table.admits(MAC, LOCAL, times[-1] + 0.01)
    assert table.admits(MAC, LOCAL, times[-1] + macs.PIN_SECONDS + 1)


def test_silent_stations_are_forgotten_and_the_table_is_bounded() -> None:
    table = MacTable(0.0)
    table.admits(MAC, "192.0.2.1", 0.0)
    table.age(macs.AGE_SECONDS)
    assert table.owner(MAC) == "192.0.2.1"
    table.age(2 * macs.AGE_SECONDS)
    assert table.owner(MAC) is None
    for number in range(5 * macs.STATIONS_MAX):
        assert table.admits(number.to_bytes(6, "big"), LOCAL, 1000.0)
    assert len(table.places) <= macs.STATIONS_MAX


def test_counters_outlive_writer_and_reader(tmp_path) -> None:
    assert Tally.open_to_read(tmp_path) is None
    writer = Tally.open_to_write(tmp_path)
    reader = Tally.open_to_read(tmp_path)
    assert reader is not None
    assert reader.look("lan") is None
    assert reader.is_current(tmp_path)
    with writer.claim("lan") as cells:
        frames.count(cells, tally.SENT_AT, [b"\xff" * 6 + MAC + b"\x08\x06" + bytes(28)])
        cells[tally.RECEIVED_AT + tally.DROPS_AT + 3] += 2
    writer.close()
    writer = Tally.open_to_write(tmp_path)
    data = reader.look("lan")
    assert data is not None
    received, sent = (traffic.decode([data[at : at + traffic.BYTES]]) for at in (0, traffic.BYTES))
    assert (sent.frames, sent.bytes) == (1, 42)
    assert {each.name for each in sent.classes if each.frames} == {"arp", "broadcast"}
    assert [(drop.reason, drop.frames) for drop in received.drops] == [("runt", 2)]
    writer.keep_only(["other"])
    assert reader.look("lan") is None
    assert reader.is_current(tmp_path)
    with writer.claim("other") as cells:
        assert not any(cells)
    writer.close()
    (tmp_path / "short").write_bytes(b"short")
    (tmp_path / "short").rename(tmp_path / tally.FILE)
    Tally.open_to_write(tmp_path).close()
    assert not reader.is_current(tmp_path)
    assert reader.look("other") is not None  # of the old one, and nobody dies
    reader.close()


def test_histogram_buckets_are_a_sixteenth_wide() -> None:
    last = -1
    for delay in [*range(2000), *(1 << shift for shift in range(11, 30))]:
        index = tally.bucket(delay)
        assert last <= index < tally.BUCKETS
        if delay < 1 << 26:
            first, end = tally.bucket_range_us(index)
            assert first <= delay < end
            assert end - first <= max(1, delay / 16)
        last = index


def test_quantiles_of_a_histogram() -> None:
    histogram = [0] * tally.BUCKETS
    for delay in range(1000, 2000):
        histogram[tally.bucket(delay)] += 1
    assert tally.quantile_us(histogram, 0.5) == pytest.approx(1500, abs=2)
    assert tally.quantile_us(histogram, 0.99) == pytest.approx(1990, rel=1 / 16)
    assert tally.quantile_us([0] * tally.BUCKETS, 0.99) == 0


def test_sockets_of_others_are_found() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        assert sock.getsockname() in local_members(())
