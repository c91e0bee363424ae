"""containerlab's topology files (https://containerlab.dev/manual/topo-def-file/): nodes joined by point-to-point links.

================================  ====================================================================================
containerlab                      vtopo
================================  ====================================================================================
node of kind ``linux``            element of kind process (written also from others that run here)
node of kind ``bridge``           LAN, its links are NICs on it
link, its ``mtu``                 LAN without subnet (containerlab gives no addresses), ``mtu``
``cmd``                           ``command``
``exec``                          ``startup``, one command after the other
``env``, ``labels``, ``user``     the same
``binds``                         ``mounts``
================================  ====================================================================================
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from typing import Any

import yaml

from nestbed.errors import InvalidArgument
from nestbed.experiment.builder import Builder
from nestbed.experiment.formats.losses import Losses
from nestbed.experiment.topology import Element, Topology
from nestbed.experiment.vtopo import NO_SUBNET

_SAME = {"env": "env", "labels": "labels", "user": "user", "cmd": "command"}


def read(text: str, file: str, *, skipped: Collection[str] = ()) -> str:
    """The text of a vtopo file for the containerlab file in ``text``.

    Raises:
        InvalidArgument: it is none, or holds what has no counterpart and is not ``skipped``.
    """
    data = _load(text, file)
    losses = Losses(file, "a vtopo", skipped)
    _lose_others(data, ("name", "topology"), "the file", losses)
    topology = data["topology"]
    _lose_others(topology, ("nodes", "links"), "topology", losses)
    nodes = {str(name): node or {} for name, node in (topology.get("nodes") or {}).items()}
    bridges = {name for name, node in nodes.items() if node.get("kind") == "bridge"}
    net = Builder(str(data.get("name", "lab")))
    for name in bridges:
        net.lan(name, subnet=NO_SUBNET)
    nics = _links(topology.get("links") or [], net, nodes, bridges, losses, file)
    for name, node in nodes.items():
        if name not in bridges:
            net.element(name, **_element(name, node, losses), nics=nics.get(name, []))
    built = net.text()
    net.topology()
    return built


def write(topology: Topology, *, skipped: Collection[str] = ()) -> str:
    """The containerlab file of a topology: LANs of two are links, others bridges.

    Raises:
        InvalidArgument: it has what containerlab cannot say and is not ``skipped``.
    """
    losses = Losses(topology.name, "a containerlab file", skipped)
    nodes: dict[str, Any] = {element.name: _node(element, losses) for element in topology.elements.values()}
    links: list[dict[str, Any]] = []
    for name, members in topology.members().items():
        words = topology.lans[name].words
        for key in ("rate", "delay", "jitter", "loss", "duplicate", "corrupt", "reorder", "limit"):
            if getattr(words, key):
                losses.lose(key, f"LAN {name}")
        ends = [f"{element.name}:{element.nics[index].name}" for element, index in members]
        mtu = {} if words.mtu == 1500 else {"mtu": words.mtu}
        if len(ends) == 2:
            links.append({"endpoints": ends, **mtu})
            continue
        nodes[name] = {"kind": "bridge"}
        links += [{"endpoints": [end, f"{name}:p{number}"], **mtu} for number, end in enumerate(ends)]
    return str(yaml.safe_dump({"name": topology.name, "topology": {"nodes": nodes, "links": links}}, sort_keys=False))


def _load(text: str, file: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidArgument(f"{file}: is not YAML: {error}", reason="NOT_YAML", remedy="write YAML", file=file) from error
    if not isinstance(data, dict) or not isinstance(data.get("topology"), dict):
        raise InvalidArgument(f"{file}: has no topology", reason="NOT_CONTAINERLAB", remedy="give a containerlab file", file=file)
    return data


def _lose_others(data: dict[str, Any], known: Collection[str], whose: str, losses: Losses) -> None:
    for key in data:
        if key not in known:
            losses.lose(str(key), whose)


def _links(
    links: list[Any], net: Builder, nodes: dict[str, Any], bridges: set[str], losses: Losses, file: str
) -> dict[str, list[dict[str, str]]]:
    nics: dict[str, list[dict[str, str]]] = {}
    for number, link in enumerate(links, 1):
        _lose_others(link, ("endpoints", "mtu"), f"link {number}", losses)
        ends = [str(end).partition(":")[::2] for end in link.get("endpoints", [])]
        if len(ends) != 2 or any(name not in nodes for name, _ in ends):
            raise InvalidArgument(
                f"{file}: link {number} does not join two of the nodes",
                reason="BAD_LINK",
                remedy="write endpoints: [a:eth1, b:eth1]",
                file=file,
            )
        lan = next((name for name, _ in ends if name in bridges), f"link{number}")
        if lan not in bridges:
            net.lan(lan, subnet=NO_SUBNET, **({"mtu": link["mtu"]} if "mtu" in link else {}))
        for name, interface in ends:
            if name not in bridges:
                nics.setdefault(name, []).append({"lan": lan, "name": interface})
    return nics


def _element(name: str, node: dict[str, Any], losses: Losses) -> dict[str, Any]:
    words: dict[str, Any] = {}
    for key, value in node.items():
        if key in _SAME:
            words[_SAME[key]] = value
        elif key == "exec":
            words["startup"] = " && ".join(map(str, value))
        elif key == "binds":
            words["mounts"] = value
        elif key != "kind" or value != "linux":
            losses.lose(key if key != "kind" else f"kind={value}", f"node {name}")
    return words


def _node(element: Element, losses: Losses) -> dict[str, Any]:
    words = element.words
    if words.kind != "process":
        losses.lose(f"kind={words.kind}", f"element {element.name}")
    for key in ("workdir", "sysctls", "routes", "after", "fs", "cap_add", "cap_drop"):
        if getattr(words, key):
            losses.lose(key, f"element {element.name}")
    commands = [f"ip address add {address} dev {nic.name}" for nic in element.nics for address in nic.addresses]
    if words.startup:
        commands.append(words.startup[2] if words.startup[:2] == ("/bin/sh", "-c") else shlex.join(words.startup))
    node: dict[str, Any] = {
        "kind": "linux",
        "cmd": shlex.join(words.command),
        "exec": commands,
        "env": words.env,
        "labels": words.labels,
        "user": words.user,
        "binds": [f"{source}:{destination}{':ro' if read_only else ''}" for source, destination, read_only in words.mounts],
    }
    return {key: value for key, value in node.items() if value}
