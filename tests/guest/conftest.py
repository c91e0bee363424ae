"""What the tests with virtual machines share: the kernel and programs they start from, made once and kept in ``build/vm``."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nestbed.lan.addressing import port_name
from nestbed.lanmodel import Nic
from nestbed.linux.rtnl import Rtnl
from nestbed.model import Bundle, FsMode, Kind, QemuSpec, Spec
from nestbed.process.container import ProcessRuntime
from nestbed.qemu import accel
from nestbed.qemu.runtime import QemuRuntime
from nestbed.runtime import StatusListener
from nestbed.testing.bench import Bench
from nestbed.testing.machine import Machine
from nestbed.testing.segment import Segment

STORE = Path(__file__).parents[2] / "build" / "vm"
BRIDGE = "nbbvmtest"


def make_nic(container_id: str, number: int) -> Nic:
    return Nic(
        lan="lan0",
        lan_id="0" * 12,
        name=f"eth{number}",
        mac=f"02:00:00:{int(container_id[:2], 16):02x}:01:{number:02x}",
        addresses=(f"10.5.{number}.{int(container_id[2:4], 16) % 250 + 1}/24", f"fd00:{number:x}::{container_id[:4]}/64"),
        mtu=1500,
        port=port_name(container_id, number),
        bridge=BRIDGE,
    )


async def find_accelerator(run_dir: Path) -> None:
    """Let a run directory begin with what was found out once for all tests: where KVM hangs, that takes seconds."""
    found = STORE / "accelerator.json"
    if not found.exists() or json.loads(found.read_bytes())["boot_id"] != accel.this_boot():
        STORE.mkdir(parents=True, exist_ok=True)
        await accel.find(STORE)
    shutil.copy(found, run_dir)


def link_store(directory: Path) -> None:
    """Let what every machine starts from be what earlier tests made; images are each state directory's own."""
    for name in ("kernels", "programs", "initrd"):
        (STORE / name).mkdir(parents=True, exist_ok=True)
        (directory / name).symlink_to(STORE / name)


