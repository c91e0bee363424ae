"""The boot files that Emulab and DETER put on their machines, for programs that look for them: `compat: emulab`. Pure.

They are in ``/var/emulab/boot``. The formats are those that programs in the wild read: MAGI's ``testbed/emulab.py`` (nickname, controlif,
topomap) and Emulab's ``mktopomap`` and its readers (topomap, ifmap).
"""

from __future__ import annotations

import ipaddress
from functools import cached_property

from nestbed.experiment.files import PlannedFile
from nestbed.experiment.topology import Element, Topology, TopoNic

FOLDER = "/var/emulab/boot"
CONTROL_NIC = "control"
"""What a container calls its NIC on the control network (``nestbed.lan.control.NIC``)."""


class BootFiles:
    """Those of the elements of one topology."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def planned(self, element: Element) -> tuple[PlannedFile, ...]:
        """The files of an element that asks for them: ``controlif`` only if it has a control NIC."""
        project = element.words.compat.partition(":")[2]
        nickname = f"{element.name}.{self._topology.name}.{project}\n"
        texts = {"nickname": nickname, "nodeid": f"{element.name}\n", "ifmap": _ifmap(element), "topomap": self._topomap}
        if element.words.control is not False:
            texts["controlif"] = f"{CONTROL_NIC}\n"
        return tuple(PlannedFile(f"{FOLDER}/{name}", text.encode(), 0o644, 0, 0) for name, text in sorted(texts.items()))

    @cached_property
    def _topomap(self) -> str:
        """Elements with their LANs and addresses, then LANs with masks and costs."""
        links = {one.name: " ".join(f"{nic.lan}:{address}" for nic, address in _addresses(one)) for one in self._topology.elements.values()}
        nodes = (f"{name},{text}" for name, text in links.items())
        lans = (f"{lan.name},{ipaddress.ip_network(lan.subnet).netmask},1" for lan in self._topology.lans.values() if lan.subnet)
        return "\n".join(["# nodes: vname,links", *nodes, "# lans: vname,mask,cost", *lans]) + "\n"


def _ifmap(element: Element) -> str:
    """Interface, address, and MAC without colons, of each NIC with an IPv4 address."""
    return "".join(f"{nic.name} {address} {nic.mac.replace(':', '')}\n" for nic, address in _addresses(element))


def _addresses(element: Element) -> list[tuple[TopoNic, str]]:
    """Each NIC that has an IPv4 address, with the first of them."""
    found = []
    for nic in element.nics:
        addresses = (ipaddress.ip_interface(text) for text in nic.addresses)
        first = next((str(one.ip) for one in addresses if one.version == 4), "")
        if first:
            found.append((nic, first))
    return found
