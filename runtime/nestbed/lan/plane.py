"""The LAN plane of one machine, as :mod:`nestbed.lan.contract` specifies it, by what the kernel has.

A LAN is a Linux bridge in the network namespace of the daemon. Ports are the runtimes': they enslave theirs to the bridge of
``Nic.bridge`` and tell the plane (``nestbed.runtime.PortHook``). LANs forward on without the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nestbed.errors import HostLacks
from nestbed.lan import capture, neighbours, nested, netfilter, pins, underlays
from nestbed.lan.bridge import Bridges
from nestbed.lan.contract import CaptureStream
from nestbed.lan.control import ControlBridge, is_control
from nestbed.lan.memberports import MemberPorts
from nestbed.lan.programs import PortPrograms
from nestbed.lan.relay_client import RelayClient
from nestbed.lan.relaying import Relaying
from nestbed.lanmodel import (
    Achieved,
    CaptureRequest,
    Lan,
    LanCounters,
    LanPath,
    Nic,
    NicImpairment,
    PathKind,
    PortStats,
    RelayMode,
    Underlay,
)
from nestbed.linux import devices
from nestbed.log import fields
from nestbed.model import Ability
from nestbed.runtime import Leftover, PlaneListener

_logger = logging.getLogger(__name__)


class Plane:
    """LANs as Linux bridges. Everything belongs to the network namespace in which :meth:`open` was called.

    ``underlays`` are the interfaces that carry LANs to other machines, ``run_dir`` holds what belongs to the relay and to BPF, and what is
    known of ``control_nic``, the machine's NIC that is to be in the control network, if there is one.
    """

    def __init__(
        self, *, node_id: str, run_dir: Path, underlays: Sequence[str] = (), relay: RelayMode = RelayMode.AUTO, control_nic: str = ""
    ) -> None:
        self._node_id = node_id
        self._run_dir = run_dir
        self._given_underlays = tuple(underlays)
        self._nested = ""
        self._relay = relay
        self._control_nic = control_nic
        self._opened: Bridges | None = None
        self._control_bridge: ControlBridge | None = None
        self._members: MemberPorts | None = None
        self._lacks_bpf = ""
        self._telling: asyncio.Task[None] | None = None
        self._process: RelayClient | None = None
        self._relaying: Relaying | None = None
        self._captures = capture.Captures()

    @property
    def _underlays(self) -> tuple[str, ...]:
        return (*self._given_underlays, self._nested) if self._nested else self._given_underlays

    @property
    def _bridges(self) -> Bridges:
        assert self._opened is not None, "open comes first"
        return self._opened

    @property
    def _control(self) -> ControlBridge:
        assert self._control_bridge is not None, "open comes first"
        return self._control_bridge

    @property
    def _carrier(self) -> Relaying:
        assert self._relaying is not None, "open comes first"
        return self._relaying

    async def open(self, listener: PlaneListener) -> None:
        netfilter.keep_out()
        self._opened = Bridges(self._node_id)
        self._control_bridge = ControlBridge(self._node_id, self._run_dir, self._control_nic)
        self._control_bridge.open()
        self._process = RelayClient(self._run_dir, listener)
        self._process.open()
        self._relaying = Relaying(
            node_id=self._node_id,
            run_dir=self._run_dir,
            underlays=self._underlays,
            mode=self._relay,
            relay=self._process,
            listener=listener,
        )
        self._relaying.start()
        try:
            self._members = MemberPorts(self._node_id, PortPrograms.load(pins.pin_dir(self._run_dir)), self._process)
            self._telling = asyncio.create_task(self._members.tell_of_loops(listener), name="lan-loops")
        except OSError as error:
            self._lacks_bpf = str(error)

    async def aclose(self) -> None:
        await self._captures.aclose()
        if self._telling is not None:
            self._telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._telling
            self._telling = None
        if self._members is not None:
            self._members.close()
            self._members = None
        if self._relaying is not None:
            await self._relaying.aclose()
            self._relaying = None
        if self._process is not None:
            self._process.close()
            self._process = None
        if self._control_bridge is not None:
            self._control_bridge.close()
            self._control_bridge = None
        if self._opened is not None:
            if not any(self._opened.ours()):
                pins.release(self._run_dir)
            self._opened.close()
            self._opened = None

    def underlays(self) -> Sequence[Underlay]:
        return [underlays.look_at(name) for name in self._underlays]

    async def create(self, lan: Lan) -> None:
        self._bridges.make(lan)
        if lan.is_relayed:
            try:
                self._carrier.take_up(lan)
                await self._carrier.settle(lan)
            except BaseException:
                await self.delete(lan)
                raise

    async def ensure(self, lan: Lan) -> None:
        self._bridges.ensure(lan)
        if lan.is_relayed:
            self._carrier.take_up(lan)

    async def delete(self, lan: Lan) -> None:
        if lan.is_relayed:
            self._carrier.remove(lan)
        self._bridges.remove(lan.bridge)

    async def sweep(self, lans: Collection[Lan]) -> None:
        self._carrier.sweep(lans)
        recorded = {lan.id for lan in lans}
        for name, lan_id in self._bridges.ours():
            if lan_id not in recorded:
                self._bridges.remove(name)

    async def sweep_ports(self) -> None:
        if self._members is not None:
            try:
                self._members.sweep()
            except OSError as error:
                _logger.exception("ports not swept", extra=fields(cause=str(error)))

    async def audit(self, lans: Collection[Lan]) -> Sequence[Leftover]:
        recorded, found = {lan.id: lan for lan in lans}, dict(self._bridges.ours())
        present = set(found.items())
        extra = [Leftover("extra", "link", name, "a bridge of no LAN") for name, lan_id in found.items() if lan_id not in recorded]
        missing = [
            Leftover("missing", "link", lan.bridge, f"the bridge of LAN {lan.name}")
            for lan in recorded.values()
            if (lan.bridge, lan.id) not in present
        ]
        legs = () if self._members is None else self._members.audit()
        return [*extra, *missing, *self._carrier.audit(lans), *legs]

    def abilities(self) -> Sequence[Ability]:
        carrier = self._relaying.abilities() if self._relaying is not None else ()
        impairs = [self._lacks_impairments()] if self._members is None else self._members.abilities()
        control = None if self._control_bridge is None else self._control_bridge.ability()
        node = [
            netfilter.ability(),
            neighbours.ability(),
            *underlays.abilities(self.underlays()),
            *([control] if control is not None else []),
        ]
        return [*node, *carrier, capture.ability(), *impairs]

    def _lacks_impairments(self) -> Ability:
        return Ability(
            "impairments",
            available=False,
            detail=f"BPF programs cannot be loaded: {self._lacks_bpf or 'not tried yet'}",
            consequence="frames are not counted by class, and rate, delay, loss and the like are refused",
        )

    def paths(self, lan: Lan) -> Sequence[LanPath]:
        if lan.is_relayed and not self._underlays:
            return [LanPath("", PathKind.DOWN, "this node has no underlay: see nestbedd --underlay")]
        return self._carrier.paths(lan)

    def cut(self, lan: Lan) -> Collection[str]:
        return () if self._members is None else self._members.cut(lan.id)

    def port_added(self, nic: Nic, index: int) -> Sequence[bytes]:
        counted = () if self._members is None else self._members.added(nic, index)
        return (*counted, *self._on_control(nic, index)) if is_control(nic) else counted

    def port_found(self, nic: Nic, index: int) -> None:
        if self._members is not None:
            self._members.found(nic, index)
        if is_control(nic):
            self._control.take_up_port(nic, self._on_control(nic, index))

    def _on_control(self, nic: Nic, index: int) -> Sequence[bytes]:
        known = self._control.member(nic)
        guarded = () if self._members is None or known is None else self._members.guarded(known, index)
        return [devices.port_isolation(index), *guarded]

    def port_gone(self, port: str) -> None:
        if self._members is not None:
            self._members.gone(port)

    async def impair(self, wanted: Sequence[NicImpairment]) -> None:
        if self._members is not None:
            await self._members.impair(wanted)
            return
        nic = next((one.nic for one in wanted if one != NicImpairment(one.nic)), None)
        if nic is not None:
            raise HostLacks(
                f"the frames of {nic.name} on LAN {nic.lan} cannot be impaired without BPF: {self._lacks_bpf}",
                reason="NO_IMPAIRMENTS",
                remedy="see `nbctl info` for what this machine lacks",
                nic=nic.name,
                lan=nic.lan,
                cause=self._lacks_bpf,
            )

    async def achieved(self, nic: Nic) -> tuple[Achieved | None, Achieved | None]:
        return (None, None) if self._members is None else self._members.achieved(nic)

    async def counters(self, lans: Collection[Lan]) -> Sequence[LanCounters]:
        return [self._carrier.counters(lan.id) for lan in lans]

    async def port_counters(self, ports: Collection[str]) -> Mapping[str, PortStats]:
        return {} if self._members is None else self._members.counters(ports)

    def choose_control(self, avoided: Collection[str]) -> str:
        return self._control.choose_subnet(avoided)

    def control_mtu(self) -> int:
        return self._control.mtu

    def control_prefix(self, subnet: str) -> int:
        return self._control.prefix_length(subnet)

    async def ensure_control(self, control: Lan, members: Collection[Nic]) -> None:
        self._control.ensure(control, members)

    async def remove_control(self) -> None:
        self._control.remove()

    async def audit_control(self, control: Lan | None) -> Sequence[Leftover]:
        return self._control.audit(control)

    def choose_nested(self) -> str:
        return nested.subnet_below(underlays.look_at(name).address for name in self._given_underlays)

    async def ensure_nested(self, lan: Lan) -> None:
        self._bridges.ensure_nested(lan)
        self._nested = lan.bridge
        self._carrier.use(self._underlays)

    async def remove_nested(self) -> None:
        self._nested = ""
        self._carrier.use(self._underlays)
        for name in self._bridges.nested():
            self._bridges.remove(name)

    async def audit_nested(self, lan: Lan | None) -> Sequence[Leftover]:
        found, wanted = set(self._bridges.nested()), {lan.bridge} if lan is not None else set()
        what = "the underlay of nodes inside"
        return [
            *(Leftover("extra", "link", name, what) for name in sorted(found - wanted)),
            *(Leftover("missing", "link", name, what) for name in sorted(wanted - found)),
        ]

    async def capture(self, link: str, name: str, request: CaptureRequest) -> CaptureStream:
        return await self._captures.start(link, name, request)
