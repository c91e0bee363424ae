"""``struct traffic`` of ``bpf/traffic.h`` as the model's Traffic: what the BPF programs count per CPU, added up."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from nestbed.lan.reasons import REASONS_MAX, Reason
from nestbed.lanmodel import TRAFFIC_CLASSES, ClassCount, DropCount, Traffic

_LAYOUT = struct.Struct(f"={2 + 2 * len(TRAFFIC_CLASSES) + REASONS_MAX}Q")
BYTES = _LAYOUT.size


def decode(values: Iterable[bytes]) -> Traffic:
    """The sum of the values, each of BYTES. Classes are all there; of reasons, those that occurred."""
    sums = [sum(column) for column in zip(*(_LAYOUT.unpack(value) for value in values), strict=True)]
    frames, size, *rest = sums or [0] * (_LAYOUT.size // 8)
    pairs, drops = rest[: 2 * len(TRAFFIC_CLASSES)], rest[2 * len(TRAFFIC_CLASSES) :]
    classes = tuple(ClassCount(name, *pairs[2 * at : 2 * at + 2]) for at, name in enumerate(TRAFFIC_CLASSES))
    return Traffic(frames, size, classes, drop_counts(drops))


def drop_counts(by_number: Sequence[int]) -> tuple[DropCount, ...]:
    """Drops by the number of their reason, by its label; reasons that did not occur are left out."""
    return tuple(DropCount(reason.label, by_number[reason]) for reason in Reason if by_number[reason])
