"""The process of one capture: ``python -I -m nestbed.lan.capturer ORDER`` writes a pcapng file to its standard output as frames pass.

ORDER is a JSON object, the fields of :class:`Order`. The output is a row of pieces, each with a letter and the length of what follows:

* ``E``: a JSON object with reason and message, and the end; nothing was captured;
* ``D``: whole blocks of the file, the first of them as soon as frames are being captured;
* ``Z``: the name of the bound that ended it, and the end.

It ends by itself when a bound is reached, when the device is gone, and when nobody reads its output any more. A reader that is slow makes
the kernel drop frames, which are counted in the file.

It has no privilege once it has the socket: what the user wrote (the filter) is only looked at then.
"""

from __future__ import annotations

import json
import os
import resource
import select
import struct
import sys
import time
from dataclasses import dataclass, fields

import prctl

from nestbed import __version__
from nestbed.lan import pcapng
from nestbed.linux import pcap

BUFFER_BYTES = 16 << 20
SNAP_BYTES_MAX = 262144
PIECE_BYTES = 256 * 1024
_HOLD_MS = 100
"""How long the kernel may hold frames back, so that a frame is written well within half a second."""
_STATISTICS_SECONDS = 1.0
_PIPE_BYTES = 1 << 20
_NOBODY = 65534
_ADDRESS_SPACE_BYTES = 1 << 30
_HEADER = struct.Struct("<cI")


@dataclass(frozen=True, slots=True)
class Order:
    """What to capture: as ``nestbed.lanmodel.CaptureRequest``, of the device ``link``, which is called ``name`` in the file.

    Frames with the mark ``without_mark`` are left out: they were captured before.
    """

    link: str
    name: str
    filter: str = ""
    snap_bytes: int = 0
    count: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    without_mark: int = 0


class Refused(Exception):
    """Nothing can be captured."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Output:
    """Pieces to standard output."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._held = 0
        self.file_bytes = 0

    def add(self, block: bytes) -> None:
        """Write a block with others."""
        self._blocks.append(block)
        self._held += len(block)
        self.file_bytes += len(block)
        if self._held >= PIECE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held back."""
        if self._blocks:
            write(b"D", b"".join(self._blocks))
            self._blocks.clear()
            self._held = 0


def write(letter: bytes, data: bytes) -> None:
    """Write one piece.

    Raises:
        BrokenPipeError: nobody reads.
    """
    view = memoryview(_HEADER.pack(letter, len(data)) + data)
    while view:
        view = view[os.write(1, view) :]


def _drop_privileges() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    prctl.set_no_new_privs(True)


def _opened(order: Order) -> pcap.Capture:
    try:
        capture = pcap.Capture(order.link, snap_bytes=order.snap_bytes or SNAP_BYTES_MAX, buffer_bytes=BUFFER_BYTES, timeout_ms=_HOLD_MS)
    except pcap.PcapError as error:
        raise Refused("LINK_GONE" if error.code == pcap.NO_SUCH_DEVICE else "NO_CAPTURE", str(error)) from error
    _drop_privileges()
    try:
        capture.set_filter(order.filter, without_mark=order.without_mark)
    except pcap.PcapError as error:
        raise Refused("BAD_FILTER", str(error)) from error
    return capture


class _Run:
    """One capture under way."""

    def __init__(self, order: Order, capture: pcap.Capture) -> None:
        self._order = order
        self._capture = capture
        self._output = _Output()
        self._written = 0
        self._started_ns = time.time_ns()
        self._deadline = time.monotonic() + order.seconds if order.seconds else float("inf")
        self._told: tuple[int, int, int] | None = None
        self._tell_at = time.monotonic() + _STATISTICS_SECONDS
        self._poll = select.poll()
        self._poll.register(capture.fileno(), select.POLLIN)
        self._poll.register(1, 0)  # POLLERR, when nobody reads any more (poll(2))

    def go(self) -> str:
        """Capture until something ends it; what did."""
        order = self._order
        self._output.add(pcapng.section(f"nestbed {__version__}"))
        described = pcapng.interface(
            order.name, snap_bytes=order.snap_bytes, expression=order.filter, description=f"{order.link} of a nestbed node"
        )
        self._output.add(described)
        self._output.flush()
        ended = ""
        while not ended:
            now = time.monotonic()
            if now >= self._deadline:
                ended = "seconds"
                break
            wait_seconds = min(self._deadline, self._tell_at) - now
            for fd, events in self._poll.poll(max(0.0, wait_seconds) * 1000):
                if fd == 1 and events & select.POLLERR:
                    raise BrokenPipeError
            ended = self._drain()
            if time.monotonic() >= self._tell_at:
                self._tell()
                self._tell_at = time.monotonic() + _STATISTICS_SECONDS
            self._output.flush()
        self._tell()
        self._output.flush()
        return ended

    def _drain(self) -> str:
        """Write the frames that are there; what ends the capture, if anything does."""
        order, output = self._order, self._output
        room = order.size_bytes - self._statistics_bytes() if order.size_bytes else sys.maxsize
        try:
            while (frame := self._capture.next()) is not None:
                block = pcapng.packet(*frame)
                if output.file_bytes + len(block) > room:
                    return "size"
                output.add(block)
                self._written += 1
                if self._written == order.count:
                    return "count"
        except pcap.PcapError:
            return "link"
        return ""

    def _tell(self) -> None:
        """Write the counters, if they are others than those written last."""
        try:
            counted = self._capture.counts()
        except pcap.PcapError:  # the device is gone; what was counted last stands
            return
        told = (counted.received, counted.dropped, self._written)
        if told != self._told:
            self._output.add(self._statistics(*told))
            self._told = told

    def _statistics(self, received: int, dropped: int, written: int) -> bytes:
        return pcapng.statistics(time.time_ns(), self._started_ns, received=received, dropped=dropped, written=written)

    def _statistics_bytes(self) -> int:
        return len(self._statistics(0, 0, 0))


def main() -> None:
    """Do what the command line says."""
    given = json.loads(sys.argv[1])
    order = Order(**{field.name: given[field.name] for field in fields(Order) if field.name in given})
    try:
        capture = _opened(order)
    except Refused as refusal:
        write(b"E", json.dumps({"reason": refusal.reason, "message": str(refusal)}).encode())
        return
    try:
        write(b"Z", _Run(order, capture).go().encode())
    except BrokenPipeError:
        return
    finally:
        capture.close()


if __name__ == "__main__":
    main()
