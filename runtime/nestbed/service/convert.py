"""Messages of the API -> model values: pure, without a look at any state.

What cannot be expressed in the model is refused (InvalidArgument); what a value means for a node is the node's to judge.
"""

from __future__ import annotations

import math
import signal as signals
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from nestbed import lanmodel, model
from nestbed.errors import InvalidArgument
from nestbed.imagemodel import DiskFormat
from nestbed.lanmodel import Direction
from nestbed.model import FsMode, Kind, RestartMode, State
from nestbed.v1 import agent_pb2, image_pb2, lan_pb2, traffic_pb2
from nestbed.v1 import container_pb2 as api

T = TypeVar("T")

KINDS: Mapping[int, Kind] = {api.CONTAINER_KIND_PROCESS: Kind.PROCESS, api.CONTAINER_KIND_QEMU: Kind.QEMU}
FS_MODES: Mapping[int, FsMode] = {
    api.FS_MODE_HOST: FsMode.HOST,
    api.FS_MODE_HOST_RO: FsMode.HOST_RO,
    api.FS_MODE_OVERLAY: FsMode.OVERLAY,
    api.FS_MODE_ROOTFS: FsMode.ROOTFS,
}
RESTART_MODES: Mapping[int, RestartMode] = {
    api.RESTART_MODE_UNSPECIFIED: RestartMode.NO,
    api.RESTART_MODE_NO: RestartMode.NO,
    api.RESTART_MODE_ON_FAILURE: RestartMode.ON_FAILURE,
    api.RESTART_MODE_ALWAYS: RestartMode.ALWAYS,
}
DIRECTIONS: Mapping[int, Direction] = {
    lan_pb2.DIRECTION_UNSPECIFIED: Direction.BOTH,
    lan_pb2.DIRECTION_TO: Direction.TO,
    lan_pb2.DIRECTION_FROM: Direction.FROM,
    lan_pb2.DIRECTION_BOTH: Direction.BOTH,
}
STATES: Mapping[int, State] = {api.ContainerState.Value(f"CONTAINER_STATE_{state.name}"): state for state in State}

DISK_FORMATS: Mapping[int, DiskFormat] = {image_pb2.DiskFormat.Value(f"DISK_FORMAT_{one.name}"): one for one in DiskFormat}

GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL, unless a request says otherwise."""

INTERVAL_SECONDS_MIN = 0.1
"""The least time between the responses of a stream of measurements."""

SECONDS_MAX = 7 * 86400.0
"""The longest duration a request may name."""


def container_request(spec: api.ContainerSpec, *, admin: bool) -> model.ContainerRequest:
    """What is asked for; a file system mode that is not given is the default of the role."""
    kind = _chosen(KINDS, spec.kind, "kind")
    # A machine never has the node's own files, whoever asks for it.
    return model.ContainerRequest(
        kind=kind,
        process=_process(spec.process, admin=admin and kind is Kind.PROCESS),
        name=spec.name,
        hostname=spec.hostname,
        labels=pairs(spec.labels),
        resources=_without_defaults(_resources(spec.resources)),
        restart=_restart(spec.restart),
        nics=tuple(nic_spec(nic) for nic in spec.nics),
        routes=tuple(model.Route(route.destination, route.via) for route in spec.routes),
        gateway=spec.gateway,
        hosts=spec.hosts,
        auto_remove=spec.auto_remove,
        qemu=_qemu(spec.qemu) if kind is Kind.QEMU else None,
        control=spec.control if spec.HasField("control") else None,
    )


def _qemu(spec: api.QemuSpec) -> model.QemuSpec:
    boot_seconds = seconds(spec.boot_timeout, "boot_timeout", least=1.0) if spec.HasField("boot_timeout") else 0.0
    return model.QemuSpec(spec.append, spec.node, spec.image, spec.kernel, spec.initrd, boot_seconds)


def disk_format(start: image_pb2.ImportImageStart) -> DiskFormat:
    """The format that is told.

    Raises:
        InvalidArgument: none is.
    """
    return _chosen(DISK_FORMATS, start.format, "format")


def _process(spec: api.ProcessSpec, *, admin: bool) -> model.ProcessSpec:
    return model.ProcessSpec(
        args=tuple(spec.args),
        env=pairs(spec.env),
        cwd=spec.cwd,
        user=spec.user,
        fs=_fs_mode(spec, admin=admin),
        rootfs=spec.rootfs,
        overlay_dir=spec.overlay_dir,
        mounts=tuple(model.Mount(mount.source, mount.destination, mount.read_only) for mount in spec.mounts),
        cap_add=tuple(spec.cap_add),
        cap_drop=tuple(spec.cap_drop),
        sysctls=pairs(spec.sysctls),
        init=spec.init,
        machine=spec.machine,
        tty=spec.tty,
        stdin=spec.stdin,
    )


def _fs_mode(spec: api.ProcessSpec, *, admin: bool) -> FsMode:
    if spec.fs_mode != api.FS_MODE_UNSPECIFIED:
        return _chosen(FS_MODES, spec.fs_mode, "fs_mode")
    return FsMode.HOST if admin else FsMode.OVERLAY


def _resources(limits: api.Resources) -> model.Resources:
    """What is present; 0 stands for the node's default."""
    if not math.isfinite(limits.cpus):
        raise InvalidArgument(
            f"cpus: {limits.cpus} is no number of processors", reason="BAD_LIMIT", remedy="give a number such as 1.5", value=limits.cpus
        )
    return model.Resources(**{field.name: value for field, value in limits.ListFields()})


