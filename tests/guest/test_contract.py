"""The runtime for virtual machines with real ones, booted from the node's own root under TCG: the contract."""

from __future__ import annotations

import pytest

from nestbed.testing.contract import RuntimeContract

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]


class TestQemuRuntime(RuntimeContract):
    """The contract."""
