"""What demos stand on: a daemon of their own in a fresh network namespace, driven by nbctl alone, and nothing left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BIN = Path(sys.executable).parent
_CGROUPS = Path("/sys/fs/cgroup")
_START_SECONDS = 30.0


class DemoFailure(Exception):
    """A step did not do what it should."""


def step(text: str) -> None:
    """Head a step."""
    sys.stdout.write(f"\n== {text}\n")
    sys.stdout.flush()


@contextmanager
def daemon(base: Path, *options: str) -> Iterator[str]:
    """A nestbedd with directories below ``base``, and its address. What it may do to "the machine" stays in its network namespace.

    Raises:
        DemoFailure: it does not start.
    """
    run = base / "run"
    words = [str(BIN / "nestbedd"), "--name", "demo", "--run-dir", str(run), "--state-dir", str(base / "state"), *options]
    log = (base / "nestbedd.log").open("w+")
    process = subprocess.Popen(["unshare", "--net", "--", *words], stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while '"ready"' not in Path(log.name).read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoFailure(f"nestbedd does not start:\n{Path(log.name).read_text()}")
            time.sleep(0.05)
        yield f"unix://{run}/admin.sock"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.close()
        _remove_cgroups(run)


def _remove_cgroups(run: Path) -> None:
    """Remove the empty cgroups that a node keeps for its next daemon, by its id."""
    with suppress(FileNotFoundError):
        own = f"nestbed-{json.loads((run / 'node.json').read_text())['id']}"
        for hierarchy in (_CGROUPS, *_CGROUPS.iterdir()):
            for path, _, _ in os.walk(hierarchy / own, topdown=False):
                os.rmdir(path)
