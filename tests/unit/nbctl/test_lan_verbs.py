"""nbctl's verbs about what passes on LANs: impair, stats, capture, metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbctl import impairments, values
from nbctl.failure import Usage
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import lan_pb2, traffic_pb2
from nestbed.v1.traffic_pb2 import Impairment

if TYPE_CHECKING:
    from tests.unit.nbctl.conftest import Served

# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (impairments.rate, "10mbit", 10_000_000),
        (impairments.rate, "1.5Gbit", 1_500_000_000),
        (impairments.rate, "512kbit", 512_000),
        (impairments.rate, "none", 0),
        (impairments.time, "none", 0),
        (impairments.fraction, "none", 0),
        (impairments.frames, "none", 0),
        (impairments.time, "5ms", 5000),
        (impairments.time, "0.5ms", 500),
        (impairments.time, "250us", 250),
        (impairments.time, "1s", 1_000_000),
        (impairments.fraction, "1%", 0.01),
        (impairments.fraction, "101%", 1.01),
        (impairments.fraction, "0", 0),
        (impairments.frames, "1000", 1000),
    ],
)
def test_values(read, text: str, value: float) -> None:
    assert read(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (impairments.rate, "10"),
        (impairments.rate, "10mb"),
        (impairments.rate, "0"),
        (impairments.rate, "0mbit"),
        (impairments.rate, "0.0000001bit"),
        (impairments.rate, "-1mbit"),
        (impairments.rate, "٣mbit"),
        (impairments.time, "5"),
        (impairments.time, "5m"),
        (impairments.time, ""),
        (impairments.fraction, "1"),
        (impairments.fraction, "-1%"),
        (impairments.fraction, "nan%"),
        (impairments.frames, "1.5"),
        (impairments.frames, "-1"),
    ],
)
def test_no_values(read, text: str) -> None:
    with pytest.raises(Usage) as caught:
        read(text)
    assert caught.value.remedy


@given(st.integers(0, 10**11), st.integers(0, 6 * 10**7), st.integers(0, 10**6), st.integers(0, 10000))
def test_what_is_shown_can_be_written(rate: int, delay: int, limit: int, loss: int) -> None:
    given_ = Impairment(rate_bps=rate, delay_us=delay, limit_frames=limit, loss=loss / 10000)
    words = impairments.shown(given_).split()
    if words == ["none"]:
        words = []
    read = {impairments.KINDS[name].field: impairments.KINDS[name].read(text) for name, text in zip(words[::2], words[1::2], strict=True)}
    assert Impairment(rate_bps=0, delay_us=0, limit_frames=0, loss=0.0) == Impairment(rate_bps=0, delay_us=0, limit_frames=0, loss=0)
    assert read.get("rate_bps", 0) == rate
    assert read.get("delay_us", 0) == delay
    assert read.get("limit_frames", 0) == limit
    assert read.get("loss", 0) == pytest.approx(loss / 10000)


def test_lan_argument_with_impairments() -> None:
    read = values.lan("lan0,delay=5ms,ip=10.5.0.7/24,loss=1%")
    assert read == values.LanArgument("lan0", addresses=("10.5.0.7/24",), impairment=(("delay_us", 5000), ("loss", 0.01)))
    for text in ("lan0,delay=5", "lan0,delay=5ms,delay=6ms", "lan0,dely=5ms", "lan0,loss"):
        with pytest.raises(Usage):
            values.lan(text)


def test_run_passes_impairments_on(node: Served) -> None:
    assert node.nbctl("create", "process", "--lan", "lan0,delay=5ms", "--", "true")[0] == 0
    (nic,) = next(call for call in node.node.calls if isinstance(call, api.CreateContainerRequest)).spec.nics
    assert nic.impair_to == nic.impair_from == Impairment(delay_us=5000)


# ---------------------------------------------------------------- lan create, lan impair


def test_create_passes_groups_on(node: Served) -> None:
    line = ("lan", "create", "lan0", "--group", "239.1.2.3:5000", "--peer", "192.0.2.1", "--peer", "192.0.2.2", "--ttl", "3")
    assert node.nbctl(*line) == (0, "lan0\n", "")
    (call,) = node.node.calls
    assert (call.group, list(call.peers), call.ttl, call.local) == ("239.1.2.3:5000", ["192.0.2.1", "192.0.2.2"], 3, False)
    assert node.nbctl("lan", "create", "lan1", "--local")[0] == 0
    assert node.node.calls[-1].local


@pytest.fixture
def impaired(node: Served) -> Served:
    nic = api.Nic(lan="lan0", name="eth0")
    told = node.node.impairment
    told.lan.name = "lan0"
    told.lan.impairment.CopyFrom(Impairment(delay_us=10_000, loss=0.02))
    port = told.ports.add(member=lan_pb2.LanMember(container="web", nic=nic))
    port.in_force_to.CopyFrom(Impairment(delay_us=5000, rate_bps=10_000_000))
    port.achieved_to.CopyFrom(
        lan_pb2.Achieved(frames=1000, lost=10, duplicated=3, delay_min_us=4990, delay_mean_us=5021.4, delay_p99_us=5300, rate_bps=9_870_000)
    )
    port.achieved_to.since.FromSeconds(int(time.time()) - 5 * 3600 - 60)
    return node


def test_impair_names_only_what_is_given(impaired: Served) -> None:
    code, out, err = impaired.nbctl("lan", "impair", "lan0", "--delay", "10ms", "--loss", "0")
    assert (code, out, err) == (0, "lan0: delay 10ms loss 2%\n", "")
    (call,) = impaired.node.calls
    assert (call.lan, call.container, call.direction) == ("lan0", "", lan_pb2.DIRECTION_BOTH)
    assert [field.name for field, _ in call.impairment.ListFields()] == ["delay_us", "loss"]
    code, out, _ = impaired.nbctl("lan", "impair", "lan0", "--port", "web:eth0", "--to", "--rate", "10mbit", "--limit", "50")
    assert (code, out.splitlines()[0]) == (0, "lan0 web:eth0 to: rate 10mbit delay 5ms")
    call = impaired.node.calls[-1]
    assert (call.container, call.nic, call.direction) == ("web", "eth0", lan_pb2.DIRECTION_TO)
    assert (call.impairment.rate_bps, call.impairment.limit_frames) == (10_000_000, 50)


def test_impair_reset_and_show(impaired: Served) -> None:
    assert impaired.nbctl("lan", "impair", "reset", "lan0", "--port", "web", "--from")[0] == 0
    call = impaired.node.calls[-1]
    assert (type(call), call.container, call.direction) == (lan_pb2.ResetImpairmentRequest, "web", lan_pb2.DIRECTION_FROM)
    code, out, _ = impaired.nbctl("lan", "impair", "show")
    head, whole, to, from_ = out.splitlines()
    assert (code, head.split()[:3]) == (0, ["LAN", "PORT", "FRAMES"])
    assert whole.split()[1:] == ["(LAN)", "all", "delay", "10ms", "loss", "2%"]
    assert "rate 10mbit delay 5ms" in to
    assert "delay 4.99/5.02/5.30 ms, loss 1% of 1000, 3 duplicated, 9.87mbit, 5h" in to
    assert from_.split()[1:] == ["web:eth0", "from", "none"]
    assert json.loads(impaired.nbctl("lan", "impair", "show", "lan0", "-o", "json")[1])["ports"][0]["achieved_to"]["lost"] == 10
    assert impaired.nbctl("lan", "impair", "show", "-o", "name")[1] == "lan0\n"


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["lan0"],
        ["lan0", "lan1", "--delay", "5ms"],
        ["lan0", "--delay", "5"],
        ["lan0", "--dely", "5ms"],
        ["lan0", "--loss", "1"],
        ["lan0", "--delay", "5ms", "--to", "--from"],
        ["lan0", "--delay", "5ms", "--port", ":eth0"],
        ["reset"],
        ["reset", "lan0", "--delay", "5ms"],
        ["show", "lan0", "--to"],
    ],
)
def test_impair_misused(node: Served, line: list[str]) -> None:
    code, out, err = node.nbctl("lan", "impair", *line)
    assert (code, out) == (2, "")
    assert err.startswith("nbctl: ")
    assert "\nremedy: " in err
    assert node.node.calls == []


# ---------------------------------------------------------------- lan stats, stats --nics, metrics


def traffic(frames: int) -> traffic_pb2.Traffic:
    return traffic_pb2.Traffic(
        frames=frames,
        bytes=frames * 64,
        classes=[traffic_pb2.ClassCount(name="arp", frames=frames, bytes=frames * 64)],
        drops=[traffic_pb2.DropCount(reason="loss", frames=2), traffic_pb2.DropCount(reason="own", frames=0)],
    )


def test_lan_stats(node: Served) -> None:
    port = lan_pb2.LanPortStats(container="web", nic="eth0", rx=traffic(7))
    node.node.lan_stats = [lan_pb2.LanStats(name="lan0", received=traffic(5), ports=[port])]
    code, out, _ = node.nbctl("lan", "stats", "lan0")
    head, received, sent, rx, tx = (line.split() for line in out.splitlines())
    assert (code, head[:5]) == (0, ["LAN", "PORT", "WAY", "FRAMES", "BYTES"])
    assert received == ["lan0", "(others)", "received", "5", "320", "0", "0", "5", "0", "0", "0", "0", "0", "0", "2", "(loss", "2)"]
    assert sent == ["lan0", "(others)", "sent", "0", "0", *"-" * 9, "0"]
    assert (rx[1:4], tx[1:3]) == (["web:eth0", "rx", "7"], ["web:eth0", "tx"])
    assert not node.node.calls[-1].HasField("interval")
    assert json.loads(node.nbctl("lan", "stats", "-f", "--interval", "200ms", "-o", "json")[1])[0]["received"]["frames"] == 5
    assert node.node.calls[-1].interval.ToMilliseconds() == 200
    assert node.nbctl("lan", "stats", "--interval", "10ms")[0] == 2


def test_metrics(node: Served) -> None:
    assert node.nbctl("node", "metrics") == (0, "nestbed_lans 1\n", "")


# ---------------------------------------------------------------- capture


@pytest.fixture
def captured(node: Served) -> Served:
    node.node.lans["lan0"] = lan_pb2.Lan(id="0123456789ab", name="lan0")
    node.node.add("web")
    node.node.frames = [b"head", b"frame\x00\xff"]
    return node


def test_capture_to_standard_output_and_file(captured: Served, tmp_path: Path) -> None:
    line = ("-f", "tcp port 80", "-s", "96", "-c", "3", "--size", "10k", "--duration", "1.5s")
    assert captured.binary("capture", "lan0", "-w", "-", *line) == (0, b"headframe\x00\xff", b"")
    call = captured.node.calls[-1]
    assert (call.lan, call.container, call.filter) == ("0123456789ab", "", "tcp port 80")
    assert (call.snap_bytes, call.count, call.size_bytes, call.duration.ToMilliseconds()) == (96, 3, 10240, 1500)
    file = tmp_path / "x.pcapng"
    code, out, err = captured.nbctl("capture", "web:eth0", "-w", str(file), "-c", "1")
    assert (code, out, file.read_bytes()) == (0, "", b"headframe\x00\xff")
    assert f"11B in {file}" in err
    call = captured.node.calls[-1]
    assert (call.lan, call.container, call.nic, call.HasField("duration")) == ("", "web", "eth0", False)


def test_capture_of_a_name_that_is_twofold(captured: Served) -> None:
    captured.node.add("lan0")
    code, _, err = captured.nbctl("capture", "lan0", "-w", "-")
    assert (code, "write lan0: for the container, 0123456789ab for the LAN" in err) == (2, True)
    assert captured.binary("capture", "lan0:", "-w", "-", "-c", "1")[0] == 0
    assert (captured.node.calls[-1].container, captured.node.calls[-1].nic) == ("lan0", "")
    assert captured.binary("capture", "web", "-w", "-", "-c", "1")[0] == 0


def test_capture_that_is_refused_leaves_the_file_alone(captured: Served, tmp_path: Path) -> None:
    file = tmp_path / "x.pcapng"
    file.write_bytes(b"precious")
    code, _, err = captured.nbctl("capture", "lan0", "-w", str(file), "-f", "nonsense")
    assert (code, err) == (1, "nbctl: the filter is none\nremedy: see pcap-filter(7)\n")
    assert file.read_bytes() == b"precious"


def test_capture_to_what_cannot_be_written(captured: Served, tmp_path: Path) -> None:
    code, _, err = captured.nbctl("capture", "lan0", "-w", str(tmp_path / "none" / "x"))
    assert (code, "opening" in err, "remedy: " in err) == (1, True, True)
    code, _, err = captured.nbctl("capture", "lan0", "-w", "/dev/full")
    assert (code, err.startswith("nbctl: writing /dev/full: no space left on device\nremedy: ")) == (1, True)
    assert captured.node.ended.wait(5)


def test_capture_ends_in_good_order(captured: Served, tmp_path: Path) -> None:
    file = tmp_path / "x.pcapng"
    os.mkfifo(file)
    running = captured.start("capture", "lan0", "-w", str(file), stderr=subprocess.PIPE)
    with file.open("rb") as reader:
        assert reader.read(11) == b"headframe\x00\xff"
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=10)
    assert (running.returncode, b"11B in" in err) == (0, True)
    assert captured.node.ended.wait(5)


def test_capture_ends_when_nobody_reads(captured: Served) -> None:
    running = captured.start("capture", "lan0", "-w", "-", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.read(4) == b"head"
    assert captured.node.ready.wait(10)
    running.stdout.close()
    assert running.wait(10) == 141
    assert captured.node.ended.wait(5)
    assert running.stderr is not None
    running.stderr.close()
