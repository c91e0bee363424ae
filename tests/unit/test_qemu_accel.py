"""The trial guest that tells whether an accelerator works."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nestbed.qemu import accel, command

pytestmark = pytest.mark.skipif(not os.access(command.QEMU, os.X_OK), reason="needs qemu-system-x86_64")


async def test_trial_guest_runs_where_the_accelerator_works(tmp_path: Path) -> None:
    image = tmp_path / "firmware"
    image.write_bytes(accel.firmware())
    assert await accel.trial(image, "tcg") == 33


async def test_what_was_found_is_kept_until_the_next_boot(tmp_path: Path) -> None:
    (tmp_path / "accelerator.json").write_text(f'{{"boot_id": "{accel.this_boot()}", "name": "tcg", "why": "it was so"}}')
    assert await accel.find(tmp_path) == accel.Accelerator("tcg", "it was so")


async def test_trial_that_hangs_is_ended(tmp_path: Path) -> None:
    image = tmp_path / "firmware"
    image.write_bytes(b"\xeb\xfe" * (1 << 15))  # jumps to itself
    assert await accel.trial(image, "tcg", seconds=0.3) is None
    assert not [name for name in os.listdir("/proc") if str(image).encode() in _command(name)]


def _command(name: str) -> bytes:
    try:
        return Path(f"/proc/{name}/cmdline").read_bytes()
    except OSError:
        return b""
