"""A plan as requests to nodes, and how to know what they made again: by labels, one of which holds a digest of the request."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nestbed.experiment.files import with_files
from nestbed.experiment.plan import Plan, PlannedElement, PlannedLan, PlannedNode, digest, impairment
from nestbed.experiment.ranges import fill
from nestbed.experiment.vtopo import NOT_IMPAIRED, Impairing
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import traffic_pb2

EXPERIMENT = "nestbed.experiment"
ELEMENT = "nestbed.element"
LAN = "nestbed.lan"
DIGEST = "nestbed.digest"
NODE = "nestbed.node"
"""Of a virtual machine that is a node of the experiment, in place of ELEMENT: its name in the ptopo."""

KINDS: Mapping[str, api.ContainerKind.ValueType] = {
    "process": api.CONTAINER_KIND_PROCESS,
    "qemu": api.CONTAINER_KIND_QEMU,
    "machine": api.CONTAINER_KIND_PROCESS,
}
_CONFIGURE = "NET_ADMIN"
"""In the machine's own network it is not the element's to configure."""
_FS: Mapping[str, api.FsMode.ValueType] = {
    "": api.FS_MODE_UNSPECIFIED,
    "host": api.FS_MODE_HOST,
    "host-ro": api.FS_MODE_HOST_RO,
    "overlay": api.FS_MODE_OVERLAY,
    "rootfs": api.FS_MODE_ROOTFS,
}
_RESTART: Mapping[str, api.RestartMode.ValueType] = {
    "no": api.RESTART_MODE_NO,
    "on-failure": api.RESTART_MODE_ON_FAILURE,
    "always": api.RESTART_MODE_ALWAYS,
}


@dataclass(frozen=True, slots=True)
class Digests:
    """The digests of a whole plan: of elements and LANs, by name."""

    elements: dict[str, str]
    lans: dict[str, str]
    machines: dict[str, str] = field(default_factory=dict)


def digests(plan: Plan) -> Digests:
    """What tells whether a node has just what the plan says. An element's covers the LANs it is on. Takes some time for many elements."""
    lans = {lan.name: digest([lan_request(plan, lan), impairment(lan.lan.words)]) for lan in plan.lans.values()}
    elements = {}
    for element in plan.elements.values():
        hashed = hashlib.sha256(container_spec(plan, element).SerializeToString(deterministic=True))
        hashed.update("".join(lans[nic.lan] for nic in element.element.nics).encode())
        elements[element.name] = hashed.hexdigest()[:16]
    machines = {
        planned.name: hashlib.sha256(machine_spec(plan.name, planned).SerializeToString(deterministic=True)).hexdigest()[:16]
        for planned in plan.machines.values()
    }
    return Digests(elements, lans, machines)


def lan_request(plan: Plan, planned: PlannedLan) -> dict[str, Any]:
    """What ``Client.create_lan`` takes, but for the digest."""
    return {
        "name": planned.node_name,
        "subnet": planned.lan.subnet,
        "subnet6": planned.lan.subnet6,
        "mtu": planned.lan.words.mtu,
        "group": planned.group,
        "local": not planned.group and not planned.reaches_inside,
        "labels": {EXPERIMENT: plan.name, LAN: planned.name},
    }


def machine_spec(experiment: str, planned: PlannedNode) -> api.ContainerSpec:
    """The virtual machine that is a node, but for the digest."""
    return api.ContainerSpec(
        name=planned.node_name,
        kind=api.CONTAINER_KIND_QEMU,
        labels={EXPERIMENT: experiment, NODE: planned.name},
        hostname=planned.name,
        resources=api.Resources(cpus=planned.words.cpus, memory_bytes=planned.words.memory),
        qemu=api.QemuSpec(node=True),
    )


def lan_impairment(planned: PlannedLan) -> traffic_pb2.Impairment | None:
    """What is to be done to its frames; None for nothing."""
    words = impairment(planned.lan.words)
    return traffic_pb2.Impairment(**words) if words else None


def kind(planned: PlannedElement) -> api.ContainerKind.ValueType:
    """The kind of container that realises an element."""
    return KINDS[planned.element.words.kind]


def container_spec(plan: Plan, planned: PlannedElement) -> api.ContainerSpec:
    """The container that realises an element, but for the digest."""
    words, number = planned.element.words, planned.element.number
    fs, _, folder = words.fs.partition("=")
    return api.ContainerSpec(
        name=planned.node_name,
        kind=kind(planned),
        labels={**words.labels, EXPERIMENT: plan.name, ELEMENT: planned.name},
        hostname=planned.name,
        nics=[
            api.NicSpec(
                lan=plan.lans[nic.lan].node_name,
                name=nic.name,
                mac=nic.mac,
                addresses=nic.addresses,
                impair_to=_impairing(nic.to),
                impair_from=_impairing(nic.from_),
            )
            for nic in planned.element.nics
        ],
        routes=[api.Route(destination=route.destination, via=route.via) for route in planned.routes],
        hosts=plan.hosts.text(planned.element),
        control=words.control,
        resources=_limits(planned),
        restart=api.RestartPolicy(mode=_RESTART[words.restart[0]], max_retries=words.restart[1]),
        qemu=api.QemuSpec(image=words.image) if words.image else None,
        process=api.ProcessSpec(
            args=with_files(planned.args, planned.files),
            env={key: fill(value, number) for key, value in words.env.items()},
            cwd=words.workdir,
            user=words.user,
            fs_mode=_FS[fs],
            rootfs=folder if fs == "rootfs" else "",
            overlay_dir=fill(folder, number) if fs == "overlay" else "",
            mounts=[
                api.Mount(source=fill(source, number), destination=fill(destination, number), read_only=read_only)
                for source, destination, read_only in words.mounts
            ],
            cap_add=words.cap_add,
            cap_drop=(*words.cap_drop, *([_CONFIGURE] if words.kind == "machine" and _CONFIGURE not in words.cap_add else [])),
            sysctls=dict(planned.sysctls),
            init=bool(words.startup) and words.kind != "qemu",
            machine=words.kind == "machine",
        ),
    )


def _impairing(words: Impairing) -> traffic_pb2.Impairment | None:
    return None if words == NOT_IMPAIRED else traffic_pb2.Impairment(**impairment(words))


def _limits(planned: PlannedElement) -> api.Resources | None:
    limits = planned.element.words.limits
    given = {"cpus": limits.cpus, "memory_bytes": limits.memory, "pids": limits.pids, "io_weight": limits.io_weight}
    present: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return api.Resources(**present) if present else None
