"""How fast and how light virtual machines are, beside QEMU started by hand with the same kernel, initial file system and root, in one run.

Run through ``hack/bench vm``. It starts a daemon in a network namespace of its own, measures through the gRPC API, and prints a
table; ``--json FILE`` writes the same figures for programs. Nothing gates on them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nestbed.client import Client
from nestbed.linux.mount import MNT_DETACH, umount2
from nestbed.qemu import command
from nestbed.qemu.command import Machine
from nestbed.qemu.frames import Parser, Type
from nestbed.v1 import container_pb2 as api

BIN = Path(sys.executable).parent
THIS = Path(__file__).resolve()
STORE = THIS.parents[2] / "build" / "vm"
MEMORY_BYTES = 512 << 20
NESTED = 20
"""How many containers are made on a node inside, each way."""
_READY_SECONDS = 120.0


@contextlib.contextmanager
def daemon(base: Path) -> Iterator[str]:
    """A nestbedd in a fresh network namespace: its address. Ended, and everything it has, afterwards."""
    run, state = base / "run", base / "state"
    run.mkdir(mode=0o711)
    state.mkdir()
    STORE.mkdir(parents=True, exist_ok=True)
    (state / "vm").symlink_to(STORE)
    words = ["unshare", "--net", "--", str(BIN / "nestbedd"), "--name", "bench", "--run-dir", str(run), "--state-dir", str(state)]
    words += ["--file-system", ","]  # the bare machine shares nothing but its root either
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    assert process.stderr is not None
    if not any(b'"ready"' in line for line in process.stderr):
        raise SystemExit(f"nestbedd did not start: exit status {process.wait()}")
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
    try:
        yield f"unix://{run}/admin.sock"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        drain.wait(10)
        with contextlib.suppress(OSError):
            umount2(str(run / "bpf"), MNT_DETACH)  # what LANs have in the kernel outlives the daemon


class Bare:
    """QEMU and virtiofsd started by hand, as root, without anything around them."""

    def __init__(self, base: Path, accelerator: str) -> None:
        machine = Machine("bare", MEMORY_BYTES >> 20, 1, accelerator)
        boot = {"/vm/vmlinuz": next(STORE.glob("kernels/*/vmlinuz")), "/vm/initrd": max(STORE.glob("initrd/*"), key=os.path.getmtime)}
        words = [str(boot.get(word, word)) for word in command.qemu(machine)]
        begin = time.perf_counter()
        root = base / "root.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(root))
        listener.listen(1)
        self._virtiofsd = subprocess.Popen(
            [command.VIRTIOFSD, f"--fd={listener.fileno()}", "-o", "source=/,sandbox=chroot,cache=always,no_posix_lock,no_flock"],
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        )
        ends = {number: socket.socketpair() for number in (10, 11)}
        servers = {number: socket.socket(socket.AF_UNIX) for number in (12, 13)}
        for number, server in servers.items():
            server.bind(str(base / f"{number}.sock"))
            server.listen(1)
        share = socket.socket(socket.AF_UNIX)
        share.connect(str(root))
        given = {**{number: pair[1] for number, pair in ends.items()}, **servers, 14: share}
        for number, made in given.items():
            words = [
                word.replace(f"fd={number},", f"fd={made.fileno()},").removesuffix(f"fd={number}")
                + (f"fd={made.fileno()}" if word.endswith(f"fd={number}") else "")
                for word in words
            ]
        self._qemu = subprocess.Popen(words, pass_fds=[made.fileno() for made in given.values()], stderr=subprocess.DEVNULL)
        self._sockets = [listener, *given.values(), *(pair[0] for pair in ends.values())]
        self._console = subprocess.Popen(["cat"], stdin=ends[11][0], stdout=subprocess.DEVNULL)
        parser, main = Parser(), ends[10][0]
        main.settimeout(_READY_SECONDS)
        while not any(frame.type == Type.READY for frame in parser.feed(main.recv(4096))):
            continue
        self.seconds = time.perf_counter() - begin
        self.memory_bytes = sum(map(pss, (self._qemu.pid, self._virtiofsd.pid)))
        self.cpu_seconds = sum(map(cpu, (self._qemu.pid, self._virtiofsd.pid)))

    def close(self) -> None:
        """End it."""
        for process in (self._qemu, self._console, self._virtiofsd):
            process.kill()
            process.wait()
        for made in self._sockets:
            made.close()


def pss(pid: int) -> int:
    """Proportional share of memory of a process, in bytes (proc(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu(pid: int) -> float:
    """Processor time of a process, in seconds."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def sandbox(pid: int) -> list[int]:
    """The processes in the pid namespace of a process."""
    wanted = os.stat(f"/proc/{pid}/ns/pid").st_ino
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}/ns/pid").st_ino == wanted:
                found.append(int(name))
    return found


def spec(name: str, *args: str) -> api.ContainerSpec:
    """A machine that runs ``args``, or nothing."""
    return api.ContainerSpec(
        name=name,
        kind=api.CONTAINER_KIND_QEMU,
        resources=api.Resources(memory_bytes=MEMORY_BYTES),
        process=api.ProcessSpec(args=args),
    )


async def boot(client: Client, name: str) -> dict[str, float]:
    """Make a machine and start it: seconds until it is ready, its memory and processor time then."""
    begin = time.perf_counter()
    await client.create_container(spec(name))
    container = await client.start_container(name)
    seconds = time.perf_counter() - begin
    pids = sandbox(container.pid)
    return {"seconds": seconds, "memory_bytes": sum(map(pss, pids)), "cpu_seconds": sum(map(cpu, pids))}


async def create_seconds(client: Client, prefix: str) -> float:
    """The median time it takes to make and start a process container on a node: ``prefix`` leads there."""
    taken = []
    for number in range(NESTED + 1):
        wanted = api.ContainerSpec(
            name=f"{prefix}p{number}", kind=api.CONTAINER_KIND_PROCESS, process=api.ProcessSpec(args=["/bin/sleep", "1000"])
        )
        begin = time.perf_counter()
        await client.create_container(wanted, start=True)
        taken.append(time.perf_counter() - begin)
    for number in range(NESTED + 1):
        await client.delete_container(f"{prefix}p{number}", force=True)
    return statistics.median(taken[1:])


async def nested(client: Client) -> dict[str, float]:
    """The same on a node inside a machine: by a caller in the guest, and by one outside, through two daemons."""
    machine = spec("node")
    machine.qemu.node = True
    begin = time.perf_counter()
    await client.create_container(machine, start=True)
    await client.create_container(
        api.ContainerSpec(name="node/first", kind=api.CONTAINER_KIND_PROCESS, process=api.ProcessSpec(args=["true"]))
    )
    ready = time.perf_counter() - begin
    words = [sys.executable, str(THIS), "--inside"]
    async with client.exec(api.ExecStart(container="node", args=words)) as session:
        inside = float(b"".join([data async for stream, data in session.output() if stream == 1]))
    through = await create_seconds(client, "node/")
    await client.delete_container("node", force=True)
    return {"ready_seconds": ready, "inside_ms": inside * 1000, "through_ms": through * 1000}


async def inside() -> None:
    """What the caller in the guest does."""
    async with Client.connect("unix:///run/nestbed/admin.sock") as client:
        print(await create_seconds(client, ""))


async def measure(address: str, base: Path, rounds: int) -> dict[str, Any]:
    """All figures."""
    async with Client.connect(address) as client:
        await boot(client, "first")  # what a first machine finds out and makes for all
        await client.delete_container("first", force=True)
        kept = json.loads((base / "run" / "accelerator.json").read_text())
        bare, own, whole = [], [], []
        for number in range(rounds):
            directory = base / f"bare{number}"
            directory.mkdir()
            one = Bare(directory, kept["name"])
            one.close()
            bare.append({"seconds": one.seconds, "memory_bytes": one.memory_bytes, "cpu_seconds": one.cpu_seconds})
            own.append(await boot(client, "one"))
            await client.delete_container("one", force=True)
            begin = time.perf_counter()
            await client.create_container(spec("true", "true"))
            await client.start_container("true")
            await client.wait_container("true")
            await client.delete_container("true", force=True)
            whole.append(time.perf_counter() - begin)
        together = await asyncio.gather(*(boot(client, f"m{number}") for number in range(4)))
        for number in range(4):
            await client.delete_container(f"m{number}", force=True)
        through = await nested(client)
    middle = {name: statistics.median(one[name] for one in own) for name in own[0]}
    return {
        "accelerator": kept["name"],
        "bare": {name: statistics.median(one[name] for one in bare) for name in bare[0]},
        "nestbed": middle,
        "run_true_seconds": statistics.median(whole),
        "four_cpu_ratio": sum(one["cpu_seconds"] for one in together) / (4 * middle["cpu_seconds"]),
        "four_seconds": max(one["seconds"] for one in together),
        "nested": through,
    }


def show(figures: dict[str, Any]) -> None:
    """Print a table."""
    bare, own = figures["bare"], figures["nestbed"]
    rows = [
        ("ready, s", bare["seconds"], own["seconds"], f"{own['seconds'] / bare['seconds']:.2f} times (goal 1.15)"),
        ("processor time until then, s", bare["cpu_seconds"], own["cpu_seconds"], ""),
        (
            "memory when ready, MB",
            bare["memory_bytes"] / 1e6,
            own["memory_bytes"] / 1e6,
            f"{(own['memory_bytes'] - bare['memory_bytes']) / 1e6:+.1f} MB (goal +30)",
        ),
        ("run -- true, removed, s", float("nan"), figures["run_true_seconds"], "(goal 12)"),
        ("four at once: processor time, times four", float("nan"), figures["four_cpu_ratio"], "(goal 1.3)"),
        ("four at once: the last is ready, s", float("nan"), figures["four_seconds"], ""),
    ]
    nested_ms = figures["nested"]
    ratio = nested_ms["through_ms"] / nested_ms["inside_ms"]
    rows += [
        ("node inside answers, s", float("nan"), nested_ms["ready_seconds"], ""),
        ("process there, by a caller in the guest, ms", float("nan"), nested_ms["inside_ms"], ""),
        ("process there, through two daemons, ms", float("nan"), nested_ms["through_ms"], f"{ratio:.2f} times (goal 3)"),
    ]
    print(f"{'under ' + figures['accelerator']:<42}{'bare QEMU':>12}{'nestbed':>12}")
    for name, one, other, note in rows:
        print(f"{name:<42}{'-' if one != one else f'{one:.2f}':>12}{other:>12.2f}   {note}")  # noqa: PLR0124


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="hack/bench vm", description="virtual machines beside QEMU started by hand")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        asyncio.run(inside())
        return
    with tempfile.TemporaryDirectory(prefix="nestbed-bench-") as text:
        base = Path(text)
        with daemon(base) as address:
            figures = asyncio.run(measure(address, base, options.rounds))
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
