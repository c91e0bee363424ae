"""The process runtime with a real keeper, real namespaces and real cgroups: the contract, and what is its own."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nestbed.errors import AlreadyExists, InvalidArgument, NestbedError, NotFound
from nestbed.lan.addressing import port_name
from nestbed.lanmodel import Nic
from nestbed.linux.rtnl import Rtnl
from nestbed.model import ExecSpec, Resources, RestartPolicy, Route, State
from nestbed.process.container import ProcessRuntime
from nestbed.runtime import Container
from nestbed.testing import leaks
from nestbed.testing.bench import Bench, heard, logged, pieces, tar_of
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
def bridge() -> Iterator[Rtnl]:
    node = Rtnl()
    node.add_bridge("nbbtest", mtu=1500)
    node.bring_up("nbbtest", alias="nestbed:test:lan0")
    yield node
    node.delete_link("nbbtest")
    node.close()


@pytest.fixture
async def bench(tmp_path: Path, bridge: Rtnl, owned_cgroups: set[str]) -> AsyncIterator[Bench]:
    run_dir, state_dir, node_id = tmp_path / "run", tmp_path / "state", secrets.token_hex(4)
    owned_cgroups.add(f"nestbed-{node_id}")
    run_dir.mkdir(mode=0o711)
    (state_dir / "containers").mkdir(parents=True)

    def make_runtime() -> ProcessRuntime:
        return ProcessRuntime(run_dir=run_dir, state_dir=state_dir, node_id=node_id)

    async with Bench(make_runtime, state_dir / "containers", make_nic) as bench:
        yield bench


class TestProcessRuntime(RuntimeContract):
    """The contract."""

    # ------------------------------------------------------------ the keeper's death

    async def test_keeper_death_harms_no_container(self, bench: Bench) -> None:
        container = await bench.start("sh", "-c", "echo one; read line; echo two $line; exit 7", stdin=True, nics=())
        console = await container.console()
        pid = container.status.pid
        await self.kill_keeper(bench)
        assert (container.status.state, container.status.pid) == (State.RUNNING, pid)
        await console.write(b"words\n")
        ended = await container.wait()
        assert (ended.code, ended.reason) in ((7, "exited"), (None, "unknown"))
        assert logged(bench, container) == b"one\ntwo words\n"
        await console.aclose()

    async def test_console_goes_on_after_the_keepers_death(self, bench: Bench) -> None:
        container = await bench.start("sh", "-c", "echo one; read line; echo two; sleep 1000", stdin=True)
        console = await container.console()
        await self.kill_keeper(bench)
        listening = asyncio.ensure_future(heard(console, b"two\n"))
        await console.write(b"\n")
        await listening
        await console.aclose()

    async def test_created_container_keeps_its_nics_over_the_keepers_death(self, bench: Bench) -> None:
        bundle = bench.bundle()
        nic = bench.nic(bundle.id, 0)
        container = await bench.runtime.create(bench.spec(bundle, nics=(nic,)), bundle)
        await self.kill_keeper(bench)
        await container.start()
        assert [stats.name for stats in (await container.stats()).nics] == [nic.name]
        assert list(await bench.runtime.audit([container])) == []
        await container.destroy()

    async def test_exec_is_waited_for_over_the_keepers_death(self, bench: Bench) -> None:
        container = await bench.start()
        execution = await container.exec(ExecSpec(("sh", "-c", "read line; exit 5"), stdin=True))
        await self.kill_keeper(bench)
        await execution.write(b"\n")
        ended = await execution.wait()
        assert (ended.code, ended.reason) in ((5, "exited"), (None, "unknown"))
        # What the keeper left behind became this process's child; elsewhere it is the machine's first one that reaps it.
        leaks.reap()
        await execution.aclose()

    async def test_stop_works_with_the_next_keeper(self, bench: Bench) -> None:
        container = await bench.start(nics=())
        await self.kill_keeper(bench)
        await container.stop(0)
        assert container.status.state is State.STOPPED
        await container.start()
        assert container.status.state is State.RUNNING

    async def test_death_of_both_harms_no_container(self, bench: Bench) -> None:
        runs = await bench.start("sh", "-c", "echo one; read line; echo two", stdin=True)
        waits = await bench.create()
        pid = runs.status.pid
        os.kill(bench.runtime._parts.keeper.pid, signal.SIGKILL)
        await bench.restart()
        runs = await bench.recover(runs, "sh", "-c", "echo one; read line; echo two", stdin=True)
        waits = await bench.recover(waits)
        assert (runs.status.state, runs.status.pid, waits.status.state) == (State.RUNNING, pid, State.CREATED)
        assert list(await bench.runtime.audit([runs, waits])) == []
        console = await runs.console()
        await console.write(b"\n")
        await runs.wait()
        assert logged(bench, runs) == b"one\ntwo\n"
        await console.aclose()
        await waits.start()
        assert waits.status.state is State.RUNNING

    @staticmethod
    async def kill_keeper(bench: Bench) -> None:
        """End the keeper, and wait until the next one knows all containers."""
        parts = bench.runtime._parts
        os.kill(parts.keeper.pid, signal.SIGKILL)
        while parts.keeper_back.is_set():  # noqa: ASYNC110 - an event that is cleared wakes nobody
            await asyncio.sleep(0)
        await parts.keeper_back.wait()


# ---------------------------------------------------------------- limits


async def test_default_limits_are_set(bench: Bench) -> None:
    container = await bench.start()
    assert (await container.stats()).pids_limit == 4096


async def test_memory_limit_ends_a_greedy_program(bench: Bench) -> None:
    container = await bench.start("python3", "-c", "x = b'x' * (1 << 28)", resources=Resources(memory_bytes=32 << 20))
    ended = await container.wait()
    assert (ended.signal, ended.reason) == (signal.SIGKILL, "oom-killed")
    stats = await container.stats()
    assert stats.memory_limit_bytes == 32 << 20
    assert stats.oom_kills


async def test_pids_limit_holds(bench: Bench) -> None:
    container = await bench.start("sh", "-c", "true & true & true & true & true & wait; echo done", resources=Resources(pids=3))
    ended = await container.wait()
    assert ended.code != 0 or b"done" not in logged(bench, container)


async def test_limits_change_while_it_runs(bench: Bench) -> None:
    container = await bench.start()
    await container.update(Resources(pids=50, memory_bytes=64 << 20), RestartPolicy())
    stats = await container.stats()
    assert (stats.pids_limit, stats.memory_limit_bytes) == (50, 64 << 20)


async def started(bench: Bench, script: str) -> Container:
    """A container of a Python program that has said that it is there."""
    container = await bench.create("python3", "-c", script)
    console = await container.console()
    await container.start()
    await heard(console, b"there")
    await console.aclose()
    return container


async def test_memory_is_told_without_a_limit(bench: Bench) -> None:
    container = await started(bench, "x = b'x' * (64 << 20); print('there', flush=True); import time; time.sleep(60)")
    stats = await container.stats()
    assert stats.memory_limit_bytes is None
    assert stats.memory_bytes is not None
    assert 64 << 20 <= stats.memory_bytes < 256 << 20


_GREEDY = """
import signal
signal.signal(signal.SIGUSR1, lambda *_: bytearray(b"x" * (512 << 20)))
print("there", flush=True)
while True:
    signal.pause()
