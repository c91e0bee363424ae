"""The program that `verify` runs inside an element: looks around, calls its peers, prints what it saw as JSON.

Its source is handed to ``python3 -I -S -c``: it uses the standard library alone and nothing of nestbed. The request is its argument:

``targets``
    addresses to call, each with the largest packet that is expected to reach it (0: none is);
``seconds``
    how long to wait for answers;
``sizes``
    other sizes to try, the largest first;
``flows``
    many calls of one address each: ``{"address", "calls", "gap", "size", "packets", "pace", "skip"}``: small ones, ``gap`` seconds apart,
    whose answers are counted; then ``packets`` of ``size`` bytes, ``pace`` seconds apart: the rate of the answers once ``skip`` bytes came;
``ignored``
    interfaces that are not the experiment's; with ``only`` all but those;
``look``
    whether to look around; without it only neighbours and those who sent frames are told, too;
``thorough``
    whether to find the path MTU, too, and to call often; without it targets are called twice at most, for the time;
``forget``
    whether to wait, once all is told, for the end of standard input, and to forget all neighbours then.

Calls are ICMP and ICMPv6 echo (RFC 792, RFC 4443) through raw sockets, so that TTL and duplicates show; answers have the kernel's time
stamps. A packet socket per interface (packet(7)) meanwhile notes from which MACs frames come. While the kernel's table of neighbours is
full, addresses do not answer: that is told, and tried for longer.
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterable
from typing import Any

TRIES = 8
SETTLE_SECONDS = 0.15
FULL_SECONDS = 20.0
"""How long to go on while the table of neighbours is full: entries that were not used for some seconds make room, see neigh_forced_gc."""
BURST = 8
"""Packets sent at once where they are closer than the clock can tell."""
_RTM_GETADDR, _RTM_GETROUTE, _RTM_DELNEIGH, _RTM_GETNEIGH, _RTM_GETNEIGHTBL = 22, 26, 29, 30, 66
_FIXED_BYTES = {_RTM_GETADDR: 8, _RTM_GETROUTE: 12, _RTM_GETNEIGH: 12, _RTM_GETNEIGHTBL: 4}
_NDTA_THRESH3, _NDTA_STATS = 4, 7
_TABLE_FULLS = 80
"""Where that counter stands in struct ndt_stats of include/uapi/linux/neighbour.h."""
_NLM_F_REQUEST_DUMP = 0x301
_RTM_F_CLONED = 0x200
"""Of what the kernel notes by itself, such as a path MTU."""
_NUD_RESOLVED = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
"""REACHABLE, STALE, DELAY, PROBE, PERMANENT."""
_NUD_FIXED = 0x40 | 0x80
"""NOARP, PERMANENT: they count for no limit."""
_ETH_P_ALL = 3
_PMTUDISC_PROBE = 3
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23
_SO_TIMESTAMPNS, _SO_RCVBUFFORCE = 35, 33
_PACKET_OUTGOING = 4
_HEADERS = {4: 28, 6: 48}
"""Bytes of the IP and the ICMP header."""
_FRAME_BYTES = 14


def dump(kind: int) -> list[tuple[bytes, dict[int, bytes]]]:
    """A dump of rtnetlink(7): for each entry its fixed part (from behind the message header on) and its attributes."""
    size = _FIXED_BYTES[kind]
    found: list[tuple[bytes, dict[int, bytes]]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + size, kind, _NLM_F_REQUEST_DUMP, 1, 0) + bytes(size))
        while True:
            data = netlink.recv(1 << 18)
            while data:
                length, message, _, _, _ = struct.unpack_from("=IHHII", data)
                if message in (2, 3):  # NLMSG_ERROR, NLMSG_DONE
                    return found
                found.append((data[16 : 16 + size], attributes(data[16 + size : length])))
                data = data[(length + 3) & ~3 :]


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a message."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def own_interfaces(ignored: list[str], only: list[str]) -> dict[int, str]:
    """The names of those that are looked at, by index."""
    return {number: name for number, name in socket.if_nameindex() if name not in ("lo", *ignored) and (not only or name in only)}


def interfaces(own: dict[int, str]) -> dict[str, dict[str, Any]]:
    """Of each interface MAC, MTU, carrier, addresses that are not link-local."""
    found: dict[str, dict[str, Any]] = {}
    for name in own.values():
        mac, mtu, flags = (open(f"/sys/class/net/{name}/{what}").read().strip() for what in ("address", "mtu", "flags"))  # noqa: SIM115
        is_up = bool(int(flags, 16) & 1) and open(f"/sys/class/net/{name}/carrier").read().strip() == "1"  # noqa: SIM115
        found[name] = {"mac": mac, "mtu": int(mtu), "carrier": is_up, "addresses": []}
    for fixed, given in dump(_RTM_GETADDR):
        _, prefix, _, _, number = struct.unpack("=BBBBI", fixed)
        address = ipaddress.ip_address(given.get(2) or given[1])
        if number in own and not address.is_link_local:
            found[own[number]]["addresses"].append(f"{address}/{prefix}")
    return found


def routes(only: dict[int, str]) -> dict[str, str]:
    """Routes through a next hop, of the main table: destination to next hop. If ``only`` names interfaces, by these."""
    found = {}
    for fixed, given in dump(_RTM_GETROUTE):
        family, prefix, _, _, table, _, _, _, flags = struct.unpack("=BBBBBBBBI", fixed)
        device = int.from_bytes(given.get(4, b""), "little")
        if 5 in given and table == 254 and not flags & _RTM_F_CLONED and (not only or device in only):
            start = given.get(1, bytes(4 if family == socket.AF_INET else 16))
            found[f"{ipaddress.ip_address(start)}/{prefix}"] = str(ipaddress.ip_address(given[5]))
    return found


def names() -> dict[str, list[str]]:
    """The hosts file but for the loopback's lines: the addresses of each name, in order."""
    found: dict[str, list[str]] = {}
    with open("/etc/hosts") as file:
        for line in file:
            address, *words = line.partition("#")[0].split() or [""]
            if words and not address.startswith(("127.", "::1", "ff02::")):
                for word in words:
                    found.setdefault(word, []).append(address)
    return found


