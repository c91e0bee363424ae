"""The relay's counters: the file ``relay.counters``, mapped into memory by the relay, which writes, and by the plane, which reads.

It outlives both. 4096 slots of 4096 bytes, each for one LAN or delay leg, found by a key: 32 bytes of text, NUL-padded, all NUL in a free
slot; then 64-bit numbers in the machine's byte order. Of a LAN: two times ``struct traffic`` of ``bpf/traffic.h`` (frames and bytes of all
and of each class, drops by reason), first what came from other machines, then what went to them. Of a leg: LEG_FIELDS, then the histogram.
The file is sparse: a slot that nobody uses takes no memory.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from nestbed.lan.reasons import REASONS_MAX
from nestbed.lanmodel import TRAFFIC_CLASSES

FILE = "relay.counters"
SLOTS = 4096
SLOT_BYTES = 4096
KEY_BYTES = 32

CLASSES_AT = 2
DROPS_AT = CLASSES_AT + 2 * len(TRAFFIC_CLASSES)
TRAFFIC_WORDS = DROPS_AT + REASONS_MAX
RECEIVED_AT, SENT_AT = 0, TRAFFIC_WORDS

LEG_FIELDS = ("frames", "bytes", "overflowed", "reordered", "failed", "released", "delay_sum_ns", "delay_min_ns", "delay_max_ns")
HISTOGRAM_AT = len(LEG_FIELDS)
BUCKETS = 368
_SUB_BITS = 4


def bucket(delay_us: int) -> int:
    """Where a delay is counted: each power of two has 16 buckets; 67 s and more are in the last one."""
    if delay_us < 1 << _SUB_BITS:
        return delay_us
    shift = delay_us.bit_length() - 1 - _SUB_BITS
    return min((shift << _SUB_BITS) + (delay_us >> shift), BUCKETS - 1)


def bucket_range_us(index: int) -> tuple[int, int]:
    """The delays that are counted there: from the first, below the second."""
    if index < 1 << _SUB_BITS:
        return index, index + 1
    shift = (index >> _SUB_BITS) - 1
    first = ((index & ((1 << _SUB_BITS) - 1)) | 1 << _SUB_BITS) << shift
    return first, first + (1 << shift)


def quantile_us(histogram: Sequence[int], fraction: float) -> float:
    """The delay that this fraction of what is counted does not exceed, to a sixteenth."""
    wanted, before = fraction * sum(histogram), 0
    for index, count in enumerate(histogram):
        if count and before + count >= wanted:
            first, end = bucket_range_us(index)
            return first + (end - first) * (wanted - before) / count
        before += count
    return 0.0


class Tally:
    """The mapped file. One process writes (:meth:`open_to_write`), any number reads."""

    def __init__(self, mapped: mmap.mmap, inode: int) -> None:
        """Use the ``open`` methods."""
        self._mapped = mapped
        self._inode = inode
        self._slots: dict[bytes, int] = {}

    @classmethod
    def open_to_write(cls, run_dir: Path) -> Tally:
        """Make the file if there is none of the right size, and map it (OSError).

        One of another size is replaced, never cut: that would kill whoever has mapped it.
        """
        path = run_dir / FILE
        if not _is_whole(path):
            new = path.with_suffix(".new")
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.ftruncate(fd, SLOTS * SLOT_BYTES)
            finally:
                os.close(fd)
            new.rename(path)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            tally = cls(mmap.mmap(fd, SLOTS * SLOT_BYTES), os.fstat(fd).st_ino)
        finally:
            os.close(fd)
        tally._scan()
        return tally

    @classmethod
    def open_to_read(cls, run_dir: Path) -> Tally | None:
        """Map the file; None while there is none."""
        try:
            fd = os.open(run_dir / FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            if os.fstat(fd).st_size != SLOTS * SLOT_BYTES:
                return None
            return cls(mmap.mmap(fd, SLOTS * SLOT_BYTES, prot=mmap.PROT_READ), os.fstat(fd).st_ino)
        finally:
            os.close(fd)

    def is_current(self, run_dir: Path) -> bool:
        """Whether it is still the file that is there."""
        try:
            return os.stat(run_dir / FILE).st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        """Unmap it, once nobody holds a view of a slot any more."""
        self._mapped.close()

    def claim(self, key: str) -> memoryview:
        """The numbers of the slot of ``key``, which is taken if there is none yet; the counts of an earlier life are still there.

        Raises:
            OSError: ENOSPC, every slot is in use.
        """
        encoded = _encoded(key)
        slot = self._slots.get(encoded)
        if slot is None:
            taken = set(self._slots.values())
            slot = next((number for number in range(SLOTS) if number not in taken), None)
            if slot is None:
                raise OSError(28, "all slots for counters are in use")
            at = slot * SLOT_BYTES
            self._mapped[at + KEY_BYTES : at + SLOT_BYTES] = bytes(SLOT_BYTES - KEY_BYTES)
            self._mapped[at : at + KEY_BYTES] = encoded
            self._slots[encoded] = slot
        return self._numbers(slot)

    def keep_only(self, keys: Iterable[str]) -> None:
        """Free the slots of all others."""
        kept = {_encoded(key) for key in keys}
        for encoded in self._slots.keys() - kept:
            at = self._slots.pop(encoded) * SLOT_BYTES
            self._mapped[at : at + KEY_BYTES] = bytes(KEY_BYTES)

    def look(self, key: str) -> bytes | None:
        """A copy of the numbers of ``key``, from the first one on; None if it has no slot."""
        encoded = _encoded(key)
        slot = self._slots.get(encoded)
        if slot is None or self._mapped[slot * SLOT_BYTES : slot * SLOT_BYTES + KEY_BYTES] != encoded:
            self._scan()
            slot = self._slots.get(encoded)
            if slot is None:
                return None
        return self._mapped[slot * SLOT_BYTES + KEY_BYTES : (slot + 1) * SLOT_BYTES]

    def _numbers(self, slot: int) -> memoryview:
        at = slot * SLOT_BYTES
        return memoryview(self._mapped)[at + KEY_BYTES : at + SLOT_BYTES].cast("Q")

    def _scan(self) -> None:
        self._slots.clear()
        nothing = bytes(KEY_BYTES)
        for slot in range(SLOTS):
            key = self._mapped[slot * SLOT_BYTES : slot * SLOT_BYTES + KEY_BYTES]
            if key != nothing:
                self._slots[key] = slot


def _is_whole(path: Path) -> bool:
    try:
        return os.lstat(path).st_size == SLOTS * SLOT_BYTES
    except FileNotFoundError:
        return False


def _encoded(key: str) -> bytes:
    encoded = key.encode()
    assert 0 < len(encoded) <= KEY_BYTES, key
    return encoded.ljust(KEY_BYTES, b"\0")
