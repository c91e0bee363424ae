"""Attacks from inside a container on the kernel's interfaces and on whoever starts programs in it. One test for each known threat."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import nestbed
from nestbed.errors import InvalidArgument, NestbedError
from nestbed.linux.inotify import inotify_add_watch, inotify_init, read_changes
from nestbed.testing.inside import attempt, connect, read_at, syscall, write_at
from nestbed.v1 import container_pb2 as api

pytestmark = pytest.mark.net

MODES = ("host", "host-ro", "overlay", "rootfs")
every_mode = pytest.mark.parametrize("mode", MODES)


# ---------------------------------------------------------------- what a joining process brings in


@pytest.mark.parametrize("capabilities", [(), ("SYS_PTRACE",)], ids=["default", "with-ptrace"])
def test_cve_2016_9962_descriptors_of_a_joining_process_show_no_host_path(fort, capabilities) -> None:
    def probe() -> list[str]:
        """Looks at every process that appears, and into it, until a file tells to stop."""
        seen, own = set(), os.getpid()
        while not os.path.exists("/run/enough"):
            for pid in [name for name in os.listdir("/proc") if name.isdigit() and int(name) != own]:
                for kind in ("fd", "cwd", "root", "exe"):
                    with contextlib.suppress(OSError):
                        paths = [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")] if kind == "fd" else [f"/proc/{pid}/{kind}"]
                        for path in paths:
                            with contextlib.suppress(OSError):
                                seen.add(f"{kind} {os.readlink(path)}")
                                if kind in ("fd", "cwd", "root") and os.path.exists(f"{path}/etc/shadow"):
                                    seen.add(f"shadow {os.path.getsize(f'{path}/etc/shadow')}")
        return sorted(seen)

    source = "import contextlib\n"
    from conftest_access import script  # placeholder
