"""The demo does what it says, and says the same whatever its target is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

DEMO = Path(__file__).parents[2] / "docs" / "examples" / "irc" / "demo.py"
OUTCOME = "outcome:  6 of 6 bots joined, 6 answered, no deviation seen from inside, the load rose and fell, no fetch failed, 6 quit\n"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["process", "machine"])
def test_the_outcome_is_the_same_whatever_the_target_is(owned_cgroups: set[str], tmp_path: Path, target: str) -> None:
    picture = tmp_path / "load.svg"
    words = [sys.executable, str(DEMO), "--short", "--target", target, "--plot", str(picture)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert OUTCOME in done.stdout
    assert "clean: 0 objects compared" in done.stdout
    assert ET.parse(picture).getroot().tag.endswith("svg")
