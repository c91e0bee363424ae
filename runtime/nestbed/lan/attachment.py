"""The one thing of ours on an underlay, which belongs to the machine: a filter on its clsact qdisc.

The qdisc is made if it is missing, and removed with the filter if we made it and nobody else uses it; ``RUN_DIR/underlays.json`` says of
which interface (name and index) that is so, before it is done.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path

from nestbed.lan import fastpath
from nestbed.linux import tc
from nestbed.linux.rtnl import Rtnl

FILE = "underlays.json"


class Attachments:
    """The filters of one node. Errors are OSError."""

    def __init__(self, run_dir: Path, rtnl: Rtnl) -> None:
        self._path = run_dir / FILE
        self._rtnl = rtnl

    def attach(self, path: fastpath.FastPath, name: str, index: int) -> None:
        """Have the interface's datagrams looked at, by this daemon's program. Idempotent; atomic for those under way."""
        record = self._read()
        record.setdefault(name, {})
        if record[name].get("index") != index:
            record[name] = {"index": index, "made_clsact": not tc.has_clsact(self._rtnl, index)}
            self._write(record)
        if record[name]["made_clsact"]:
            self._tolerant(tc.clsact(index), errno.EEXIST)
        self._rtnl.batch([path.on_underlay(index)])

    def detach_all_but(self, names: set[str]) -> None:
        """Take the filter off every interface on record but these. Idempotent."""
        record = self._read()
        for name in set(record) - names:
            index = int(record[name]["index"])
            if self._is_there(name, index):
                self._tolerant(fastpath.off_underlay(index), errno.ENOENT, errno.EINVAL)
                if record[name]["made_clsact"] and not tc.filters(self._rtnl, index):
                    self._tolerant(tc.clsact_deletion(index), errno.ENOENT, errno.EINVAL)
            del record[name]
            self._write(record)

    def recorded(self) -> dict[str, int]:
        """The interfaces that have the filter, or are about to: name and index."""
        return {name: int(entry["index"]) for name, entry in self._read().items()}

    def _is_there(self, name: str, index: int) -> bool:
        try:
            return self._rtnl.link_index(name) == index
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise

    def _tolerant(self, request: bytes, *numbers: int) -> None:
        try:
            self._rtnl.batch([request])
        except OSError as error:
            if error.errno not in numbers:
                raise

    def _read(self) -> dict[str, dict[str, int]]:
        try:
            found: dict[str, dict[str, int]] = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def _write(self, record: dict[str, dict[str, int]]) -> None:
        if not record:
            self._path.unlink(missing_ok=True)
            return
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(record))
        new.rename(self._path)
