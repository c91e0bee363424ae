"""Cgroups on v1, hybrid and v2 hosts: what is detected, what is written, what is read, on trees made of plain files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nestbed.errors import HostLacks, InvalidArgument
from nestbed.model import Resources
from nestbed.process.hierarchies import Hierarchies, Tree, parse_hierarchies
from nestbed.process.limits import Cgroups

HYBRID = """\
25 21 0:22 / /sys/fs/cgroup rw shared:3 - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw,nsdelegate
27 25 0:24 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct
28 25 0:25 / /sys/fs/cgroup/memory rw shared:6 master:1 - cgroup cgroup rw,memory
29 25 0:26 / /mnt/a\\040b rw - cgroup cgroup rw,pids
30 25 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
31 25 0:25 / /elsewhere/memory rw - cgroup cgroup rw,memory
"""
V2 = "25 21 0:22 / /sys/fs/cgroup rw shared:3 - cgroup2 cgroup2 rw,nsdelegate\n"
ID, NODE = "aabbccddeeff", "01234567"


def test_hierarchies_are_found_in_mountinfo() -> None:
    found = parse_hierarchies(HYBRID)
    assert found.version == "hybrid"
    assert found.v2 == Path("/sys/fs/cgroup/unified")
    assert found.v1 == {
        "cpu": Path("/sys/fs/cgroup/cpu,cpuacct"),
        "cpuacct": Path("/sys/fs/cgroup/cpu,cpuacct"),
        "memory": Path("/sys/fs/cgroup/memory"),
        "pids": Path("/mnt/a b"),
    }
    assert (parse_hierarchies(V2).version, parse_hierarchies("").version) == ("v2", "none")


def fill(directory: Path, *names: str, **content: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).touch()
    for name, text in content.items():
        (directory / name.replace("__", ".")).write_text(text)
    return directory


V1_FILES = {
    "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.usage_in_bytes"),
    "pids": ("pids.max", "pids.current"),
    "cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
    "cpuacct": ("cpuacct.usage",),
    "freezer": ("freezer.state",),
}


def v1_host(top: Path) -> Cgroups:
    """A host with v1 controllers, each mounted apart; the container's cgroups already have their files, as the kernel makes them."""
    for controller, names in V1_FILES.items():
        fill(top / controller / f"nestbed-{NODE}" / ID, *names)
    tree = Tree(NODE, Hierarchies({name: top / name for name in V1_FILES}))
    tree.open()
    return Cgroups(tree)


def v2_host(top: Path, controllers: str = "cpu memory pids io") -> Cgroups:
    base = top / f"nestbed-{NODE}"
    for directory in (top, base):
        fill(directory, cgroup__subtree_control=controllers, cgroup__procs="1\n2\n")
    fill(base, "cgroup.kill", "cgroup.freeze", "io.weight")
    fill(base / ID, "cpu.max", "memory.max", "memory.swap.max", "pids.max", "io.weight", "cgroup.freeze", "cgroup.kill")
    tree = Tree(NODE, Hierarchies({}, top, frozenset(controllers.split())))
    tree.open()
    return Cgroups(tree)


def test_v1_limits(tmp_path: Path) -> None:
    cgroups = v1_host(tmp_path)
    limits = Resources(cpus=1.0, memory_bytes=64 << 20, pids=100)
    cgroups.create(ID, limits)
    base = f"nestbed-{NODE}/{ID}"
    assert (tmp_path / "memory" / base / "memory.limit_in_bytes").read_text() == str(64 << 20)
    assert (tmp_path / "memory" / base / "memory.memsw.limit_in_bytes").read_text() == str(64 << 20)
    assert (tmp_path / "cpu" / base / "cpu.cfs_quota_us").read_text() == "100000"
    assert (tmp_path / "pids" / base / "pids.max").read_text() == "100"
    joined = cgroups.membership(ID, limits)
    assert joined.cgroup2 == ""
    assert {Path(path).parent.parent.name for path in joined.cgroups} == {"memory", "pids", "cpu", "cpuacct", "freezer"}
    assert set(cgroups.objects(ID)) == {f"{name}/{base}" for name in V1_FILES}
    assert set(cgroups.listing()) == {(name, ID) for name in V1_FILES}


