"""How fast and how light process containers are, beside other ways to run a program apart, in one run.

Run through ``hack/bench start``. It starts a daemon in a network namespace of its own with directories of its own, measures through
the gRPC API, and prints a table; ``--json FILE`` writes the same figures for programs. Nothing gates on them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nestbed.client import Client
from nestbed.v1 import container_pb2 as api

BIN = Path(sys.executable).parent
LAN = "lan0"
SETTLE_TRIES, SETTLED_KIB = 15, 1024
MEMORY_N_MIN = 100
"""Of fewer containers the difference of the whole machine's memory says nothing."""


@contextmanager
def daemon(base: Path) -> Iterator[tuple[str, int]]:
    """A nestbedd in fresh network and mount namespaces: its address and pid. Ended, and everything it has, afterwards."""
    run, state = base / "run", base / "state"
    run.mkdir(mode=0o711)
    apart = ["unshare", "--net", "--mount", "--"]
    words = [*apart, str(BIN / "nestbedd"), "--name", "bench", "--run-dir", str(run), "--state-dir", str(state)]
    with (base / "nestbedd.log").open("wb") as log:
        process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=log)
    assert process.stderr is not None
    for line in process.stderr:
        if b'"ready"' in line:
            break
    else:
        raise SystemExit(f"nestbedd did not start: exit status {process.wait()}")
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
    try:
        yield f"unix://{run}/admin.sock", process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        drain.wait(10)


def sleeper(name: str) -> api.ContainerSpec:
    """An idle container on the LAN."""
    return api.ContainerSpec(
        name=name,
        kind=api.CONTAINER_KIND_PROCESS,
        nics=[api.NicSpec(lan=LAN)],
        process=api.ProcessSpec(args=["sleep", "86400"]),
    )


async def create_and_start(client: Client, name: str) -> float:
    """Seconds for one container, from the call to the executed program."""
    begin = time.perf_counter()
    await client.create_container(sleeper(name), start=True)
    return time.perf_counter() - begin


async def create_then_start(client: Client, name: str) -> float:
    """The same by two calls."""
    begin = time.perf_counter()
    container = await client.create_container(sleeper(name))
    await client.start_container(container.id)
    return time.perf_counter() - begin


async def gather_bounded(count: int, jobs: Any) -> None:
    """Run the coroutines, ``count`` at a time."""
    pending = iter(jobs)

    async def worker() -> None:
        for job in pending:
            await job

    await asyncio.gather(*(worker() for _ in range(count)))


async def remove_all(client: Client) -> float:
    """Stop and delete everything; seconds."""
    begin = time.perf_counter()
    containers = await client.list_containers()

    async def remove(id: str) -> None:
        await client.stop_container(id)
        await client.delete_container(id)

    await gather_bounded(16, (remove(container.id) for container in containers))
    return time.perf_counter() - begin


