"""The program that `verify` runs inside an element: looks around, calls its peers, prints what it saw as JSON.

Its source is handed to ``python3 -I -c``: it uses the standard library alone and imports nothing of nestbed. The request is its argument,
``{"targets": {ADDRESS: SIZE}, "seconds": ..., "sizes": [...]}``: the largest packet that is expected to reach each address (0: none is),
how long to wait for answers, and other sizes to try, the largest first.

IPv4 only for calls: ICMP echo (RFC 792) through a raw socket, so that TTL and duplicates show. A packet socket per interface (packet(7))
meanwhile notes from which MACs frames come.
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
from typing import Any

TRIES = 8
SETTLE_SECONDS = 0.15
_RTM_GETADDR, _RTM_GETROUTE = 22, 26
_NLM_F_REQUEST_DUMP = 0x301
_RTM_F_CLONED = 0x200
"""Of what the kernel notes by itself, such as a path MTU."""
_ETH_P_ALL = 3
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3
_PACKET_OUTGOING = 4
_HEADERS = 28


def dump(kind: int) -> list[tuple[bytes, dict[int, bytes]]]:
    """A dump of rtnetlink(7): for each entry its fixed part (from behind the message header on) and its attributes."""
    size = {_RTM_GETADDR: 8, _RTM_GETROUTE: 12}[kind]
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


def interfaces() -> dict[str, dict[str, Any]]:
    """Every interface but lo: MAC, MTU, addresses that are not link-local."""
    found: dict[str, dict[str, Any]] = {}
    for number, name in socket.if_nameindex():
        if name != "lo":
            folder = f"/sys/class/net/{name}"
            mac, mtu = (open(f"{folder}/{what}").read().strip() for what in ("address", "mtu"))  # noqa: SIM115
            found[name] = {"number": number, "mac": mac, "mtu": int(mtu), "addresses": []}
    by_number = {entry["number"]: entry for entry in found.values()}
    for fixed, given in dump(_RTM_GETADDR):
        _, prefix, _, _, number = struct.unpack("=BBBBI", fixed)
        address = ipaddress.ip_address(given.get(2) or given[1])
        if number in by_number and not address.is_link_local:
            by_number[number]["addresses"].append(f"{address}/{prefix}")
    for entry in found.values():
        del entry["number"]
    return found


def routes() -> dict[str, str]:
    """Routes through a next hop, of the main table: destination to next hop."""
    found = {}
    for fixed, given in dump(_RTM_GETROUTE):
        family, prefix, _, _, table, _, _, _, flags = struct.unpack("=BBBBBBBBI", fixed)
        if 5 in given and table == 254 and not flags & _RTM_F_CLONED:
            start = given.get(1, bytes(4 if family == socket.AF_INET else 16))
            found["default" if not prefix else f"{ipaddress.ip_address(start)}/{prefix}"] = str(ipaddress.ip_address(given[5]))
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


def neighbours() -> dict[str, str]:
    """Resolved entries of the ARP table."""
    with open("/proc/net/arp") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    return {row[0]: row[3] for row in rows if int(row[2], 16) & 2}


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return int(~(total + (total >> 16)) & 0xFFFF)


class Caller:
    """Echo requests out, replies in, by sequence number."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.ident = os.getpid() & 0xFFFF
        self.sequence = 0
        self.sent: dict[int, tuple[str, float]] = {}
        self.replies: dict[int, list[tuple[int, float]]] = {}
        self.sniffers = {}
        for name in (name for _, name in socket.if_nameindex() if name != "lo"):
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            sniffer.bind((name, _ETH_P_ALL))
            self.sniffers[sniffer] = name
        self.heard: dict[str, set[str]] = {name: set() for name in self.sniffers.values()}

    def call(self, address: str, size: int = 64) -> int:
        """Send a request of ``size`` bytes with IP header; its sequence number, or -1 if it does not fit the first interface."""
        self.sequence = (self.sequence + 1) & 0xFFFF
        body = struct.pack("!BBHHH", 8, 0, 0, self.ident, self.sequence) + bytes(size - _HEADERS + size % 2)
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        self.sent[self.sequence] = (address, time.monotonic())
        try:
            self.socket.sendto(body[: size - 20], (address, 0))
        except OSError:
            return -1
        return self.sequence

    def listen(self, seconds: float, wanted: set[int]) -> None:
        """Take in replies until all ``wanted`` are there and things have settled, or the time is over."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            if wanted <= self.replies.keys():
                end = min(end, now + SETTLE_SECONDS)
                wanted = {-1}
            for ready in select.select([self.socket, *self.sniffers], [], [], max(0, end - now))[0]:
                if ready is self.socket:
                    self._reply()
                else:
                    self._frame(ready)

    def _reply(self) -> None:
        data = self.socket.recv(1 << 16)
        at = (data[0] & 15) * 4
        kind, _, _, ident, sequence = struct.unpack_from("!BBHHH", data, at)
        if kind == 0 and ident == self.ident and sequence in self.sent:
            self.replies.setdefault(sequence, []).append((data[8], time.monotonic() - self.sent[sequence][1]))

    def _frame(self, sniffer: socket.socket) -> None:
        data, where = sniffer.recvfrom(64)
        if where[2] != _PACKET_OUTGOING:
            self.heard[self.sniffers[sniffer]].add(data[6:12].hex(":"))


def call_all(caller: Caller, targets: dict[str, int], seconds: float) -> dict[str, dict[str, Any]]:
    """Call each until it answers, TRIES times (twice if none is expected); how: TTL of the reply, replies too many, shortest time."""
    found: dict[str, dict[str, Any]] = {}
    asked: dict[int, str] = {}
    for number in range(TRIES):
        missing = [address for address, size in targets.items() if number < 2 or (address not in found and size)]
        if not missing:
            break
        round_ = {sequence: address for address in missing if (sequence := caller.call(address)) >= 0}
        asked.update(round_)
        caller.listen(seconds, {sequence for sequence, address in round_.items() if targets[address]})
        for sequence, address in asked.items():
            for ttl, took in caller.replies.get(sequence, []):
                entry = found.setdefault(address, {"ttl": ttl, "seconds": took})
                entry["seconds"] = min(entry["seconds"], took)
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


def main() -> None:
    """Print what is seen."""
    request = json.loads(sys.argv[1])
    caller = Caller()
    targets, seconds = request["targets"], request["seconds"]
    heard = call_all(caller, targets, seconds)
    reached = {address: size for address, size in targets.items() if address in heard}
    for address, size in largest(caller, reached, request["sizes"], seconds).items():
        heard[address]["path_mtu"] = size
    seen = {
        "hostname": socket.gethostname(),
        "interfaces": interfaces(),
        "routes": routes(),
        "names": names(),
        "neighbours": neighbours(),
        "calls": heard,
        "heard": {name: sorted(macs) for name, macs in caller.heard.items()},
    }
    print(json.dumps(seen))  # noqa: T201 - that is how it answers


if __name__ == "__main__":
    main()