@pytest.fixture
def bridge() -> Iterator[Rtnl]:
    with contextlib.closing(Rtnl()) as node:
        node.delete_link(BRIDGE)  # of a run that was killed
        node.add_bridge(BRIDGE, mtu=1500)
        node.bring_up(BRIDGE, alias="nestbed:test:lan0")
        yield node
        node.delete_link(BRIDGE)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A state directory whose machines start from what earlier tests made."""
    directory = tmp_path / "state"
    for name in ("containers", "vm"):
        (directory / name).mkdir(parents=True)
    link_store(directory / "vm")
    return directory


class Pair(QemuRuntime):
    """Both runtimes, opened and closed together, as a node has them."""

    def __init__(self, run_dir: Path, state_dir: Path, node_id: str) -> None:
        self.process = ProcessRuntime(run_dir=run_dir, state_dir=state_dir, node_id=node_id)
        super().__init__(run_dir=run_dir, state_dir=state_dir, sandboxes=self.process)

    async def open(self, listener: StatusListener) -> None:
        await self.process.open(lambda *_: None)
        await super().open(listener)

    async def aclose(self) -> None:
        await super().aclose()
        await self.process.aclose()


class MachineBench(Bench):
    """A bench whose containers are virtual machines."""

    memory_bytes = 192 << 20

    def spec(self, bundle: Bundle, *args: str, **changes: Any) -> Spec:
        spec = super().spec(bundle, *args, **changes)
        return dataclasses.replace(spec, kind=Kind.QEMU, qemu=QemuSpec(), process=dataclasses.replace(spec.process, fs=FsMode.OVERLAY))


@pytest.fixture
async def bench(tmp_path: Path, state_dir: Path, bridge: Rtnl, owned_cgroups: set[str]) -> AsyncIterator[Bench]:
    del bridge
    run_dir, node_id = tmp_path / "run", secrets.token_hex(4)
    owned_cgroups.add(f"nestbed-{node_id}")
    run_dir.mkdir(mode=0o711)
    await find_accelerator(run_dir)
    async with MachineBench(lambda: Pair(run_dir, state_dir, node_id), state_dir / "containers", make_nic) as bench:
        yield bench
        assert list(await bench.runtime.process.audit([])) == []  # type: ignore[attr-defined]


def prepare(machine: Machine) -> None:
    """Let a machine whose daemon does not run yet begin with what earlier tests made and found out."""
    (machine.state_dir / "vm").mkdir(parents=True)
    machine.run_dir.mkdir(mode=0o755, parents=True)
    link_store(machine.state_dir / "vm")
    asyncio.run(find_accelerator(machine.run_dir))


class Site:
    """A machine whose daemon runs virtual machines, as a user of nbctl sees it."""

    def __init__(self, base: Path, starter: Sequence[str] = ()) -> None:
        self.machine = Machine("node1", base)
        self.machine.daemon.starter = starter
        prepare(self.machine)
        self.proj = Path(tempfile.mkdtemp(prefix="nestbed-proj-"))
        self.proj.chmod(0o1777)
        self.start()

    def start(self) -> None:
        self.machine.daemon.start("--file-system", str(self.proj))

    def close(self) -> None:
        self.machine.close()
        shutil.rmtree(self.proj)

    def furnish(self) -> None:
        self.nbctl("lan", "create", "lan0", "--subnet", "10.5.0.0/24", "--subnet6", "fd00:5::/64")
        self.nbctl("run", "process", "-d", "--name", "web", "--lan", "lan0", "--", "sleep", "1000")

    def nbctl(self, *args: str) -> str:
        result = self.machine.nbctl(*args)
        assert result.returncode == 0, f"{args}: {result.stdout}{result.stderr}"
        return result.stdout

    def patiently(self, *args: str) -> str:
        """As :meth:`nbctl`, for what waits until a node inside answers."""
        result = self.machine.run(Path(sys.executable).parent / "nbctl", "-H", self.machine.address, *args, timeout_seconds=600)
        assert result.returncode == 0, f"{args}: {result.stdout}{result.stderr}"
        return result.stdout

    def inside(self, container: str, *args: str) -> str:
        return self.nbctl("exec", container, "--", *args)

    def until_listening(self, container: str, port: int, protocol: str = "t") -> None:
        """Wait until something in a container has this port."""
        while f":{port} " not in self.inside(container, "ss", f"-Hln{protocol}"):
            continue

    def begin(self, *args: str, stdout: int = subprocess.DEVNULL, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start nbctl and let it run."""
        words = [Path(sys.executable).parent / "nbctl", "-H", self.machine.address, *args]
        return self.machine.popen(words, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)

    def until_state(self, word: str) -> None:
        """Wait until the warden of the only virtual machine wrote a state that begins with ``word``."""
        while not any(path.read_text().startswith(word) for path in self.machine.state_dir.glob("containers/*/vm/state")):
            os.sched_yield()

    def until_written(self, pattern: str, text: str = "") -> None:
        """Wait until the state directory has a file of this pattern with this text in it."""
        while not any(text in path.read_text(errors="replace") for path in self.machine.state_dir.glob(pattern)):
            os.sched_yield()

    def restart(self) -> None:
        """Kill the daemon and start the next one."""
        self.machine.daemon.kill()
        self.start()

    def inspect(self, container: str) -> Any:
        return json.loads(self.nbctl("-o", "json", "inspect", container))

    def processes(self, container: str, program: str) -> list[int]:
        """The processes of the sandbox of a container that run this program."""
        space = os.stat(f"/proc/{self.inspect(container)['pid']}/ns/pid").st_ino
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _runs(pid, space, program)]


def _runs(pid: int, space: int, program: str) -> bool:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino == space and os.readlink(f"/proc/{pid}/exe").rpartition("/")[2] == program
    except OSError:
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site for a whole module: a LAN, a process on it, and a virtual machine that stays up."""
    site = Site(tmp_path_factory.mktemp("vm"))
    try:
        site.furnish()
        site.nbctl("run", "qemu", "--name", "vm1", "--lan", "lan0")
        yield site
    finally:
        site.close()


@pytest.fixture
def fresh_site(tmp_path: Path, owned_cgroups: set[str]) -> Iterator[Site]:
    """A site for one test, whose daemon may be killed: a LAN and a process on it."""
    site = Site(tmp_path / "site")
    try:
        site.furnish()
        yield site
    finally:
        site.close()
        owned_cgroups.add(f"nestbed-{site.machine.node_id}")


@pytest.fixture
def pair(tmp_path: Path, owned_cgroups: set[str]) -> Iterator[Segment]:
    """Two machines at one underlay, whose daemons run virtual machines."""
    segment = Segment(tmp_path / "pair", 2)
    try:
        for machine in segment.machines:
            prepare(machine)
        segment.start()
        yield segment
    finally:
        segment.close()
        owned_cgroups.update(f"nestbed-{machine.node_id}" for machine in segment.machines)
