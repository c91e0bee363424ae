"""``python -I -m nestbed.lan.relay RUN_DIR``: be the relay of a node until nothing is wanted of it.

Exits with 0 then, and with 1 if another one has the run directory.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import resource
import signal
import sys
from pathlib import Path

from nestbed.lan.relay import LOCK_FILE
from nestbed.lan.relay.relay import Relay
from nestbed.linux.pidfd import start_time

_NICE = -10
"""Frames wait for nobody who only computes."""


def main() -> int:
    """Lock the run directory, say who has it, and work."""
    os.closerange(3, 1 << 20)  # a library of nestbedd's may have left something open, which must not outlive it here
    run_dir = Path(sys.argv[1])
    fd = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 1
    record = json.dumps({"pid": os.getpid(), "start_time": start_time(os.getpid())}).encode()
    os.pwrite(fd, record, 0)
    os.ftruncate(fd, len(record))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.umask(0o077)
    os.chdir("/")
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    relay = Relay(run_dir)
    relay.open()
    gc.collect()
    gc.freeze()
    gc.disable()  # nothing that frames leave behind refers to itself
    relay.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
