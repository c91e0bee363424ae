"""The build hook: has the BPF programs compiled before they are packaged."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileBpf(BuildHookInterface):
    """Runs ``hack/genbpf``, for wheels and for the editable installation alike."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - the interface's
        subprocess.run([Path(self.root, "hack", "genbpf")], check=True)
