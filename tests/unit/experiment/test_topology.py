"""The files of an experiment: what is read, what is refused and where, and what is worked out."""

from __future__ import annotations

import ipaddress
import json
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from nestbed.errors import InvalidArgument
from nestbed.experiment import plan, schema
from nestbed.experiment.builder import Builder
from nestbed.experiment.plan import Plan, understand
from nestbed.experiment.ranges import expand
from nestbed.experiment.routes import Paths
from nestbed.experiment.topology import Topology

DOCS = Path(__file__).parents[3] / "docs"

STREET = """\
experiment: street
lans:
  left: {}
  middle: {delay: 5ms, rate: 10Mbit, loss: 1%}
  right: {}
elements:
  a:
    nics: [left]
  r1:
    nics: [left, middle]
  r2:
    nics: [middle, right]
  b[1-3]:
    nics: [right]
    command: echo {n}
"""


def make(text: str, ptopo: str = "") -> Plan:
    return plan.make((text, "v.yaml"), (ptopo, "p.yaml") if ptopo else None)


def routes(topology: Topology) -> dict[str, dict[str, str]]:
    paths = Paths(topology)
    return {name: {route.destination: route.via for route in paths.routes(element)} for name, element in topology.elements.items()}


def follow(topology: Topology, source: str, address: str) -> list[str]:
    """The elements that a packet passes, by the routes alone."""
    tables = routes(topology)
    owners = {a.partition("/")[0]: e.name for e in topology.elements.values() for nic in e.nics for a in nic.addresses}
    here, passed = source, [source]
    target = ipaddress.ip_address(address)
    while owners[address] != here:
        element = topology.elements[here]
        if any(target in ipaddress.ip_interface(a).network for nic in element.nics for a in nic.addresses):
            here = owners[address]
        else:
            fitting = [(net, via) for to, via in tables[here].items() if target in (net := ipaddress.ip_network(to))]
            here = owners[max(fitting, key=lambda entry: entry[0].prefixlen)[1]]
        passed.append(here)
        assert len(passed) < 100
    return passed


def test_addresses_are_handed_out_lowest_first_one_subnet_for_each_lan() -> None:
    topology = understand(STREET, "v.yaml")
    assert [lan.subnet for lan in topology.lans.values()] == ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"]
    assert [[a for nic in e.nics for a in nic.addresses] for e in topology.elements.values()] == [
        ["10.0.0.1/24"],
        ["10.0.0.2/24", "10.0.1.1/24"],
        ["10.0.1.2/24", "10.0.2.1/24"],
        ["10.0.2.2/24"],
        ["10.0.2.3/24"],
        ["10.0.2.4/24"],
    ]


def test_what_is_given_is_kept_and_goes_around() -> None:
    topology = understand(
        """\
experiment: given
prefix: 25
lans:
  a: {}
  b: {subnet: 10.0.0.0/24}
  c: {subnet: none}
  d: {subnet6: "fd00:9::/64"}
elements:
  x:
    nics: [a, c]
  y:
    nics: [b, {lan: a, addresses: 10.0.1.1}]
  z:
    nics: [{lan: b, addresses: [10.0.0.1/24], mac: "02:00:00:00:00:07", name: up0}, d]
""",
        "v.yaml",
    )
    assert topology.lans["a"].subnet == "10.0.1.0/25"
    assert [nic.addresses for nic in topology.elements["x"].nics] == [("10.0.1.2/25",), ()]
    assert [nic.addresses for nic in topology.elements["y"].nics] == [("10.0.0.2/24",), ("10.0.1.1/25",)]
    assert topology.elements["z"].nics[0].mac == "02:00:00:00:00:07"
    assert [(nic.name, nic.addresses) for nic in topology.elements["z"].nics] == [
        ("up0", ("10.0.0.1/24",)),
        ("eth0", ("10.0.1.129/25", "fd00:9::1/64")),
    ]


def test_a_large_lan_gets_a_large_subnet() -> None:
    topology = understand("experiment: x\nlans: {big: {}, next: {}}\nelements:\n  e[1-400]:\n    nics: [big]\n", "v.yaml")
    assert topology.lans["big"].subnet == "10.0.0.0/23"
    assert topology.lans["next"].subnet == "10.0.2.0/24"
    assert topology.elements["e400"].nics[0].addresses == ("10.0.1.144/23",)