"""


async def test_a_limit_of_memory_given_while_it_runs_holds(bench: Bench) -> None:
    container = await started(bench, _GREEDY)
    with pytest.raises(NestbedError) as refused:
        await container.update(Resources(memory_bytes=1 << 20), RestartPolicy())
    assert refused.value.message
    assert (await container.stats()).memory_limit_bytes is None
    await container.update(Resources(memory_bytes=64 << 20), RestartPolicy())
    await container.kill(signal.SIGUSR1)
    ended = await container.wait()
    assert (ended.signal, ended.reason) == (signal.SIGKILL, "oom-killed")


# ---------------------------------------------------------------- network


async def test_containers_reach_each_other(bench: Bench) -> None:
    one, other = bench.bundle(), bench.bundle()
    nics = [replace(bench.nic(bundle.id, 0), addresses=(f"10.9.0.{n}/24", f"fd09::{n}/64")) for n, bundle in enumerate((one, other), 1)]
    server = await bench.runtime.create(bench.spec(one, nics=(nics[0],)), one)
    client = await bench.runtime.create(
        bench.spec(other, "sh", "-c", "ping -c1 -W5 10.9.0.1 && ping -6 -c1 -W5 fd09::1", nics=(nics[1],)), other
    )
    await server.start()
    await client.start()
    assert (await client.wait()).code == 0, logged(bench, client)
    await client.destroy()
    await server.destroy()


async def test_routes_are_there_before_the_program(bench: Bench) -> None:
    bundle = bench.bundle()
    nic = replace(bench.nic(bundle.id, 0), addresses=("10.9.0.2/24",))
    spec = bench.spec(bundle, "cat", "/proc/net/route", nics=(nic,), routes=(Route("10.77.0.0/16", "10.9.0.1"),), gateway="10.9.0.1")
    container = await bench.runtime.create(spec, bundle)
    await container.start()
    await container.wait()
    destinations = {line.split()[1] for line in logged(bench, container).decode().splitlines()[1:]}
    assert destinations == {"00000000", "00004D0A", "0000090A"}
    await container.destroy()


async def test_failed_plug_leaves_nothing(bench: Bench) -> None:
    container = await bench.start()
    with pytest.raises(NotFound) as caught:
        await container.plug(replace(bench.nic(container.id, 0), bridge="nbbnosuch"))
    assert caught.value.reason == "BRIDGE_GONE"
    with pytest.raises(AlreadyExists):
        await container.plug(replace(bench.nic(container.id, 0), name="lo"))
    assert not [name for name in container.objects() if name.startswith("link:")]
    assert list(await bench.runtime.audit([container])) == []


async def test_mtu_and_mac_are_as_asked(bench: Bench) -> None:
    bundle = bench.bundle()
    nic = replace(bench.nic(bundle.id, 0), mtu=1400)
    container = await bench.runtime.create(
        bench.spec(bundle, "cat", "/sys/class/net/eth0/mtu", "/sys/class/net/eth0/address", nics=(nic,)), bundle
    )
    await container.start()
    await container.wait()
    assert logged(bench, container).decode().split() == ["1400", nic.mac]
    await container.destroy()


# ---------------------------------------------------------------- audit


async def test_audit_finds_what_is_extra_and_what_is_missing(bench: Bench, bridge: Rtnl) -> None:
    bundle = bench.bundle()
    nic = bench.nic(bundle.id, 0)
    container = await bench.runtime.create(bench.spec(bundle, nics=(nic,)), bundle)
    assert list(await bench.runtime.audit([container])) == []
    extra = {(left.problem, left.kind) for left in await bench.runtime.audit([])}
    assert extra == {("extra", "link"), ("extra", "cgroup")}
    bridge.delete_link(nic.port)
    assert ("missing", "link", nic.port) in {(left.problem, left.kind, left.name) for left in await bench.runtime.audit([container])}
    await container.destroy()


# ---------------------------------------------------------------- files


async def test_archive_does_not_leave_the_container(bench: Bench) -> None:
    container = await bench.start("sh", "-c", "ln -s / /run/up; ln -s /proc/self/root /run/magic; echo ready; sleep 1000")
    console_ready = await container.exec(ExecSpec(("sh", "-c", "until test -L /run/magic; do :; done")))
    assert (await console_ready.wait()).code == 0
    await console_ready.aclose()
    hostname = b"".join([chunk async for chunk in await container.archive("/run/up/etc/hostname")])
    assert b"host\n" in hostname
    with pytest.raises(NotFound):
        await container.archive("/run/magic/etc/hostname")


@pytest.mark.parametrize("name", ["../escaped", "/tmp/../../escaped", "a/../../escaped"])
async def test_extract_refuses_members_that_lead_out(bench: Bench, name: str) -> None:
    container = await bench.start()
    with pytest.raises(InvalidArgument):
        await container.extract("/run", pieces(tar_of(name, b"x")))


async def test_extract_does_not_follow_planted_links(bench: Bench, tmp_path: Path) -> None:
    container = await bench.start("sh", "-c", "ln -s /tmp /run/link; echo; sleep 1000")
    ready = await container.exec(ExecSpec(("sh", "-c", "until test -L /run/link; do :; done")))
    await ready.wait()
    await ready.aclose()
    with pytest.raises(InvalidArgument):
        await container.extract("/run", pieces(tar_of("link/file", b"x")))


async def test_abandoned_archive_lets_go(bench: Bench) -> None:
    container = await bench.start()
    stream = await container.archive("/usr/share")
    assert await anext(aiter(stream))
    await stream.aclose()
