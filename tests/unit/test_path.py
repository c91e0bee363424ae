"""Look-ups that stay where they are told to."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from nestbed.linux.path import openat2


def test_renames_elsewhere_are_no_failure(tmp_path: Path) -> None:
    """The kernel gives up a look-up with ``..`` when anything at all was renamed meanwhile; a container could do that without end."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "x").mkdir()
    enough = threading.Event()

    def rename() -> None:
        while not enough.is_set():
            (tmp_path / "x").rename(tmp_path / "y")
            (tmp_path / "y").rename(tmp_path / "x")

    renamer = threading.Thread(target=rename)
    renamer.start()
    root = os.open(tmp_path, os.O_PATH)
    try:
        for _ in range(2000):
            os.close(openat2(root, "a/b/../../a/b/..", os.O_PATH))
    finally:
        enough.set()
        renamer.join()
        os.close(root)
