"""Queueing disciplines that shape: tbf(8), netem(8) and a FIFO of frames, as requests for :meth:`nestbed.linux.rtnl.Rtnl.batch`.

Each request makes the discipline if there is none at its place, and otherwise changes the one there without losing what waits in it.
Rates are bits per second of frames with their Ethernet headers (as ``skb->len`` counts them).
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from nestbed.linux.netlink import NLM_F_CREATE, RTM_DELQDISC, RTM_GETQDISC, RTM_NEWQDISC, attribute, attributes, request, string
from nestbed.linux.rtnl import Rtnl

ROOT = 0xFFFFFFFF

_TCMSG = struct.Struct("=B3xiIII")
_TCA_KIND, _TCA_OPTIONS, _TCA_STATS2, _TCA_STATS_QUEUE = 1, 2, 7, 3
_TCA_TBF_PARMS, _TCA_TBF_RATE64, _TCA_TBF_BURST = 1, 4, 6
_TCA_NETEM_REORDER, _TCA_NETEM_LATENCY64, _TCA_NETEM_JITTER64 = 3, 10, 11
_TC_LINKLAYER_ETHERNET = 1
_RATESPEC = struct.Struct("=BBHhHI")
_GNET_STATS_QUEUE = struct.Struct("=5I")  # qlen, backlog, drops, requeues, overlimits


def tbf(index: int, *, parent: int, handle: int, rate_bps: int, burst_bytes: int, limit: int) -> bytes:
    """A token bucket. ``burst_bytes`` is at least a frame, or that frame is never sent.

    ``limit`` goes to the FIFO inside, in the FIFO's own unit. A new bucket with a limit of 0 drops everything until :func:`pfifo`
    gave it a FIFO, as its child ``handle + 1``.
    """
    rate_bytes = rate_bps // 8
    rate = _RATESPEC.pack(0, _TC_LINKLAYER_ETHERNET, 0, 0, 0, min(rate_bytes, 0xFFFFFFFF))
    parameters = rate + _RATESPEC.pack(0, 0, 0, 0, 0, 0) + struct.pack("=III", limit, 0, 0)
    options = attribute(_TCA_TBF_PARMS, parameters) + attribute(_TCA_TBF_BURST, struct.pack("=I", burst_bytes))
    if rate_bytes > 0xFFFFFFFF:
        options += attribute(_TCA_TBF_RATE64, struct.pack("=Q", rate_bytes))
    return _qdisc(index, parent, handle, "tbf", options)


def pfifo(index: int, *, parent: int, handle: int, limit_frames: int) -> bytes:
    """A FIFO that drops what comes when ``limit_frames`` wait."""
    return _qdisc(index, parent, handle, "pfifo", struct.pack("=I", limit_frames))


def netem(index: int, *, parent: int, handle: int, delay_ns: int, jitter_ns: int, reorder: int, limit_frames: int) -> bytes:
    """Delay of ``delay_ns`` plus or minus up to ``jitter_ns``, evenly distributed; frames released in the order of their times.

    ``reorder`` (of 2**32 - 1) is the share of frames that are not delayed. ENOENT: this kernel has no netem.
    """
    # latency and jitter of the old structure are in ticks of 64 ns; the attributes, which the kernel takes instead, are exact.
    parameters = struct.pack(
        "=6I", min(delay_ns >> 6, 0xFFFFFFFF), limit_frames, 0, 1 if reorder else 0, 0, min(jitter_ns >> 6, 0xFFFFFFFF)
    )
    options = parameters + attribute(_TCA_NETEM_LATENCY64, struct.pack("=q", delay_ns))
    options += attribute(_TCA_NETEM_JITTER64, struct.pack("=q", jitter_ns))
    options += attribute(_TCA_NETEM_REORDER, struct.pack("=II", reorder, 0))
    return _qdisc(index, parent, handle, "netem", options)


def deletion(index: int, *, parent: int = ROOT) -> bytes:
    """Take away what is there, and what waits in it (ENOENT: nothing is). What it was inside of goes on without."""
    return request(RTM_DELQDISC, 0, _TCMSG.pack(0, index, 0, parent, 0))


@dataclass(frozen=True, slots=True)
class Found:
    """A discipline that is there. ``drops`` counts the frames that it, and what is inside it, has dropped."""

    kind: str
    drops: int


def find(rtnl: Rtnl, index: int, *, parent: int = ROOT) -> Found | None:
    """What was given to the device at this place; None for nothing, or a device's own default."""
    try:
        payload = rtnl.ask(RTM_GETQDISC, RTM_NEWQDISC, _TCMSG.pack(0, index, 0, parent, 0))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise
    _, _, handle, _, _ = _TCMSG.unpack_from(payload)
    attrs = attributes(payload[_TCMSG.size :])
    stats = attributes(attrs[_TCA_STATS2]) if _TCA_STATS2 in attrs else {}
    queue = stats.get(_TCA_STATS_QUEUE)
    return Found(string(attrs.get(_TCA_KIND)), _GNET_STATS_QUEUE.unpack_from(queue)[2] if queue else 0) if handle else None


def _qdisc(index: int, parent: int, handle: int, kind: str, options: bytes) -> bytes:
    body = _TCMSG.pack(0, index, handle << 16, parent, 0) + attribute(_TCA_KIND, kind.encode() + b"\0") + attribute(_TCA_OPTIONS, options)
    return request(RTM_NEWQDISC, NLM_F_CREATE, body)