def _without_defaults(limits: model.Resources) -> model.Resources:
    """For a new container the default is what is not said."""
    return model.Resources(limits.cpus or None, limits.memory_bytes or None, limits.pids or None, limits.io_weight or None)


def _restart(policy: api.RestartPolicy) -> model.RestartPolicy:
    return model.RestartPolicy(_chosen(RESTART_MODES, policy.mode, "restart.mode"), policy.max_retries)


def nic_spec(nic: api.NicSpec) -> lanmodel.NicSpec:
    """A NIC as asked for."""
    return lanmodel.NicSpec(
        nic.lan,
        nic.name,
        nic.mac,
        tuple(nic.addresses),
        impair_to=_impairment(nic.impair_to) if nic.HasField("impair_to") else lanmodel.NO_IMPAIRMENT,
        impair_from=_impairment(nic.impair_from) if nic.HasField("impair_from") else lanmodel.NO_IMPAIRMENT,
    )


def _impairment(message: traffic_pb2.Impairment) -> lanmodel.Impairment:
    return lanmodel.Impairment(**_present(message))


def impairment_change(message: traffic_pb2.Impairment) -> lanmodel.ImpairmentChange:
    """What changes: the fields that are present."""
    return lanmodel.ImpairmentChange(**_present(message))


def _present(message: traffic_pb2.Impairment) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}


def ports(request: lan_pb2.SetImpairmentRequest | lan_pb2.ResetImpairmentRequest) -> tuple[str, str, lanmodel.Direction]:
    """Container, NIC and direction; the first two may be empty."""
    return request.container, request.nic, _chosen(DIRECTIONS, request.direction, "direction")


def change(request: api.UpdateContainerRequest) -> model.Change:
    """What an update changes: what is present; a limit of 0 goes back to the node's default."""
    return model.Change(
        resources=_resources(request.resources) if request.HasField("resources") else None,
        restart=_restart(request.restart) if request.HasField("restart") else None,
        name=request.name or None,
    )


def exec_spec(start: api.ExecStart) -> model.ExecSpec:
    """A further program; a terminal size that is not given is 24 by 80."""
    rows, columns = size(start.size)
    return model.ExecSpec(
        args=tuple(start.args),
        env=pairs(start.env),
        cwd=start.cwd,
        user=start.user,
        tty=start.tty,
        stdin=start.stdin,
        rows=rows or 24,
        columns=columns or 80,
    )


def lan_request(request: lan_pb2.CreateLanRequest) -> lanmodel.LanRequest:
    """A LAN as asked for."""
    return lanmodel.LanRequest(
        name=request.name,
        subnet=request.subnet,
        subnet6=request.subnet6,
        mtu=request.mtu,
        labels=pairs(request.labels),
        group=request.group,
        peers=tuple(request.peers),
        ttl=request.ttl,
        is_local=request.local,
    )


