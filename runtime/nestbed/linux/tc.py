"""tc(8): the clsact queueing discipline and BPF programs on it, as requests for :meth:`nestbed.linux.rtnl.Rtnl.batch`.

A program is known by device, direction, priority and handle. It runs in direct-action mode: what it returns is what becomes of the
frame. Replacing one by another is atomic: every frame meets the old or the new.
"""

from __future__ import annotations

import enum
import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from nestbed.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_GETQDISC,
    RTM_GETTFILTER,
    RTM_NEWQDISC,
    RTM_NEWTFILTER,
    attribute,
    attributes,
    number,
    request,
    string,
)
from nestbed.linux.rtnl import Rtnl

_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, _TCA_BPF_ID = 6, 7, 8, 11
_TCA_BPF_FLAG_ACT_DIRECT = 1
_CLSACT_PARENT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_ETH_P_ALL_BE = 0x0300
_TCMSG = struct.Struct("=B3xiIII")


class Direction(enum.IntEnum):
    """Where on a device: as the parents TC_H_MIN_INGRESS and TC_H_MIN_EGRESS of clsact."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True, slots=True)
class Filter:
    """A classifier on clsact. ``program`` is the id of a BPF program, 0 for another ``kind``."""

    direction: Direction
    priority: int
    handle: int
    kind: str
    name: str
    program: int


def clsact(index: int) -> bytes:
    """Give the device a clsact qdisc (EEXIST: it has one; EINVAL: an ``ingress`` qdisc is in its place)."""
    body = _TCMSG.pack(0, index, _CLSACT_HANDLE, _CLSACT_PARENT, 0) + attribute(_TCA_KIND, b"clsact\0")
    return request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)


def clsact_deletion(index: int) -> bytes:
    """Take the clsact qdisc away with all its programs (EINVAL, ENOENT: there is none)."""
    return request(RTM_DELQDISC, 0, _TCMSG.pack(0, index, _CLSACT_HANDLE, _CLSACT_PARENT, 0))


def program(index: int, direction: Direction, fd: int, *, name: str, priority: int = 1, handle: int = 1) -> bytes:
    """Attach the BPF program ``fd``, in place of the one that has this priority and handle. ``fd`` may be closed afterwards."""
    options = (
        attribute(_TCA_BPF_FD, struct.pack("=I", fd))
        + attribute(_TCA_BPF_NAME, name.encode() + b"\0")
        + attribute(_TCA_BPF_FLAGS, struct.pack("=I", _TCA_BPF_FLAG_ACT_DIRECT))
    )
    body = _TCMSG.pack(0, index, handle, direction, priority << 16 | _ETH_P_ALL_BE)
    body += attribute(_TCA_KIND, b"bpf\0") + attribute(_TCA_OPTIONS, options)
    return request(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, body)


def program_deletion(index: int, direction: Direction, *, priority: int = 1, handle: int = 1) -> bytes:
    """Detach it (ENOENT, EINVAL: there is none)."""
    body = _TCMSG.pack(0, index, handle, direction, priority << 16 | _ETH_P_ALL_BE) + attribute(_TCA_KIND, b"bpf\0")
    return request(RTM_DELTFILTER, 0, body)


def has_clsact(rtnl: Rtnl, index: int) -> bool:
    """Whether the device has a clsact qdisc."""
    for payload in rtnl.dump(RTM_GETQDISC, RTM_NEWQDISC, _TCMSG.pack(0, index, 0, 0, 0)):
        _, found, handle, _, _ = _TCMSG.unpack_from(payload)
        if found == index and handle == _CLSACT_HANDLE and string(attributes(payload[_TCMSG.size :]).get(_TCA_KIND)) == "clsact":
            return True
    return False


def filters(rtnl: Rtnl, index: int) -> list[Filter]:
    """The classifiers on a device's clsact qdisc; none if it has no such qdisc or there is no such device."""
    return [found for direction in Direction for found in _filters(rtnl, index, direction)]


def _filters(rtnl: Rtnl, index: int, direction: Direction) -> Iterator[Filter]:
    try:
        for payload in rtnl.dump(RTM_GETTFILTER, RTM_NEWTFILTER, _TCMSG.pack(0, index, 0, direction, 0)):
            _, _, handle, _, info = _TCMSG.unpack_from(payload)
            if handle == 0:  # the head of a priority's chain
                continue
            attrs = attributes(payload[_TCMSG.size :])
            options = attributes(attrs[_TCA_OPTIONS]) if _TCA_OPTIONS in attrs else {}
            kind, name, loaded = attrs.get(_TCA_KIND), options.get(_TCA_BPF_NAME), options.get(_TCA_BPF_ID)
            yield Filter(direction, info >> 16, handle, string(kind), string(name), number(loaded))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENODEV, errno.ENOENT):
            raise
