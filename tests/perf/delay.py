"""How exactly the relay process delays frames: the error of the delay, and whether frames in flight limit the throughput.

Run through ``hack/bench delay``. In a network namespace of its own it sends stamped frames of 60 bytes into a delay leg, paced, and reads
them with the kernel's time stamps when they come out. Nothing gates on the figures; ``--json FILE`` writes them for programs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nestbed.lan.relay.wanted import DelayLeg
from nestbed.lan.relay_client import RelayClient
from nestbed.linux.namespace import CLONE_NEWNET, unshare

TAP = "leg0"
HEADER = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5"
_SO_TIMESTAMPNS, _SO_RCVBUFFORCE, _PACKET_IGNORE_OUTGOING = 35, 33, 23


def leg_socket() -> socket.socket:
    """What is sent by it goes into the leg, what it receives comes out."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
    sock.bind((TAP, 0x88B5))
    sock.setsockopt(263, _PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 256 << 20)
    return sock


def send_paced(sock: socket.socket, frames_per_second: int, seconds: float) -> int:
    """Send so many frames, evenly; how many that were."""
    interval_ns, padding, count = 1_000_000_000 // frames_per_second, bytes(38), int(frames_per_second * seconds)
    due_ns, now, stamp = time.monotonic_ns(), time.monotonic_ns, time.time_ns
    for _ in range(count):
        while now() < due_ns:
            if due_ns - now() > 200_000:
                time.sleep(0.0001)
        sock.send(HEADER + struct.pack("=Q", stamp()) + padding)
        due_ns += interval_ns
    return count


def delays_us(sock: socket.socket) -> Iterator[float]:
    """What each frame that came out was delayed by, until none comes any more."""
    sock.settimeout(0.3)
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(256, 64)
        except TimeoutError:
            return
        seconds, nanoseconds = struct.unpack("=qq", ancillary[0][2])
        yield (seconds * 1_000_000_000 + nanoseconds - struct.unpack_from("=Q", data, 14)[0]) / 1000


def measured(delay_us: int, frames_per_second: int, seconds: float) -> dict[str, Any]:
    """Send for so long into the leg, which has this delay."""
    with leg_socket() as sock:
        sent = send_paced(sock, frames_per_second, seconds)
        errors = sorted(delay - delay_us for delay in delays_us(sock))
    return {
        "delay_ms": delay_us / 1000,
        "frames_per_second": frames_per_second,
        "sent": sent,
        "received": len(errors),
        "in_flight": frames_per_second * delay_us // 1_000_000,
        "error_mean_us": round(statistics.fmean(errors), 1),
        "error_mean_absolute_us": round(statistics.fmean(map(abs, errors)), 1),
        "error_p50_us": round(errors[len(errors) // 2], 1),
        "error_p99_us": round(errors[len(errors) * 99 // 100], 1),
    }


def make_tap() -> None:
    """The leg's tap, in a network namespace of this process's own."""
    unshare(CLONE_NEWNET)
    for line in (f"tuntap add {TAP} mode tap vnet_hdr", f"link set {TAP} txqueuelen 10000", f"link set {TAP} up", "link set lo up"):
        subprocess.run(["ip", *line.split()], check=True)


async def measure(seconds: float) -> list[dict[str, Any]]:
    """All of it, with a relay process of its own."""
    # Counters in a file on a disk make the relay wait for the disk now and then; run directories belong on a tmpfs.
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nestbed-bench-", dir="/dev/shm"))
        client = RelayClient(Path(folder), lambda *_: None)
        client.open()
        client.set_leg(DelayLeg(TAP, 500))
        await client.settle()
        # The kernel begins to stamp frames a moment after the first socket asks for it, and goes on while one is there.
        stamping = stack.enter_context(leg_socket())
        send_paced(stamping, 1000, 0.5)
        found = []
        for delay_us in (500, 1000, 5000, 20_000, 100_000):
            for frames_per_second in (1000, 20_000):
                client.set_leg(DelayLeg(TAP, delay_us))
                await client.settle()
                client.check(TAP)
                found.append(measured(delay_us, frames_per_second, seconds))
        client.drop_leg(TAP)
        while client.is_running:  # noqa: ASYNC110 - its end does not call
            await asyncio.sleep(0.01)
        client.close()
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure (2)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, too")
    options = parser.parse_args()
    make_tap()
    found = asyncio.run(measure(options.seconds))
    print(f"{'delay':>8} {'frames/s':>9} {'in flight':>9} {'lost':>6} | error: {'mean':>7} {'p50':>8} {'p99':>8}")
    for one in found:
        lost = one["sent"] - one["received"]
        print(
            f"{one['delay_ms']:>6} ms {one['frames_per_second']:>9} {one['in_flight']:>9} {lost:>6} |"
            f" {one['error_mean_absolute_us']:>11} us {one['error_p50_us']:>5} us {one['error_p99_us']:>5} us"
        )
    if options.json:
        Path(options.json).write_text(json.dumps({"delay": found, "cpus": os.cpu_count()}, indent=1))


if __name__ == "__main__":
    main()
