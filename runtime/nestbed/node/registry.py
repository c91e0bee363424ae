"""What a node has, by id, name, prefix and LAN: the containers it holds and the LANs they are on. In memory; no I/O."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from nestbed.errors import AlreadyExists, Busy, InvalidArgument, NestbedError, NotFound, WrongState, shown
from nestbed.lan import control, nested
from nestbed.lan.addressing import Address, interface_of, port_prefix
from nestbed.lanmodel import Lan, LanMember, Nic, NicSpec
from nestbed.model import Bundle, ContainerView, ExitStatus, Spec, State, Status
from nestbed.node import wiring
from nestbed.node.names import by_prefix
from nestbed.node.segment import Segment
from nestbed.node.store import Record
from nestbed.runtime import Container

LOCK_SECONDS = 30.0
"""How long a call waits for another one on the same container."""

_REMEMBERED_EXITS = 1024
_SHOWN_OVER = {
    State.STARTING: (State.CREATED, State.STOPPED),
    State.STOPPING: (State.RUNNING, State.PAUSED, State.RESTARTING),
    State.DELETING: tuple(State),
}


class Held:
    """A container as the node holds it.

    ``container`` is None while it is being made, and where it could not be taken up again (``broken`` says why).
    ``doing`` is the change under way, ``wakers`` are set whenever its status changed or it is gone, ``hosts_seen`` are the versions of
    its LANs that its hosts file shows.
    """

    def __init__(self, record: Record, bundle: Bundle) -> None:
        self.record = record
        self.bundle = bundle
        self.container: Container | None = None
        self.broken: NestbedError | None = None
        self.doing: State | None = None
        self.last = Status(State.CREATING)
        self.is_gone = False
        self.hosts_seen: tuple[tuple[str, int], ...] | None = None
        self.made = asyncio.Event()
        self.wakers: set[asyncio.Event] = set()
        self._lock = asyncio.Lock()
        self._interruption: asyncio.Future[None] | None = None

    @property
    def spec(self) -> Spec:
        """What was asked for."""
        return self.record.spec

    @property
    def status(self) -> Status:
        """Where it is, with the change under way."""
        if self.container is not None:
            status = self.container.status
        elif self.broken is not None:
            status = Status(State.STOPPED, exit=ExitStatus(reason="unknown", message=self.broken.message))
        else:
            return Status(State.CREATING)
        if self.doing is not None and status.state in _SHOWN_OVER.get(self.doing, ()):
            return dataclasses.replace(status, state=self.doing)
        if status.is_booting and status.state in _SHOWN_OVER[State.STARTING]:
            return dataclasses.replace(status, state=State.STARTING)
        return status

    def view(self) -> ContainerView:
        """As callers see it."""
        return ContainerView(self.spec, self.status)

    def wake(self) -> None:
        """Tell everyone who waits for news of it."""
        for waker in self.wakers:
            waker.set()

    @contextlib.asynccontextmanager
    async def changing(self, doing: State | None = None) -> AsyncIterator[None]:
        """Be the only one who changes it for the block.

        Raises:
            Busy: another call held it for LOCK_SECONDS.
            NotFound: it is gone.
        """
        try:
            async with asyncio.timeout(LOCK_SECONDS):
                await self._lock.acquire()
        except TimeoutError as error:
            raise Busy(
                f"container {self.spec.name} is busy{f' {self.doing.value}' if self.doing else ''}",
                reason="CONTAINER_BUSY",
                remedy="try again in a moment; `kill` and `rm -f` cut a slow stop short",
                container=self.spec.name,
            ) from error
        try:
            if self.is_gone:
                raise not_found(self.spec.name)
            self.doing = doing
            yield
        finally:
            self.doing = None
            self._lock.release()

    def interrupt(self) -> None:
        """End the wait of a ``stop`` or of a boot under way, so that something stronger can follow."""
        if self._interruption is not None and not self._interruption.done():
            self._interruption.set_result(None)

    async def start(self, container: Container, *, wait: bool) -> None:
        """Start it. One that boots may be interrupted, which ends this call, not the boot; without ``wait`` it suffices that it boots.

        Raises:
            as ``Container.start``; WrongState: it was interrupted (reason INTERRUPTED).
        """
        interruption = self._interruption = asyncio.get_running_loop().create_future()
        starting, news = asyncio.ensure_future(container.start()), asyncio.Event()
        self.wakers.add(news)
        try:
            while not starting.done():
                news.clear()
                if container.status.is_booting and not wait:
                    return
                if container.status.is_booting and interruption.done():
                    raise WrongState(
                        f"container {self.spec.name} was stopped while it booted",
                        reason="INTERRUPTED",
                        remedy="start it again",
                        container=self.spec.name,
                    )
                waiting = [asyncio.ensure_future(news.wait()), *([] if interruption.done() else [interruption])]
                await asyncio.wait((starting, *waiting), return_when=asyncio.FIRST_COMPLETED)
                waiting[0].cancel()
            starting.result()
        finally:
            self._interruption = None
            self.wakers.discard(news)
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)

    async def stop(self, container: Container, grace_seconds: float) -> bool:
        """Stop it; whether it was left to finish, that is not interrupted."""
        self._interruption = asyncio.get_running_loop().create_future()
        stopping = asyncio.ensure_future(container.stop(grace_seconds))
        try:
            await asyncio.wait((stopping, self._interruption), return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                stopping.result()
            return stopping.done()
        finally:
            self._interruption = None
            if not stopping.done():
                stopping.cancel()
                await asyncio.gather(stopping, return_exceptions=True)


class Registry:
    """All containers and LANs of a node. Every method is done at once; nothing is awaited between a check and its effect."""

    def __init__(self, control_subnet: str = "") -> None:
        """``control_subnet`` is the setting, "" for none."""
        self._control_subnet = control_subnet
        self._by_id: dict[str, Held] = {}
        self._by_name: dict[str, Held] = {}
        self._by_request: dict[str, Held] = {}
        self._prefixes: set[str] = set()
        self._lans: dict[str, Segment] = {}
        self._lans_by_name: dict[str, Segment] = {}
        self.control: Segment | None = None
        """The control network, while there is one: its members are in it as long as they are held."""
        self.underlay: Segment | None = None
        """The same of the underlay of nodes inside."""
        self._exits: OrderedDict[str, tuple[str, ExitStatus]] = OrderedDict()

    # ------------------------------------------------------------ containers

    def __iter__(self) -> Iterator[Held]:
        return iter(tuple(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, container_id: str) -> Held | None:
        """The container of that id, if there is one."""
        return self._by_id.get(container_id)

    def find(self, ref: str) -> Held:
        """The container that ``ref`` means: its id, its name, or a beginning of its id that no other has.

        Raises:
            NotFound: none. InvalidArgument: several begin like that (reason AMBIGUOUS).
        """
        held = self._by_id.get(ref) or self._by_name.get(ref)
        if held is not None:
            return held
        ids = by_prefix(ref, self._by_id)
        if len(ids) > 1:
            raise InvalidArgument(
                f"{ref} is the beginning of {len(ids)} ids",
                reason="AMBIGUOUS",
                remedy="give more digits of the id, or the name",
                container=ref,
                count=len(ids),
            )
        if not ids:
            raise not_found(ref)
        return self._by_id[ids[0]]

    def of_request(self, request_id: str) -> Held | None:
        """The container that a call with this request id made or makes."""
        return self._by_request.get(request_id) if request_id else None

    def new_id(self) -> str:
        """An id whose own and derived names are free."""
        while True:
            container_id = secrets.token_hex(6)
            if container_id not in self._by_id and port_prefix(container_id) not in self._prefixes:
                return container_id

    def check_name_free(self, name: str) -> None:
        """Whether a container can have the name.

        Raises:
            AlreadyExists: one has it (reason NAME_TAKEN).
        """
        if name in self._by_name:
            raise AlreadyExists(
                f"there is a container {name} already",
                reason="NAME_TAKEN",
                remedy=f"choose another name, or remove the old one: nbctl rm {name}",
                name=name,
            )

    def add(self, held: Held) -> None:
        """Hold a container whose id and name are free; its NICs are on their LANs already."""
        spec = held.spec
        self._by_id[spec.id] = self._by_name[spec.name] = held
        self._prefixes.add(port_prefix(spec.id))
        if held.record.request_id:
            self._by_request[held.record.request_id] = held

    def drop(self, held: Held) -> None:
        """Hold it no longer; its NICs leave their LANs. Idempotent."""
        spec = held.spec
        if self._by_id.pop(spec.id, None) is None:
            return
        del self._by_name[spec.name]
        self._prefixes.discard(port_prefix(spec.id))
        self._by_request.pop(held.record.request_id, None)
        wiring.unwire(self._lans, wiring.Owner(spec.id, spec.name), spec.nics)
        self.leave_control(spec.control)
        self.leave_underlay(spec.underlay)
        held.is_gone = True
        held.wake()

    def rename(self, held: Held, record: Record) -> None:
        """The container has the record, with a new name that is free; its NICs keep theirs and their MACs."""
        del self._by_name[held.spec.name]
        held.record = record
        self._by_name[held.spec.name] = held
        for nic in held.spec.nics:
            self._lans[nic.lan_id].rename(nic.port, held.spec.name)

    def remember_exit(self, spec: Spec, status: ExitStatus) -> None:
        """Keep how a container ended that removed itself, for callers who ask too late. Bounded."""
        self._exits[spec.id] = (spec.name, status)
        while len(self._exits) > _REMEMBERED_EXITS:
            self._exits.popitem(last=False)

    def remembered_exit(self, ref: str) -> ExitStatus | None:
        """What :meth:`remember_exit` kept of the latest container with that id or name."""
        if ref in self._exits:
            return self._exits[ref][1]
        return next((status for name, status in reversed(self._exits.values()) if name == ref), None)

    # ------------------------------------------------------------ LANs

    @property
    def segments(self) -> Mapping[str, Segment]:
        """The LANs by id, oldest first."""
        return self._lans

    def find_lan(self, ref: str) -> Segment:
        """The LAN of that id or name.

        Raises:
            NotFound: none.
        """
        return self._lans.get(ref) or wiring.find_segment(self._lans_by_name, ref)

    def lan_in_group(self, name: str, group: str) -> Segment | None:
        """The LAN of that name, if it is carried in that group: the same segment, whoever made it."""
        segment = self._lans_by_name.get(name)
        return segment if segment is not None and group and segment.lan.group == group else None

    def lan_of_request(self, request_id: str) -> Segment | None:
        """The LAN that a call with this request id made."""
        return next((segment for segment in self._lans.values() if segment.request_id == request_id), None) if request_id else None

    def new_lan_id(self) -> str:
        """An id that no LAN has."""
        while (lan_id := secrets.token_hex(6)) in self._lans:
            pass
        return lan_id

    def check_lan_name_free(self, name: str) -> None:
        """Whether a LAN can have the name.

        Raises:
            AlreadyExists: one has it (reason NAME_TAKEN).
        """
        if name in self._lans_by_name:
            raise AlreadyExists(
                f"there is a LAN {name} already",
                reason="NAME_TAKEN",
                remedy=f"choose another name, or remove the old one: nbctl lan rm {name}",
                name=name,
            )

    def add_lan(self, segment: Segment) -> None:
        """Have a LAN whose id and name are free."""
        self._lans[segment.lan.id] = self._lans_by_name[segment.lan.name] = segment

    def drop_lan(self, segment: Segment) -> None:
        """Have it no longer."""
        del self._lans[segment.lan.id], self._lans_by_name[segment.lan.name]

    def wire(self, owner: wiring.Owner, specs: Sequence[NicSpec], next_hops: Sequence[Address]) -> tuple[Nic, ...]:
        """NICs for ``owner``; see :func:`nestbed.node.wiring.wire`."""
        return wiring.wire(self._lans_by_name, owner, specs, next_hops)

    def unwire(self, owner: wiring.Owner, leaving: Sequence[Nic]) -> None:
        """Take NICs off their LANs; see :func:`nestbed.node.wiring.unwire`."""
        wiring.unwire(self._lans, owner, leaving)

    def rejoin(self, spec: Spec) -> None:
        """Put the recorded NICs of a container on their LANs. A LAN whose record was lost is there again, without subnets."""
        hops = wiring.next_hops(spec.gateway, spec.routes)
        for nic in spec.nics:
            if nic.lan_id not in self._lans:
                self.add_lan(Segment(Lan(id=nic.lan_id, name=nic.lan, bridge=nic.bridge, mtu=nic.mtu, created_at=spec.created_at)))
            segment = self._lans[nic.lan_id]
            segment.join(LanMember(spec.id, spec.name, nic))
            segment.rely_on(spec.id, hops)
        if spec.control is not None:
            self.control = self.control or control_segment(self._subnet_of(spec.control), spec.control.mtu)
            self.control.join(LanMember(spec.id, spec.name, spec.control))
        if spec.underlay is not None:
            self.underlay = self.underlay or _segment_of(spec.underlay)
            self.underlay.join(LanMember(spec.id, spec.name, spec.underlay))

    def _subnet_of(self, nic: Nic) -> str:
        """The control network is the one that its members are on, whatever the setting says now."""
        interface = interface_of(nic.addresses[0])
        if self._control_subnet and interface.ip in ipaddress.ip_network(self._control_subnet):
            return self._control_subnet
        return str(interface.network)

    def leave_control(self, nic: Nic | None) -> None:
        """Take a container's NIC off the control network; None, and one that has left, is none. Idempotent."""
        if nic is not None and self.control is not None:
            self.control.leave(nic.port)

    def leave_underlay(self, nic: Nic | None) -> None:
        """The same for the underlay of nodes inside."""
        if nic is not None and self.underlay is not None:
            self.underlay.leave(nic.port)


def underlay_segment(node_id: str, subnet: str) -> Segment:
    """The underlay of the nodes inside on this subnet, whose first address is the node's."""
    return _with_own(Segment(nested.lan_of(node_id, subnet)))


def _segment_of(nic: Nic) -> Segment:
    """The underlay of nodes inside that a machine's NIC is on."""
    lan = Lan(id=nic.lan_id, name=nic.lan, bridge=nic.bridge, mtu=nic.mtu, subnet=str(interface_of(nic.addresses[0]).network))
    return _with_own(Segment(lan))


def _with_own(segment: Segment) -> Segment:
    segment.take_address(nested.own_address(segment.lan))
    return segment


def control_segment(subnet: str, mtu: int) -> Segment:
    """The control network on this subnet, whose first address is the node's."""
    lan = control.lan_of(subnet, mtu)
    segment = Segment(lan)
    segment.take_address(control.own_address(lan))
    return segment


def not_found(ref: str) -> NotFound:
    """The error for a container that is not, or no more, there."""
    return NotFound(
        f"there is no container {shown(ref)}",
        reason="CONTAINER_NOT_FOUND",
        remedy="see `nbctl ps -a`",
        container=shown(ref),
    )
