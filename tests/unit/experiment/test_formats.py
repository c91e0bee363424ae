"""Other tools' topology files, read and written."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from nestbed.errors import InvalidArgument
from nestbed.experiment import plan
from nestbed.experiment.formats import containerlab, topdl

TOPDL = """\
<experiment><version>1.0</version>
<substrates><name>link0</name><capacity><rate>10000.0</rate><kind>max</kind></capacity><latency><time>5.0</time><kind>average</kind></latency></substrates>
<substrates><name>link1</name></substrates>
<elements><computer><name>c0</name><interface><substrate>link0</substrate><name>inf000</name>
  <attribute><attribute>ip4_address</attribute><value>10.1.1.2</value></attribute>
  <attribute><attribute>ip4_netmask</attribute><value>255.255.255.0</value></attribute></interface>
 <attribute><attribute>containers:node_type</attribute><value>openvz</value></attribute>
 <attribute><attribute>containers:partition</attribute><value>0</value></attribute>
 <attribute><attribute>startup</attribute><value>echo 1 &amp;&amp; true</value></attribute></computer></elements>
<elements><computer><name>s</name><interface><substrate>link0</substrate><name>inf000</name></interface>
 <interface><substrate>link1</substrate><name>inf001</name></interface>
 <attribute><attribute>containers:node_type</attribute><value>embedded_pnode</value></attribute>
 <attribute><attribute>containers:partition</attribute><value>2</value></attribute></computer></elements>
</experiment>
"""

LAB = """\
name: lab
topology:
  nodes:
    r1: {kind: linux, exec: ["ip address add 10.0.0.1/24 dev eth1", "true"], env: {A: b}, binds: ["/srv:/srv:ro"]}
    r2: {kind: linux, cmd: sleep 1}
    br: {kind: bridge}
  links:
    - endpoints: [r1:eth1, r2:eth1]
      mtu: 9000
    - endpoints: [r1:eth2, br:p1]
"""


def test_topdl_is_read() -> None:
    topology = plan.understand(topdl.read(TOPDL, "t.xml", "two"), "v")
    assert topology.name == "two"
    assert (topology.lans["link0"].words.rate, topology.lans["link0"].words.delay) == (10_000_000, 5000)
    assert topology.lans["link0"].subnet == "10.1.1.0/24"
    assert topology.elements["c0"].nics[0].addresses == ("10.1.1.2/24",)
    assert topology.elements["c0"].words.startup == ("/bin/sh", "-c", "echo 1 && true")
    assert [(nic.lan, nic.name) for nic in topology.elements["s"].nics] == [("link0", "inf000"), ("link1", "inf001")]
    assert yaml.safe_load(topdl.placement_of(TOPDL, "t.xml"))["placement"]["fixed"] == {"c0": "partition0", "s": "partition2"}


@pytest.mark.parametrize(
    ("change", "message", "word"),
    [
        (("<version>", "<testbed/><version>"), "t.xml:1:13: the file has testbed", "testbed"),
        (("<name>c0</name>", "<name>c0</name><os><name>x</name></os>"), "t.xml:4:36: computer c0 has os", "os"),
        (("openvz", "bsd"), "t.xml:7:2: computer c0 has containers:node_type=bsd", "containers:node_type=bsd"),
        (("<name>link1</name>", "<name>link1</name><status>up</status>"), "t.xml:3:31: substrate link1 has status", "status"),
    ],
)
def test_what_topdl_alone_has_is_refused_by_name_unless_skipped(change: tuple[str, str], message: str, word: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        topdl.read(TOPDL.replace(*change), "t.xml", "two")
    assert caught.value.message.startswith(message)
    assert caught.value.remedy == f"give --skip {word} to leave it out"
    topdl.read(TOPDL.replace(*change), "t.xml", "two", skipped=[word])


@pytest.mark.parametrize(
    "text", ["", "<a>", "<experiment>" * 100, '<!DOCTYPE x [<!ENTITY a "b">]><experiment>&a;</experiment>', "<other/>"]
)
def test_what_is_no_topdl(text: str) -> None:
    with pytest.raises(InvalidArgument):
        topdl.read(text, "t.xml", "two")


def seen(topology: Any) -> Any:
    return (
        {name: (lan.subnet, lan.words.rate, lan.words.delay) for name, lan in topology.lans.items()},
        {element.name: [(nic.lan, nic.name, nic.addresses) for nic in element.nics] for element in topology.elements.values()},
    )


def test_topdl_that_is_written_is_read_again() -> None:
    topology = plan.understand(topdl.read(TOPDL, "t.xml", "two"), "v")
    again = plan.understand(topdl.read(topdl.write(topology), "again.xml", "two"), "v")
    assert seen(again) == seen(topology)
    lossy = plan.understand("experiment: x\nlans: {l: {loss: 1%}}\n", "v")
    with pytest.raises(InvalidArgument, match="LAN l has loss, which has no counterpart in topdl"):
        topdl.write(lossy)


def test_containerlab_is_read_and_written() -> None:
    topology = plan.understand(containerlab.read(LAB, "lab.yml"), "v")
    assert topology.lans["link1"].words.mtu == 9000
    assert [(nic.lan, nic.name, nic.addresses) for nic in topology.elements["r1"].nics] == [("link1", "eth1", ()), ("br", "eth2", ())]
    assert topology.elements["r1"].words.startup[2] == "ip address add 10.0.0.1/24 dev eth1 && true"
    assert topology.elements["r1"].words.mounts == (("/srv", "/srv", True),)
    written = yaml.safe_load(containerlab.write(topology))
    assert written["topology"]["nodes"]["br"] == {"kind": "bridge"}
    assert {"endpoints": ["r1:eth1", "r2:eth1"], "mtu": 9000} in written["topology"]["links"]
    with pytest.raises(InvalidArgument, match="node r1 has image, which has no counterpart in a vtopo"):
        containerlab.read(LAB.replace("{kind: linux, exec", "{kind: linux, image: alpine, exec"), "lab.yml")
