"""The plan of an experiment: everything that will be made, on which node, under which name. The same files give the same plan, byte by
byte, on every machine.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nestbed.experiment import ptopo as ptopo_file
from nestbed.experiment import vtopo as vtopo_file
from nestbed.experiment.addresses import address
from nestbed.experiment.emulab import BootFiles
from nestbed.experiment.files import PlannedFile, planned
from nestbed.experiment.names import HostsTexts
from nestbed.experiment.placement import place
from nestbed.experiment.ptopo import NodeWords, VmWords
from nestbed.experiment.ranges import expand, fill
from nestbed.experiment.routes import Paths
from nestbed.experiment.topology import Element, TopoLan, Topology, resolve
from nestbed.lan.identity import default_group
from nestbed.model import Route
from nestbed.plain import to_json

VERSION = 1
IDLE = ("/bin/sleep", "infinity")
STARTUP_DONE = "nestbed: startup ended with status "
"""What stands in an element's log, with the status behind it, when its `startup` has ended."""
_STARTUP = f"""\
"$@"
echo "{STARTUP_DONE}$?"
exec sleep infinity
"""
_OF_MACHINE = (
    ("ipv4/conf/{}/forwarding", "0"),
    ("ipv4/conf/{}/rp_filter", "0"),
    ("ipv4/conf/{}/arp_ignore", "1"),
    ("ipv4/conf/{}/arp_announce", "2"),
    ("ipv6/conf/{}/forwarding", "0"),
    ("ipv6/conf/{}/accept_ra", "0"),
)
"""A machine answers for its NICs on LANs alone, forwards nothing from them, and takes no routes from there."""
_LAN_TO_MODEL = {"rate": "rate_bps", "delay": "delay_us", "jitter": "jitter_us", "limit": "limit_frames"}


@dataclass(frozen=True, slots=True)
class PlannedLan:
    """A LAN, under the name it has on each of ``nodes``. ``group`` is empty if it is of one node alone. ``reaches_inside``: members are on
    nodes that are virtual machines of these.
    """

    name: str
    node_name: str
    lan: TopoLan
    nodes: tuple[str, ...]
    group: str
    reaches_inside: bool = False


@dataclass(frozen=True, slots=True)
class PlannedNode:
    """A node that is a virtual machine to be made, under the name that has on the node ``host``."""

    name: str
    node_name: str
    host: str
    words: VmWords


@dataclass(frozen=True, slots=True)
class PlannedElement:
    """An element, under the name it has on its node; on one that is a virtual machine that is a path, for the node that runs it."""

    name: str
    node_name: str
    node: str
    element: Element
    args: tuple[str, ...]
    files: tuple[PlannedFile, ...]
    routes: tuple[Route, ...]
    sysctls: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole experiment. ``hosts`` writes the hosts files."""

    name: str
    topology: Topology
    nodes: dict[str, NodeWords]
    lans: dict[str, PlannedLan]
    elements: dict[str, PlannedElement]
    hosts: HostsTexts
    machines: dict[str, PlannedNode]

    def document(self) -> dict[str, Any]:
        """The plan as plain data: the canonical document of :meth:`text`."""
        return {
            "version": VERSION,
            "experiment": self.name,
            "nodes": {name: _node_document(words) for name, words in self.nodes.items()},
            "lans": {lan.name: _lan_document(lan) for lan in self.lans.values()},
            "elements": {element.name: _element_document(element) for element in self.elements.values()},
        }

    def text(self) -> str:
        """The canonical document: JSON, keys sorted, two blanks a level, an end of line at the end."""
        return json.dumps(self.document(), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def make(vtopo: tuple[str, str], ptopo: tuple[str, str] | None = None, sources: Mapping[str, bytes] | None = None) -> Plan:
    """The plan for the content and name of a vtopo file, and of a ptopo file (without one, the node that is asked holds everything).

    ``sources`` are what the files hold that the vtopo names (``nestbed.experiment.files.sources``).

    Raises:
        InvalidArgument: a mistake in a file, with file, line and column.
    """
    topology = understand(*vtopo)
    wanted, source = ptopo_file.read(*ptopo) if ptopo else ptopo_file.only_local()
    placed = place(topology, wanted, source)
    nodes = {name: words for key, words in wanted.nodes.items() for name, _ in expand(key)}
    _check_machines(topology, placed)
    paths, boot = Paths(topology), BootFiles(topology)
    machines = {
        name: PlannedNode(name, f"{topology.name}.node.{name}", words.vm.host, words.vm) for name, words in nodes.items() if words.vm
    }
    return Plan(
        name=topology.name,
        topology=topology,
        nodes=nodes,
        lans=_lans(topology, placed, machines),
        elements={
            element.name: _element(topology, element, placed[element.name], machines, paths, sources or {}, boot)
            for element in topology.elements.values()
        },
        hosts=HostsTexts(topology, paths),
        machines=machines,
    )


def _check_machines(topology: Topology, placed: Mapping[str, str]) -> None:
    """A machine is one element."""
    taken: dict[str, str] = {}
    for element in topology.elements.values():
        if element.words.kind == "machine" and (other := taken.setdefault(placed[element.name], element.name)) != element.name:
            raise topology.source.mistake(
                element.path,
                f"{other} and {element.name} would both be the machine {placed[element.name]}",
                reason="MACHINE_TAKEN",
                remedy="place them on nodes of their own: `placement: fixed` of the ptopo",
                node=placed[element.name],
            )


def understand(text: str, name: str) -> Topology:
    """The topology in the content of a vtopo file, with its addresses.

    Raises:
        InvalidArgument: a mistake in the file, with file, line and column.
    """
    return address(resolve(*vtopo_file.read(text, name)))


def _lans(topology: Topology, placed: dict[str, str], machines: Mapping[str, PlannedNode]) -> dict[str, PlannedLan]:
    """A LAN is made on the nodes that run its members' machines; these carry it inside."""
    found: dict[str, PlannedLan] = {}
    groups: set[str] = set()
    for name, members in topology.members().items():
        places = dict.fromkeys(placed[element.name] for element, _ in members)
        nodes = tuple(dict.fromkeys(machines[place].host if place in machines else place for place in places))
        group = ""
        if len(nodes) > 1:
            derived = (default_group(f"{topology.name}/{name}", ordinal) for ordinal in itertools.count())
            group = next(one for one in derived if one not in groups)
            groups.add(group)
        found[name] = PlannedLan(
            name, f"{topology.name}.{name}", topology.lans[name], nodes, group, any(place in machines for place in places)
        )
    return found