def test_without_a_limit_of_memory_the_v1_hierarchy_is_not_joined(tmp_path: Path) -> None:
    cgroups = v1_host(tmp_path)
    joined = cgroups.membership(ID, Resources(pids=100))
    assert {Path(path).parent.parent.name for path in joined.cgroups} == {"pids", "cpu", "cpuacct", "freezer"}
    other = "00" + ID[2:]
    for name in V1_FILES:
        fill(tmp_path / name / f"nestbed-{NODE}")
    cgroups.create(other, Resources())
    assert not (tmp_path / "memory" / f"nestbed-{NODE}" / other).exists()
    assert (tmp_path / "cpu" / f"nestbed-{NODE}" / other).exists()


def test_without_limits_of_their_own_containers_share_one_of_memory(tmp_path: Path) -> None:
    cgroups = v1_host(tmp_path)
    shared = tmp_path / "memory" / f"nestbed-{NODE}" / "memory"
    fill(shared, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    cgroups.tree.open(512 << 20)
    assert (shared / "memory.limit_in_bytes").read_text() == (shared / "memory.memsw.limit_in_bytes").read_text() == str(512 << 20)
    assert cgroups.membership(ID, Resources()).cgroups[-1] == str(shared)
    assert str(shared) not in cgroups.membership(ID, Resources(memory_bytes=64 << 20)).cgroups
    assert ("memory", "memory") not in set(cgroups.listing())
    before = Resources(memory_bytes=64 << 20)
    cgroups.create(ID, before)
    cgroups.update(ID, Resources(), before=before)
    assert (tmp_path / "memory" / f"nestbed-{NODE}" / ID / "memory.limit_in_bytes").read_text().startswith(str(512 << 20))


def test_a_v1_limit_of_memory_is_taken_away_again(tmp_path: Path) -> None:
    cgroups = v1_host(tmp_path)
    before = Resources(memory_bytes=64 << 20)
    cgroups.create(ID, before)
    cgroups.update(ID, Resources(), before=before)
    assert (tmp_path / "memory" / f"nestbed-{NODE}" / ID / "memory.limit_in_bytes").read_text().startswith("-1")


def test_v2_limits(tmp_path: Path) -> None:
    cgroups = v2_host(tmp_path)
    limits = Resources(cpus=0.5, memory_bytes=64 << 20, pids=100, io_weight=200)
    cgroups.create(ID, limits)
    directory = tmp_path / f"nestbed-{NODE}" / ID
    assert {name: (directory / name).read_text() for name in ("cpu.max", "memory.max", "memory.swap.max", "pids.max", "io.weight")} == {
        "cpu.max": "50000 100000",
        "memory.max": str(64 << 20),
        "memory.swap.max": "0",
        "pids.max": "100",
        "io.weight": "default 200",
    }
    joined = cgroups.membership(ID, limits)
    assert (joined.cgroup2, joined.cgroup2_mount, joined.cgroups) == (f"nestbed-{NODE}/{ID}", str(tmp_path), ())


def test_limits_are_taken_away_again(tmp_path: Path) -> None:
    cgroups = v2_host(tmp_path)
    before = Resources(cpus=1.0, memory_bytes=64 << 20, pids=100)
    cgroups.create(ID, before)
    cgroups.update(ID, Resources(pids=200), before=before)
    directory = tmp_path / f"nestbed-{NODE}" / ID
    # plain files keep what was there beyond what is written; the kernel's do not
    assert (directory / "cpu.max").read_text().startswith("max 100000")
    assert (directory / "memory.max").read_text().startswith("max")
    assert (directory / "pids.max").read_text() == "200"


def test_a_limit_the_machine_cannot_set_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    cgroups = v2_host(tmp_path, "cpu pids")
    with pytest.raises(HostLacks) as caught:
        cgroups.create("00", Resources(memory_bytes=64 << 20))
    assert caught.value.reason == "LIMIT_NOT_SUPPORTED"
    assert caught.value.metadata["limit"] == "memory"
    assert not (tmp_path / f"nestbed-{NODE}/00").exists()


def test_controllers_are_not_switched_on_over_the_processes_of_others(tmp_path: Path) -> None:
    fill(tmp_path, cgroup__procs="1\n2\n")
    (tmp_path / "cgroup.subtree_control").mkdir()  # refuses to be read or written, as a busy cgroup refuses controllers
    tree = Tree(NODE, Hierarchies({}, tmp_path, frozenset({"memory"})))
    tree.open()
    assert not tree.can("memory")
    assert "memory" in tree.lacks("memory")


@pytest.mark.parametrize(
    "limits",
    [
        Resources(cpus=0.0),
        Resources(cpus=1e9),
        Resources(memory_bytes=1),
        Resources(pids=0),
        Resources(pids=1 << 40),
        Resources(io_weight=0),
    ],
)
def test_impossible_limits_are_refused(tmp_path: Path, limits: Resources) -> None:
    with pytest.raises(InvalidArgument) as caught:
        v2_host(tmp_path).check(limits)
    assert caught.value.reason == "BAD_LIMIT"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "AA", "aa\n", "x" * 12])
