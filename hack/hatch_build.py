"""The build hook: has what is in C compiled before it is packaged."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Compile(BuildHookInterface):
    """Runs ``hack/genc``, for wheels and for the editable installation alike."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - the interface's
        subprocess.run([Path(self.root, "hack", "genc")], check=True)
