"""The fake runtime obeys the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nestbed.lanmodel import Nic
from nestbed.testing.bench import Bench
from nestbed.testing.contract import RuntimeContract
from nestbed.testing.fake import FakeKernel, FakeRuntime


def make_nic(container_id: str, number: int) -> Nic:
    return Nic("lan", "0" * 12, f"eth{number}", f"02:00:00:00:00:0{number}", (), 1500, f"p{container_id[:8]}{number}", "bridge")


class TestFakeRuntime(RuntimeContract):
    @pytest.fixture
    async def bench(self, tmp_path: Path) -> AsyncIterator[Bench]:
        kernel = FakeKernel()
        async with Bench(lambda: FakeRuntime(kernel), tmp_path, make_nic) as bench:
            yield bench
        await kernel.aclose()
