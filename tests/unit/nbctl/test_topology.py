"""nbctl's verbs about the files of an experiment, which need no node."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nbctl.__main__ import run

VTOPO = """\
experiment: street
lans: {left: {}, right: {delay: 5ms}}
elements:
  router: {nics: [left, right]}
  target: {kind: qemu, nics: [right]}
  'bot[1-20]': {nics: [left]}
"""
PTOPO = "nodes: {alpha: {address: 'tcp://a:1'}, beta: {address: 'tcp://b:1'}}\nplacement: {fixed: {target: beta}}\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.yaml").write_text(VTOPO)
    (tmp_path / "p.yaml").write_text(PTOPO)
    return tmp_path


def test_validate_says_what_there_is(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "-f", "v.yaml"]) == 0
    assert capsys.readouterr().out == "street: 22 elements, 2 LANs, 1 node; no mistake found\n"
    assert run(["validate", "-f", "v.yaml", "--on", "p.yaml", "-o", "json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["elements"]["target"]["node"] == "beta"
    assert plan["elements"]["bot20"]["nics"][0]["addresses"] == ["10.0.0.21/24"]


def test_validate_tells_the_place_of_a_mistake(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "v.yaml").write_text(VTOPO.replace("nics: [left, right]", "nics: [left, rihgt]"))
    assert run(["validate", "-f", "v.yaml"]) == 1
    assert capsys.readouterr().err == (
        "nbctl: v.yaml:4:25: element router is on LAN rihgt, which is not declared\nremedy: did you mean right?\n"
    )


def test_a_picture_has_every_element_once_and_marks_lans_between_nodes(files: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(["graph", "both", "-f", "v.yaml", "--on", "p.yaml", "-o", "dot"]) == 0
    text = capfdbinary.readouterr().out.decode()
    assert text.count('label="bot1 … bot20\\n20 of them"') == 1
    assert text.count("subgraph cluster_") == 2
    assert "right\\n10.0.1.0/24\\n5ms" in text
    assert "style=dashed" in text
    assert run(["graph", "-f", "v.yaml", "-o", "mermaid", "--expand"]) == 0
    text = capfdbinary.readouterr().out.decode()
    assert all(f'["bot{number}"]' in text for number in range(1, 21))


def test_lans_that_reach_into_a_node_that_is_a_virtual_machine_lie_between_nodes_too(
    files: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    ptopo = "nodes: {alpha: {}, holder: {vm: {on: alpha}}}\nplacement: {fixed: {target: alpha, router: alpha, 'bot[1-20]': holder}}\n"
    (files / "p.yaml").write_text(ptopo)
    assert run(["graph", "both", "-f", "v.yaml", "--on", "p.yaml", "-o", "dot"]) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    dashed = [line for line in lines if "style=dashed" in line]
    assert len(dashed) == 2
    assert all('"l:left"' in line for line in dashed)


@pytest.mark.skipif(not shutil.which("dot"), reason="needs Graphviz")
@pytest.mark.parametrize(("form", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
@pytest.mark.parametrize("what", ["vtopo", "ptopo", "both"])
def test_pictures_are_drawn(files: Path, what: str, form: str, begins: bytes) -> None:
    assert run(["graph", what, "-f", "v.yaml", "--on", "p.yaml", "-o", form, "--to", "picture"]) == 0
    assert (files / "picture").read_bytes().startswith(begins)


def test_a_form_that_no_picture_has(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["graph", "-f", "v.yaml", "-o", "json"]) == 2
    assert capsys.readouterr().err == "nbctl: 'json' is no form of output\nremedy: the forms are svg, png, dot, mermaid\n"