def test_shortest_paths_lead_everywhere() -> None:
    topology = understand(STREET, "v.yaml")
    assert routes(topology)["a"] == {"10.0.1.0/24": "10.0.0.2", "10.0.2.0/24": "10.0.0.2"}
    assert routes(topology)["r2"] == {"10.0.0.0/24": "10.0.1.1"}
    assert follow(topology, "a", "10.0.2.4") == ["a", "r1", "r2", "b3"]
    assert follow(topology, "b1", "10.0.1.1") == ["b1", "r2", "r1"]


def test_neighbouring_subnets_with_one_next_hop_make_one_route_that_covers_just_them() -> None:
    net = Builder("tree")
    net.lan("up")
    net.lan("leaf[1-7]")
    net.element("root", nics=["up"])
    net.element("r", nics=["up", "leaf[1-7]"])
    net.element("e[1-7]", nics=["leaf{n}"])
    topology = net.topology()
    table = routes(topology)["root"]
    assert table == {"10.0.1.0/24": "10.0.0.2", "10.0.2.0/23": "10.0.0.2", "10.0.4.0/22": "10.0.0.2"}
    assert all(follow(topology, "root", f"10.0.{leaf}.2")[-1] == f"e{leaf}" for leaf in range(1, 8))


def test_what_does_not_forward_is_no_way_and_an_own_route_wins() -> None:
    text = STREET.replace("nics: [left, middle]", "nics: [left, middle]\n    forward: no")
    assert routes(understand(text, "v.yaml"))["a"] == {}
    text = STREET.replace(
        "  a:\n    nics: [left]", "  a:\n    nics: [left]\n    routes: [{to: right, via: r1}, {to: default, via: 10.0.0.2}]"
    )
    assert routes(understand(text, "v.yaml"))["a"] == {"10.0.2.0/24": "10.0.0.2", "default": "10.0.0.2", "10.0.1.0/24": "10.0.0.2"}
    text = text.replace("experiment: street", "experiment: street\nrouting: manual")
    assert routes(understand(text, "v.yaml"))["r2"] == {}


def test_hosts_have_every_peer_the_nearest_address_first() -> None:
    made = make(STREET)
    assert made.hosts.text(made.topology.elements["b1"]) == (
        "10.0.2.2\tb1 b1-right\n"
        "10.0.0.1\ta a-left\n"
        "10.0.1.1\tr1 r1-middle\n10.0.0.2\tr1 r1-left\n"
        "10.0.2.1\tr2 r2-right\n10.0.1.2\tr2 r2-middle\n"
        "10.0.2.3\tb2 b2-right\n10.0.2.4\tb3 b3-right\n"
    )


def test_a_number_stands_in_for_n_and_routers_answer_on_all_addresses() -> None:
    made = make(STREET)
    assert made.elements["b2"].args == ("/bin/sh", "-c", "echo 2")
    assert dict(made.elements["r1"].sysctls) == {
        "net.ipv4.ip_forward": "1",
        **{f"net/ipv4/conf/{name}/rp_filter": "0" for name in ("all", "eth0", "eth1")},
    }


