"""Requests for queueing disciplines, read back by another implementation of the format."""

from __future__ import annotations

import struct

import pytest
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from nestbed.linux import qdisc


def read(request: bytes) -> tcmsg:
    message = tcmsg(request)
    message.decode()
    return message


@pytest.mark.parametrize("rate_bps", [1_000_000, 10_000_000_000, 80_000_000_000])
def test_tbf(rate_bps: int) -> None:
    request = qdisc.tbf(7, parent=qdisc.ROOT, handle=1, rate_bps=rate_bps, burst_bytes=3036, limit=50)
    message = read(request)
    assert (message["index"], message["parent"], message["handle"], message.get_attr("TCA_KIND")) == (7, 0xFFFFFFFF, 0x10000, "tbf")
    parameters = message.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")
    rate_bytes = rate_bps // 8
    assert (parameters["limit"], parameters["rate"]) == (50, min(rate_bytes, 0xFFFFFFFF))
    # linux/pkt_sched.h's TCA_TBF_BURST and TCA_TBF_RATE64, which the other implementation does not know.
    assert struct.pack("=HHI", 8, 6, 3036) in request
    assert (struct.pack("=HHQ", 12, 4, rate_bytes) in request) == (rate_bytes > 0xFFFFFFFF)


def test_netem() -> None:
    request = qdisc.netem(7, parent=qdisc.ROOT, handle=3, delay_ns=5_000_000_000, jitter_ns=1_000_000, reorder=1 << 30, limit_frames=1000)
    message = read(request)
    assert message.get_attr("TCA_KIND") == "netem"
    options = message.get_attr("TCA_OPTIONS")
    assert (options["limit"], options["gap"], options["loss"], options["duplicate"]) == (1000, 1, 0, 0)
    assert options["delay"] == 5_000_000_000 >> 6
    assert options["jitter"] == 1_000_000 >> 6
    assert options.get_attr("TCA_NETEM_REORDER")["prob_reorder"] == 1 << 30


def test_pfifo_and_deletion() -> None:
    message = read(qdisc.pfifo(7, parent=0x10001, handle=2, limit_frames=83))
    assert (message["parent"], message["handle"], message.get_attr("TCA_KIND")) == (0x10001, 0x20000, "pfifo")
    assert message.get_attr("TCA_OPTIONS")["limit"] == 83
    assert read(qdisc.deletion(7))["parent"] == qdisc.ROOT
