"""The claim on a run directory and a state directory: one daemon at a time, and the node's id.

The run directory (``/run/nestbed``, mode 0711, on a file system that a reboot empties) holds ``lock``, ``node.json``, the sockets and
the runtimes' own files. The state directory (``/var/lib/nestbed``, mode 0700) holds ``lock``, ``containers/<id>/`` and
``lans/<id>.json``. The locks are flock(2) locks: the kernel drops them with the daemon, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from pathlib import Path

from nestbed.errors import CorruptState, WrongState, translated

_NODE_ID = re.compile(r"[0-9a-f]{8}")


class RunDirectory:
    """The two directories of one daemon, locked from :meth:`claim` to :meth:`close`. Also a context manager."""

    def __init__(self, run_dir: Path, state_dir: Path, node_id: str, locks: contextlib.ExitStack) -> None:
        self.run_dir = run_dir
        self.state_dir = state_dir
        self.node_id = node_id
        self._locks = locks

    @classmethod
    def claim(cls, run_dir: Path, state_dir: Path) -> RunDirectory:
        """Make what is missing of both directories, lock them, and read the node's id or make one. Before anything else.

        Raises:
            WrongState: another daemon has one of them (reason ALREADY_RUNNING).
            CorruptState: ``node.json`` is not ours.
            others of ``from_errno``: a directory cannot be made or locked.
        """
        with contextlib.ExitStack() as locks:
            for path, mode in ((run_dir, 0o711), (state_dir, 0o700)):
                with translated(f"preparing the directory {path}", path=path):
                    path.mkdir(parents=True, exist_ok=True)
                    path.chmod(mode)
                _lock(path, locks)
            for name in ("containers", "lans"):
                with translated(f"preparing the directory {state_dir / name}", path=state_dir / name):
                    (state_dir / name).mkdir(mode=0o700, exist_ok=True)
            node_id = _node_id(run_dir / "node.json")
            return cls(run_dir, state_dir, node_id, locks.pop_all())

    def close(self) -> None:
        """Let another daemon have them. Idempotent."""
        self._locks.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lock(directory: Path, locks: contextlib.ExitStack) -> None:
    path = directory / "lock"
    with translated(f"locking {path}", path=path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        locks.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise WrongState(
                f"another nestbedd (process {holder}) has the directory {directory}",
                reason="ALREADY_RUNNING",
                remedy="stop that daemon, or give this one --run-dir and --state-dir of its own",
                directory=directory,
                pid=holder,
            ) from error
        os.truncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)


def _node_id(path: Path) -> str:
    with translated(f"reading {path}", path=path), contextlib.suppress(FileNotFoundError):
        return _read_node_id(path)
    node_id = secrets.token_hex(4)
    new = path.with_suffix(".new")
    with translated(f"writing {path}", path=path):
        new.write_text(json.dumps({"id": node_id}) + "\n")
        new.rename(path)
    return node_id


def _read_node_id(path: Path) -> str:
    try:
        found = json.loads(path.read_bytes())["id"]
        if _NODE_ID.fullmatch(found):
            return str(found)
    except (ValueError, KeyError, TypeError) as error:
        raise _corrupt(path) from error
    raise _corrupt(path)


def _corrupt(path: Path) -> CorruptState:
    return CorruptState(
        f"{path} holds no node id",
        reason="CORRUPT_NODE_ID",
        remedy=f"stop the node's containers, remove {path}, and start nestbedd again",
        path=path,
    )
