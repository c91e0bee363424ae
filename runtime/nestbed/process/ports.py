"""The node's ends of NICs: veth pairs from a bridge into a container's network namespace.

A pair is made in one batch directly where it belongs: one end a port of the LAN's bridge, the other already inside. The death of the
namespace takes a pair with it, some tens of milliseconds later; :meth:`Ports.settled` waits for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
from collections.abc import Iterable, Sequence

from nestbed.errors import AlreadyExists, NestbedError, NotFound, ResourceExhausted, from_errno, translated
from nestbed.lanmodel import Nic
from nestbed.linux.devices import link_down, link_up
from nestbed.linux.rtnews import LinkDeletions
from nestbed.linux.rtnl import Link, Rtnl
from nestbed.model import Route
from nestbed.runtime import PortHook

PORT_PREFIX = "nbp"
"""How the names of ports begin: the LAN plane has pairs of its own, with the same mark."""

SETTLE_SECONDS = 10.0


def routes_of(nic: Nic, routes: Iterable[Route], gateway: str) -> list[tuple[str, str]]:
    """The routes ``(destination, via)`` whose next hop is in a subnet of this NIC."""
    wanted = [(route.destination, route.via) for route in routes]
    if gateway:
        wanted.append(("default", gateway))
    networks = [ipaddress.ip_interface(cidr).network for cidr in nic.addresses] if wanted else []
    return [(to, via) for to, via in wanted if any(ipaddress.ip_address(via) in network for network in networks)]


def check_apart(inside: Rtnl, nic: Nic, routes: Iterable[tuple[str, str]], own: Iterable[str]) -> None:
    """Whether what a NIC would bring to the machine is nothing that the machine can reach already; ``own`` are names of NICs like it.

    Raises:
        AlreadyExists: it is (reason SUBNET_IN_USE).
    """
    names = {link.index: link.name for link in inside.links()}
    wanted = [ipaddress.ip_interface(cidr).network for cidr in nic.addresses]
    wanted += [ipaddress.ip_network(to) for to, _ in routes]
    for there in inside.routes():
        clash = next((one for one in wanted if one.version == there.network.version and one.overlaps(there.network)), None)
        name = names.get(there.index, "")
        if clash is not None and there.network.prefixlen and name not in own:
            way = name or "another way"
            raise AlreadyExists(
                f"the machine reaches {there.network} by {way}, and {nic.name} on LAN {nic.lan} would bring a route to {clash}",
                reason="SUBNET_IN_USE",
                remedy="give the experiment other subnets (`pool`, `subnet`)",
                subnet=clash,
                route=there.network,
                nic=nic.name,
            )


class Ports:
    """All ports of one node, in the network namespace of this process. :meth:`open` first."""

    def __init__(self, node_id: str, hook: PortHook | None = None) -> None:
        """``hook`` hears of every port that comes and goes."""
        self._prefix = f"nestbed:{node_id}:"
        self._hook = hook
        self._dying: set[str] = set()
        self._settled = asyncio.Event()
        self._settled.set()

    def open(self) -> None:
        """Open the netlink sockets; in the event loop."""
        self._rtnl = Rtnl()
        self._deletions = LinkDeletions()
        asyncio.get_running_loop().add_reader(self._deletions.fileno(), self._deleted)

    def close(self) -> None:
        """Close them."""
        asyncio.get_running_loop().remove_reader(self._deletions.fileno())
        self._deletions.close()
        self._rtnl.close()

    def plug(self, container_id: str, nic: Nic, routes: Sequence[tuple[str, str]], netns_fd: int, inside: Rtnl) -> None:
        """Make the pair for ``nic``, running and with its addresses and routes. Nothing is left after an error.

        Raises:
            AlreadyExists: the container has an interface of that name. NotFound: the LAN's bridge is gone.
            HostLacks, ResourceExhausted: the kernel refused.
        """
        try:
            self._make(nic, netns_fd)
        except OSError as error:
            raise _refused(error, container_id, nic) from error
        try:
            inside.configure(nic.name, addresses=nic.addresses, routes=routes)
            first = () if self._hook is None else self._hook.port_added(nic, self._rtnl.link_index(nic.port))
            # Last, because it marks the pair as whole.
            self._rtnl.bring_up(nic.port, alias=f"{self._prefix}{container_id}", first=first)
            if nic.is_down:
                self._rtnl.batch([link_down(self._rtnl.link_index(nic.port))])
        except OSError as error:
            self.unplug(nic.port)
            raise _refused(error, container_id, nic) from error
        except NestbedError:
            self.unplug(nic.port)
            raise

    def _make(self, nic: Nic, netns_fd: int) -> None:
        bridge_index = self._rtnl.link_index(nic.bridge)
        for is_last in (False, True):
            try:
                self._rtnl.add_veth(
                    nic.port,
                    bridge_index=bridge_index,
                    mtu=nic.mtu,
                    peer_name=nic.name,
                    peer_mac=nic.mac,
                    peer_netns_fd=netns_fd,
                    one_queue=True,
                )
            except OSError as error:
                # The pair of an earlier run may not be gone yet: its namespace dies in its own time.
                if is_last or error.errno != errno.EEXIST:
                    raise
                self.unplug(nic.port)
            else:
                self._dying.discard(nic.port)
                return

    def is_whole(self, port: str) -> bool:
        """Whether the pair is there and :meth:`plug` came to its end: the death of a daemon may have cut it short."""
        try:
            return self._rtnl.link(port).alias.startswith(self._prefix)
        except OSError:
            return False

    def take_up(self, nic: Nic) -> None:
        """Take over the pair, whole, that an earlier daemon made for ``nic``."""
        with contextlib.suppress(OSError):  # it goes at this moment
            link = self._rtnl.link(nic.port)
            if self._hook is not None:
                self._hook.port_found(nic, link.index)
            if link.up is nic.is_down:
                self.set_link(nic.port, up=not nic.is_down)

    def set_link(self, port: str, *, up: bool) -> None:
        """Give the other end of a pair a carrier, or take it away. Nothing happens if the pair is not there."""
        try:
            index = self._rtnl.link_index(port)
            self._rtnl.batch([link_up(index) if up else link_down(index)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise from_errno(error.errno or 0, f"setting {port} {'up' if up else 'down'}", port=port) from error

    def _exists(self, port: str) -> bool:
        try:
            self._rtnl.link_index(port)
        except OSError:
            return False
        return True

    def unplug(self, port: str) -> None:
        """Delete the pair, if it is there. The kernel takes about 16 ms."""
        self._gone(port)
        with translated(f"deleting {port}", port=port):
            self._rtnl.delete_link(port)

    def links(self) -> list[Link]:
        """Every device of this namespace."""
        return self._rtnl.links()

    def ours(self) -> dict[str, str]:
        """The ports of this node by their alias, with the container each belongs to."""
        return {
            link.name: link.alias[len(self._prefix) :]
            for link in self.links()
            if link.alias.startswith(self._prefix) and link.kind == "veth" and link.name.startswith(PORT_PREFIX)
        }

    def let_go(self, ports: Iterable[str]) -> None:
        """The namespace of these ports was let go: the kernel will delete them."""
        for port in ports:
            self._gone(port)
            if self._exists(port):
                self._dying.add(port)
        self._tell()

    def _gone(self, port: str) -> None:
        if self._hook is not None:
            self._hook.port_gone(port)

    @property
    def dying(self) -> frozenset[str]:
        """Ports the kernel is about to delete."""
        return frozenset(self._dying)

    async def settled(self) -> None:
        """Wait until the ports let go are gone; those that are not after ``SETTLE_SECONDS`` are deleted."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._settled.wait()
        except TimeoutError:
            for port in self.dying:
                self.unplug(port)
            self._dying.clear()
            self._tell()

    def _deleted(self) -> None:
        gone = self._deletions.read()
        self._dying = {port for port in self._dying if self._exists(port)} if gone is None else self._dying - gone
        self._tell()

    def _tell(self) -> None:
        if self._dying:
            self._settled.clear()
        else:
            self._settled.set()


def _refused(error: OSError, container_id: str, nic: Nic) -> NestbedError:
    known = {"container": container_id, "nic": nic.name, "lan": nic.lan, "port": nic.port}
    if error.errno == errno.ENODEV:
        return NotFound(
            f"the bridge of LAN {nic.lan} is gone",
            reason="BRIDGE_GONE",
            remedy="restart nestbedd, which makes it again",
            bridge=nic.bridge,
            **known,
        )
    if error.errno == errno.EEXIST:
        return AlreadyExists(f"the container has an interface {nic.name}", reason="NIC_EXISTS", remedy="choose another name", **known)
    if error.errno == errno.EXFULL:
        return ResourceExhausted(
            f"LAN {nic.lan} has as many ports as a bridge can have",
            reason="LAN_FULL",
            remedy="spread the containers over two LANs",
            **known,
        )
    return from_errno(error.errno or 0, f"plugging {nic.name} into LAN {nic.lan}: {error.strerror}", **known)
