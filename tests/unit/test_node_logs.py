"""Reading logs: selection, rotation, following, and what must not be followed."""

from __future__ import annotations

import asyncio
import os

import pytest

from nestbed import runlog
from nestbed.errors import InvalidArgument
from nestbed.node import logs
from nestbed.node.logs import LogWatch, Selection


class Log:
    """A writer of the log, as the keeper is one."""

    def __init__(self, directory) -> None:
        self.directory = directory
        self.at = 1000.0

    def write(self, data: bytes, stream: int = 1) -> None:
        self.at += 1
        with (self.directory / "log").open("ab") as file:
            file.write(runlog.encode(self.at, stream, data))

    def rotate(self, keep: int = 5) -> None:
        for number in range(keep, 0, -1):
            old = self.directory / (f"log.{number - 1}" if number > 1 else "log")
            if old.exists():
                old.rename(self.directory / f"log.{number}")


@pytest.fixture
def log(tmp_path) -> Log:
    return Log(tmp_path)


@pytest.fixture
def watch():
    return LogWatch()


async def read(log: Log, since: float | None = None, tail: int | None = None) -> bytes:
    batches = [batch async for batch in logs.read(log.directory, Selection(since, tail).check())]
    return b"".join(entry.data for batch in batches for entry in batch)


async def test_no_log(log) -> None:
    assert await read(log) == b""
    assert await read(log, tail=3) == b""


async def test_rotated_files_are_read_in_order(log) -> None:
    for number in range(12):
        log.write(b"line %d\n" % number)
        if number % 4 == 3:
            log.rotate()
    expected = [b"line %d\n" % number for number in range(12)]
    assert await read(log) == b"".join(expected)
    for tail in range(14):
        assert await read(log, tail=tail) == b"".join(expected[max(0, 12 - tail) :])
    assert await read(log, since=1009.0) == b"".join(expected[8:])
    assert await read(log, since=1009.0, tail=2) == b"".join(expected[10:])
    assert await read(log, since=9999.0) == b""


async def test_tail_counts_lines_not_pieces(log) -> None:
    log.write(b"first\n")
    log.write(b"a" * 40_000 + b"\n")
    log.write(b"unfinished")
    assert await read(log, tail=1) == b"unfinished"
    assert await read(log, tail=2) == b"a" * 40_000 + b"\nunfinished"
    assert await read(log, tail=3) == b"first\n" + b"a" * 40_000 + b"\nunfinished"


async def test_large_log_comes_in_batches(log) -> None:
    line = b"x" * 100 + b"\r\x0b\x1c\n"
    for _ in range(100):
        log.write(line * 100)
    batches = [batch async for batch in logs.read(log.directory, Selection())]
    assert len(batches) > 5
    assert sum(len(batch) for batch in batches) == 10_000
    assert await read(log, tail=7001) == line * 7001


async def test_torn_lines_are_passed_over(log) -> None:
    with (log.directory / "log").open("ab") as file:
        file.write(b"torn by a crash\n\n\x00\xff\n")
    log.write(b"whole\n")
    with (log.directory / "log").open("ab") as file:
        file.write(b"2026-01-02T03:04:05.678901Z stdout F no line feed yet")
    assert await read(log) == b"whole\n"
    assert await read(log, tail=1) == b"whole\n"


async def test_only_regular_files_are_read(log) -> None:
    secret = log.directory / "secret"
    secret.write_bytes(runlog.encode(1.0, 1, b"secret\n"))
    (log.directory / "log").symlink_to(secret)
    os.mkfifo(log.directory / "log.1")
    assert await read(log) == b""


@pytest.mark.parametrize(("since", "tail"), [(None, -1), (-1.0, None), (float("nan"), None), (1e300, None), (None, 1 << 70)])
def test_selection_out_of_bounds(since, tail) -> None:
    with pytest.raises(InvalidArgument):
        Selection(since, tail).check()


class Follower:
    """Follows in the background; ``heard`` waits for what it has to hear."""

    def __init__(self, log: Log, watch: LogWatch, **selection) -> None:
        self.wake = asyncio.Event()
        self.has_ended = False
        self.data = b""
        self._news = asyncio.Event()
        self.task = asyncio.ensure_future(self._follow(log, watch, Selection(**selection)))

    async def _follow(self, log: Log, watch: LogWatch, selection: Selection) -> None:
        async for batch in logs.follow(log.directory, selection, watch, self.wake, lambda: self.has_ended):
            self.data += b"".join(entry.data for entry in batch)
            self._news.set()

    async def heard(self, data: bytes) -> None:
        async with asyncio.timeout(5):
            while self.data != data:
                self._news.clear()
                await self._news.wait()

    def end(self) -> None:
        self.has_ended = True
        self.wake.set()


async def test_following_through_rotations(log, watch) -> None:
    watch.open()
    follower = Follower(log, watch)
    await asyncio.sleep(0)
    log.write(b"1\n")
    await follower.heard(b"1\n")
    log.write(b"2\n")
    log.rotate()
    log.write(b"3\n")
    await follower.heard(b"1\n2\n3\n")
    for number in range(4, 8):
        log.rotate()
        log.write(b"%d\n" % number)
    await follower.heard(b"1\n2\n3\n4\n5\n6\n7\n")
    log.write(b"8\n")
    follower.end()
    await follower.task
    assert follower.data == b"1\n2\n3\n4\n5\n6\n7\n8\n"
    watch.close()


async def test_following_from_the_tail_of_what_has_ended(log, watch) -> None:
    watch.open()
    log.write(b"1\n2\n3\n")
    follower = Follower(log, watch, tail=1)
    follower.end()
    await follower.task
    assert follower.data == b"3\n"
    watch.close()


async def test_followers_let_go_of_files(log, watch) -> None:
    watch.open()
    log.write(b"1\n")
    before = len(os.listdir("/proc/self/fd"))
    follower = Follower(log, watch)
    await follower.heard(b"1\n")
    for _ in range(8):
        log.rotate()
        log.write(b"x\n")
        await follower.heard(follower.data + b"x\n")
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    follower.task.cancel()
    await asyncio.gather(follower.task, return_exceptions=True)
    assert len(os.listdir("/proc/self/fd")) == before
    watch.close()


async def test_node_follows_until_the_container_stops(bench) -> None:
    await bench.run("sh", "-c", "echo one; echo two >&2; sleep 1000", name="web")
    stream = bench.node.logs("web", follow=True)
    entries = list(await anext(stream))
    while len(entries) < 2:
        entries += await anext(stream)
    assert [(entry.stream, entry.data) for entry in entries] == [(1, b"one\n"), (2, b"two\n")]
    await bench.node.stop("web", 0.0)
    assert [batch async for batch in stream] == []
    last = [entry.data for batch in [batch async for batch in bench.node.logs("web", tail=1)] for entry in batch]
    assert last == [b"two\n"]


async def test_node_follows_until_the_container_is_gone(bench) -> None:
    await bench.create(name="web")
    stream = bench.node.logs("web", follow=True)
    following = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    await bench.node.delete("web", force=False)
    assert await following is None
