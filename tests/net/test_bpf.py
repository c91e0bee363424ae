"""BPF objects and the maps that outlive them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nestbed.lan.fastpath import OBJECT
from nestbed.linux import bpf
from nestbed.linux.mount import MNT_DETACH, umount2


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    bpf.mount_bpffs(tmp_path)
    yield tmp_path
    umount2(str(tmp_path), MNT_DETACH)


def test_pinned_maps_are_taken_over_if_they_have_the_shape_of_the_objects(pins: Path) -> None:
    with bpf.Object.load(OBJECT, pin_dir=pins) as first, first.map("groups") as groups, first.map("members") as other:
        key, value = bytes(range(groups.key_size)), bytes(groups.value_size)
        groups.update(key, value)
        with bpf.Map.pinned(pins / "lans") as pinned:
            shape = pinned.shape
        (pins / "lans").unlink()
        bpf.pin(other.fd, pins / "lans")
    with bpf.Object.load(OBJECT, pin_dir=pins) as second, second.map("groups") as groups, second.map("lans") as lans:
        assert groups.lookup(key) == value
        assert lans.shape == shape
        with bpf.Map.pinned(pins / "lans") as pinned:
            assert pinned.shape == shape