def _element(
    topology: Topology,
    element: Element,
    node: str,
    machines: Mapping[str, PlannedNode],
    paths: Paths,
    sources: Mapping[str, bytes],
    boot: BootFiles,
) -> PlannedElement:
    words, name = element.words, f"{topology.name}.{element.name}"
    files = planned(element, sources, topology.source) if words.files else ()
    if words.compat:
        files += boot.planned(element)
    if words.startup:
        args: tuple[str, ...] = ("/bin/sh", "-c", _STARTUP, "startup", *words.startup)
    else:
        args = words.command or (IDLE if words.kind == "process" or files else ())
    return PlannedElement(
        name=element.name,
        node_name=f"{machines[node].node_name}/{name}" if node in machines else name,
        node=node,
        element=element,
        args=tuple(fill(arg, element.number) for arg in args),
        files=files,
        routes=paths.routes(element),
        sysctls=_sysctls(element),
    )


def _sysctls(element: Element) -> tuple[tuple[str, str], ...]:
    """Those that forwarding needs, and the element's own. An element with several NICs answers on each of its addresses whichever way a
    packet comes (RFC 3704 explains why strict filtering would not).
    """
    wanted: dict[str, str] = {}
    if element.words.kind == "machine":
        return tuple(sorted((f"net/{where.format(nic.name)}", value) for nic in element.nics for where, value in _OF_MACHINE))
    if element.forwards:
        wanted["net.ipv4.ip_forward"] = "1"
        if any(":" in address for nic in element.nics for address in nic.addresses):
            wanted["net.ipv6.conf.all.forwarding"] = "1"
    if len(element.nics) > 1:
        for name in ("all", *(nic.name for nic in element.nics)):
            wanted[f"net/ipv4/conf/{name}/rp_filter"] = "0"
    wanted.update(element.words.sysctls)
    return tuple(sorted(wanted.items()))


def _node_document(words: NodeWords) -> dict[str, Any]:
    return {"address": words.address} if words.vm is None else {"on": words.vm.host, "cpus": words.vm.cpus, "memory": words.vm.memory}


def _lan_document(planned: PlannedLan) -> dict[str, Any]:
    return {
        "nodes": list(planned.nodes),
        "group": planned.group,
        "subnet": planned.lan.subnet,
        "subnet6": planned.lan.subnet6,
        "mtu": planned.lan.words.mtu,
        "impairment": impairment(planned.lan.words),
    }


def _element_document(element: PlannedElement) -> dict[str, Any]:
    words = element.element.words
    return {
        "kind": words.kind,
        "node": element.node,
        "args": list(element.args),
        "files": {file.path: file.document() for file in element.files},
        "nics": [
            {
                "name": nic.name,
                "lan": nic.lan,
                "mac": nic.mac,
                "addresses": list(nic.addresses),
                "to": impairment(nic.to),
                "from": impairment(nic.from_),
            }
            for nic in element.element.nics
        ],
        "routes": to_json(element.routes),
        "sysctls": dict(element.sysctls),
        "after": list(element.element.after),
    }


def impairment(words: object) -> dict[str, Any]:
    """The words of an impairment that are not left out, under the names of the model (``nestbed.lanmodel.Impairment``)."""
    found = {}
    for name in ("rate", "delay", "jitter", "loss", "duplicate", "corrupt", "reorder", "limit"):
        value = getattr(words, name)
        if value:
            found[_LAN_TO_MODEL.get(name, name)] = value
    return found


def digest(data: object) -> str:
    """What tells one plain value from another: 16 hex digits."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