def test_the_plan_is_the_same_every_time() -> None:
    assert make(STREET).text() == make(STREET).text()
    assert json.loads(make(STREET).text())["lans"]["middle"]["impairment"] == {"delay_us": 5000, "loss": 0.01, "rate_bps": 10**7}


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("experiment: x\nlanz: {}\n", "v.yaml:2:1: the file knows no word lanz", "did you mean lans?"),
        ("lans: {}\n", "v.yaml:1:1: the word experiment is missing", "experiment: its name"),
        ("experiment: x\nexperiment: y\n", "v.yaml:2:1: experiment stands here for a second time", "it stands in line 1 already"),
        ("experiment: [a\n", "v.yaml:2:1: is not YAML", "see"),
        ("", "v.yaml: is empty", "see"),
        ("experiment: x\nlans: {l: {dely: 5ms}}\n", "v.yaml:2:12: lans.l knows no word dely", "did you mean delay?"),
        ("experiment: x\nlans: {l: {delay: 5}}\n", "v.yaml:2:19: delay 5 is not written like 10ms", "write a time such as 10ms"),
        ("experiment: x\nlans: {l: {loss: 101%}}\n", "v.yaml:2:18: loss 101% is more than all", "write a fraction"),
        (
            "experiment: x\nlans: {l: }\nelements: {a: {nics: [m]}}\n",
            "v.yaml:3:23: element a is on LAN m, which is not declared",
            "known are",
        ),
        ("experiment: x\nelements: {a: {kind: qemuu}}\n", "v.yaml:2:22: kind cannot be qemuu", "did you mean qemu?"),
        ("experiment: x\nelements: {a: {after: b}, b: {after: a}}\n", "v.yaml:2:38: b starts after a, which starts after b", "leave"),
        ("experiment: x\nelements: {a: {after: c}}\n", "v.yaml:2:23: a starts after c, which is no element", "known are: a"),
        ("experiment: x\nelements: {a: {}, 'a[1-2]': {}, a2: {}}\n", "v.yaml:2:33: a2 is declared twice", "line 2"),
        ("experiment: x\nelements: {'a[2-1]': {}}\n", "v.yaml:2:12: a[2-1] is no range", "write"),
        (
            "experiment: x\nlans: {l: {subnet: 10.0.0.0/24}, m: {subnet: 10.0.0.128/25}}\n",
            "v.yaml:2:46: the subnet 10.0.0.128/25 of LAN m overlaps that of LAN l",
            "give another subnet",
        ),
        (
            "experiment: x\nlans: {l: {}}\nelements:\n  a: {nics: &n [{lan: l, addresses: 10.0.0.7}]}\n  b: {nics: *n}\n",
            "v.yaml:4:37: b and a (eth0) have the address 10.0.0.7",
            "give another address",
        ),
        (
            "experiment: x\nlans: {l: {subnet: 10.9.0.0/30}}\nelements:\n  'a[1-3]': {nics: l}\n",
            "v.yaml:4:20: the subnet 10.9.0.0/30 of LAN l has no address left for a3: it holds 2",
            "larger subnet",
        ),
        ("experiment: x\npool: 10.0.0.0/24\nlans: {'l[1-2]': {}}\n", "v.yaml:2:7: the pool 10.0.0.0/24 has no subnet", "larger pool"),
        ("experiment: x\nelements: {a: {command: x, startup: y}}\n", "v.yaml:2:37: an element with `command` has no `startup`", "leave"),
    ],
)
def test_mistakes_are_told_with_their_place_and_the_nearest_right_word(text: str, message: str, remedy: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make(text)
    assert caught.value.message.startswith(message)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("ptopo", "message"),
    [
        ("nodes: {n: {}}\nplacement: {fixed: {a: m}}\n", "p.yaml:2:21: there is no node m"),
        ("nodes: {n: {}}\nplacement: {fixed: {aa: n}}\n", "p.yaml:2:21: street has no element aa"),
        ("nodes: {n: {capacity: {elements: 5}}}\n", "p.yaml:1:1: no node has room for b3: 5 of 6 elements are placed"),
        ("nodes: {n: {kinds: [qemu]}}\n", "p.yaml:1:1: no node has room for a: it takes no elements of kind process"),
        ("nodes: {n: {}, m: {}}\nplacement: {where: {b1: {rack: x}}}\n", "p.yaml:1:1: no node has room for b1: none has the labels rack=x"),
        ("nodes: {n: {vm: {on: m}}}\n", "p.yaml:1:22: there is no node m for the virtual machine n"),
        ("nodes: {n: {address: somewhere}}\n", "p.yaml:1:22: address somewhere is none of local"),
    ],
)
def test_impossible_placements_are_told(ptopo: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make(STREET, ptopo)
    assert caught.value.message.startswith(message)


def nodes_of(made: Plan) -> dict[str, str]:
    return {name: element.node for name, element in made.elements.items()}


def test_placements() -> None:
    four = "nodes:\n  n[1-2]: {capacity: {elements: 4}}\nplacement: {strategy: %s, fixed: {b1: n2}}\n"
    assert nodes_of(make(STREET, four % "packed")) == {"a": "n1", "r1": "n1", "r2": "n1", "b1": "n2", "b2": "n1", "b3": "n2"}
    assert sorted(nodes_of(make(STREET, four % "balanced")).values()) == ["n1"] * 3 + ["n2"] * 3
    cut = make(STREET, four % "min-cut")
    assert nodes_of(cut)["a"] == nodes_of(cut)["r1"] == "n1"
    assert nodes_of(cut)["b1"] == nodes_of(cut)["b2"] == nodes_of(cut)["b3"] == "n2"
    assert [lan.name for lan in cut.lans.values() if lan.group] == ["middle"]


def test_lans_between_nodes_have_the_group_of_their_name_whatever_the_nodes() -> None:
    two = make(STREET, "nodes: {n: {}, m: {}}\nplacement: {fixed: {a: n, r1: m, 'b[1-3]': n}}\n")
    three = make(STREET, "nodes: {x: {}, y: {}, z: {}}\nplacement: {fixed: {a: z, r1: y}}\n")
    assert two.lans["left"].group == three.lans["left"].group != ""
    assert make(STREET).lans["left"].group == ""


@pytest.mark.parametrize("text", ["bot[1-3]", "bot[08-10]x", "bot"])
def test_ranges(text: str) -> None:
    assert [name for name, _ in expand(text)] == {
        "bot[1-3]": ["bot1", "bot2", "bot3"],
        "bot[08-10]x": ["bot08x", "bot09x", "bot10x"],
        "bot": ["bot"],
    }[text]


def test_large_topologies_are_worked_out_in_time() -> None:
    """Bounds are ten times what it takes on the development machine's two cores, to bear with a busy one."""
    count = 1000
    net = Builder("chain")
    net.lan(f"l[1-{count - 1}]")
    net.element("r1", nics=["l1"])
    for number in range(2, count):
        net.element(f"r{number}", nics=[f"l{number - 1}", f"l{number}"])
    net.element(f"r{count}", nics=[f"l{count - 1}"])
    topology = net.topology()
    began = time.process_time()
    tables = routes(topology)
    assert time.process_time() - began < 8
    assert len(tables["r1"]) < 20
    assert tables["r500"]["10.0.0.0/24"] if "10.0.0.0/24" in tables["r500"] else any(to.startswith("10.0.0.0/") for to in tables["r500"])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["packed", "balanced", "min-cut"])
