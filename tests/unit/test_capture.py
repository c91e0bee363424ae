"""The file format of captures, byte by byte, and what they share with the BPF programs."""

from __future__ import annotations

import re
import struct
from importlib import resources

from hypothesis import given
from hypothesis import strategies as st

from nestbed.lan import capture, pcapng


def test_section_and_interface() -> None:
    assert pcapng.section("x").hex() == (
        "0a0d0d0a" + "28000000" + "4d3c2b1a" + "01000000" + "ffffffffffffffff" + "0400010078000000" + "00000000" + "28000000"
    )
    block = pcapng.interface("lan0", snap_bytes=96, expression="arp", description="d")
    kind, size, link, _, snap = struct.unpack_from("<IIHHI", block)
    assert (kind, size, link, snap) == (1, len(block), 1, 96)
    assert b"\x02\x00\x04\x00lan0" in block
    assert b"\x09\x00\x01\x00\x09\x00\x00\x00" in block, "times are in nanoseconds"
    assert b"\x0b\x00\x04\x00\x00arp" in block


@given(st.binary(max_size=70), st.integers(0, 1 << 63), st.integers(0, 1 << 31))
def test_packet(data: bytes, at_ns: int, more: int) -> None:
    block = pcapng.packet(at_ns, len(data) + more, data)
    kind, size, interface, high, low, kept, length = struct.unpack_from("<7I", block)
    assert (kind, size, interface, kept, length) == (6, len(block), 0, len(data), len(data) + more)
    assert high << 32 | low == at_ns
    assert len(block) % 4 == 0
    assert block[28 : 28 + kept] == data
    assert set(block[28 + kept : -4]) <= {0}
    assert block[-4:] == block[4:8]


def test_statistics() -> None:
    block = pcapng.statistics((7 << 32) + 5, 3, received=100, dropped=20, written=80)
    assert struct.unpack_from("<IIIII", block) == (5, len(block), 0, 7, 5)
    for number, count in ((4, 100), (5, 20), (6, 100), (7, 20), (8, 80)):
        assert struct.pack("<HHQ", number, 8, count) in block


def test_mark_is_that_of_the_programs() -> None:
    source = resources.files("nestbed.lan").joinpath("bpf/port.bpf.c").read_text()
    found = re.search(r"#define LEG_MARK (0x[0-9a-f]+)", source)
    assert found
    assert int(found[1], 16) == capture.LEG_MARK