def used_now_kib() -> int:
    """Memory of the machine in use: everything but what the kernel could drop, and has dropped for this (proc(5), meminfo)."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    fields = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    return fields["MemTotal"] - fields["MemFree"] - fields["Buffers"] - fields["Cached"] + fields["Shmem"]


def used_kib() -> int:
    """The same once it has settled: what the kernel does later (RCU, dying namespaces) is done, and nobody else on the machine is busy.

    Everything is counted, processes, kernel, the bench itself, so whatever else grows or shrinks meanwhile falsifies it.
    """
    before = used_now_kib()
    for _ in range(SETTLE_TRIES):
        time.sleep(1)
        used = used_now_kib()
        if abs(used - before) < SETTLED_KIB:
            return used
        before = used
    print(f"memory does not settle: {before} KiB; somebody else is busy on this machine", file=sys.stderr)
    return before


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in 10^6 bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024 / 1e6


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of them lie."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def measure_scale(client: Client, daemon_pid: int, count: int, address: str) -> dict[str, Any]:
    """One after the other up to ``count``, then what they hold, then all away."""
    before = used_kib()
    times = [await create_and_start(client, f"c{number}") for number in range(count)]
    row: dict[str, Any] = {
        "n": count,
        "create_start_p50_ms": statistics.median(times) * 1000,
        "create_start_p99_ms": percentile(times, 0.99) * 1000,
        "first_ten_p50_ms": statistics.median(times[:10]) * 1000,
        "last_ten_p50_ms": statistics.median(times[-10:]) * 1000,
        "last_over_first": statistics.median(times[-10:]) / statistics.median(times[:10]),
        "memory_per_container_mb": (used_kib() - before) * 1024 / 1e6 / count,
        "nestbedd_resident_mb": resident_mb(daemon_pid),
        "nbctl_ps_ms": median_ms([str(BIN / "nbctl"), "-H", address, "ps"], 7),
    }
    row["stop_delete_s"] = await remove_all(client)
    return row


async def measure_two_calls(client: Client, count: int) -> float:
    """Median milliseconds of creating and then starting."""
    times = [await create_then_start(client, f"t{number}") for number in range(count)]
    await remove_all(client)
    return statistics.median(times) * 1000


async def measure_callers(client: Client, callers: int, count: int) -> dict[str, Any]:
    """Containers a second with several callers at once."""
    begin = time.perf_counter()
    await gather_bounded(callers, (create_and_start(client, f"p{number}") for number in range(count)))
    seconds = time.perf_counter() - begin
    await remove_all(client)
    return {"callers": callers, "n": count, "per_second": count / seconds}


def median_ms(words: list[str], runs: int) -> float:
    """Median wall time of a command."""
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1000


def peer_unshare(runs: int) -> dict[str, Any]:
    """A bare unshare(1) with the same namespaces, program ``true``."""
    words = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "true"]
    return {"peer": "unshare+exec of true", "p50_ms": median_ms(words, runs)}


def peer_unshare_memory(count: int) -> float:
    """10^6 bytes for each idle ``sleep`` under a bare unshare with the same namespaces (the forking parent replaced by exec)."""
    before = used_kib()
    words = ["unshare", "--net", "--mount", "--uts", "--ipc", "sleep", "600"]
    processes = [subprocess.Popen(words) for _ in range(count)]
    used = (used_kib() - before) * 1024 / 1e6 / count
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    return used


_CRUN = """
import statistics, subprocess, time
times = []
for number in range({runs}):
    begin = time.perf_counter()
    subprocess.run(["crun", "--root", {state!r}, "run", "--bundle", {bundle!r}, f"nestbed-bench-{{number}}"], check=True)
    times.append(time.perf_counter() - begin)
print("P50", statistics.median(times) * 1000)
"""


def peer_crun(base: Path, runs: int) -> dict[str, Any] | None:
    """``crun run`` of ``true`` on the node's root read-only: a container without a LAN.

    In a mount namespace of its own, for crun refuses a hybrid cgroup tree whose v2 part has a controller, and needs a root that
    is a mount of its own.
    """
    if shutil.which("crun") is None:
        return None
    bundle, root = base / "crun", base / "crun-root"
    for directory in (bundle, root):
        directory.mkdir()
    subprocess.run(["crun", "spec"], cwd=bundle, check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"].update(args=["true"], terminal=False)
    config["root"] = {"path": str(root), "readonly": True}
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] in ("proc", "tmpfs", "devpts", "mqueue", "sysfs")]
    (bundle / "config.json").write_text(json.dumps(config))
    program = _CRUN.format(runs=runs, state=str(base / "crun-state"), bundle=str(bundle))
    script = 'umount /sys/fs/cgroup/unified 2>/dev/null; mount --bind / "$1" && exec "$2" -c "$3"'
    return _peer("crun run true (no LAN)", ["unshare", "--mount", "sh", "-c", script, "sh", str(root), sys.executable, program])


def _peer(name: str, words: list[str]) -> dict[str, Any] | None:
    """Run a peer's script that prints ``P50 milliseconds``; None, and why on stderr, if it does not work here."""
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("P50")), "")
    if not line:
        print(f"{name} does not run here: {done.stderr.strip().splitlines()[-3:]}", file=sys.stderr)
        return None
    return {"peer": name, "p50_ms": float(line.split()[1])}


_MININET = """
import time, statistics
from mininet.net import Mininet
from mininet.nodelib import LinuxBridge
net = Mininet(controller=None, switch=LinuxBridge)
switch = net.addSwitch('s1')
switch.start([])
times = []
for number in range({runs}):
    begin = time.perf_counter()
    host = net.addHost('h%d' % number)
    net.addLink(host, switch)
    host.configDefault()
    switch.cmd('brctl addif', switch, switch.intfList()[-1])
    times.append(time.perf_counter() - begin)
print("P50", statistics.median(times) * 1000, flush=True)
net.stop()
"""


