"""What the BPF programs counted, decoded."""

from __future__ import annotations

import struct

from nestbed.lan import traffic
from nestbed.lan.reasons import REASONS_MAX, Reason
from nestbed.lanmodel import TRAFFIC_CLASSES, ClassCount, DropCount


def value(frames: int, size: int, classes: dict[str, tuple[int, int]], drops: dict[Reason, int]) -> bytes:
    numbers = [frames, size]
    for name in TRAFFIC_CLASSES:
        numbers += classes.get(name, (0, 0))
    table = [0] * REASONS_MAX
    for reason, count in drops.items():
        table[reason] = count
    return struct.pack(f"={len(numbers) + REASONS_MAX}Q", *numbers, *table)


def test_values_of_all_cpus_are_added_up() -> None:
    one = value(3, 300, {"ipv4": (3, 300), "tcp": (2, 200)}, {Reason.LOSS: 1})
    other = value(1, 60, {"arp": (1, 60)}, {Reason.LOSS: 4, Reason.QUEUE: 2})
    found = traffic.decode([one, other])
    assert (found.frames, found.bytes) == (4, 360)
    assert [count.name for count in found.classes] == list(TRAFFIC_CLASSES)
    assert {count for count in found.classes if count.frames} == {
        ClassCount("ipv4", 3, 300), ClassCount("tcp", 2, 200), ClassCount("arp", 1, 60),
    }  # fmt: skip
    assert found.drops == (DropCount("loss", 5), DropCount("queue", 2))


def test_nothing_counted_is_nothing() -> None:
    assert (traffic.decode([]).frames, traffic.decode([]).drops) == (0, ())
