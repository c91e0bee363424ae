"""The process runtime with a real keeper, real namespaces and real cgroups: the contract, and what is its own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nestbed.lan.addressing import port_name
from nestbed.linux.rtnl import Rtnl, disable_ipv6
from nestbed.model import Nic
from nestbed.process.container import ProcessRuntime
from nestbed.testing.bench import Bench
from nestbed.testing.contract import RuntimeContract

pytestmark = pytest.mark.net


def make_nic(container_id: str, number: int) -> Nic:
    return Nic(
        lan="lan0",
        lan_id="0" * 12,
        name=f"eth{number}",
        mac=f"02:00:00:{int(container_id[:2], 16):02x}:00:{number:02x}",
        addresses=(f"10.5.{number}.{int(container_id[2:4], 16) % 250 + 1}/24", f"fd00:{number:x}::{container_id[:4]}/64"),
        mtu=1500,
        port=port_name(container_id, number),
        bridge="nbbtest",
    )


@pytest.fixture
def bridge() -> None:
    node = Rtnl()
    if not any(link.name == "nbbtest" for link in node.links()):
        node.add_bridge("nbbtest", mtu=1500, alias="nestbed:test:lan0")
        disable_ipv6("nbbtest")
        node.set_up("nbbtest")
    node.close()


@pytest.fixture
async def bench(tmp_path: Path, bridge: None) -> AsyncIterator[Bench]:
    run_dir, state_dir, node_id = tmp_path / "run", tmp_path / "state", secrets.token_hex(4)
    run_dir.mkdir(mode=0o711)
    (state_dir / "containers").mkdir(parents=True)
    async with Bench(
        lambda: ProcessRuntime(run_dir=run_dir, state_dir=state_dir, node_id=node_id), state_dir / "containers", make_nic
    ) as bench:
        yield bench


class TestProcessRuntime(RuntimeContract):
    """The contract."""