def peer_mininet(runs: int) -> dict[str, Any] | None:
    """Mininet's hosts on its Linux bridge, in a network namespace of their own."""
    if shutil.which("mn") is None:
        return None
    words = ["unshare", "--net", "/usr/bin/python3", "-c", _MININET.format(runs=runs)]
    return _peer("Mininet addHost+addLink+start (lxbr)", words)


_BRIDGE = """
set -e
ip link set lo up; ip link add br0 type bridge stp_state 0 mcast_snooping 0; ip link set br0 up
for n in 1 2; do
  unshare --net sleep 600 & pids="$pids $!"
  while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do :; done
  ip link add h$n master br0 type veth peer name eth0 netns $!
  ip link set h$n up
  nsenter --net=/proc/$!/ns/net sh -c "ip link set lo up; ip address add 10.9.0.$n/24 dev eth0; ip link set eth0 up"
done
set -- $pids
nsenter --net=/proc/$2/ns/net timeout 60 iperf3 -s -1 -p 5201 >/dev/null &
until nsenter --net=/proc/$2/ns/net ss -tlnH | grep -q :5201; do :; done
nsenter --net=/proc/$1/ns/net iperf3 -c 10.9.0.2 -t {seconds} -J
kill $pids
"""


def peer_bridge_gbps(seconds: int) -> float:
    """TCP between two namespaces on a bare Linux bridge with the same kind of links."""
    done = subprocess.run(["unshare", "--net", "sh", "-c", _BRIDGE.replace("{seconds}", str(seconds))], check=True, capture_output=True)
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9


async def lan_gbps(client: Client, seconds: int) -> float:
    """TCP between two containers of the LAN."""
    server = await client.create_container(
        api.ContainerSpec(
            name="tcp-server",
            kind=api.CONTAINER_KIND_PROCESS,
            nics=[api.NicSpec(lan=LAN)],
            process=api.ProcessSpec(args=["iperf3", "-s"]),
        )
    )
    await client.start_container(server.id)
    peer = server.nics[0].addresses[0].split("/")[0]
    script = f"for try in 1 2 3 4 5 6 7 8 9; do out=$(iperf3 -c {peer} -t {seconds} -J) && echo $out && exit; sleep 0.2; done"
    spec = api.ContainerSpec(
        name="tcp-client",
        kind=api.CONTAINER_KIND_PROCESS,
        nics=[api.NicSpec(lan=LAN)],
        process=api.ProcessSpec(args=["sh", "-c", script]),
    )
    container = await client.create_container(spec)
    await client.start_container(container.id)
    await client.wait_container(container.id)
    text = b"".join([bytes(entry.data) async for entry in client.logs(container.id)])
    await remove_all(client)
    return float(json.loads(text)["end"]["sum_received"]["bits_per_second"]) / 1e9


async def measure(options: argparse.Namespace, address: str, pid: int) -> dict[str, Any]:
    """Everything that goes through the API."""
    async with Client.connect(address) as client:
        await client.create_lan(LAN, subnet="10.64.0.0/16")
        try:
            result = await measure_lan(client, options, address, pid)
        finally:
            await remove_all(client)
            await client.delete_lan(LAN)
        result["leftovers"] = len((await client.audit()).leftovers)
        return result


async def measure_lan(client: Client, options: argparse.Namespace, address: str, pid: int) -> dict[str, Any]:
    """All that needs the LAN, which is empty."""
    for number in range(10):
        await create_and_start(client, f"warm{number}")
    await remove_all(client)
    result: dict[str, Any] = {"scale": [await measure_scale(client, pid, count, address) for count in options.n]}
    result["two_calls_p50_ms"] = await measure_two_calls(client, 50)
    result["callers"] = await measure_callers(client, 4, options.callers_n)
    tcp = [(await lan_gbps(client, options.seconds), peer_bridge_gbps(options.seconds)) for _ in range(options.tcp_runs)]
    if tcp:
        result["tcp_gbps"] = statistics.median(ours for ours, _ in tcp)
        result["bridge_gbps"] = statistics.median(theirs for _, theirs in tcp)
    return result


