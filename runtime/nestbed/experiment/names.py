"""The hosts file of every element: all its peers by name, the address on the nearest LAN first. Pure and deterministic.

The element's own addresses come first, then its peers in the order of the file, each with its addresses nearest first (then in the
order of its NICs), each line with the name and the ``NAME-LAN`` form::

    10.0.0.1	web web-lan0
    10.0.0.2	irc irc-lan0
"""

from __future__ import annotations

from nestbed.experiment.routes import Footing, Paths, index_by_number
from nestbed.experiment.topology import Element, Topology


class HostsTexts:
    """The files of a topology that has its addresses."""

    def __init__(self, topology: Topology, paths: Paths) -> None:
        self._paths = paths
        numbers = index_by_number(topology)
        self._order = {name: index for index, name in enumerate(topology.elements)}
        self._lines = [
            [(numbers[nic.lan], "".join(_line(address, element.name, nic.lan) for address in nic.addresses)) for nic in element.nics]
            for element in topology.elements.values()
        ]
        self._peers: dict[Footing, list[str]] = {}

    def text(self, element: Element) -> str:
        """What its hosts file holds, after the lines of the loopback."""
        own = self._order[element.name]
        peers = self._of(self._paths.footing(element))
        lines = "".join(text for _, text in self._lines[own]) or f"127.0.1.1\t{element.name}\n"
        return lines + "".join(peers[:own]) + "".join(peers[own + 1 :])

    def _of(self, footing: Footing) -> list[str]:
        if footing not in self._peers:
            distances = self._paths.distances(footing)
            self._peers[footing] = [
                nics[0][1] if len(nics) == 1 else "".join(text for _, text in sorted(nics, key=lambda nic: distances[nic[0]]))
                for nics in self._lines
            ]
        return self._peers[footing]


def _line(address: str, name: str, lan: str) -> str:
    return f"{address.partition('/')[0]}\t{name} {name}-{lan}\n"
