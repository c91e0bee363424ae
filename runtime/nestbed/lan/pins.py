"""Where the LAN plane's BPF maps are pinned: a BPF file system of the node's own, in its run directory.

Not below ``/sys/fs/bpf``, which not every mount namespace shows. A reboot, or somebody's umount, takes it away with all it holds; then
everything is made again.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from nestbed.linux import bpf
from nestbed.linux.mount import umount2


def pin_dir(run_dir: Path) -> Path:
    """``RUN_DIR/bpf``, mounted if it is not. Two callers in one daemon may use it for maps of different names.

    Raises:
        OSError: this kernel has no BPF file system, or this process may not mount it.
    """
    path = _path(run_dir)
    path.mkdir(mode=0o700, exist_ok=True)
    if not bpf.is_bpffs(path):
        bpf.mount_bpffs(path)
    return path


def release(run_dir: Path) -> None:
    """Unmount it, with all that is pinned there: no LAN and no port is left that it serves. Idempotent; one that is busy is left."""
    path = _path(run_dir)
    with contextlib.suppress(OSError):
        umount2(str(path))
        path.rmdir()


def _path(run_dir: Path) -> Path:
    return run_dir / "bpf"
