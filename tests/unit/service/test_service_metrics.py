"""Counters in Prometheus' text format: well formed, whatever names hold."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from nestbed.lanmodel import ClassCount, DropCount, Lan, LanCounters, LanMember, LanStats, Nic, NicStats, PortStats, Traffic
from nestbed.model import Ability, ContainerView, Kind, NodeInfo, ProcessSpec, Spec, State, Stats, Status
from nestbed.service.metrics import text

COMMENT = re.compile(r"# (HELP|TYPE) ([a-z_]+) (.+)")
SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)')
LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\["\\n])*)"')
ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def info(name: str = "n1", abilities: Sequence[Ability] = ()) -> NodeInfo:
    return NodeInfo(name, "id", "1", "6.18", 2, 1 << 30, "/run", "/state", 1, 1, 1, 100.5, (Kind.PROCESS,), tuple(abilities))


def parsed(metrics: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by metric, if the text is as the format wants it."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    described: dict[str, list[str]] = {}
    current = ""
    assert metrics.endswith("\n")
    for line in metrics.removesuffix("\n").split("\n"):
        if match := COMMENT.fullmatch(line):
            described.setdefault(match[2], []).append(match[1])
            assert match[2] not in found, "what describes a metric comes before its samples"
            assert match[1] == "HELP" or match[3] in ("counter", "gauge")
            current = match[2]
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        assert match[1] == current, "samples of a metric stand together"
        labels = {name: re.sub(r'\\[\\"n]', lambda escape: ESCAPES[escape[0]], value) for name, value in LABEL.findall(match[2] or "")}
        found.setdefault(match[1], []).append((labels, float(match[3])))
    assert set(described) == set(found)
    assert all(kinds == ["HELP", "TYPE"] for kinds in described.values())
    for samples in found.values():
        keys = [tuple(sorted(labels.items())) for labels, _ in samples]
        assert len(set(keys)) == len(keys), "no sample twice"
    return found


def everything(name: str) -> str:
    nic = Nic(name, "id", "eth0", "02:00:00:00:00:01", (), 1500, "nbp0", "nbb0")
    view = ContainerView(Spec("id", name, Kind.PROCESS, ProcessSpec(("true",)), nics=(nic,)), Status(State.RUNNING))
    used = Stats(1.0, cpu_seconds=0.25, memory_bytes=4096, nics=(NicStats("eth0", name, 1, 64, 0, 2, 128, 3),))
    moved = Traffic(5, 320, (ClassCount("arp", 5, 320),), (DropCount("loss", 2),))
    lan = Lan("id", name, "nbb0", group="239.1.2.3:5000")
    stats = LanStats(1.0, lan, LanCounters("id", moved, Traffic()), ((LanMember("id", name, nic), PortStats("nbp0", moved, moved)),))
    return text(info(name, [Ability("capture", available=False, detail="")]), [(view, used)], {State.RUNNING: 1}, [stats])


def test_everything_is_there_once() -> None:
    found = parsed(everything("web"))
    assert found["nestbed_node_start_time_seconds"] == [({}, 100.5)]
    assert ({"state": "running"}, 1.0) in found["nestbed_containers"]
    assert found["nestbed_container_cpu_seconds_total"] == [({"container": "web"}, 0.25)]
    assert "nestbed_container_oom_kills_total" not in found, "what the kernel does not tell is absent"
    nic = {"container": "web", "nic": "eth0", "lan": "web"}
    assert found["nestbed_nic_drops_total"] == [({**nic, "direction": "rx"}, 0.0), ({**nic, "direction": "tx"}, 3.0)]
    assert found["nestbed_lan_drops_total"] == [({"lan": "web", "direction": "received", "reason": "loss"}, 2.0)]
    assert ({**nic, "direction": "tx", "class": "arp"}, 5.0) in found["nestbed_port_class_frames_total"]
    assert found["nestbed_node_ability"] == [({"ability": "capture"}, 0.0)]


@given(st.text(max_size=20))
def test_names_are_escaped(name: str) -> None:
    found = parsed(everything(name))
    assert found["nestbed_container_memory_bytes"] == [({"container": name}, 4096.0)]


def test_empty_node() -> None:
    found = parsed(text(info(), [], {}, []))
    assert set(found) == {"nestbed_node_info", "nestbed_node_start_time_seconds", "nestbed_containers", "nestbed_lans"}
