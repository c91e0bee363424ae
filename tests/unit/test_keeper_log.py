"""The log of keepers is added to, and stays bounded however many of them die."""

import os

from nestbed.process.keeper_client import LOG_BYTES_MAX, open_log


def write(path, data: bytes) -> None:
    fd = open_log(path)
    os.write(fd, data)
    os.close(fd)


def test_what_an_earlier_keeper_wrote_is_kept(tmp_path) -> None:
    path = tmp_path / "keeper.log"
    for word in (b"one ", b"two"):
        write(path, word)
    assert path.read_bytes() == b"one two"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_long_log_is_put_aside_and_only_one_is(tmp_path) -> None:
    path = tmp_path / "keeper.log"
    for number in range(5):
        write(path, bytes([ord("0") + number]) * (LOG_BYTES_MAX + 1))
    write(path, b"new")
    assert path.read_bytes() == b"new"
    assert (tmp_path / "keeper.log.1").read_bytes()[:1] == b"4"
    assert len(list(tmp_path.iterdir())) == 2
