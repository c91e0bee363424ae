"""Writes the JSON Schemas of the two files: ``python -m nestbed.experiment.schema docs``, after a change of their words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nestbed.experiment.ptopo import Ptopo
from nestbed.experiment.vtopo import Vtopo
from nestbed.experiment.words import json_schema

SCHEMAS = {"vtopo.schema.json": (Vtopo, "nestbed vtopo file"), "ptopo.schema.json": (Ptopo, "nestbed ptopo file")}


def text(name: str) -> str:
    """The content of one of SCHEMAS."""
    kind, title = SCHEMAS[name]
    return json.dumps(json_schema(kind, title), indent=2) + "\n"


def main() -> None:
    """Write them into the folder that the command line names."""
    for name in SCHEMAS:
        (Path(sys.argv[1]) / name).write_text(text(name))


if __name__ == "__main__":
    main()
