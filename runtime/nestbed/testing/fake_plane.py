"""A LAN plane in memory, for tests of everything above it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence

from nestbed.lanmodel import (
    NO_IMPAIRMENT,
    Achieved,
    CaptureRequest,
    Impairment,
    Lan,
    LanCounters,
    LanPath,
    Nic,
    NicImpairment,
    PathKind,
    PortStats,
    Underlay,
)
from nestbed.model import Ability
from nestbed.runtime import Leftover, PlaneListener
from nestbed.testing.fake import FakeKernel


class FakePlane:
    """``nestbed.lan.contract.LanPlane`` in memory. ``found`` are its underlays; tests replace them, call ``listener``, and
    say in ``looped`` which ports are cut.
    """

    def __init__(self, kernel: FakeKernel | None = None, underlays: Sequence[Underlay] = ()) -> None:
        self.kernel = kernel or FakeKernel()
        self.found = tuple(underlays)
        self.listener: PlaneListener | None = None
        self.looped: Collection[str] = ()
        self.impaired: dict[str, tuple[Impairment, Impairment]] = {}

    async def open(self, listener: PlaneListener) -> None:
        self.listener = listener

    async def aclose(self) -> None:
        self.listener = None

    def underlays(self) -> Sequence[Underlay]:
        nested = self.kernel.nested
        if nested is None:
            return self.found
        return (*self.found, Underlay(nested.bridge, exists=True, is_up=True, has_multicast=True, address="198.18.0.1", mtu=nested.mtu))

    async def create(self, lan: Lan) -> None:
        self.kernel.check("bridge")
        self.kernel.bridges[lan.bridge] = lan.id

    async def ensure(self, lan: Lan) -> None:
        self.kernel.bridges[lan.bridge] = lan.id

    async def delete(self, lan: Lan) -> None:
        self.kernel.check("bridge")
        self.kernel.bridges.pop(lan.bridge, None)

    async def sweep(self, lans: Collection[Lan]) -> None:
        recorded = {lan.id for lan in lans}
        self.kernel.bridges = {name: lan_id for name, lan_id in self.kernel.bridges.items() if lan_id in recorded}

    async def sweep_ports(self) -> None:
        pass

    async def audit(self, lans: Collection[Lan]) -> Sequence[Leftover]:
        recorded = {lan.bridge for lan in lans}
        extra = [Leftover("extra", "link", name) for name in self.kernel.bridges if name not in recorded]
        return [*extra, *(Leftover("missing", "link", name) for name in recorded if name not in self.kernel.bridges)]

    def abilities(self) -> Sequence[Ability]:
        return []

    def paths(self, lan: Lan) -> Sequence[LanPath]:
        if not lan.is_relayed:
            return ()
        return [LanPath(one.name, PathKind.KERNEL if one.exists and one.is_up else PathKind.DOWN) for one in self.found]

    def cut(self, lan: Lan) -> Collection[str]:
        return self.looped if lan.bridge in self.kernel.bridges else ()

    def port_added(self, nic: Nic, index: int) -> Sequence[bytes]:  # noqa: ARG002 - there is nothing to do
        return ()

    def port_found(self, nic: Nic, index: int) -> None:
        pass

    def port_gone(self, port: str) -> None:
        pass

    async def impair(self, wanted: Sequence[NicImpairment]) -> None:
        before = dict(self.impaired)
        try:
            for one in wanted:
                self.kernel.check("impair")
                self.impaired[one.nic.port] = (one.to, one.from_)
        except BaseException:
            self.impaired = before
            raise
        self.impaired = {port: both for port, both in self.impaired.items() if both != (NO_IMPAIRMENT, NO_IMPAIRMENT)}

    async def achieved(self, nic: Nic) -> tuple[Achieved | None, Achieved | None]:
        to, from_ = self.impaired.get(nic.port, (NO_IMPAIRMENT, NO_IMPAIRMENT))
        return (_achieved(to), _achieved(from_))

    async def counters(self, lans: Collection[Lan]) -> Sequence[LanCounters]:
        return [LanCounters(lan.id) for lan in lans]

    async def port_counters(self, ports: Collection[str]) -> Mapping[str, PortStats]:
        return {port: PortStats(port) for port in ports if port in self.kernel.links}

    def choose_control(self, avoided: Collection[str]) -> str:
        self.kernel.check("control")
        return next(one for one in ("172.31.240.0/20", "172.31.224.0/20") if one not in avoided)

    def control_mtu(self) -> int:
        return 1500

    def control_prefix(self, subnet: str) -> int:
        return int(subnet.rpartition("/")[2])

    async def ensure_control(self, control: Lan, members: Collection[Nic]) -> None:  # noqa: ARG002 - a fake kernel has no frames
        self.kernel.check("control")
        self.kernel.control = control

    async def remove_control(self) -> None:
        self.kernel.control = None

    async def audit_control(self, control: Lan | None) -> Sequence[Leftover]:
        return [] if control == self.kernel.control else [Leftover("extra" if control is None else "missing", "link", "control0")]

    def choose_nested(self) -> str:
        return "198.18.0.0/24"

    async def ensure_nested(self, lan: Lan) -> None:
        self.kernel.nested = lan

    async def remove_nested(self) -> None:
        self.kernel.nested = None

    async def audit_nested(self, lan: Lan | None) -> Sequence[Leftover]:
        return [] if lan == self.kernel.nested else [Leftover("extra" if lan is None else "missing", "link", "underlay")]

    async def capture(self, link: str, name: str, request: CaptureRequest) -> AsyncGenerator[bytes, None]:
        self.kernel.check("capture")
        return _pieces(f"{link} {name} {request}".encode())


async def _pieces(*pieces: bytes) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        yield piece


def _achieved(impairment: Impairment) -> Achieved | None:
    return None if impairment == NO_IMPAIRMENT else Achieved(since=1.0)
