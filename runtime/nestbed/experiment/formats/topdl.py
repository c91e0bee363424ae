"""topdl, the topology language of Emulab's successor DETER (version 1.0): ``experiment`` of ``substrates`` and ``computer`` elements.

======================================  ======================================================================
topdl                                   vtopo
======================================  ======================================================================
substrate, its capacity (kb/s)          LAN, its ``rate``
its latency (ms)                        its ``delay``, one way, as there
computer, its name                      element
interface, its name                     NIC, its ``name``
its attribute ip4_address               an address
attribute startup                       ``startup``
attribute containers:node_type          ``kind``: qemu is one; process, openvz, embedded_pnode are processes
attribute containers:partition          the node ``partitionN`` of a ptopo, see :func:`placement_of`
======================================  ======================================================================
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Collection
from typing import Any
from xml.sax.saxutils import escape

import yaml

from nestbed.errors import InvalidArgument
from nestbed.experiment import quantities
from nestbed.experiment.builder import Builder
from nestbed.experiment.formats.losses import Losses
from nestbed.experiment.formats.xmltree import Tag, parse
from nestbed.experiment.topology import Element, TopoLan, Topology

NODE_TYPES = {"process": "process", "openvz": "process", "embedded_pnode": "process", "qemu": "qemu"}
"""What the attribute containers:node_type may say. That something was a machine of its own there is a matter of placement here."""
_TYPE, _PARTITION, _STARTUP, _ADDRESS, _NETMASK = (
    "containers:node_type",
    "containers:partition",
    "startup",
    "ip4_address",
    "ip4_netmask",
)


def read(text: str, file: str, name: str, *, skipped: Collection[str] = ()) -> str:
    """The text of a vtopo file ``name`` for the topdl in ``text``.

    Raises:
        InvalidArgument: it is no topdl, or holds what has no counterpart and is not ``skipped``.
    """
    root = _root(text, file)
    losses = Losses(file, "a vtopo", skipped)
    net = Builder(name)
    subnets = _subnets(root)
    for tag in root.children:
        if tag.name == "substrates":
            lan, words = _lan(tag, losses)
            net.lan(lan, **words, **({"subnet": subnets[lan]} if lan in subnets else {}))
        elif tag.name == "elements":
            for child in tag.children:
                if child.name != "computer":
                    losses.lose(child.name, "the file", child.place)
                    continue
                element, words = _element(child, losses)
                net.element(element, **words)
        elif tag.name not in ("version", "attribute"):
            losses.lose(tag.name, "the file", tag.place)
    built = net.text()
    net.topology()
    return built


def placement_of(text: str, file: str) -> str:
    """The text of a ptopo file with a node for each partition that the computers name; its nodes' addresses are for the user to fill in.

    Raises:
        InvalidArgument: it is no topdl.
    """
    fixed = {}
    for elements in _root(text, file).all("elements"):
        for computer in elements.all("computer"):
            partition = _attributes(computer).get(_PARTITION)
            if partition is not None:
                fixed[computer.value("name")] = f"partition{partition}"
    nodes = {node: {"address": "local"} for node in sorted(set(fixed.values()))}
    return str(yaml.safe_dump({"nodes": nodes, "placement": {"fixed": fixed}}, sort_keys=False))


def write(topology: Topology, *, skipped: Collection[str] = ()) -> str:
    """The topdl of a topology.

    Raises:
        InvalidArgument: it has what topdl cannot say and is not ``skipped``.
    """
    losses = Losses(topology.name, "topdl", skipped)
    parts = ["<experiment><version>1.0</version>"]
    parts += [_substrate(lan, losses) for lan in topology.lans.values()]
    parts += [f"<elements>{_computer(element, losses)}</elements>" for element in topology.elements.values()]
    return "\n".join([*parts, "</experiment>"]) + "\n"


def _root(text: str, file: str) -> Tag:
    root = parse(text, file)
    if root.name not in ("experiment", "topology"):
        raise InvalidArgument(f"{file}: <{root.name}> is no topdl", reason="NOT_TOPDL", remedy="give a file that begins with <experiment>")
    return root


def _attributes(tag: Tag) -> dict[str, str]:
    return {attribute.value("attribute"): attribute.value("value") for attribute in tag.all("attribute")}


def _subnets(root: Tag) -> dict[str, str]:
    """The subnets of substrates on which somebody has an address with a mask."""
    found = {}
    for elements in root.all("elements"):
        for computer in elements.all("computer"):
            for interface in computer.all("interface"):
                given = _attributes(interface)
                if _ADDRESS in given:
                    try:
                        network = ipaddress.ip_interface(f"{given[_ADDRESS]}/{given.get(_NETMASK, '255.255.255.0')}").network
                    except ValueError:
                        continue  # the reader of the vtopo tells
                    found[interface.value("substrate")] = str(network)
    return found


def _lan(tag: Tag, losses: Losses) -> tuple[str, dict[str, Any]]:
    name = tag.value("name")
    words: dict[str, Any] = {}
    for child in tag.children:
        if child.name == "capacity":
            words["rate"] = quantities.show_rate(round(_number(child, "rate") * 1000))
        elif child.name == "latency":
            words["delay"] = quantities.show_duration(round(_number(child, "time") * 1000))
        elif child.name != "name":
            losses.lose(child.name, f"substrate {name}", child.place)
    return name, words


def _number(tag: Tag, child: str) -> float:
    try:
        return float(tag.value(child))
    except ValueError as error:
        raise InvalidArgument(
            f"line {tag.place[0]}: {tag.name} has no number as its {child}", reason="NOT_TOPDL", remedy=f"write <{child}>100.0</{child}>"
        ) from error


def _element(tag: Tag, losses: Losses) -> tuple[str, dict[str, Any]]:
    name = tag.value("name")
    words: dict[str, Any] = {}
    nics = []
    for child in tag.children:
        if child.name == "interface":
            nics.append(_nic(child, name, losses))
        elif child.name == "attribute":
            _attribute(child, name, words, losses)
        elif child.name != "name":
            losses.lose(child.name, f"computer {name}", child.place)
    return name, {**words, "nics": nics}


def _attribute(tag: Tag, name: str, words: dict[str, Any], losses: Losses) -> None:
    key, value = tag.value("attribute"), tag.value("value")
    if losses.is_unwanted(key):
        return
    if key == _TYPE and value in NODE_TYPES:
        words["kind"] = NODE_TYPES[value]
    elif key == _TYPE:
        losses.lose(f"{key}={value}", f"computer {name}", tag.place)
    elif key == _STARTUP:
        words["startup"] = value
    elif key != _PARTITION:
        losses.lose(key, f"computer {name}", tag.place)


def _nic(tag: Tag, computer: str, losses: Losses) -> dict[str, Any]:
    given = _attributes(tag)
    words: dict[str, Any] = {"lan": tag.value("substrate"), "name": tag.value("name")}
    if _ADDRESS in given:
        words["addresses"] = [given[_ADDRESS]]
    for child in tag.children:
        if child.name not in ("substrate", "name", "attribute"):
            losses.lose(child.name, f"an interface of {computer}", child.place)
    for key in given:
        if key not in (_ADDRESS, _NETMASK):
            losses.lose(key, f"an interface of {computer}", tag.place)
    return {key: value for key, value in words.items() if value}


def _substrate(lan: TopoLan, losses: Losses) -> str:
    words = lan.words
    for key in ("jitter", "loss", "duplicate", "corrupt", "reorder", "limit", "subnet6"):
        if getattr(words, key):
            losses.lose(key, f"LAN {lan.name}")
    parts = [f"<name>{lan.name}</name>"]
    if words.rate:
        parts.append(f"<capacity><rate>{words.rate / 1000:f}</rate><kind>max</kind></capacity>")
    if words.delay:
        parts.append(f"<latency><time>{words.delay / 1000:f}</time><kind>average</kind></latency>")
    return f"<substrates>{''.join(parts)}</substrates>"


def _computer(element: Element, losses: Losses) -> str:
    words = element.words
    for key in ("user", "workdir", "env", "mounts", "sysctls", "image", "labels", "routes", "after", "fs"):
        if getattr(words, key):
            losses.lose(key, f"element {element.name}")
    if words.kind == "machine":
        losses.lose("kind=machine", f"element {element.name}")
    parts = [f"<name>{element.name}</name>"]
    for nic in element.nics:
        inner = f"<substrate>{nic.lan}</substrate><name>{nic.name}</name>"
        inner += "".join(
            _pair(_ADDRESS, str(address.ip)) + _pair(_NETMASK, str(address.netmask))
            for address in map(ipaddress.ip_interface, nic.addresses)
            if address.version == 4
        )
        parts.append(f"<interface>{inner}</interface>")
    parts.append(_pair(_TYPE, words.kind))
    program = words.startup or words.command
    if program:
        parts.append(_pair(_STARTUP, program[2] if program[:2] == ("/bin/sh", "-c") else shlex.join(program)))
    return f"<computer>{''.join(parts)}</computer>"


def _pair(key: str, value: str) -> str:
    return f"<attribute><attribute>{escape(key)}</attribute><value>{escape(value)}</value></attribute>"
