"""The control network of a node: the bridge ``control0``, which joins the node itself with its containers' control NICs.

It is no LAN: the node has an address on it, nothing relays it, and containers do not see each other there: their ports are isolated, so a
frame goes between a container and the node, or what the node's own NIC leads to, alone. The node forwards no packet that comes from it.

The bridge is made under another name, marked as this node's, and then named ``control0``: one of somebody else is never taken for it.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from nestbed.errors import AlreadyExists, ResourceExhausted, translated
from nestbed.lan.addressing import Network, bridge_name, derived_mac, usable
from nestbed.lanmodel import Lan, Nic
from nestbed.linux import inventory, rtnl
from nestbed.linux.inventory import Kind
from nestbed.log import fields
from nestbed.runtime import Leftover

BRIDGE = "control0"
NIC = "control"
"""What a container calls its NIC on it."""
LAN_ID = "control"
"""In place of a LAN's id, in the NICs on it and in the bridge's mark."""

CANDIDATES = tuple(f"172.31.{number}.0/20" for number in range(240, -1, -16))
"""From which a subnet is chosen if none is given: not from 10.0.0.0/8 and 192.168.0.0/16, of which experiments are made."""

_logger = logging.getLogger(__name__)
_UNFINISHED = bridge_name(LAN_ID)
_SYSCTLS = (
    ("ipv4", "forwarding", "0"),
    ("ipv4", "accept_redirects", "0"),
    ("ipv4", "send_redirects", "0"),
    ("ipv4", "arp_ignore", "1"),
    ("ipv6", "forwarding", "0"),
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "accept_redirects", "0"),
    ("ipv6", "router_solicitations", "0"),
)
"""The node takes no routes from a container, and gives it none."""


def lan_of(subnet: str) -> Lan:
    """The control network on this subnet, as a LAN."""
    return Lan(id=LAN_ID, name=BRIDGE, bridge=BRIDGE, subnet=subnet)


def is_control(nic: Nic) -> bool:
    """Whether it is a NIC on the control network."""
    return nic.lan_id == LAN_ID


class ControlBridge:
    """The bridge of one node, in the network namespace in which this was made. Errors are ``nestbed.errors``."""

    def __init__(self, node_id: str) -> None:
        self._alias = f"nestbed:{node_id}:{LAN_ID}"
        self._mac = derived_mac(f"{BRIDGE}/{node_id}", "")
        """Its own: else it would be that of one of its ports, and change with them."""
        self._rtnl = rtnl.Rtnl()
        self._members: dict[str, Nic] = {}

    def close(self) -> None:
        """Let go of the socket; the bridge stays. Idempotent."""
        self._rtnl.close()

    def choose_subnet(self, avoided: Collection[str]) -> str:
        """A subnet that neither an address or route of the node nor one of ``avoided`` touches.

        Raises:
            ResourceExhausted: there is none (reason NO_CONTROL_SUBNET).
        """
        taken = [*map(ipaddress.ip_network, avoided), *self._networks()]
        for candidate in CANDIDATES:
            if not any(network.version == 4 and ipaddress.ip_network(candidate).overlaps(network) for network in taken):
                return candidate
        raise ResourceExhausted(
            "no subnet is free for the control network: the node has addresses or routes in all that it may choose from",
            reason="NO_CONTROL_SUBNET",
            remedy="give one: nestbedd --control-subnet",
            candidates=",".join(CANDIDATES),
        )

    def ensure(self, lan: Lan, members: Collection[Nic]) -> None:
        """Have the bridge, with the first address of its subnet, for these NICs. Idempotent, harmless to one in use.

        Raises:
            AlreadyExists: somebody else has an interface of that name (reason LINK_EXISTS).
        """
        with translated("making the control network", link=BRIDGE):
            found = {link.name: link for link in self._rtnl.links()}
            bridge = found.get(BRIDGE)
            if bridge is not None and bridge.alias != self._alias:
                raise _occupied()
            if bridge is None:
                self._make(lan, has_unfinished=_UNFINISHED in found)
            _write_sysctls()
            self._members = {nic.port: nic for nic in members}
            index = self._rtnl.link_index(BRIDGE)
            self._rtnl.batch([rtnl.address(index, own_address(lan)), rtnl.link_up(index)])

    def _make(self, lan: Lan, *, has_unfinished: bool) -> None:
        if has_unfinished:  # a daemon died on the way
            self._rtnl.delete_link(_UNFINISHED)
        self._rtnl.add_bridge(_UNFINISHED, mtu=lan.mtu)
        self._rtnl.batch([rtnl.link_mac(self._rtnl.link_index(_UNFINISHED), self._mac), rtnl.link_owned(_UNFINISHED, self._alias)])
        self._rtnl.batch([rtnl.link_name(self._rtnl.link_index(_UNFINISHED), BRIDGE)])

    def remove(self) -> None:
        """Remove the bridge, if it is this node's. Idempotent."""
        with translated("removing the control network", link=BRIDGE):
            for link in self._rtnl.links():
                if link.name == _UNFINISHED or (link.name == BRIDGE and link.alias == self._alias):
                    with contextlib.suppress(FileNotFoundError):
                        self._delete(link.name)

    def _delete(self, name: str) -> None:
        try:
            self._rtnl.delete_link(name)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def audit(self, lan: Lan | None) -> list[Leftover]:
        """What differs from there being the bridge of ``lan``, or none."""
        with translated("looking at the control network", link=BRIDGE):
            found = {link.name: link for link in self._rtnl.links()}
            bridge = found.get(BRIDGE)
            is_ours = bridge is not None and bridge.alias == self._alias
            differences = [Leftover("extra", "link", _UNFINISHED, "an unfinished control network")] if _UNFINISHED in found else []
            if lan is None and is_ours:
                differences.append(Leftover("extra", "link", BRIDGE, "the control network, which no container is on"))
            if lan is not None and not is_ours:
                differences.append(Leftover("missing", "link", BRIDGE, "the control network"))
            elif lan is not None and bridge is not None and not self._has_address(bridge.index, own_address(lan)):
                differences.append(Leftover("missing", "address", own_address(lan), f"of the node on {BRIDGE}"))
        return differences

    def _has_address(self, index: int, address: str) -> bool:
        return any(entry.address == address for entry in inventory.addresses(self._rtnl, index))

    def _networks(self) -> list[Network]:
        """Where the node has addresses and routes, but for a default route."""
        with translated("looking at the node's addresses and routes"):
            entries = [*inventory.addresses(self._rtnl), *inventory.routes(self._rtnl)]
        texts = [entry.address if entry.kind is Kind.ADDRESS else entry.destination for entry in entries]
        return [network for network in (ipaddress.ip_interface(text).network for text in texts) if network.prefixlen]

    def member(self, nic: Nic) -> Nic | None:
        """The NIC at that port as :meth:`ensure` was told of it: with its address, which a virtual machine's sandbox does not know."""
        return self._members.get(nic.port)

    def take_up_port(self, nic: Nic, requests: Sequence[bytes]) -> None:
        """Have a port that is up as it should be. Never raises."""
        try:
            self._rtnl.batch(requests)
        except OSError as error:
            _logger.warning("port on the control network not taken up", extra=fields(port=nic.port, cause=str(error)))


def own_address(lan: Lan) -> str:
    """The node's address on the control network, in CIDR form."""
    network = ipaddress.ip_network(lan.subnet)
    return f"{ipaddress.ip_address(usable(network)[0])}/{network.prefixlen}"


def _write_sysctls() -> None:
    for family, name, value in _SYSCTLS:
        path = Path(f"/proc/sys/net/{family}/conf/{BRIDGE}/{name}")
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            path.write_text(value)


def _occupied() -> AlreadyExists:
    return AlreadyExists(
        f"the node has an interface {BRIDGE} that is not this daemon's",
        reason="LINK_EXISTS",
        remedy=f"remove or rename the interface {BRIDGE}, or make the container with --no-control",
        link=BRIDGE,
    )
