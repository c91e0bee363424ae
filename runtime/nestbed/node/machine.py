"""The machine itself as a member of LANs: a container whose network is the node's own, so that its NICs are NICs of the machine.

It touches the machine, so the operator of the node must have permitted it (``nestbedd --machine-element``), and only an administrator makes
one. It brings routes to its LANs only and settings of its own NICs only; all of it goes with the NICs, when it stops.
"""

from __future__ import annotations

from nestbed.errors import AlreadyExists, HostLacks, InvalidArgument, shown
from nestbed.model import ContainerRequest, Kind
from nestbed.node.registry import Registry


def check(request: ContainerRequest, registry: Registry, *, is_permitted: bool) -> None:
    """Refuse what the machine is not to be. Does nothing for other containers.

    Raises:
        HostLacks: the node does not permit it (reason NO_ELEMENT). AlreadyExists: a container is it already (reason MACHINE_TAKEN).
        InvalidArgument: it is no process, or would change the machine beyond its NICs (reason NOT_FOR_THE_MACHINE).
    """
    if not request.process.machine:
        return
    if not is_permitted:
        raise HostLacks(
            "this node permits nobody to make the machine itself a member of LANs",
            reason="NO_ELEMENT",
            remedy="start its nestbedd with --machine-element yes",
        )
    other = next((held for held in registry if held.spec.process.machine), None)
    if other is not None:
        raise AlreadyExists(
            f"the machine itself is container {other.spec.name} already",
            reason="MACHINE_TAKEN",
            remedy="remove that first, or use another node",
            container=other.spec.name,
        )
    own = tuple(f"net/ipv{version}/conf/{nic.name}/" for version in (4, 6) for nic in request.nics if nic.name)
    faults = (
        (request.kind is not Kind.PROCESS, "a virtual machine"),
        (bool(request.gateway), "a gateway"),
        (any(route.destination in ("default", "0.0.0.0/0", "::/0") for route in request.routes), "a default route"),
        (any(not key.startswith(own) for key, _ in request.process.sysctls), "a sysctl that is not of its NICs"),
        (not all(nic.name for nic in request.nics), "a NIC without a name"),
    )
    for is_so, what in faults:
        if is_so:
            raise InvalidArgument(
                f"the machine itself cannot be a container with {what}",
                reason="NOT_FOR_THE_MACHINE",
                remedy="leave it out: only NICs, their addresses and routes to their LANs can be added to the machine",
                container=shown(request.name),
            )
