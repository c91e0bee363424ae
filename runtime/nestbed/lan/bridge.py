"""A LAN's bridge in the kernel: made, checked and removed through one rtnetlink socket.

A bridge adds no frame of its own and holds none back: no STP, no forwarding delay, no multicast snooping, link-local groups
forwarded, no IPv6, no address.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from nestbed.errors import AlreadyExists, NestbedError, translated
from nestbed.lan import control, nested
from nestbed.lanmodel import Lan
from nestbed.linux import devices
from nestbed.linux.rtnl import Link, Rtnl


class Bridges:
    """The bridges of one node. ``node_id`` is in the alias of each: ``nestbed:NODE:LAN``.

    Raises, from every method: what ``nestbed.errors.from_errno`` makes of the kernel's refusal.
    """

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._rtnl = Rtnl()

    def close(self) -> None:
        """Let go of the socket; the bridges stay. Idempotent."""
        self._rtnl.close()

    def alias(self, lan_id: str) -> str:
        """What marks a bridge as this node's and the LAN's."""
        return f"nestbed:{self._node_id}:{lan_id}"

    def make(self, lan: Lan) -> None:
        """Make the bridge and set it up. After an error there is none.

        Raises:
            AlreadyExists: there is an interface of that name (reason LINK_EXISTS).
        """
        try:
            with translated(f"making the bridge of LAN {lan.name}", lan=lan.name, link=lan.bridge):
                self._rtnl.add_bridge(lan.bridge, mtu=lan.mtu)
                self._finish(lan)
        except AlreadyExists as error:
            raise _occupied(lan) from error
        except NestbedError:
            with contextlib.suppress(OSError):
                self._rtnl.delete_link(lan.bridge)
            raise

    def ensure(self, lan: Lan) -> None:
        """As :meth:`make`, but a bridge that an earlier daemon made is taken over, finished and marked as this node's.

        Raises:
            AlreadyExists: the name belongs to an interface of somebody else (reason LINK_EXISTS).
        """
        found = next((link for link in self._links() if link.name == lan.bridge), None)
        if found is None:
            self.make(lan)
            return
        if found.kind != "bridge" or not (found.alias == "" or (found.alias.startswith("nestbed:") and found.alias.endswith(f":{lan.id}"))):
            raise _occupied(lan)
        with translated(f"taking over the bridge of LAN {lan.name}", lan=lan.name, link=lan.bridge):
            self._finish(lan)

    def ensure_nested(self, lan: Lan) -> None:
        """Have the underlay of the nodes inside, with the node's address on it. Idempotent."""
        self.ensure(lan)
        with translated("giving the underlay of nodes inside its address", link=lan.bridge):
            control.keep_apart(lan.bridge)
            self._rtnl.batch([devices.address(self._rtnl.link_index(lan.bridge), nested.own_address(lan))])

    def nested(self) -> list[str]:
        """The bridges that are the underlay of this node's nodes inside: one or none."""
        return [link.name for link in self._links() if link.kind == "bridge" and link.alias == self.alias(nested.LAN_ID)]

    def remove(self, name: str) -> None:
        """Remove the bridge. Idempotent."""
        with translated(f"removing the bridge {name}", link=name):
            self._rtnl.delete_link(name)

    def ours(self) -> Iterator[tuple[str, str]]:
        """Name and LAN id of every bridge that is marked as this node's, without the control network and the underlay of nodes inside."""
        mark, others = self.alias(""), {self.alias(control.LAN_ID), self.alias(nested.LAN_ID)}
        return (
            (link.name, link.alias[len(mark) :])
            for link in self._links()
            if link.kind == "bridge" and link.alias.startswith(mark) and link.alias not in others
        )

    def _links(self) -> list[Link]:
        with translated("listing the interfaces of the node"):
            return self._rtnl.links()

    def _finish(self, lan: Lan) -> None:
        silent = devices.link_noarp(self._rtnl.link_index(lan.bridge))
        self._rtnl.bring_up(lan.bridge, alias=self.alias(lan.id), first=[silent])


def _occupied(lan: Lan) -> AlreadyExists:
    return AlreadyExists(
        f"the node has an interface {lan.bridge} that is not the bridge of LAN {lan.name}",
        reason="LINK_EXISTS",
        remedy=f"remove the interface ({lan.bridge}) and try again",
        link=lan.bridge,
        lan=lan.name,
    )
