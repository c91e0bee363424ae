"""SECURITY.md names tests: they must be there."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDERS = ("tests", "runtime/nestbed/testing")


def test_every_test_that_security_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (CHECKOUT / "SECURITY.md").read_text()))
    sources = [path.read_text() for folder in FOLDERS for path in (CHECKOUT / folder).rglob("*.py")]
    there = {name for text in sources for name in re.findall(r"def (test_\w+)\(", text)}
    assert sorted(named - there) == []


def test_every_test_of_a_threat_stands_in_security() -> None:
    text = (CHECKOUT / "SECURITY.md").read_text()
    tried = {
        name for path in (CHECKOUT / "tests/net").glob("test_threats_*.py") for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    assert sorted(name for name in tried if f"`{name}`" not in text) == []