def extension(lan: lan_pb2.Lan) -> tuple[lanmodel.Lan, tuple[lanmodel.LanMember, ...]]:
    """A LAN of the node outside, and its members that are not here."""
    value = lanmodel.Lan(
        id=lan.id,
        name=lan.name,
        bridge="",
        mtu=lan.mtu,
        subnet=lan.subnet,
        subnet6=lan.subnet6,
        labels=pairs(lan.labels),
        group=lan.group,
        peers=tuple(lan.peers),
        ttl=lan.ttl or 1,
        impairment=_impairment(lan.impairment),
        is_down=lan.is_down,
    )
    members = [
        lanmodel.LanMember(
            member.container_id,
            member.container,
            lanmodel.Nic(lan.name, lan.id, member.nic.name, member.nic.mac, tuple(member.nic.addresses), lan.mtu, "", ""),
        )
        for member in lan.members
    ]
    return value, tuple(members)


def capture_request(request: lan_pb2.CaptureRequest) -> lanmodel.CaptureRequest:
    """What to capture."""
    return lanmodel.CaptureRequest(
        filter=request.filter,
        snap_bytes=request.snap_bytes,
        count=request.count,
        size_bytes=request.size_bytes,
        seconds=seconds(request.duration, "duration") if request.HasField("duration") else 0.0,
    )


def interval(request: api.GetStatsRequest | lan_pb2.WatchLanStatsRequest | agent_pb2.WatchTrafficRequest) -> float:
    """Seconds between responses; 0 for one response only."""
    return seconds(request.interval, "interval", least=INTERVAL_SECONDS_MIN) if request.HasField("interval") else 0.0


def states(numbers: Sequence[int]) -> tuple[State, ...]:
    """The states a list is narrowed to."""
    return tuple(_chosen(STATES, number, "states") for number in numbers)


def size(given: api.TerminalSize) -> tuple[int, int]:
    """Rows and columns; 0 is not given.

    Raises:
        InvalidArgument: the kernel's winsize has 16 bits.
    """
    if max(given.rows, given.columns) > 0xFFFF:
        raise InvalidArgument(
            f"a terminal cannot have {given.rows} rows and {given.columns} columns",
            reason="BAD_SIZE",
            remedy="give at most 65535 of each",
            rows=given.rows,
            columns=given.columns,
        )
    return given.rows, given.columns


def signal(number: int) -> int:
    """A signal to send; 0 is SIGKILL."""
    if not 0 <= number < signals.NSIG:
        raise InvalidArgument(f"there is no signal {number}", reason="BAD_SIGNAL", remedy="give a number from 1 to 64", signal=number)
    return number or int(signals.SIGKILL)


def grace_seconds(request: api.StopContainerRequest) -> float:
    """How long a program may take to end."""
    return seconds(request.grace, "grace") if request.HasField("grace") else GRACE_SECONDS


def seconds(duration: Duration, field: str, *, least: float = 0.0) -> float:
    """A duration in seconds.

    Raises:
        InvalidArgument: it is not between ``least`` and SECONDS_MAX.
    """
    value = duration.seconds + duration.nanos / 1e9
    if not least <= value <= SECONDS_MAX:
        raise InvalidArgument(
            f"{field}: {value:g} s is not between {least:g} and {SECONDS_MAX:g} s",
            reason="BAD_DURATION",
            remedy="give a duration within the bounds",
            field=field,
            value=value,
        )
    return value


def since(request: api.GetLogsRequest) -> float | None:
    """The moment from which log entries are wanted."""
    return epoch(request.since) if request.HasField("since") else None


def epoch(stamp: Timestamp) -> float:
    """Seconds since the epoch."""
    return stamp.seconds + stamp.nanos / 1e9


def tail(request: api.GetLogsRequest) -> int | None:
    """How many of the last lines are wanted."""
    if not request.HasField("tail"):
        return None
    if request.tail < 0:
        raise InvalidArgument(f"tail: {request.tail} is negative", reason="BAD_TAIL", remedy="give 0 or more lines", tail=request.tail)
    return request.tail


def pairs(table: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """A map as the model holds it: sorted, for a map of a message has no order."""
    return tuple(sorted(table.items()))


def _chosen(table: Mapping[int, T], number: int, field: str) -> T:
    value = table.get(number)
    if value is None:
        known = ", ".join(f"{number} ({value})" for number, value in table.items())
        raise InvalidArgument(
            f"{field}: {number} means nothing", reason="BAD_ENUM", remedy=f"give one of {known}", field=field, value=number
        )
    return value
