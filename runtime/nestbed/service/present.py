"""Model values -> messages of the API: pure. Text that is not UTF-8 (file names) gets replacement characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from nestbed import lanmodel, model
from nestbed.imagemodel import Image
from nestbed.runlog import Entry
from nestbed.runtime import Leftover
from nestbed.service.convert import FS_MODES, KINDS, RESTART_MODES, STATES
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import image_pb2, lan_pb2, node_pb2, traffic_pb2

_KINDS = {kind: api.ContainerKind.ValueType(number) for number, kind in KINDS.items()}
_FS_MODES = {mode: api.FsMode.ValueType(number) for number, mode in FS_MODES.items()}
_RESTART_MODES = {mode: api.RestartMode.ValueType(number) for number, mode in RESTART_MODES.items()}
_PATHS = {kind: lan_pb2.PathKind.Value(f"PATH_KIND_{kind.name}") for kind in lanmodel.PathKind}
_BOOTS = {boot: api.BootPhase.Value(f"BOOT_PHASE_{boot.name}") for boot in model.Boot}
_STATES = {state: api.ContainerState.ValueType(number) for number, state in STATES.items()}

LOG_RESPONSE_BYTES = 256 * 1024
"""Log entries of about so many bytes share a response."""


def container(view: model.ContainerView) -> api.Container:
    """A container as callers see it."""
    spec, status = view.spec, view.status
    return api.Container(
        id=spec.id,
        name=spec.name,
        spec=_spec(spec),
        state=_STATES[status.state],
        nics=[nic(each) for each in spec.nics],
        pid=status.pid,
        create_time=timestamp(spec.created_at),
        start_time=timestamp(status.started_at),
        exit=None if status.exit is None else exit_status(status.exit),
        restarts=status.restarts,
        log_bytes_lost=status.log_bytes_lost,
        control=None if spec.control is None else nic(spec.control),
        boot=api.BOOT_PHASE_UNSPECIFIED if status.boot is None else _BOOTS[status.boot],
        console=text(status.console),
    )


def _spec(spec: model.Spec) -> api.ContainerSpec:
    return api.ContainerSpec(
        name=spec.name,
        kind=_KINDS[spec.kind],
        labels=dict(spec.labels),
        hostname=spec.hostname,
        nics=[_nic_spec(each) for each in spec.nics],
        routes=[api.Route(destination=route.destination, via=route.via) for route in spec.routes],
        gateway=spec.gateway,
        hosts=spec.hosts,
        resources=_resources(spec.resources),
        restart=api.RestartPolicy(mode=_RESTART_MODES[spec.restart.mode], max_retries=spec.restart.max_retries),
        auto_remove=spec.auto_remove,
        process=_process(spec.process),
        qemu=_qemu(spec.qemu),
        control=spec.control is not None,
    )


def _qemu(spec: model.QemuSpec | None) -> api.QemuSpec | None:
    if spec is None:
        return None
    message = api.QemuSpec(append=spec.append, node=spec.node, image=spec.image, kernel=spec.kernel, initrd=spec.initrd)
    if spec.boot_seconds:
        message.boot_timeout.FromNanoseconds(round(spec.boot_seconds * 1e9))
    return message


def _nic_spec(value: lanmodel.Nic) -> api.NicSpec:
    return api.NicSpec(
        lan=value.lan,
        name=value.name,
        mac=value.mac,
        addresses=value.addresses,
        impair_to=_if_any(value.impair_to),
        impair_from=_if_any(value.impair_from),
    )


def _process(spec: model.ProcessSpec) -> api.ProcessSpec:
    return api.ProcessSpec(
        args=spec.args,
        env=dict(spec.env),
        cwd=spec.cwd,
        user=spec.user,
        fs_mode=_FS_MODES[spec.fs],
        rootfs=spec.rootfs,
        overlay_dir=spec.overlay_dir,
        mounts=[api.Mount(source=each.source, destination=each.destination, read_only=each.read_only) for each in spec.mounts],
        cap_add=spec.cap_add,
        cap_drop=spec.cap_drop,
        sysctls=dict(spec.sysctls),
        init=spec.init,
        machine=spec.machine,
        tty=spec.tty,
        stdin=spec.stdin,
    )


def _resources(limits: model.Resources) -> api.Resources:
    return api.Resources(cpus=limits.cpus, memory_bytes=limits.memory_bytes, pids=limits.pids, io_weight=limits.io_weight)


def nic(value: lanmodel.Nic) -> api.Nic:
    """A NIC as it is."""
    return api.Nic(
        lan=value.lan,
        name=value.name,
        mac=value.mac,
        addresses=value.addresses,
        mtu=value.mtu,
        port=value.port,
        impair_to=_if_any(value.impair_to),
        impair_from=_if_any(value.impair_from),
        is_down=value.is_down,
    )


def image(value: Image) -> image_pb2.Image:
    """An image as callers see it."""
    return image_pb2.Image(
        name=value.name,
        origin=image_pb2.ImageOrigin.Value(f"IMAGE_ORIGIN_{value.origin.name}"),
        format=image_pb2.DISK_FORMAT_UNSPECIFIED
        if value.format is None
        else image_pb2.DiskFormat.Value(f"DISK_FORMAT_{value.format.name}"),
        boot=image_pb2.BootWay.Value(f"BOOT_WAY_{value.boot.name}"),
        stored_bytes=value.stored_bytes,
        disk_bytes=value.disk_bytes,
        sha256=value.sha256,
        recipe=value.recipe,
        create_time=timestamp(value.created_at),
    )


def _if_any(value: lanmodel.Impairment) -> traffic_pb2.Impairment | None:
    return None if value == lanmodel.NO_IMPAIRMENT else _impairment(value)


def _impairment(value: lanmodel.Impairment) -> traffic_pb2.Impairment:
    return traffic_pb2.Impairment(
        rate_bps=value.rate_bps,
        delay_us=value.delay_us,
        jitter_us=value.jitter_us,
        loss=value.loss,
        duplicate=value.duplicate,
        corrupt=value.corrupt,
        reorder=value.reorder,
        limit_frames=value.limit_frames,
    )


def lan_impairment(value: lanmodel.LanImpairment) -> lan_pb2.LanImpairment:
    """What is in force on a LAN and on ports."""
    return lan_pb2.LanImpairment(lan=lan(value.view), ports=[_port_impairment(each) for each in value.ports])


def _port_impairment(value: lanmodel.PortImpairment) -> lan_pb2.PortImpairment:
    return lan_pb2.PortImpairment(
        member=member(value.member),
        in_force_to=_impairment(value.to),
        in_force_from=_impairment(value.from_),
        achieved_to=None if value.achieved_to is None else _achieved(value.achieved_to),
        achieved_from=None if value.achieved_from is None else _achieved(value.achieved_from),
    )


def member(value: lanmodel.LanMember, *, is_cut: bool = False) -> lan_pb2.LanMember:
    """A NIC on a LAN."""
    return lan_pb2.LanMember(container_id=value.container_id, container=value.container, nic=nic(value.nic), is_cut=is_cut)


def _achieved(value: lanmodel.Achieved) -> lan_pb2.Achieved:
    return lan_pb2.Achieved(
        since=timestamp(value.since),
        frames=value.frames,
        bytes=value.bytes,
        lost=value.lost,
        duplicated=value.duplicated,
        corrupted=value.corrupted,
        reordered=value.reordered,
        overflowed=value.overflowed,
        delay_min_us=value.delay_min_us,
        delay_mean_us=value.delay_mean_us,
        delay_p99_us=value.delay_p99_us,
        rate_bps=value.rate_bps,
    )


def exit_status(status: model.ExitStatus) -> api.ExitStatus:
    """How a program ended; neither code nor signal when that is unknown."""
    return api.ExitStatus(
        code=status.code,
        signal=status.signal,
        reason=status.reason,
        message=text(status.message),
        exit_time=timestamp(status.at),
        shell_code=status.shell_code,
    )


def stats(view: model.ContainerView, used: model.Stats) -> api.ContainerStats:
    """Use of resources; what the kernel does not tell is absent."""
    return api.ContainerStats(
        id=view.spec.id,
        name=view.spec.name,
        time=timestamp(used.at),
        cpu_seconds=used.cpu_seconds,
        memory_bytes=used.memory_bytes,
        memory_limit_bytes=used.memory_limit_bytes,
        memory_peak_bytes=used.memory_peak_bytes,
        pids=used.pids,
        pids_limit=used.pids_limit,
        io_read_bytes=used.io_read_bytes,
        io_write_bytes=used.io_write_bytes,
        oom_kills=used.oom_kills,
        nics=[_nic_stats(each) for each in used.nics],
    )


def _nic_stats(used: lanmodel.NicStats) -> api.NicStats:
    return api.NicStats(
        name=used.name,
        lan=used.lan,
        rx_frames=used.rx_frames,
        rx_bytes=used.rx_bytes,
        rx_drops=used.rx_drops,
        tx_frames=used.tx_frames,
        tx_bytes=used.tx_bytes,
        tx_drops=used.tx_drops,
        rx_classes=_classes(used.rx_classes),
        tx_classes=_classes(used.tx_classes),
        rx_drop_reasons=_drops(used.rx_drop_reasons),
        tx_drop_reasons=_drops(used.tx_drop_reasons),
    )


def _classes(counts: Sequence[lanmodel.ClassCount]) -> list[traffic_pb2.ClassCount]:
    return [traffic_pb2.ClassCount(name=each.name, frames=each.frames, bytes=each.bytes) for each in counts]


def _drops(counts: Sequence[lanmodel.DropCount]) -> list[traffic_pb2.DropCount]:
    return [traffic_pb2.DropCount(reason=each.reason, frames=each.frames) for each in counts]


def _traffic(value: lanmodel.Traffic) -> traffic_pb2.Traffic:
    return traffic_pb2.Traffic(frames=value.frames, bytes=value.bytes, classes=_classes(value.classes), drops=_drops(value.drops))


def logs(entries: Sequence[Entry]) -> Iterator[api.GetLogsResponse]:
    """Log entries as responses of a bounded size."""
    response, held = api.GetLogsResponse(), 0
    for entry in entries:
        response.entries.append(_log_entry(entry))
        held += len(entry.data)
        if held >= LOG_RESPONSE_BYTES:
            yield response
            response, held = api.GetLogsResponse(), 0
    if response.entries:
        yield response


def _log_entry(entry: Entry) -> api.LogEntry:
    stream = api.LOG_STREAM_STDOUT if entry.stream == 1 else api.LOG_STREAM_STDERR
    return api.LogEntry(time=timestamp(entry.at), stream=stream, data=entry.data, partial=entry.partial)


def lan(view: lanmodel.LanView) -> lan_pb2.Lan:
    """A LAN and its members as callers see them."""
    value = view.lan
    return lan_pb2.Lan(
        id=value.id,
        name=value.name,
        subnet=value.subnet,
        subnet6=value.subnet6,
        mtu=value.mtu,
        labels=dict(value.labels),
        create_time=timestamp(value.created_at),
        bridge=value.bridge,
        members=[member(each, is_cut=each.nic.port in view.cut) for each in view.members],
        group=value.group,
        peers=value.peers,
        ttl=value.ttl if value.is_relayed else 0,
        impairment=_if_any(value.impairment),
        is_down=value.is_down,
        outside=value.outside,
        paths=[lan_pb2.LanPath(underlay=each.underlay, kind=_PATHS[each.kind], detail=text(each.detail)) for each in view.paths],
    )


def lan_stats(value: lanmodel.LanStats) -> lan_pb2.LanStats:
    """Counters of a LAN and of its members' ports."""
    return lan_pb2.LanStats(
        id=value.lan.id,
        name=value.lan.name,
        time=timestamp(value.at),
        received=_traffic(value.counters.received) if value.lan.is_relayed else None,
        sent=_traffic(value.counters.sent) if value.lan.is_relayed else None,
        ports=[
            lan_pb2.LanPortStats(
                container_id=member.container_id,
                container=member.container,
                nic=member.nic.name,
                rx=_traffic(port.rx),
                tx=_traffic(port.tx),
            )
            for member, port in value.ports
        ],
    )


