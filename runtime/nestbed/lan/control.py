"""The control network of a node: the bridge ``control0``, which joins the node itself with its containers' control NICs.

It is no LAN: the node has an address on it, nothing relays it, and containers do not see each other there: their ports are isolated, so a
frame goes between a container and the node, or what the node's own NIC leads to, alone. The node forwards no packet that comes from it.

The bridge is made under another name, marked as this node's, and then named ``control0``: one of somebody else is never taken for it. The
address that it has for the network is known by its label.

With a NIC of the node's own in it (``nestbedd --control-nic``, see ``nestbed.lan.adoption``) it is always there, treats packets as the NIC
did, and needs no address for a subnet that one of the NIC's addresses covers.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from nestbed.errors import AlreadyExists, ResourceExhausted, translated
from nestbed.lan.addressing import MTU_DEFAULT, Network, bridge_name, derived_mac, usable
from nestbed.lan.adoption import Adoption, check_if_new
from nestbed.lanmodel import Lan, Nic
from nestbed.linux import devices, inventory
from nestbed.linux.inventory import Entry, Kind
from nestbed.linux.rtnl import Link, Rtnl
from nestbed.log import fields
from nestbed.model import Ability
from nestbed.runtime import Leftover

BRIDGE = "control0"
NIC = "control"
"""What a container calls its NIC on it."""
LABEL = f"{BRIDGE}:own"
"""Of the node's address on it."""
RECORD = "control-nic.json"
"""In the run directory: the adoption of the node's NIC."""
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
    ("ipv4", "arp_notify", "1"),
    ("ipv6", "forwarding", "0"),
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "accept_redirects", "0"),
    ("ipv6", "router_solicitations", "0"),
)
"""The node takes no routes from a container, and gives it none."""


def lan_of(subnet: str, mtu: int) -> Lan:
    """The control network on this subnet, as a LAN."""
    return Lan(id=LAN_ID, name=BRIDGE, bridge=BRIDGE, mtu=mtu, subnet=subnet)


def is_control(nic: Nic) -> bool:
    """Whether it is a NIC on the control network."""
    return nic.lan_id == LAN_ID