def test_ten_thousand_elements_on_a_hundred_nodes(strategy: str) -> None:
    rows = "".join(f"  r{i}:\n    nics: [core{i % 10 + 1}, l{i}]\n  h{i}x[1-9]:\n    nics: [l{i}]\n" for i in range(1, 1001))
    text = f"experiment: big\nlans:\n  l[1-1000]: {{}}\n  core[1-10]: {{}}\nelements:\n{rows}"
    began = time.process_time()
    made = make(text, f"nodes:\n  n[1-100]: {{capacity: {{elements: 102}}}}\nplacement: {{strategy: {strategy}}}\n")
    assert time.process_time() - began < 30
    counts: dict[str, int] = {}
    for node in nodes_of(made).values():
        counts[node] = counts.get(node, 0) + 1
    assert sum(counts.values()) == 10_000
    assert max(counts.values()) <= 102
    if strategy == "min-cut":
        assert sum(len(lan.nodes) - 1 for lan in made.lans.values()) < 600


@pytest.mark.parametrize("name", list(schema.SCHEMAS))
def test_the_published_schemas_are_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text() == schema.text(name), "run python -m nestbed.experiment.schema docs"


def test_the_schema_takes_what_the_reader_takes_and_refuses_misspelt_words() -> None:
    published = json.loads((DOCS / "vtopo.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(yaml.safe_load(STREET), published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(STREET.replace("nics", "nicks")), published)


def test_what_a_program_builds_is_what_the_file_says() -> None:
    net = Builder("street")
    net.lan("left")
    net.lan("middle", delay="5ms", rate="10Mbit", loss="1%")
    net.lan("right")
    net.element("a", nics=["left"])
    net.element("r1", nics=["left", "middle"])
    net.element("r2", nics=["middle", "right"])
    net.element("b[1-3]", nics=["right"], command="echo {n}")
    assert make(net.text()).text() == make(STREET).text()
    net.element("c", nics=[{"lan": "left", "from_": {"delay": "1ms"}}])
    assert net.topology().elements["c"].nics[0].from_.delay == 1000


def test_nodes_that_are_virtual_machines_are_reached_through_their_host() -> None:
    vtopo = "experiment: e\nlans: {l: {}, m: {}}\nelements:\n  a: {nics: [l]}\n  b: {nics: [l, m]}\n  c: {nics: [m]}\n"
    ptopo = "nodes: {alpha: {}, v: {vm: {on: alpha, cpus: 2, memory: 1G}}}\nplacement: {fixed: {a: alpha, b: v, c: v}}\n"
    made = plan.make((vtopo, "v"), (ptopo, "p"))
    assert {name: element.node_name for name, element in made.elements.items()} == {
        "a": "e.a",
        "b": "e.node.v/e.b",
        "c": "e.node.v/e.c",
    }
    assert [(lan.nodes, lan.group, lan.reaches_inside) for lan in made.lans.values()] == [(("alpha",), "", True), (("alpha",), "", True)]
    machine = made.machines["v"]
    assert (machine.node_name, machine.host, machine.words.memory) == ("e.node.v", "alpha", 1 << 30)
    assert made.document()["nodes"]["v"] == {"on": "alpha", "cpus": 2.0, "memory": 1 << 30}
    with pytest.raises(InvalidArgument, match="would be a virtual machine in v, which is one itself"):
        plan.make((vtopo, "v"), (ptopo.replace("memory: 1G}}", "memory: 1G}}, w: {vm: {on: v}}"), "p"))