def node_info(info: model.NodeInfo, *, role: str) -> node_pb2.NodeInfo:
    """What a node is, to a caller with ``role``."""
    return node_pb2.NodeInfo(
        name=info.name,
        version=info.version,
        kernel=info.kernel,
        id=info.id,
        cpus=info.cpus,
        memory_bytes=info.memory_bytes,
        run_dir=text(info.run_dir),
        state_dir=text(info.state_dir),
        containers=info.containers,
        containers_running=info.containers_running,
        lans=info.lans,
        start_time=timestamp(info.started_at),
        abilities=[_ability(each) for each in info.abilities],
        kinds=[*(kind.value for kind in info.kinds), *(["machine"] if info.may_be_element else [])],
        role=role,
        underlays=info.underlays,
        last_event=info.last_event,
    )


def _ability(ability: model.Ability) -> node_pb2.Ability:
    return node_pb2.Ability(
        name=ability.name, available=ability.available, detail=text(ability.detail), consequence=text(ability.consequence)
    )


def event(value: model.Event) -> node_pb2.Event:
    """Something that happened."""
    return node_pb2.Event(
        sequence=value.sequence,
        time=timestamp(value.at),
        type=value.type,
        id=value.id,
        name=value.name,
        attributes=texts(dict(value.attributes)),
    )


def leftovers(found: Iterable[Leftover]) -> list[node_pb2.Leftover]:
    """Differences between record and kernel."""
    return [node_pb2.Leftover(problem=each.problem, kind=each.kind, name=text(each.name), detail=text(each.detail)) for each in found]


def timestamp(at: float) -> Timestamp | None:
    """Seconds since the epoch as a message, to the microsecond; None for 0, which stands for never."""
    if not at:
        return None
    seconds, micros = divmod(round(at * 1_000_000), 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1000)


def text(value: str) -> str:
    """``value`` as protobuf takes it: what is not Unicode is replaced."""
    return value if value.isascii() else value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def texts(table: Mapping[str, str]) -> dict[str, str]:
    """A map as protobuf takes it."""
    return {text(key): text(value) for key, value in table.items()}
