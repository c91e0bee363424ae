"""Drop reasons mean the same to the BPF programs as to everybody else."""

import re
from pathlib import Path

import nestbed.lan
from nestbed.lan.reasons import REASONS_MAX, Reason

HEADER = Path(nestbed.lan.__file__).parent / "bpf" / "reasons.h"


def test_the_header_has_the_same_numbers() -> None:
    text = HEADER.read_text()
    assert {name: int(number) for name, number in re.findall(r"REASON_(\w+) = (\d+)", text)} == {r.name: r.value for r in Reason}
    assert re.search(r"#define REASONS_MAX (\d+)", text).group(1) == str(REASONS_MAX)
    assert max(Reason) < REASONS_MAX


def test_labels_are_for_people() -> None:
    assert Reason.NO_LAN.label == "no-lan"
    assert len({reason.label for reason in Reason}) == len(Reason)