def neighbours(own: dict[int, str]) -> dict[str, str]:
    """Resolved entries of the tables of ARP (RFC 826) and of neighbour discovery (RFC 4861): MACs by address."""
    found = {}
    for fixed, given in dump(_RTM_GETNEIGH):
        family, number, state = struct.unpack("=BxxxiHxx", fixed)
        if family in (socket.AF_INET, socket.AF_INET6) and state & _NUD_RESOLVED and number in own and len(given.get(2, b"")) == 6:
            address = ipaddress.ip_address(given[1])
            if not address.is_multicast:
                found[str(address)] = given[2].hex(":")
    return found


def forget(own: dict[int, str]) -> None:
    """Remove what came into these tables by itself. Without the right to (CAP_NET_ADMIN) it stays until the kernel needs room."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        for fixed, given in dump(_RTM_GETNEIGH):
            family, number, state = struct.unpack("=BxxxiHxx", fixed)
            if family in (socket.AF_INET, socket.AF_INET6) and number in own and not state & _NUD_FIXED:
                body = struct.pack("=BxxxiHBB", family, number, 0, 0, 0) + struct.pack("=HH", 4 + len(given[1]), 1) + given[1]
                netlink.send(struct.pack("=IHHII", 16 + len(body), _RTM_DELNEIGH, 1, 1, 0) + body)


def tables() -> dict[int, tuple[int, int]]:
    """Of the kernel's tables of neighbours, by IP version: their limit, and how often they were full."""
    found = {}
    for fixed, given in dump(_RTM_GETNEIGHTBL):
        if _NDTA_STATS in given:  # the others are settings of single interfaces
            version = 4 if fixed[0] == socket.AF_INET else 6
            limit = int.from_bytes(given[_NDTA_THRESH3], sys.byteorder)
            found[version] = limit, int.from_bytes(given[_NDTA_STATS][_TABLE_FULLS : _TABLE_FULLS + 8], sys.byteorder)
    return found


def full(before: dict[int, tuple[int, int]], after: dict[int, tuple[int, int]]) -> dict[int, int]:
    """The limits, by IP version, of those tables that were full in between."""
    return {version: limit for version, (limit, count) in after.items() if version in before and count > before[version][1]}


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return int(~(total + (total >> 16)) & 0xFFFF)


