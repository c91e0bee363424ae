"""The files nestbedd keeps in a process container's bundle for the keeper and for the container to see."""

from __future__ import annotations

import errno
import json
import os
from typing import Any, cast

from nestbed import agentdir
from nestbed.errors import Busy, CorruptState, translated
from nestbed.linux.remove import remove_tree
from nestbed.model import Bundle
from nestbed.process.protocol import Launch, last_status

NODE_FILES = ("record.json",)
"""What in a bundle is not the runtime's."""

_READABLE, _PRIVATE = 0o644, 0o600


def make(bundle: Bundle, launch: Launch) -> None:
    """Write ``launch.json``, which nobody reads yet, a first ``hosts``, which :func:`write_hosts` will fill, and a process's FIFO."""
    _write(bundle, "launch.json", json.dumps(launch), _PRIVATE)
    _write(bundle, "hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n", _READABLE)
    if not launch.get("kvm"):
        report = bundle.path / agentdir.REPORT
        with translated(f"making {report}", path=report):
            os.mkfifo(report)
            report.chmod(agentdir.REPORT_MODE)


def replace_launch(bundle: Bundle, launch: Launch) -> None:
    """Write ``launch.json`` again, whole or not at all."""
    new = bundle.path / "launch.json.new"
    _write(bundle, new.name, json.dumps(launch), _PRIVATE)
    with translated(f"writing {new}", path=new):
        new.rename(bundle.path / "launch.json")


def write_hosts(bundle: Bundle, text: str) -> None:
    """Rewrite ``hosts`` in place: the inode is mounted in the container."""
    _write(bundle, "hosts", text)


def read_launch(bundle: Bundle) -> Launch:
    """What was launched.

    Raises:
        CorruptState: it is missing, or cannot be read.
    """
    launch = _read(bundle, "launch.json")
    if launch is None or launch.get("id") != bundle.id:
        raise _corrupt(bundle, "launch.json is missing or of another container")
    return cast(Launch, launch)


def read_status(bundle: Bundle) -> dict[str, Any] | None:
    """What the keeper wrote last; None if it never did.

    Raises:
        CorruptState: it cannot be read.
    """
    path = bundle.path / "status.json"
    try:
        return last_status(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _corrupt(bundle, f"status.json: {error}") from error


def holds_anything(bundle: Bundle) -> bool:
    """Whether anything of the runtime is in the bundle; nothing is made before ``launch.json`` names it."""
    try:
        return any(name not in NODE_FILES for name in os.listdir(bundle.path))
    except FileNotFoundError:
        return False


def clear(bundle: Bundle) -> None:
    """Remove everything of the runtime; no link is followed and no mount crossed. Idempotent.

    Raises:
        Busy: something is mounted in it.
    """
    try:
        fd = os.open(bundle.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        with translated(f"removing {bundle.path}", path=bundle.path):
            for name in os.listdir(fd):
                if name not in NODE_FILES:
                    remove_tree(fd, name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise Busy(f"something is mounted in {bundle.path}", reason="MOUNTED", remedy="unmount it", path=bundle.path) from error
    finally:
        os.close(fd)


def _write(bundle: Bundle, name: str, text: str, mode: int | None = None) -> None:
    """Write a file in place; with ``mode`` it may be a new one."""
    path = f"{bundle.path}/{name}"
    with translated(f"writing {path}", path=path):
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if mode is None else os.O_CREAT), _PRIVATE)
        try:
            data = text.encode()
            if mode is not None:
                os.fchmod(fd, mode)
            if os.write(fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # A reader sees the old text, then the new one, never none.
            os.ftruncate(fd, len(data))
        finally:
            os.close(fd)


def _read(bundle: Bundle, name: str) -> dict[str, Any] | None:
    path = bundle.path / name
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _corrupt(bundle, f"{name}: {error}") from error
    if not isinstance(data, dict):
        raise _corrupt(bundle, f"{name} is no object")
    return data


def _corrupt(bundle: Bundle, why: str) -> CorruptState:
    return CorruptState(
        f"the bundle of container {bundle.id} cannot be understood: {why}",
        reason="CORRUPT_BUNDLE",
        remedy="delete the container",
        container=bundle.id,
    )
