"""A delay leg: frames come from a tap and go back to it later. The histogram tells what they waited."""

from __future__ import annotations

import os
import random
import socket
import time

from nestbed.lan.relay import tally
from nestbed.lan.relay.engine import Engine
from nestbed.lan.relay.wanted import DelayLeg
from nestbed.linux import tun

BATCH_FRAMES = 64
_READ_BYTES = tun.VNET_HEADER_BYTES + 65536 + 18
_FRAMES, _BYTES, _OVERFLOWED, _REORDERED, _FAILED, _RELEASED, _SUM, _MIN, _MAX = range(len(tally.LEG_FIELDS))


class Leg:
    """One leg. Frames are read and written with the kernel's ``virtio_net_hdr`` before them, so a super-frame, or one whose checksum is
    not there yet, goes on as it came.
    """

    def __init__(self, wanted: DelayLeg, engine: Engine, cells: memoryview) -> None:
        """Open the tap and begin (OSError)."""
        self.wanted = wanted
        self._engine = engine
        self._cells = cells
        self._waiting = 0
        self._buffer = bytearray(_READ_BYTES)
        self._view = memoryview(self._buffer)
        self._vector = [self._buffer]
        socket.if_nametoindex(wanted.tap)  # opening one that is gone would make another
        self._fd = tun.open_tap(wanted.tap, vnet_header=True)
        tun.set_offloads(self._fd, tun.TUN_F_CSUM | tun.TUN_F_TSO4 | tun.TUN_F_TSO6 | tun.TUN_F_TSO_ECN)
        engine.watch(self._fd, self._read, is_hasty=True)

    def change(self, wanted: DelayLeg) -> None:
        """Delay otherwise from now on; what waits is released when it was to be."""
        if wanted.epoch != self.wanted.epoch:
            self._cells[:] = memoryview(bytes(self._cells.nbytes)).cast("Q")
        self.wanted = wanted

    def note_lost(self, count: int) -> None:
        """So many frames did not fit into the tap's queue."""
        self._cells[_OVERFLOWED] += count

    def close(self) -> None:
        """End it; what waits is lost. The cells are released."""
        self._let_go()
        self._cells.release()

    @property
    def is_broken(self) -> bool:
        """Whether the tap is gone, so that it has to be made again."""
        return self._fd < 0

    def _let_go(self) -> None:
        if self._fd >= 0:
            self._engine.forget(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        wanted, engine, cells = self.wanted, self._engine, self._cells
        delay_ns, jitter_us, reorder, limit = wanted.delay_us * 1000, wanted.jitter_us, wanted.reorder, wanted.limit_frames
        for _ in range(BATCH_FRAMES):
            try:
                length = os.readv(self._fd, self._vector)
            except BlockingIOError:
                return
            except OSError:  # EBADFD, EIO: the tap was removed
                self._let_go()
                return
            now_ns = due_ns = time.monotonic_ns()
            frame = bytes(self._view[:length])
            cells[_FRAMES] += 1
            cells[_BYTES] += length - tun.VNET_HEADER_BYTES
            if reorder and random.random() < reorder:  # noqa: S311 - nobody is to be kept from guessing it
                cells[_REORDERED] += 1
            else:
                due_ns += delay_ns
                if jitter_us:
                    due_ns += int((2 * random.random() - 1) * jitter_us * 1000)  # noqa: S311
            if limit and self._waiting >= limit:
                cells[_OVERFLOWED] += 1
                continue
            self._waiting += 1
            engine.delay(due_ns, self, now_ns, frame)

    def release(self, frame: bytes, arrived_ns: int, now_ns: int) -> None:
        if self._fd < 0:
            return
        cells, waited_ns = self._cells, now_ns - arrived_ns
        self._waiting -= 1
        try:
            os.write(self._fd, frame)
        except OSError:
            cells[_FAILED] += 1
            return
        if not cells[_RELEASED] or waited_ns < cells[_MIN]:
            cells[_MIN] = waited_ns
        cells[_MAX] = max(cells[_MAX], waited_ns)
        cells[_RELEASED] += 1
        cells[_SUM] += waited_ns
        cells[tally.HISTOGRAM_AT + tally.bucket(waited_ns // 1000)] += 1
