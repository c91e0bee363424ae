"""THE CONTRACT of a LAN plane: what the node asks for to have LANs. The docstrings are the specification."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from typing import Protocol

from nestbed.lanmodel import Achieved, CaptureRequest, Lan, LanCounters, LanPath, Nic, NicImpairment, PortStats, Underlay
from nestbed.model import Ability
from nestbed.runtime import Leftover, PlaneListener, PortHook


class CaptureStream(Protocol):
    """Pieces of a capture's file, each of whole blocks. Closing it ends the capture; idempotent."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def __anext__(self) -> Awaitable[bytes]: ...

    def aclose(self) -> Awaitable[None]: ...


class LanPlane(PortHook, Protocol):
    """What makes LANs. Errors are ``nestbed.errors``; changing methods for one LAN or port are never called at once.

    What it is asked for and cannot do is refused (HostLacks), never accepted and ignored.
    """

    async def open(self, listener: PlaneListener) -> None:
        """Make it ready. Called once, before anything else."""
        ...

    async def aclose(self) -> None:
        """Let go without ending any LAN."""
        ...

    def underlays(self) -> Sequence[Underlay]:
        """The interfaces that it was told to carry LANs on, as they are now, in that order, then that of nodes inside, if there is one.
        Never raises.
        """
        ...

    async def create(self, lan: Lan) -> None:
        """Make the LAN; a relayed one is joined to its group or peers when this returns. Nothing is left after an error.

        Raises:
            AlreadyExists: an interface of somebody else has a name that it needs. HostLacks: this machine cannot carry it.
        """
        ...

    async def ensure(self, lan: Lan) -> None:
        """Take up a LAN of an earlier daemon; make what is missing of it. Idempotent, harmless to a LAN in use.

        An underlay that is not there is no error: the LAN heals when it comes back.
        """
        ...

    async def delete(self, lan: Lan) -> None:
        """Remove the LAN. Idempotent."""
        ...

    async def sweep(self, lans: Collection[Lan]) -> None:
        """Remove what an earlier daemon of this node made for LANs that are not among ``lans``, and for ports of which :meth:`impair` has
        not been told: the node has told of all by now.
        """
        ...

    async def sweep_ports(self) -> None:
        """Once, after every port on record was found or added: remove what an earlier daemon of this node made for others."""
        ...

    async def audit(self, lans: Collection[Lan]) -> Sequence[Leftover]:
        """Compare the records of ``lans``, all of the node, with the kernel; read-only."""
        ...

    def abilities(self) -> Sequence[Ability]:
        """What this machine can and cannot do for LANs, and why."""
        ...

    def paths(self, lan: Lan) -> Sequence[LanPath]:
        """How the LAN uses each underlay, as last known; empty for one that is not relayed. For one that is, on a node that has lost its
        underlays, one path that is down, without a name. Never waits, never raises.
        """
        ...

    def cut(self, lan: Lan) -> Collection[str]:
        """The members' ports (``Nic.port``) that are closed both ways at present, because they closed a loop within this machine. They are
        opened again by themselves. Never waits, never raises.
        """
        ...

    async def impair(self, wanted: Sequence[NicImpairment]) -> None:
        """Have these impairments in force on the ports of these NICs, each named once, from now on: all of them or, after an error, none.

        On a port that is there this changes what is in force at once, and keeps frames in flight where the kernel can; for one that is
        not there yet it is remembered until ``port_added``, and kept over ``port_gone``. Two times NO_IMPAIRMENT takes everything off and
        forgets the port. A daemon that takes up a port finds it as it is to be: no frame is lost or delayed by that.

        Raises:
            HostLacks, InvalidArgument: this machine cannot do it; what was in force still is.
        """
        ...

    async def achieved(self, nic: Nic) -> tuple[Achieved | None, Achieved | None]:
        """What came of the impairments to and from the NIC since they were set; None where nothing is impaired."""
        ...

    async def counters(self, lans: Collection[Lan]) -> Sequence[LanCounters]:
        """What these LANs exchanged with other machines since they were made (through daemons' deaths); one for each, in order."""
        ...

    async def port_counters(self, ports: Collection[str]) -> Mapping[str, PortStats]:
        """Counters of these ports (``Nic.port``) since they came; a port that is not there, or not counted here, is missing."""
        ...

    def choose_control(self, avoided: Collection[str]) -> str:
        """A subnet for the control network that touches neither what the node has nor ``avoided`` (in CIDR form).

        Raises:
            ResourceExhausted: there is none.
        """
        ...

    def control_mtu(self) -> int:
        """The MTU of the control network."""
        ...

    def control_prefix(self, subnet: str) -> int:
        """The prefix length of members' addresses from this subnet of the control network."""
        ...

    async def ensure_control(self, control: Lan, members: Collection[Nic]) -> None:
        """Have the control network (``nestbed.lan.control``) on this subnet, whose members are to have these NICs, whether their ports are
        there or not yet. Idempotent, harmless to one in use.

        Raises:
            AlreadyExists: somebody else has an interface of that name.
        """
        ...

    async def remove_control(self) -> None:
        """Have none: nobody is on it. Idempotent."""
        ...

    async def audit_control(self, control: Lan | None) -> Sequence[Leftover]:
        """Compare with the kernel that there is this control network, or none; read-only."""
        ...

    def choose_nested(self) -> str:
        """A subnet for the underlay of the nodes inside (``nestbed.lan.nested``). Never raises."""
        ...

    async def ensure_nested(self, lan: Lan) -> None:
        """Have the underlay of the nodes inside, and carry LANs on it. Idempotent, harmless to one in use.

        Raises:
            AlreadyExists: somebody else has an interface of that name.
        """
        ...

    async def remove_nested(self) -> None:
        """Have none: no node is inside. Idempotent."""
        ...

    async def audit_nested(self, lan: Lan | None) -> Sequence[Leftover]:
        """Compare with the kernel that there is this underlay of nodes inside, or none; read-only."""
        ...

    async def capture(self, link: str, name: str, request: CaptureRequest) -> CaptureStream:
        """A pcapng file of every frame that passes ``link`` (a bridge or port of this node), which is called ``name`` in the file.

        What the request says is checked, and frames are being captured, when this returns; the pieces come as frames do. It ends when
        a bound is reached or the link is gone; closing the stream ends it at any time and leaves nothing. A reader that is slow loses
        frames, which are counted in the file.

        Raises:
            InvalidArgument: the filter is none (reason BAD_FILTER). NotFound: the link is gone. HostLacks. ResourceExhausted: there are
            many of them (reason TOO_MANY_CAPTURES). The stream: Unavailable, if what captures dies.
        """
        ...
