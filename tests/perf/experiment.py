"""Experiments: how long planning, up, verify and down take.

There is no peer that does the same; the goals stand in the table. Elements are idle processes with ``--fs host``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nestbed.experiment import plan
from nestbed.testing.machine import Machine

BIN = Path(sys.executable).parent


def star(lans: int, hosts: int) -> str:
    """A core LAN, ``lans`` routers on it, behind each a LAN with ``hosts`` elements."""
    rows = "".join(f"  h{lan}x[1-{hosts}]: {{nics: [l{lan}], fs: host}}\n" for lan in range(1, lans + 1))
    return (
        f"experiment: star{lans * (hosts + 1)}\nlans: {{core: {{}}, 'l[1-{lans}]': {{}}}}\n"
        f"elements:\n  'r[1-{lans}]': {{nics: [core, 'l{{n}}'], fs: host}}\n{rows}"
    )


def timed(machine: Machine, *args: str) -> float:
    """How long nbctl takes.

    Raises:
        SystemExit: it failed.
    """
    began = time.monotonic()
    result = machine.run(BIN / "nbctl", "-H", machine.address, *args, timeout_seconds=180)
    if result.returncode != 0:
        raise SystemExit(f"nbctl {' '.join(args)}: {result.stdout}{result.stderr}")
    return time.monotonic() - began


def planning() -> dict[str, float]:
    """Seconds to plan 10,000 elements on 100 nodes, by strategy."""
    rows = "".join(f"  r{i}: {{nics: [core{i % 10 + 1}, l{i}]}}\n  'h{i}x[1-9]': {{nics: [l{i}]}}\n" for i in range(1, 1001))
    text = f"experiment: big\nlans: {{'l[1-1000]': {{}}, 'core[1-10]': {{}}}}\nelements:\n{rows}"
    found = {}
    for strategy in ("packed", "balanced", "min-cut"):
        ptopo = f"nodes: {{'n[1-100]': {{capacity: {{elements: 105}}}}}}\nplacement: {{strategy: {strategy}}}\n"
        began = time.monotonic()
        plan.make((text, "big"), (ptopo, "nodes"))
        found[f"plan 10,000 on 100 nodes, {strategy}"] = time.monotonic() - began
    return found


def experiments(folder: Path, sizes: list[int]) -> dict[str, float]:
    """Seconds of up, verify and down on a daemon of its own."""
    found: dict[str, float] = {}
    machine = Machine("bench", folder / "machine")
    try:
        machine.daemon.start()
        for size in sizes:
            path = folder / f"{size}.yaml"
            path.write_text(star(size // 10, 9))
            name = f"star{size // 10 * 10}"
            found[f"up {size}"] = timed(machine, "up", "-f", str(path))
            found[f"up {size} again"] = timed(machine, "up", "-f", str(path))
            if size <= 50:
                found[f"verify {size}"] = timed(machine, "verify", name)
            found[f"down {size}"] = timed(machine, "down", name)
        timed(machine, "audit")
    finally:
        machine.close()
    return found


GOALS = {
    "plan 10,000 on 100 nodes, min-cut": 30,
    "up 500": 15,
    "down 500": 8,
    "verify 50": 30,
}


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="hack/bench experiment", description=__doc__)
    parser.add_argument("--sizes", default="50,100,500", help="numbers of elements, multiples of 10 (50,100,500)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found = planning()
    with tempfile.TemporaryDirectory(prefix="nestbed-bench-") as folder:
        found |= experiments(Path(folder), [int(size) for size in args.sizes.split(",")])
    for name, seconds in found.items():
        goal = f"   goal {GOALS[name]} s" if name in GOALS else ""
        print(f"{name:<40}{seconds:8.2f} s{goal}")
    if args.json:
        data: dict[str, Any] = {"cpus": os.cpu_count(), "kernel": os.uname().release, "seconds": found}
        Path(args.json).write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
