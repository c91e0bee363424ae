"""A LAN's way out of its bridge: the devices between it and the underlays.

========  =====================================================================================================================
``nbv``   the bridge's uplink port; ``encap`` takes what leaves by it, ``decap`` puts what arrives straight into it
``nbu``   its other end: segments that arrive go through the pair, whose far end (``nbv``) puts them together (GRO)
``nbt``   the tap where the relay process takes what the kernel cannot carry, and gives what it took from the wire
========  =====================================================================================================================

A node has, besides, one pair ``nbs`` and ``nbr``, its segmenter, for super-frames that cannot be carried whole.

Each name of a LAN's goes on with what follows ``nbb`` in the bridge's, so the LAN's record names them all before they are made. All belong
to the daemon's network namespace and carry the bridge's alias.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from nestbed.errors import AlreadyExists, translated
from nestbed.lan.addressing import MTU_MAX, derived_mac
from nestbed.lanmodel import Lan
from nestbed.linux import devices, ethtool, tc, tun
from nestbed.linux.rtnl import Rtnl

PREFIXES = ("nbv", "nbu", "nbt")
"""Uplink port, outer end, tap."""


@dataclass(frozen=True, slots=True)
class Uplink:
    """The indexes of a LAN's devices that are there; 0 for one that is not, or is not needed."""

    port: int = 0
    outer: int = 0
    tap: int = 0


def names(lan: Lan) -> tuple[str, str, str]:
    """Of uplink port, outer end and tap."""
    port, outer, tap = (prefix + lan.bridge.removeprefix("nbb") for prefix in PREFIXES)
    return port, outer, tap


def segmenter_names(node_id: str) -> tuple[str, str]:
    """Of the two ends of the node's segmenter: what is sent by the near one arrives at the far one in segments."""
    digits = hashlib.sha256(node_id.encode()).hexdigest()[:10]
    return f"nbs{digits}", f"nbr{digits}"


class Uplinks:
    """The uplinks of one node. Raises, from every method: what ``nestbed.errors.from_errno`` makes of the kernel's refusal."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._rtnl = Rtnl()

    @property
    def rtnl(self) -> Rtnl:
        """The socket, for requests about what is made here."""
        return self._rtnl

    def close(self) -> None:
        """Let go of the socket; the devices stay. Idempotent."""
        self._rtnl.close()

    def make(self, lan: Lan, *, has_pair: bool) -> Uplink:
        """Make what is missing of the pair (if ``has_pair``) and the tap, set up but for what makes frames pass: both ends of the pair
        are down. Without a pair the tap is the bridge's port. Idempotent.

        Raises:
            AlreadyExists: a name belongs to a device of somebody else (reason LINK_EXISTS).
        """
        port, outer, tap = names(lan)
        with translated(f"making the uplink of LAN {lan.name}", lan=lan.name):
            self._check_owner(lan)
            if has_pair:
                self._make_pair(lan, port, outer)
            elif self._index(port):
                self._rtnl.delete_link(port)
            self._make_tap(lan, tap, is_port=not has_pair)
            return Uplink(*(self._index(name) for name in names(lan)))

    def open_pair(self, lan: Lan) -> None:
        """Let frames pass the pair. Idempotent."""
        with translated(f"setting the uplink of LAN {lan.name} up", lan=lan.name):
            for name in names(lan)[:2]:
                self._rtnl.bring_up(name, alias=self._alias(lan))

    def make_segmenter(self) -> tuple[int, int]:
        """Make what is missing of the node's segmenter; the indexes of its near and far end, the latter with a clsact. Idempotent."""
        near, far = segmenter_names(self._node_id)
        with translated("making the segmenter"):
            if not self._index(near):
                netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    mac = derived_mac(self._node_id, far)
                    self._rtnl.add_veth(near, bridge_index=0, mtu=MTU_MAX, peer_name=far, peer_mac=mac, peer_netns_fd=netns)
                finally:
                    os.close(netns)
            # Without it the kernel neither leaves a checksum to the device nor a super-frame.
            ethtool.switch(near, ethtool.ETHTOOL_STXCSUM, on=False)
            self._make_clsact(far)
            for name in (near, far):
                self._rtnl.bring_up(name, alias=f"nestbed:{self._node_id}:segmenter")
            return self._index(near), self._index(far)

    def has_segmenter(self) -> bool:
        """Whether it is there."""
        return bool(self._index(segmenter_names(self._node_id)[0]))

    def remove_segmenter(self) -> None:
        """Remove it. Idempotent."""
        self.remove(segmenter_names(self._node_id)[:1])

    def remove(self, names: Collection[str]) -> None:
        """Remove devices. Idempotent."""
        for name in names:
            with translated(f"removing {name}", link=name):
                self._rtnl.delete_link(name)

    def find(self, lan: Lan) -> Uplink:
        """What is there of the LAN's."""
        return Uplink(*(self._index(name) for name in names(lan)))

    def ours(self) -> Iterator[tuple[str, str]]:
        """Name and LAN id of every device that is marked as this node's."""
        mark = f"nestbed:{self._node_id}:"
        with translated("listing the interfaces of the node"):
            for link in self._rtnl.links():
                if link.name.startswith(PREFIXES) and link.alias.startswith(mark):
                    yield link.name, link.alias[len(mark) :]

    def _make_pair(self, lan: Lan, port: str, outer: str) -> None:
        if not self._index(port):
            netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                bridge, mac = self._rtnl.link_index(lan.bridge), derived_mac(lan.id, outer)
                self._rtnl.add_veth(port, bridge_index=bridge, mtu=lan.mtu, peer_name=outer, peer_mac=mac, peer_netns_fd=netns)
            finally:
                os.close(netns)
        # The kernel puts segments together on a veth only if the sending end could not have sent them whole.
        ethtool.switch(outer, ethtool.ETHTOOL_STSO, on=False)
        ethtool.switch(port, ethtool.ETHTOOL_SGRO, on=True)
        self._make_clsact(port)

    def _make_tap(self, lan: Lan, tap: str, *, is_port: bool) -> None:
        if not self._index(tap):
            fd = tun.open_tap(tap)
            try:
                tun.set_persistent(fd, persistent=True)
            finally:
                os.close(fd)
        index = self._rtnl.link_index(tap)
        master = self._rtnl.link_index(lan.bridge) if is_port else 0
        self._rtnl.batch([devices.link_mtu(index, lan.mtu), devices.link_master(index, master)])
        self._make_clsact(tap)
        self._rtnl.bring_up(tap, alias=self._alias(lan))

    def _make_clsact(self, name: str) -> None:
        try:
            self._rtnl.batch([tc.clsact(self._rtnl.link_index(name))])
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise

    def _check_owner(self, lan: Lan) -> None:
        wanted = names(lan)
        if not any(self._index(name) for name in wanted):
            return
        for link in self._rtnl.links():
            if link.name in wanted and not _may_be_ours(link.alias, lan.id):
                raise AlreadyExists(
                    f"the node has an interface {link.name} that is not of LAN {lan.name}",
                    reason="LINK_EXISTS",
                    remedy=f"remove the interface ({link.name}) and try again",
                    link=link.name,
                    lan=lan.name,
                )

    def _alias(self, lan: Lan) -> str:
        return f"nestbed:{self._node_id}:{lan.id}"

    def _index(self, name: str) -> int:
        try:
            return self._rtnl.link_index(name)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return 0
            raise


def _may_be_ours(alias: str, lan_id: str) -> bool:
    return alias == "" or (alias.startswith("nestbed:") and alias.endswith(f":{lan_id}"))
