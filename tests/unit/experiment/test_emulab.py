"""The boot files of Emulab, as its programs read them."""

from __future__ import annotations

import pytest

from nestbed.errors import InvalidArgument
from nestbed.experiment import emulab
from nestbed.experiment.plan import make
from nestbed.lan import control

TEXT = """\
experiment: old
lans: {left: {}, right: {}, bare: {subnet: none}}
elements:
  a: {kind: qemu, nics: [left, bare, right], compat: "emulab:catch"}
  b: {kind: qemu, nics: [right], compat: emulab, control: no}
  c: {nics: [left]}
"""


def boot(name: str, text: str = TEXT) -> dict[str, str]:
    return {file.path: file.content.decode() for file in make((text, "v.yaml")).elements[name].files}


def test_an_element_that_asks_has_the_files() -> None:
    found = boot("a")
    assert {path.removeprefix("/var/emulab/boot/") for path in found} == {"nickname", "nodeid", "controlif", "ifmap", "topomap"}
    assert found["/var/emulab/boot/nickname"] == "a.old.catch\n"
    assert found["/var/emulab/boot/controlif"] == f"{control.NIC}\n"
    assert [line.split()[:2] for line in found["/var/emulab/boot/ifmap"].splitlines()] == [["eth0", "10.0.0.1"], ["eth2", "10.0.1.1"]]
    assert found["/var/emulab/boot/topomap"] == (
        "# nodes: vname,links\na,left:10.0.0.1 right:10.0.1.1\nb,right:10.0.1.2\nc,left:10.0.0.2\n"
        "# lans: vname,mask,cost\nleft,255.255.255.0,1\nright,255.255.255.0,1\n"
    )


def test_without_a_control_nic_there_is_no_word_of_it() -> None:
    assert "/var/emulab/boot/controlif" not in boot("b")
    assert boot("b")["/var/emulab/boot/nickname"] == "b.old.nestbed\n"


def test_others_have_none_of_it() -> None:
    assert boot("c") == {}
    assert boot("a", TEXT.replace(', compat: "emulab:catch"', "")) == {}


def test_the_control_nic_is_called_as_the_node_calls_it() -> None:
    assert emulab.CONTROL_NIC == control.NIC


@pytest.mark.parametrize(
    ("element", "told"), [("{compat: emulab}", "has no boot files"), ("{kind: qemu, compat: mulab}", "is neither emulab")]
)
def test_what_cannot_have_them_is_refused(element: str, told: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make((f"experiment: e\nelements:\n  a: {element}\n", "v.yaml"))
    assert told in caught.value.message
