"""Files of elements: what the vtopo says of them, and how they get inside, before an element's program, at every start of it.

They travel in the element's own command: a tar archive in base64 as its arguments, which a shell unpacks before it becomes the program. So
there is nothing to be delivered anew after a restart, whoever restarts it, and a process and a virtual machine are served alike.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nestbed.experiment.ranges import expand, fill
from nestbed.experiment.source import Source
from nestbed.experiment.topology import Element
from nestbed.experiment.vtopo import Vtopo

PACKED_BYTES_MAX = 72 * 1024
"""Of all files of an element together, compressed: a node takes 128 KiB of arguments."""
SOURCE_BYTES_MAX = 1024 * 1024
"""Of one file, before it is compressed."""
_UNPACK = """\
echo "$1" | base64 -d | tar -xzpf - -C / --numeric-owner || { echo 'nestbed: files could not be unpacked' >&2; exit 125; }
shift
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of an element. ``owner`` and ``group`` are numbers."""

    path: str
    content: bytes
    mode: int
    owner: int
    group: int

    def document(self) -> dict[str, Any]:
        """As plain data, without its content."""
        digest = hashlib.sha256(self.content).hexdigest()
        return {"sha256": digest, "mode": f"{self.mode:04o}", "owner": f"{self.owner}:{self.group}"}


def sources(vtopo: Vtopo) -> list[str]:
    """The paths, as they are written, of the files on the machine of whoever has the vtopo that are wanted for it."""
    found: dict[str, None] = {}
    for name, words in vtopo.elements.items():
        for file in words.files.values():
            if file.source:
                found |= {fill(file.source, number): None for _, number in expand(name)}
    return list(found)


def planned(element: Element, given: Mapping[str, bytes], source: Source) -> tuple[PlannedFile, ...]:
    """The files of an element; ``given`` are the contents of :func:`sources`.

    Raises:
        InvalidArgument: a content is not given, or they are too large; with file, line and column.
    """
    found = []
    for path, words in element.words.files.items():
        here = (*element.path, "files", path)
        origin = fill(words.source, element.number)
        if bool(origin) == bool(words.content):
            raise source.mistake(
                here, f"the file {path} has both, or none, of content and source", reason="CONFLICTING_WORDS", remedy="give one of the two"
            )
        if origin and origin not in given:
            raise source.mistake(
                (*here, "source"), f"the file {origin} was not given", reason="NO_SUCH_FILE", remedy="see whether it exists", missing=origin
            )
        content = given[origin] if origin else fill(words.content, element.number).encode()
        found.append(PlannedFile(fill(path, element.number), content, words.mode, *words.owner))
    if found and len(pack(found)) > PACKED_BYTES_MAX * 4 / 3:
        raise source.mistake(
            (*element.path, "files"),
            f"the files of {element.name} are more than {PACKED_BYTES_MAX // 1024} KiB, compressed",
            reason="FILES_TOO_LARGE",
            remedy="mount a directory that holds them, or copy them with nbctl cp",
            element=element.name,
        )
    return tuple(found)


def pack(files: Iterable[PlannedFile]) -> str:
    """An archive of them as text; the same for the same files, whenever it is made."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for file in files:
            entry = tarfile.TarInfo(file.path.lstrip("/"))
            entry.size, entry.mode, entry.uid, entry.gid = len(file.content), file.mode, file.owner, file.group
            archive.addfile(entry, io.BytesIO(file.content))
    return base64.b64encode(gzip.compress(packed.getvalue(), mtime=0)).decode()


def with_files(args: Sequence[str], files: Sequence[PlannedFile]) -> tuple[str, ...]:
    """The command that has the files there before it becomes ``args``."""
    return ("/bin/sh", "-c", _UNPACK, "files", pack(files), *args) if files else tuple(args)