class ControlBridge:
    """The bridge of one node, in the network namespace in which this was made; ``nic`` is the node's own NIC that is to be in it, or "".

    Errors are ``nestbed.errors``.
    """

    def __init__(self, node_id: str, run_dir: Path, nic: str = "") -> None:
        self._alias = f"nestbed:{node_id}:{LAN_ID}"
        self._mac = derived_mac(f"{BRIDGE}/{node_id}", "")
        """Its own: else it would be that of one of its ports, and change with them."""
        self._rtnl = Rtnl()
        self._nic = nic
        self._adoption = Adoption(run_dir / RECORD, self._rtnl)
        self._members: dict[str, Nic] = {}

    def open(self) -> None:
        """Have the NIC in the bridge that is to be in it, and no other: what an earlier daemon began is finished, or undone.

        Raises:
            NotFound, InvalidArgument, WrongState, HostLacks: the NIC cannot be in it. AlreadyExists: the name is taken.
        """
        record = self._adoption.record()
        if record is not None and record.nic.name != self._nic:
            self.release()
        if self._nic:
            check_if_new(self._rtnl, self._nic, record)
            with translated("making the control network", link=BRIDGE):
                self._have_bridge()
            try:
                self._adoption.adopt(self._nic, BRIDGE)
            except BaseException:
                self._nic = ""
                self.remove()
                raise

    def release(self) -> None:
        """Let the NIC go with what it brought; the bridge stays for those who are on it. Idempotent."""
        with translated("looking at the control network", link=BRIDGE):
            keep = [entry.address for entry in self._own_addresses()]
        self._adoption.release(keep=keep)
        with translated("making the control network the node's own", link=BRIDGE):
            if self._bridge() is not None:
                index = self._rtnl.link_index(BRIDGE)
                self._rtnl.batch([devices.link_mac(index, self._mac), devices.link_mtu(index, MTU_DEFAULT)])
                keep_apart(BRIDGE)

    def remove_if_unused(self) -> None:
        """Remove the bridge, unless it has ports. Idempotent."""
        with translated("looking at the control network", link=BRIDGE):
            bridge = self._bridge()
            is_used = bridge is not None and any(link.master == bridge.index for link in self._rtnl.links())
        if not is_used:
            self.remove()

    def close(self) -> None:
        """Let go of the socket; the bridge stays. Idempotent."""
        self._rtnl.close()

    @property
    def mtu(self) -> int:
        """That of the network."""
        if not self._nic:
            return MTU_DEFAULT
        with translated("looking at the control network", link=BRIDGE):
            return self._rtnl.link(BRIDGE).mtu

    def prefix_length(self, subnet: str) -> int:
        """Of addresses from ``subnet``: its own, or that of the NIC's subnet that covers it."""
        covering = self._covering(subnet)
        return (covering or ipaddress.ip_network(subnet)).prefixlen

    def _covering(self, subnet: str) -> Network | None:
        if not self._nic or self._bridge() is None:
            return None
        network = ipaddress.IPv4Network(subnet)
        with translated("looking at the control network", link=BRIDGE):
            found = inventory.addresses(self._rtnl, self._rtnl.link_index(BRIDGE))
        networks = (ipaddress.ip_interface(entry.address).network for entry in found if not entry.is_ipv6 and entry.label != LABEL)
        return next((one for one in networks if isinstance(one, ipaddress.IPv4Network) and network.subnet_of(one)), None)

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
            self._have_bridge()
            self._members = {nic.port: nic for nic in members}
            if self._covering(lan.subnet) is None:
                own = inventory.ipv4_address(self._rtnl.link_index(BRIDGE), own_address(lan), LABEL)
                self._rtnl.batch(inventory.creation(own))

    def _bridge(self) -> Link | None:
        """The bridge, if it is there and this node's."""
        return next((link for link in self._rtnl.links() if link.name == BRIDGE and link.alias == self._alias), None)

    def _have_bridge(self) -> None:
        found = {link.name for link in self._rtnl.links()}
        if self._bridge() is None:
            if BRIDGE in found:
                raise _occupied()
            if _UNFINISHED in found:  # a daemon died on the way
                self._rtnl.delete_link(_UNFINISHED)
            self._rtnl.add_bridge(_UNFINISHED, mtu=MTU_DEFAULT)
            index = self._rtnl.link_index(_UNFINISHED)
            self._rtnl.batch(
                [devices.link_mac(index, self._mac), devices.link_mtu(index, MTU_DEFAULT), devices.link_owned(_UNFINISHED, self._alias)]
            )
            self._rtnl.batch([devices.link_name(index, BRIDGE)])
        if not self._nic:
            keep_apart(BRIDGE)
        self._rtnl.batch([devices.link_up(self._rtnl.link_index(BRIDGE))])

    def remove(self) -> None:
        """Remove the bridge, if it is this node's; one with the node's NIC in it loses the network's own address. Idempotent."""
        with translated("removing the control network", link=BRIDGE):
            if self._nic:
                self._rtnl.batch([inventory.deletion(entry) for entry in self._own_addresses()])
                return
            for name in (_UNFINISHED, BRIDGE):
                if name == _UNFINISHED or self._bridge() is not None:
                    self._rtnl.delete_link(name)

    def _own_addresses(self) -> list[Entry]:
        if self._bridge() is None:
            return []
        return [entry for entry in inventory.addresses(self._rtnl, self._rtnl.link_index(BRIDGE)) if entry.label == LABEL]

    def audit(self, lan: Lan | None) -> list[Leftover]:
        """What differs from there being the bridge of ``lan``, or none; and the node's NIC in it, or none."""
        with translated("looking at the control network", link=BRIDGE):
            bridge = self._bridge()
            is_unfinished = any(link.name == _UNFINISHED for link in self._rtnl.links())
            wanted = None if lan is None or self._covering(lan.subnet) is not None else own_address(lan)
        differences = [Leftover("extra", "link", _UNFINISHED, "an unfinished control network")] if is_unfinished else []
        if bridge is None and (lan is not None or self._nic):
            differences.append(Leftover("missing", "link", BRIDGE, "the control network"))
        elif bridge is not None and lan is None and not self._nic:
            differences.append(Leftover("extra", "link", BRIDGE, "the control network, which no container is on"))
        elif bridge is not None and wanted is not None and not self._has_address(bridge.index, wanted):
            differences.append(Leftover("missing", "address", wanted, f"of the node on {BRIDGE}"))
        record = self._adoption.record()
        if record is not None and not self._nic:
            differences.append(Leftover("extra", "port", record.nic.name, f"a NIC of the node in {BRIDGE}"))
        elif self._nic and (record is None or not self._adoption.is_whole(record)):
            differences.append(Leftover("missing", "port", self._nic, f"the node's NIC in {BRIDGE}"))
        return differences

    def ability(self) -> Ability | None:
        """The NIC, if one is to be in it."""
        if not self._nic:
            return None
        record = self._adoption.record()
        is_whole = record is not None and self._adoption.is_whole(record)
        detail = f"{self._nic} is in {BRIDGE}" if is_whole else f"{self._nic} is not in {BRIDGE}"
        return Ability(
            "control-nic", available=is_whole, detail=detail, consequence="" if is_whole else "restart nestbedd, which puts it there"
        )

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


def keep_apart(link: str) -> None:
    """Have the node forward nothing that comes from this interface of its own, and take no routes from there."""
    for family, name, value in _SYSCTLS:
        path = Path(f"/proc/sys/net/{family}/conf/{link}/{name}")
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            path.write_text(value)


def _occupied() -> AlreadyExists:
    return AlreadyExists(
        f"the node has an interface {BRIDGE} that is not this daemon's",
        reason="LINK_EXISTS",
        remedy=f"remove or rename the interface {BRIDGE}, or make the container with --no-control",
        link=BRIDGE,
    )
