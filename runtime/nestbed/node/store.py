"""The records of a node on disk: ``containers/<id>/record.json`` and ``lans/<id>.json`` in the state directory.

A container's record has a second name, ``made``, once the container is whole: it comes after everything was made and goes before anything
is removed, so a bundle without it is to be removed. (Another name, because it costs no inode, and ext4 writes data out at once when a
file is replaced: that takes longer than all the rest.)

A record is replaced as a whole (written beside it, then renamed), so a reader finds the old one or the new one. It is not synced: what
a power failure takes, it takes together with everything the record was about.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestbed.errors import Busy, CorruptState, from_errno, translated
from nestbed.lanmodel import Lan, Nic
from nestbed.linux.attributes import set_top_of_hierarchies
from nestbed.linux.remove import remove_tree
from nestbed.model import Bundle, Spec
from nestbed.plain import from_json, to_json

_ID = re.compile(r"[0-9a-f]{12}")
_RECORD = "record.json"
_ELSEWHERE = "elsewhere.json"
_MADE = "made"
_NEW = ".new"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """What the node knows of a container.

    ``request_id`` and ``request_digest`` recognise the call that made it.
    """

    spec: Spec
    request_id: str = ""
    request_digest: str = ""
    privileged: bool = False


@dataclass(frozen=True, slots=True)
class LanRecord:
    """What the node knows of a LAN."""

    lan: Lan
    request_id: str = ""
    request_digest: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A container inside a virtual machine that has NICs on LANs of this node; without an id it is being made."""

    id: str
    name: str
    nics: tuple[Nic, ...]
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What the node knows of the containers inside one virtual machine."""

    entries: tuple[Entry, ...] = ()


class Store:
    """The directories ``containers`` and ``lans`` of a state directory, which exist. ``nestbed.errors`` from every method."""

    def __init__(self, state_dir: Path) -> None:
        self._containers = state_dir / "containers"
        self._lans = state_dir / "lans"
        self._containers_fd = -1

    def open(self) -> None:
        """Make it ready, and remove what a daemon was writing when it was killed. Called once."""
        with translated(f"opening the directory {self._containers}", path=self._containers):
            self._containers_fd = os.open(self._containers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Else ext4 keeps all bundles in one block group, and without a journal passes over every inode freed there in the last minutes,
        # for each new one.
        with contextlib.suppress(OSError):
            set_top_of_hierarchies(self._containers_fd)
        with translated(f"cleaning the directory {self._lans}", path=self._lans):
            for path in self._lans.glob(f"*{_NEW}"):
                path.unlink()

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self._containers_fd >= 0:
            os.close(self._containers_fd)
            self._containers_fd = -1

    def bundle(self, container_id: str) -> Bundle:
        """Where the container's bundle is, or will be."""
        return Bundle(self._containers / container_id)

    def make_bundle(self, record: Record) -> Bundle:
        """Make the container's bundle with its record in it."""
        bundle = self.bundle(record.spec.id)
        with translated(f"making the bundle of container {record.spec.name}", container=record.spec.name, path=bundle.path):
            bundle.path.mkdir(mode=0o700)
        try:
            with translated(f"writing the record of container {record.spec.name}", container=record.spec.name, path=bundle.path):
                _write(f"{bundle.path}/{_RECORD}", _document(record), os.O_EXCL)
        except BaseException:
            with contextlib.suppress(OSError):
                remove_tree(self._containers_fd, record.spec.id)
            raise
        return bundle

    def mark_made(self, container_id: str) -> None:
        """Record that the container is whole. Idempotent."""
        path = f"{self._containers}/{container_id}/{_MADE}"
        with translated(f"making {path}", path=path), contextlib.suppress(FileExistsError):
            os.link(f"{self._containers}/{container_id}/{_RECORD}", path)

    def unmark_made(self, container_id: str) -> None:
        """Record that the container is being removed. Idempotent."""
        path = self._containers / container_id / _MADE
        with translated(f"removing {path}", path=path), contextlib.suppress(FileNotFoundError):
            path.unlink()

    def is_made(self, container_id: str) -> bool:
        """Whether the container is whole."""
        return (self._containers / container_id / _MADE).exists()

    def write(self, record: Record) -> None:
        """Replace the record of a container that has a bundle."""
        path = self._containers / record.spec.id / _RECORD
        with translated(f"writing the record of container {record.spec.name}", container=record.spec.name, path=path):
            _replace(path, _document(record))

    def read(self, container_id: str) -> Record | None:
        """The record of a bundle; None if it has none yet.

        Raises:
            CorruptState: it cannot be understood.
        """
        data = _read(self._containers / container_id / _RECORD)
        if data is None:
            return None
        record = from_json(Record, data)
        if record.spec.id != container_id:
            raise _corrupt(self._containers / container_id / _RECORD, "is of another container")
        return record

    def write_elsewhere(self, container_id: str, record: Elsewhere) -> None:
        """Replace what is known of the containers inside a virtual machine that has a bundle."""
        path = self._containers / container_id / _ELSEWHERE
        with translated(f"writing {path}", path=path):
            _replace(path, _document(record))

    def read_elsewhere(self, container_id: str) -> Elsewhere:
        """What :meth:`write_elsewhere` wrote; nothing is known if it cannot be understood: the node inside says it again."""
        try:
            data = _read(self._containers / container_id / _ELSEWHERE)
            return Elsewhere() if data is None else from_json(Elsewhere, data)
        except CorruptState:
            return Elsewhere()

    def remove_bundle(self, container_id: str) -> None:
        """Remove a bundle with all it holds. Idempotent; never follows a link or crosses a mount.

        Raises:
            Busy: something is mounted in it (reason BUNDLE_MOUNTED); nothing behind the mount was touched.
        """
        try:
            remove_tree(self._containers_fd, container_id)
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.EXDEV):
                raise _mounted(self._containers / container_id) from error
            raise from_errno(error.errno or 0, f"removing the bundle {container_id}", container=container_id) from error

    def container_ids(self) -> list[str]:
        """The ids of all bundles, in no order."""
        with translated(f"listing the directory {self._containers}", path=self._containers):
            return [name for name in os.listdir(self._containers_fd) if _ID.fullmatch(name)]

    def strangers(self) -> list[Path]:
        """What stands in the directories and is no bundle, no record and no record being written."""
        with translated(f"listing the directory {self._containers}", path=self._containers):
            containers = [self._containers / name for name in os.listdir(self._containers_fd) if not _ID.fullmatch(name)]
            lans = [path for path in self._lans.iterdir() if not _ID.fullmatch(path.name.partition(".")[0])]
        return containers + lans

    def write_lan(self, record: LanRecord) -> None:
        """Write the record of a LAN, or replace it."""
        path = self._lan_path(record.lan.id)
        with translated(f"writing the record of LAN {record.lan.name}", lan=record.lan.name, path=path):
            _replace(path, _document(record))

    def remove_lan(self, lan_id: str) -> None:
        """Remove the record of a LAN. Idempotent."""
        with translated(f"removing the record of LAN {lan_id}", lan=lan_id), contextlib.suppress(FileNotFoundError):
            self._lan_path(lan_id).unlink()

    def lans(self) -> Iterator[LanRecord | CorruptState]:
        """All records of LANs, in no order; in place of each that cannot be understood, the reason."""
        with translated(f"listing the directory {self._lans}", path=self._lans):
            names = os.listdir(self._lans)
        for path in (self._lans / name for name in names if name.endswith(".json") and _ID.fullmatch(name[:-5])):
            try:
                data = _read(path)
                record = from_json(LanRecord, data)
                if record.lan.id != path.stem:
                    raise _corrupt(path, "is of another LAN")
            except CorruptState as error:
                yield error
            else:
                yield record

    def _lan_path(self, lan_id: str) -> Path:
        return self._lans / f"{lan_id}.json"


def _document(record: Record | LanRecord | Elsewhere) -> dict[str, Any]:
    return {"version": _VERSION, **to_json(record)}


def _replace(path: Path, data: dict[str, Any]) -> None:
    new = f"{path}{_NEW}"
    try:
        _write(new, data, os.O_TRUNC)
        os.rename(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def _write(path: str, data: dict[str, Any], flags: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    with open(fd, "wb") as file:
        file.write(json.dumps(data, separators=(",", ":")).encode())


def _read(path: Path) -> Any:
    with translated(f"reading {path}", path=path):
        try:
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
    try:
        data = json.loads(text)
    except ValueError as error:
        raise _corrupt(path, f"is not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("version") != _VERSION:
        raise _corrupt(path, f"is not of version {_VERSION}")
    return data


def _corrupt(path: Path, why: str) -> CorruptState:
    return CorruptState(f"the record {path} {why}", reason="CORRUPT_RECORD", remedy="see the daemon's log", path=path)


def _mounted(path: Path) -> Busy:
    return Busy(
        f"something is mounted in the bundle {path}",
        reason="BUNDLE_MOUNTED",
        remedy=f"unmount what /proc/self/mountinfo shows below {path}, then delete again",
        path=path,
    )
