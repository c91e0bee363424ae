r"""Counters in Prometheus' text format, version 0.0.4. Pure.

https://prometheus.io/docs/instrumenting/exposition_formats/: each metric has its HELP and TYPE once, before its samples, which stand
together; in HELP ``\`` and line feeds are escaped, in label values double quotes, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from nestbed.lanmodel import LanStats, Traffic
from nestbed.model import ContainerView, NodeInfo, State, Stats


class _Metric:
    """A metric with its samples."""

    def __init__(self, name: str, kind: str, text: str) -> None:
        self._lines = [f"# HELP {name} {_escaped(text)}", f"# TYPE {name} {kind}"]
        self._name = name

    def add(self, value: float, **labels: str) -> None:
        """One sample."""
        inside = ",".join(f'{key}="{_quoted(text)}"' for key, text in labels.items())
        self._lines.append(f"{self._name}{{{inside}}} {_number(value)}" if inside else f"{self._name} {_number(value)}")

    def lines(self) -> Iterator[str]:
        """Nothing if there is no sample."""
        return iter(self._lines if len(self._lines) > 2 else ())


def text(info: NodeInfo, containers: Sequence[tuple[ContainerView, Stats]], states: Mapping[State, int], lans: Sequence[LanStats]) -> str:
    """All metrics of a node."""
    metrics = [*_of_node(info, states), *_of_containers(containers), *_of_nics(containers), *_of_lans(lans)]
    return "".join(f"{line}\n" for metric in metrics for line in metric.lines())


def _of_node(info: NodeInfo, states: Mapping[State, int]) -> Iterator[_Metric]:
    node = _Metric("nestbed_node_info", "gauge", "The node: always 1, its labels tell.")
    node.add(1, node=info.name, version=info.version, kernel=info.kernel)
    yield node
    started = _Metric("nestbed_node_start_time_seconds", "gauge", "When nestbedd started, in seconds since the epoch.")
    started.add(info.started_at)
    yield started
    counted = _Metric("nestbed_containers", "gauge", "Containers by state.")
    for state in State:
        counted.add(states.get(state, 0), state=state.value)
    yield counted
    lans = _Metric("nestbed_lans", "gauge", "LANs of the node.")
    lans.add(info.lans)
    yield lans
    can = _Metric("nestbed_node_ability", "gauge", "1 for what the machine can do, 0 for what it cannot.")
    for ability in info.abilities:
        can.add(int(ability.available), ability=ability.name)
    yield can


_CONTAINER_METRICS = (
    ("cpu_seconds", "nestbed_container_cpu_seconds_total", "counter", "Processor time used, in seconds."),
    ("memory_bytes", "nestbed_container_memory_bytes", "gauge", "Memory in use, with page cache."),
    ("memory_limit_bytes", "nestbed_container_memory_limit_bytes", "gauge", "Most memory it may use."),
    ("pids", "nestbed_container_pids", "gauge", "Processes and threads."),
    ("io_read_bytes", "nestbed_container_io_read_bytes_total", "counter", "Bytes read from block devices."),
    ("io_write_bytes", "nestbed_container_io_write_bytes_total", "counter", "Bytes written to block devices."),
    ("oom_kills", "nestbed_container_oom_kills_total", "counter", "Processes killed for want of memory."),
)


def _of_containers(containers: Sequence[tuple[ContainerView, Stats]]) -> Iterator[_Metric]:
    for field, name, kind, text_ in _CONTAINER_METRICS:
        metric = _Metric(name, kind, text_)
        for view, used in containers:
            value = getattr(used, field)
            if value is not None:
                metric.add(value, container=view.spec.name)
        yield metric


def _of_nics(containers: Sequence[tuple[ContainerView, Stats]]) -> Iterator[_Metric]:
    frames, size, drops = (
        _Metric(f"nestbed_nic_{what}_total", "counter", f"{text_} of a container's NIC, by direction as the container sees it.")
        for what, text_ in (("frames", "Frames"), ("bytes", "Bytes"), ("drops", "Frames that the kernel dropped"))
    )
    for view, used in containers:
        for nic in used.nics:
            labels = {"container": view.spec.name, "nic": nic.name, "lan": nic.lan}
            for metric, rx, tx in (
                (frames, nic.rx_frames, nic.tx_frames),
                (size, nic.rx_bytes, nic.tx_bytes),
                (drops, nic.rx_drops, nic.tx_drops),
            ):
                metric.add(rx, **labels, direction="rx")
                metric.add(tx, **labels, direction="tx")
    return iter((frames, size, drops))


def _of_lans(lans: Sequence[LanStats]) -> Iterator[_Metric]:
    yield from _traffic(
        "nestbed_lan",
        "between this node and others, of a LAN",
        (
            ({"lan": stats.lan.name, "direction": direction}, traffic)
            for stats in lans
            if stats.lan.is_relayed
            for direction, traffic in (("received", stats.counters.received), ("sent", stats.counters.sent))
        ),
    )
    yield from _traffic(
        "nestbed_port",
        "of a member's port, by direction as the container sees it",
        (
            ({"lan": stats.lan.name, "container": member.container, "nic": member.nic.name, "direction": direction}, traffic)
            for stats in lans
            for member, port in stats.ports
            for direction, traffic in (("rx", port.rx), ("tx", port.tx))
        ),
    )


def _traffic(prefix: str, what: str, samples: Iterable[tuple[Mapping[str, str], Traffic]]) -> Iterator[_Metric]:
    frames = _Metric(f"{prefix}_frames_total", "counter", f"Frames {what}.")
    size = _Metric(f"{prefix}_bytes_total", "counter", f"Bytes {what}.")
    class_frames = _Metric(f"{prefix}_class_frames_total", "counter", f"Frames {what}, by class; a frame may be in several.")
    class_size = _Metric(f"{prefix}_class_bytes_total", "counter", f"Bytes {what}, by class; a frame may be in several.")
    drops = _Metric(f"{prefix}_drops_total", "counter", f"Frames dropped {what}, by reason.")
    for labels, traffic in samples:
        frames.add(traffic.frames, **labels)
        size.add(traffic.bytes, **labels)
        for count in traffic.classes:
            class_frames.add(count.frames, **labels, **{"class": count.name})
            class_size.add(count.bytes, **labels, **{"class": count.name})
        for drop in traffic.drops:
            drops.add(drop.frames, **labels, reason=drop.reason)
    return iter((frames, size, class_frames, class_size, drops))


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))


def _escaped(text_: str) -> str:
    return text_.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text_: str) -> str:
    return _escaped(text_).replace('"', '\\"')
