"""The state of a node's experiments: a directory each, ``experiments/NAME/`` in the state directory.

``experiment.json`` is the record, replaced as a whole: what was asked for and how far it came. The files beside it (``vtopo.yaml``,
``ptopo.yaml``, ``plan.json``) are copies for people. Where the elements are is asked of the nodes, never kept.
"""

from __future__ import annotations

import base64
import enum
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nestbed.errors import CorruptState, NestbedError, translated
from nestbed.plain import from_json, to_json

_RECORD = "experiment.json"
_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}")


class Phase(enum.StrEnum):
    """How far an experiment came. RISING and FALLING go on when the daemon comes back."""

    RISING = "rising"
    UP = "up"
    FAILED = "failed"
    FALLING = "falling"


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was given."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class ExperimentRecord:
    """What is known of an experiment.

    ``sources`` are the files that the vtopo names, their contents in base64. ``admin`` is whether it acts as the administrator; ``keep``
    whether what was made stays if it fails; ``run_id`` tells one ``up`` from another; ``earlier`` and ``earlier_sources`` are the files of
    the one before, whose nodes may hold what is to go; ``failed`` are elements that did not become ready, each with the reason.
    """

    name: str
    vtopo: File
    ptopo: File | None
    phase: Phase
    run_id: str
    admin: bool = False
    keep: bool = False
    force: bool = False
    sources: tuple[File, ...] = ()
    earlier: tuple[File, ...] = ()
    earlier_sources: tuple[File, ...] = ()
    problems: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    started_at: float = 0.0
    seconds: float = 0.0

    def files(self) -> tuple[tuple[str, str], tuple[str, str] | None, dict[str, bytes]]:
        """As ``nestbed.experiment.plan.make`` takes them."""
        ptopo = (self.ptopo.text, self.ptopo.name) if self.ptopo else None
        return (self.vtopo.text, self.vtopo.name), ptopo, _decoded(self.sources)

    def earlier_files(self) -> tuple[tuple[str, str], tuple[str, str] | None, dict[str, bytes]]:
        """The same of the one before, which there was."""
        texts = [(file.text, file.name) for file in self.earlier]
        return texts[0], texts[1] if len(texts) > 1 else None, _decoded(self.earlier_sources)


def encoded(sources: Mapping[str, bytes]) -> tuple[File, ...]:
    """Files of any content as a record holds them."""
    return tuple(File(name, base64.b64encode(content).decode()) for name, content in sources.items())


def _decoded(files: Iterable[File]) -> dict[str, bytes]:
    return {file.name: base64.b64decode(file.text) for file in files}


class Store:
    """The directory of all experiments of a node. ``nestbed.errors`` from every method."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder(self, name: str) -> Path:
        """The directory of an experiment that has a record."""
        return self._folder / name

    def write(self, record: ExperimentRecord) -> None:
        """Write the record of an experiment, or replace it."""
        here = self._folder / record.name
        with translated(f"writing the record of experiment {record.name}", experiment=record.name, path=here):
            here.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(here / _RECORD, json.dumps({"version": _VERSION, **to_json(record)}))

    def write_copies(self, record: ExperimentRecord, plan: str) -> None:
        """Write the copies for people."""
        here = self._folder / record.name
        with translated(f"writing the files of experiment {record.name}", experiment=record.name, path=here):
            _replace(here / "vtopo.yaml", record.vtopo.text)
            _replace(here / "plan.json", plan)
            if record.ptopo:
                _replace(here / "ptopo.yaml", record.ptopo.text)
            else:
                (here / "ptopo.yaml").unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Forget an experiment. Idempotent; the record goes first."""
        here = self._folder / name
        with translated(f"removing the record of experiment {name}", experiment=name, path=here):
            (here / _RECORD).unlink(missing_ok=True)
            if here.exists():
                shutil.rmtree(here)

    def records(self) -> Iterator[ExperimentRecord | NestbedError]:
        """All records, by name; in place of each that cannot be read, the reason. A directory without one is removed."""
        with translated(f"reading the directory {self._folder}", path=self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = sorted(name for name in os.listdir(self._folder) if _NAME.fullmatch(name))
        for name in names:
            path = self._folder / name / _RECORD
            try:
                with translated(f"reading {path}", path=path):
                    if not path.exists():
                        shutil.rmtree(path.parent)
                        continue
                    text = path.read_text(encoding="utf-8")
                yield _read(name, path, text)
            except NestbedError as error:
                yield error


def _read(name: str, path: Path, text: str) -> ExperimentRecord:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise _corrupt(path, "is not JSON") from error
    if not isinstance(data, dict) or data.get("version") != _VERSION or data.get("name") != name:
        raise _corrupt(path, f"is no record of version {_VERSION} of experiment {name}")
    return from_json(ExperimentRecord, data)


def _corrupt(path: Path, why: str) -> CorruptState:
    return CorruptState(
        f"{path} {why}", reason="CORRUPT_RECORD", remedy="remove its directory; `nbctl ps -a` shows what is left", path=path
    )


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o600)
    new.rename(path)
