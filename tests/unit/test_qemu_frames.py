"""What host and guest say to each other, whatever comes before it."""

from __future__ import annotations

import stat

from hypothesis import given
from hypothesis import strategies as st

from nestbed.model import ExecSpec
from nestbed.qemu import frames, initramfs
from nestbed.qemu.frames import Frame, Parser, Type
from nestbed.qemu.initramfs import Entry

FRAMES = st.builds(Frame, st.sampled_from(Type).map(int), st.integers(0, 2**32 - 1), st.binary(max_size=64))


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 64), max_size=20))
def test_frames_come_out_however_they_are_cut(told: list[Frame], cuts: list[int]) -> None:
    data = b"".join(frames.frame(Type(one.type), one.channel, one.payload) for one in told)
    parser, found, at = Parser(), [], 0
    for cut in [*cuts, len(data)]:
        found += parser.feed(data[at : at + cut])
        at += cut
    assert found == told


@given(st.binary(max_size=200))
def test_hello_is_heard_after_anything(rubbish: bytes) -> None:
    hello = frames.frame(Type.HELLO, 0, b"0123456789abcdef")
    assert Parser().feed(rubbish + frames.RESYNC + hello)[-1:] == [Frame(Type.HELLO, 0, b"0123456789abcdef")]


def test_long_words_travel_in_pieces() -> None:
    long = "x" * (frames.FRAME_BYTES_MAX + 1)
    told = Parser().feed(frames.run(1, ExecSpec((long, ""), (("A", "b"),))))
    assert [frame.type for frame in told[:5]] == [Type.ARGUMENT, Type.ARGUMENT, Type.END_OF_WORD, Type.ARGUMENT, Type.END_OF_WORD]
    assert b"".join(frame.payload for frame in told[:2]).decode() == long
    assert told[3].payload == b""


def test_archive_has_the_kernels_format() -> None:
    data = initramfs.archive([Entry("dev", stat.S_IFDIR | 0o755), Entry("init", stat.S_IFREG | 0o755, b"#!")])
    assert data.startswith(b"070701" + b"00000001" + b"000041ED")
    assert data.rstrip(b"\0").endswith(b"TRAILER!!!")
    assert len(data) % 4 == 0


def test_dependencies_of_a_module() -> None:
    assert initramfs.dependencies(b"\x00license=GPL\x00depends=virtio,virtio_ring\x00") == ["virtio", "virtio_ring"]
    assert initramfs.dependencies(b"\x00depends=\x00") == []