def goals(result: dict[str, Any]) -> Iterator[tuple[str, float, float, bool]]:
    """What the figures are to be: each with the figure, its bound, and whether it holds."""

    def at_most(what: str, value: float, bound: float) -> tuple[str, float, float, bool]:
        return f"{what}, at most", value, bound, value <= bound

    def at_least(what: str, value: float, bound: float) -> tuple[str, float, float, bool]:
        return f"{what}, at least", value, bound, value >= bound

    rows = result["scale"]
    for row in rows:
        yield at_most(f"create+start among {row['n']}, p50 ms", row["create_start_p50_ms"], 8)
    largest = max(rows, key=lambda row: int(row["n"]))
    yield at_most(f"last ten of {largest['n']} over its first ten", largest["last_over_first"], 1.5)
    yield at_least(f"{result['callers']['callers']} callers, containers a second", result["callers"]["per_second"], 150)
    yield at_most(f"stop and delete {largest['n']}, s", largest["stop_delete_s"], 10)
    for row in rows:
        if row["n"] >= MEMORY_N_MIN:
            yield at_most(f"memory of each of {row['n']}, everything divided, MB", row["memory_per_container_mb"], 0.7)
    yield at_most(f"nestbedd resident with {largest['n']}, MB", largest["nestbedd_resident_mb"], 80)
    yield at_most(f"nbctl ps of {largest['n']}, ms", largest["nbctl_ps_ms"], 250)
    if "tcp_gbps" in result:
        yield at_least(
            "TCP on one LAN over that on a bare bridge (1, but for what runs differ by)", result["tcp_gbps"] / result["bridge_gbps"], 0.95
        )
    yield at_most("leftovers after it all", result["leftovers"], 0)


def show(result: dict[str, Any]) -> None:
    """The figures as a table, the peers, and each goal with what became of it."""
    heads = ("n", 5), ("p50 ms", 8), ("p99 ms", 8), ("last 10", 8), ("of 1st 10", 9), ("MB each", 9), ("daemon MB", 10), ("ps ms", 7)
    print(" ".join(f"{head:>{width}}" for head, width in (*heads, ("stop+rm s", 9))))
    columns = (
        ("create_start_p50_ms", "8.2f"),
        ("create_start_p99_ms", "8.2f"),
        ("last_ten_p50_ms", "8.2f"),
        ("last_over_first", "9.2f"),
        ("memory_per_container_mb", "9.3f"),
        ("nestbedd_resident_mb", "10.1f"),
        ("nbctl_ps_ms", "7.0f"),
        ("stop_delete_s", "9.2f"),
    )
    for row in result["scale"]:
        print(f"{row['n']:5d} " + " ".join(format(row[name], shape) for name, shape in columns))
    print(f"by two calls, CreateContainer and StartContainer: p50 {result['two_calls_p50_ms']:.2f} ms")
    if "tcp_gbps" in result:
        print(f"TCP on one LAN: {result['tcp_gbps']:.2f} Gbit/s, bare bridge {result['bridge_gbps']:.2f}")
    ours = result["scale"][0]["create_start_p50_ms"]
    for peer in result.get("peers", []):
        print(f"{peer['peer']}: p50 {peer['p50_ms']:.2f} ms; nestbed takes {ours / peer['p50_ms']:.2f} of that, with a LAN")
    if "unshare_mb" in result:
        print(f"bare unshare+sleep: {result['unshare_mb']:.3f} MB each")
    for what, value, bound, holds in goals(result):
        print(f"{'ok' if holds else 'MISSED':6} {what} {bound:g}: {value:.3g}")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="hack/bench start", description="Start-up, memory and speed of process containers, beside peers.")
    parser.add_argument(
        "--n", type=lambda text: [int(word) for word in text.split(",")], default=[10, 100, 500, 1000], help="how many, such as 10,100"
    )
    parser.add_argument("--callers-n", type=int, default=300, help="containers for the run with four callers")
    parser.add_argument("--tcp-runs", type=int, default=3, help="runs of TCP, each beside the bare bridge")
    parser.add_argument("--seconds", type=int, default=3, help="length of one run of TCP")
    parser.add_argument("--peer-runs", type=int, default=30, help="runs of each peer; 0 leaves them out")
    parser.add_argument("--json", type=Path, help="write the figures to this file too; /dev/stdout shows them")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("hack/bench start needs root: it makes namespaces\nrun it as root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Beside where a daemon has its state: on the same file system, away from what others make and remove in /tmp.
    with tempfile.TemporaryDirectory(prefix="nestbed-bench-", dir="/var/lib") as directory:
        base = Path(directory)
        with daemon(base) as (address, pid):
            result = asyncio.run(measure(options, address, pid))
        if options.peer_runs:
            found = (peer_unshare(options.peer_runs), peer_crun(base, options.peer_runs), peer_mininet(options.peer_runs))
            result["peers"] = [peer for peer in found if peer is not None]
            result["unshare_mb"] = peer_unshare_memory(200)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
