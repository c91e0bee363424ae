"""The house rules: every check of hack/check by its name, and those that no tool knows."""

import ast
import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SKIPPED_FOLDERS = {
    ".git",
    ".venv",
    "build",
    "dist",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    ".import_linter_cache",
}
GENERATED = CHECKOUT / "runtime" / "nestbed" / "v1"

CHECKS = ("ruff-format", "ruff", "buf-lint", "buf-format", "shellcheck", "codespell", "mypy", "lint-imports", "buf-breaking", "genproto")
SCRIPTS = sorted([".ci/run", *(f"hack/{path.name}" for path in (CHECKOUT / "hack").iterdir() if path.is_file() and not path.suffix)])
"""Scripts have no suffix; what has one is a module for a tool."""


def run(*argv: str | Path, cwd: Path = CHECKOUT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=110)


def files() -> Iterator[Path]:
    for folder, subfolders, names in os.walk(CHECKOUT):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        yield from (Path(folder, name) for name in names if name not in SKIPPED_FOLDERS)  # .git is a file in a worktree


def python_modules() -> list[Path]:
    return [path for path in files() if path.suffix == ".py" and GENERATED not in path.parents]


def relative(paths: Iterator[Path]) -> list[str]:
    return sorted(str(path.relative_to(CHECKOUT)) for path in paths)


@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str) -> None:
    result = run(CHECKOUT / "hack" / "check", "--only", name)
    if result.stdout.startswith("skip "):
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_check_is_tested() -> None:
    listed = run(CHECKOUT / "hack" / "check", "--list").stdout.split()
    assert sorted(listed) == sorted(CHECKS)


def test_check_fails_if_a_tool_fails(tmp_path: Path) -> None:
    """The gate itself, on a checkout with one wrongly formatted module."""
    (tmp_path / "hack").mkdir()
    (tmp_path / "hack" / "check").write_bytes((CHECKOUT / "hack" / "check").read_bytes())
    (tmp_path / "hack" / "check").chmod(0o755)
    (tmp_path / ".venv").symlink_to(CHECKOUT / ".venv")
    (tmp_path / "pyproject.toml").write_bytes((CHECKOUT / "pyproject.toml").read_bytes())
    (tmp_path / "wrong.py").write_text('"""Wrong."""\nx = {  1:2 }\n')
    result = run(tmp_path / "hack" / "check", "--only", "ruff-format", cwd=tmp_path)
    assert result.returncode == 1
    assert "wrong.py" in result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_executable_and_has_help_anywhere(script: str, tmp_path: Path) -> None:
    assert os.access(CHECKOUT / script, os.X_OK), "chmod +x"
    result = run(CHECKOUT / script, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert script in result.stdout
    assert not list(tmp_path.iterdir())


def test_cmd_does_not_shadow_the_standard_module() -> None:
    assert not (CHECKOUT / "cmd" / "__init__.py").exists()


def test_no_module_is_named_after_nothing() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "lib", "misc"}
    roots = (CHECKOUT / "runtime", CHECKOUT / "cmd", CHECKOUT / "tests", CHECKOUT / "hack")
    found = (path for path in files() if any(root in path.parents for root in roots) and ({path.stem, path.parent.name} & vague))
    assert relative(found) == []


def test_every_module_has_a_docstring() -> None:
    assert relative(path for path in python_modules() if not ast.get_docstring(ast.parse(path.read_bytes()))) == []


def test_every_module_stands_on_a_floor() -> None:
    """import-linter's layers say nothing about a module that they do not name."""
    linter = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["importlinter"]
    floors = next(contract["layers"] for contract in linter["contracts"] if contract["id"] == "floors")
    named = {name.strip(" ()") for floor in floors for name in floor.split("|")} | {"nestbed.v1", "nestbed.testing"}
    package = CHECKOUT / "runtime" / "nestbed"
    present = {f"nestbed.{path.stem}" for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert present - {"nestbed.__init__"} <= named


def test_every_test_stands_on_a_floor() -> None:
    """pytest's testpaths would pass over it silently otherwise."""
    floors = {"unit", "net", "guest", "style", "perf"}
    tests = CHECKOUT / "tests"
    assert relative(path for path in tests.rglob("test_*.py") if path.relative_to(tests).parts[0] not in floors) == []


def test_no_file_mentions_where_it_was_written() -> None:
    # Put together here, so that this file does not hold what it looks for.
    traces = [b"/" + b"work/", b"issue" + b" #", b"agent" + b" session"]
    assert relative(path for path in files() if path.is_file() and any(trace in path.read_bytes() for trace in traces)) == []
