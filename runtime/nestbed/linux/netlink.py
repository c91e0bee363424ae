"""netlink(7)'s format and the types of rtnetlink(7): messages, the attributes in them, what the kernel says of one it refuses. Pure."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

NLM_F_REQUEST, NLM_F_ACK, NLM_F_ECHO, NLM_F_DUMP = 0x1, 0x4, 0x8, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
RTM_NEWNEIGHTBL, RTM_GETNEIGHTBL = 64, 66
HEADER = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence number, port."""

_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200
_NLMSGERR_ATTR_MSG = 1
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
"""Without NLA_F_NESTED and NLA_F_NET_BYTEORDER."""


def request(kind: int, flags: int, body: bytes) -> bytes:
    """A request that is answered, still without its sequence number."""
    return HEADER.pack(HEADER.size + len(body), kind, flags | NLM_F_REQUEST | NLM_F_ACK, 0, 0) + body


def attribute(kind: int, data: bytes) -> bytes:
    """An attribute, padded so that another can follow."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def messages(data: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """Type, flags, sequence number and body of each message in what was received."""
    view, offset = memoryview(data), 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        if not HEADER.size <= length <= len(data) - offset:
            return
        yield kind, flags, sequence, view[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def attribute_list(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Types and contents of the attributes of a message or of another attribute; ends where they do not make sense any more."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= len(data) - offset:
            return
        yield kind & _TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def attributes(data: memoryview) -> dict[int, memoryview]:
    """The same by type; of several of one type the last."""
    return dict(attribute_list(data))


def string(data: memoryview | None) -> str:
    """A text attribute; "" for none."""
    return "" if data is None else bytes(data).rstrip(b"\0").decode("utf-8", "replace")


def number(data: memoryview | None) -> int:
    """An attribute that is an unsigned number; 0 for none."""
    return 0 if data is None else int.from_bytes(data, "little")


def refusal(flags: int, payload: memoryview) -> OSError | None:
    """What a message of type NLMSG_ERROR says: the kernel's errno and, where it gives one, its explanation; None if all is well."""
    (code,) = struct.unpack_from("=i", payload)
    if code == 0:
        return None
    message = os.strerror(-code)
    if flags & _NLM_F_ACK_TLVS:
        # The request is echoed, whole or (capped) its header alone, between the errno and the attributes.
        (echoed,) = struct.unpack_from("=I", payload, 4)
        start = 4 + (HEADER.size if flags & _NLM_F_CAPPED else (echoed + 3) & ~3)
        explanation = string(attributes(payload[start:]).get(_NLMSGERR_ATTR_MSG))
        message = f"{message}: {explanation}" if explanation else message
    return OSError(-code, message)