def test_only_ids_become_paths(tmp_path: Path, name: str) -> None:
    cgroups = v1_host(tmp_path)
    for operation in (cgroups.remove, cgroups.kill, cgroups.usage, cgroups.objects, cgroups.is_frozen):
        with pytest.raises(InvalidArgument):
            operation(name)
    with pytest.raises(InvalidArgument):
        Tree(name, Hierarchies())


def test_v1_usage(tmp_path: Path) -> None:
    cgroups = v1_host(tmp_path)
    base = f"nestbed-{NODE}/{ID}"
    fill(
        tmp_path / "memory" / base,
        memory__usage_in_bytes="4096\n",
        memory__max_usage_in_bytes="8192\n",
        memory__limit_in_bytes="9223372036854771712\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    )
    fill(tmp_path / "pids" / base, pids__current="7\n", pids__max="max\n")
    fill(tmp_path / "cpuacct" / base, cpuacct__usage="1500000000\n")
    used = cgroups.usage(ID)
    assert (used.memory_bytes, used.memory_peak_bytes, used.memory_limit_bytes, used.oom_kills) == (4096, 8192, None, 3)
    assert (used.pids, used.pids_limit, used.cpu_seconds, used.io_read_bytes) == (7, None, 1.5, None)


def test_v2_usage(tmp_path: Path) -> None:
    cgroups = v2_host(tmp_path)
    fill(
        tmp_path / f"nestbed-{NODE}" / ID,
        memory__current="4096\n",
        memory__max="max\n",
        memory__events="low 0\noom 2\noom_kill 1\n",
        pids__current="7\n",
        pids__max="100\n",
        cpu__stat="usage_usec 2500000\nuser_usec 1\n",
        io__stat="8:0 rbytes=10 wbytes=20 rios=1 wios=1\n8:16 rbytes=1 wbytes=2\n",
    )
    used = cgroups.usage(ID)
    assert (used.memory_bytes, used.memory_limit_bytes, used.oom_kills, used.pids, used.pids_limit) == (4096, None, 1, 7, 100)
    assert (used.cpu_seconds, used.io_read_bytes, used.io_write_bytes) == (2.5, 11, 22)


def test_usage_of_what_is_gone_is_unknown(tmp_path: Path) -> None:
    used = v2_host(tmp_path).usage("00")
    assert (used.memory_bytes, used.pids, used.cpu_seconds, used.oom_kills) == (None, None, None, None)
