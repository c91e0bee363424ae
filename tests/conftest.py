"""What all tests share: floors and their rules, machines with daemons, and the proof that a test left nothing behind."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nestbed.testing import leaks
from nestbed.testing.machine import Daemon, Machine

TESTS = Path(__file__).parent
NEED_ROOT = {"net", "guest"}
_OUTCOMES: Counter[tuple[str, str]] = Counter()


def floor_of(path: Path) -> str:
    return path.relative_to(TESTS).parts[0] if TESTS in path.parents else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        floor = floor_of(item.path)
        if floor in NEED_ROOT:
            item.add_marker(getattr(pytest.mark, floor))
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped or report.when == "call":
        _OUTCOMES[report.nodeid.split("/")[1] if report.nodeid.startswith("tests/") else "", report.outcome] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A floor of which every test was skipped has proved nothing."""
    floors = {floor for floor, _ in _OUTCOMES}
    if any(not _OUTCOMES[floor, "passed"] and not _OUTCOMES[floor, "failed"] for floor in floors):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for floor in sorted({floor for floor, _ in _OUTCOMES}):
        if not _OUTCOMES[floor, "passed"] and not _OUTCOMES[floor, "failed"]:
            terminalreporter.write_line(f"tests/{floor}: every test was skipped, which counts as a failure", red=True)


@pytest.fixture(autouse=True)
def owned_cgroups(request: pytest.FixtureRequest) -> Iterator[set[str]]:
    """On the floors that touch the kernel: fails the test that leaves something. Names of cgroups that are added are looked at too."""
    names: set[str] = set()
    if floor_of(request.path) not in NEED_ROOT or os.geteuid() != 0:
        yield names
        return
    leaks.become_reaper()
    leaks.reap()
    before = leaks.Snapshot.take()
    yield names
    left = leaks.leaked(before, names, is_harmless=is_grpc)
    leaks.kill_descendants(before)  # what a fixture of a wider scope started goes on
    assert left == [], "the test left something behind"


def is_grpc(thing: str) -> bool:
    """gRPC keeps a poller for the life of the process once it was used."""
    kind, _, target = thing.partition(" -> ")
    return kind.startswith("descriptors:") and "grpc" in sys.modules and target.startswith(("anon_inode:[event", "socket:"))


@pytest.fixture
def machines(tmp_path: Path, owned_cgroups: set[str]) -> Iterator[Callable[[str], Machine]]:
    """Makes machines: each with a network namespace and directories of its own; ``machine.daemon.start()`` starts its daemon."""
    made: list[Machine] = []

    def make(name: str) -> Machine:
        made.append(Machine(name, tmp_path / name))
        return made[-1]

    yield make
    for machine in made:
        machine.close()
        owned_cgroups.add(f"nestbed-{machine.node_id}")


@pytest.fixture
def machine(machines: Callable[[str], Machine]) -> Machine:
    """One machine, without a daemon yet."""
    return machines("node1")


@pytest.fixture
def daemon(machine: Machine) -> Daemon:
    """A daemon that serves, on ``machine``."""
    machine.daemon.start()
    return machine.daemon