class Caller:
    """Echo requests out, replies in, by sequence number. Times are seconds of CLOCK_REALTIME, which the kernel stamps with."""

    tables = staticmethod(tables)

    def __init__(self, versions: set[int], names: Iterable[str]) -> None:
        self.sockets: dict[int, socket.socket] = {}
        if 4 in versions:
            self.sockets[4] = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            self.sockets[4].setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        if 6 in versions:
            self.sockets[6] = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            self.sockets[6].setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            self.sockets[6].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        for each in self.sockets.values():
            try:
                each.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 23)
            except PermissionError:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
            each.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.ident = os.getpid() & 0xFFFF
        self.sequence = 0
        self.sent: dict[int, tuple[str, float]] = {}
        self.replies: dict[int, list[tuple[int, float, float]]] = {}
        self.sniffers = {}
        for name in names:
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # with a protocol it would hear all interfaces until it is bound
            sniffer.bind((name, _ETH_P_ALL))
            self.sniffers[sniffer] = name
        self.heard: dict[str, set[str]] = {name: set() for name in self.sniffers.values()}

    def call(self, address: str, size: int = 0) -> int:
        """Send a request of ``size`` bytes with IP header (64 at least); its sequence number, or -1 if it does not fit."""
        version = 6 if ":" in address else 4
        self.sequence = (self.sequence + 1) & 0xFFFF
        room = max(size, 64) - _HEADERS[version]
        kind = 8 if version == 4 else 128
        body = struct.pack("!BBHHH", kind, 0, 0, self.ident, self.sequence) + bytes(room)
        if version == 4:  # the kernel fills in that of ICMPv6
            body = body[:2] + struct.pack("!H", checksum(body + bytes(len(body) % 2))) + body[4:]
        self.replies.pop(self.sequence, None)
        self.sent[self.sequence] = (address, time.time())
        try:
            self.sockets[version].sendto(body, (address, 0))
        except OSError:
            return -1
        return self.sequence

    def listen(self, seconds: float, wanted: set[int] | None = None) -> None:
        """Take in replies until all ``wanted`` are there and things have settled, or the time is over."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            if wanted is not None and wanted <= self.replies.keys():
                end = min(end, now + SETTLE_SECONDS)
                wanted = None
            for ready in select.select([*self.sockets.values(), *self.sniffers], [], [], max(0, end - now))[0]:
                if ready in self.sniffers:
                    self._frame(ready)
                else:
                    self._reply(ready)

    def _reply(self, ready: socket.socket) -> None:
        data, extra, _, _ = ready.recvmsg(1 << 16, 256)
        given = {(level, kind): value for level, kind, value in extra}
        stamp = given.get((socket.SOL_SOCKET, _SO_TIMESTAMPNS), b"")
        seconds, nanoseconds = struct.unpack("@ll", stamp) if len(stamp) == 16 else (time.time(), 0)
        if ready.family == socket.AF_INET:
            at, ttl, wanted = (data[0] & 15) * 4, data[8], 0
        else:
            at, ttl, wanted = 0, struct.unpack("@i", given.get((socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT), bytes(4)))[0], 129
        kind, _, _, ident, sequence = struct.unpack_from("!BBHHH", data, at)
        if kind == wanted and ident == self.ident and sequence in self.sent:
            came = seconds + nanoseconds / 1e9
            self.replies.setdefault(sequence, []).append((ttl, came - self.sent[sequence][1], came))

    def _frame(self, sniffer: socket.socket) -> None:
        data, where = sniffer.recvfrom(64)
        if where[2] != _PACKET_OUTGOING:
            self.heard[self.sniffers[sniffer]].add(data[6:12].hex(":"))


def call_all(caller: Caller, targets: dict[str, int], seconds: float, tries: int) -> dict[str, dict[str, Any]]:
    """Call each until it answers, ``tries`` times (twice if none is expected); how: TTL of the reply, replies too many, shortest time.

    While the kernel's table of neighbours is full a try does not count, for FULL_SECONDS at most.
    """
    found: dict[str, dict[str, Any]] = {}
    asked: dict[int, str] = {}
    number, patient_until = 0, time.monotonic() + FULL_SECONDS
    while number < tries:
        missing = [address for address, size in targets.items() if number < 2 or (address not in found and size)]
        if not missing:
            break
        before = caller.tables()
        round_ = {sequence: address for address in missing if (sequence := caller.call(address)) >= 0}
        asked.update(round_)
        caller.listen(seconds, {sequence for sequence, address in round_.items() if targets[address]})
        for sequence, address in asked.items():
            for ttl, took, _ in caller.replies.get(sequence, []):
                entry = found.setdefault(address, {"ttl": ttl, "seconds": took})
                entry["seconds"] = min(entry["seconds"], took)
        lacks = any(targets[address] and address not in found for address in missing)
        if not lacks or time.monotonic() > patient_until or not full(before, caller.tables()):
            number += 1
    for address, entry in found.items():
        counts = [len(caller.replies[sequence]) for sequence, other in asked.items() if other == address and sequence in caller.replies]
        entry["duplicates"] = sum(counts) - len(counts)
    return found


def largest(caller: Caller, targets: dict[str, int], sizes: list[int], seconds: float) -> dict[str, int]:
    """The largest packet that comes back from each without being fragmented: one byte more than expected is tried, then what is
    expected, a few times, then each of ``sizes``.
    """
    found: dict[str, int] = {}

    def attempt(wanted: dict[str, int]) -> None:
        round_ = {sequence: address for address, size in wanted.items() if (sequence := caller.call(address, size)) >= 0}
        if round_:
            caller.listen(seconds, set(round_))
        found.update({address: wanted[address] for sequence, address in round_.items() if sequence in caller.replies})

    attempt({address: size + 1 for address, size in targets.items() if size})
    for _ in range(3):
        attempt({address: size for address, size in targets.items() if size and address not in found})
    for size in sizes:
        attempt({address: size for address in targets if address not in found})
    return found


def flow(caller: Caller, asked: dict[str, Any], seconds: float) -> dict[str, float]:
    """What comes of many calls of one address: how many there were, how many had an answer, answers too many, their rate (0: unknown)."""
    address = asked["address"]

    def send(count: int, size: int, gap: float) -> list[int]:
        sent, due = [], time.monotonic()
        for number in range(count):
            if gap and number % (BURST if gap < 0.001 else 1) == 0:
                caller.listen(max(due - time.monotonic(), 0.00001))
            sent.append(caller.call(address, size))
            due += gap
        caller.listen(seconds, {sequence for sequence in sent if sequence >= 0})
        return sent

    sent = send(asked["calls"], 0, asked["gap"])
    counts = [len(caller.replies.get(sequence, [])) for sequence in sent]
    answered = sum(1 for count in counts if count)
    rate = 0.0
    if asked["packets"]:
        train = send(asked["packets"], asked["size"], asked["pace"])
        frame = asked["size"] + _FRAME_BYTES
        came = sorted(reply[2] for sequence in train for reply in caller.replies.get(sequence, []))
        rate = usual_rate(came[asked["skip"] // frame + 1 :]) * frame * 8
    return {"calls": len(sent), "answered": answered, "duplicates": sum(counts) - answered, "rate": rate}


def usual_rate(came: list[float]) -> float:
    """How many things come a second, by their times: the median of short spans, for the machine may stand still in some. 0 is unknown."""
    span = max(4, len(came) // 6)
    rates = sorted(span / (came[at + span] - came[at]) for at in range(len(came) - span) if came[at + span] > came[at])
    return rates[len(rates) // 2] if rates else 0.0


def main() -> None:
    """Print what is seen."""
    request = json.loads(sys.argv[1])
    targets, seconds = request["targets"], request["seconds"]
    called = [*targets, *(asked["address"] for asked in request["flows"])]
    own = own_interfaces(request["ignored"], request["only"])
    before = tables()
    caller = Caller({6 if ":" in address else 4 for address in called}, own.values())
    heard = call_all(caller, targets, seconds, TRIES if request["thorough"] else 2)
    seen: dict[str, Any] = {"calls": heard, "flows": {asked["address"]: flow(caller, asked, seconds) for asked in request["flows"]}}
    if request["thorough"]:
        reached = {address: size for address, size in targets.items() if address in heard}
        for address, size in largest(caller, reached, request["sizes"], seconds).items():
            heard[address]["path_mtu"] = size
    if request["look"]:
        seen |= {
            "hostname": socket.gethostname(),
            "interfaces": interfaces(own),
            "routes": routes(own if request["only"] else {}),
            "names": names(),
        }
    seen |= {
        "neighbours": neighbours(own),
        "heard": {name: sorted(macs) for name, macs in caller.heard.items()},
        "full": full(before, tables()),
    }
    print(json.dumps(seen), flush=True)  # noqa: T201 - that is how it answers
    if request["forget"]:
        sys.stdin.read()
        forget(own)


if __name__ == "__main__":
    main()
