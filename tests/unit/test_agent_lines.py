"""Reports are made of whatever bytes arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestbed.node.agent.lines import LINE_BYTES_MAX, Garbage, parse, split


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (b"state=ready", {"state": "ready"}),
        (b"  state=ready  load=0.5\r", {"state": "ready", "load": "0.5"}),
        (b"state='not yet' who=\"a b\"c", {"state": "not yet", "who": "a bc"}),
        (b"state=up we are done=yes", {"state": "up", "text": "we are done=yes"}),
        (b"hello, world", {"text": "hello, world"}),
        (b"a= b", {"a": "", "text": "b"}),
        (b"a=1 a=2", {"a": "2"}),
        (b"a='open", {"text": "a='open"}),
        ("gr\u00fcn=\u2713".encode(), {"text": "gr\u00fcn=\u2713"}),
        (b"a=1\tb=2", {"a": "1", "b": "2"}),
        (b"", {}),
    ],
)
def test_fields_come_first_and_the_rest_is_text(line: bytes, fields: dict[str, str]) -> None:
    assert dict(parse(line)) == fields


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"\xff\xfe", "binary"),
        (b"a=1\0", "binary"),
        (b"a=\x1b[2J", "binary"),
        (b"x" * (LINE_BYTES_MAX + 1), "long"),
        (b" ".join(b"k%d=" % number for number in range(33)), "fields"),
    ],
)
def test_what_is_no_report_is_told_apart(line: bytes, why: str) -> None:
    with pytest.raises(Garbage) as caught:
        parse(line)
    assert caught.value.why == why


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(line: bytes) -> None:
    try:
        fields = parse(line)
    except Garbage:
        return
    assert all(value.isprintable() or "\t" in value for _, value in fields)


def read(chunks: list[bytes]) -> tuple[list[bytes], int]:
    """The lines in a stream that comes in chunks, and how often a line was too long."""
    buffer, lines, long, skipping = b"", [], 0, False
    for chunk in chunks:
        buffer += chunk
        end = 0
        for line in split(buffer, skipping=skipping):
            if line.data is None:
                long += not skipping
            else:
                lines.append(line.data)
            end = line.end
            skipping = line.data is None and buffer[end - 1 : end] != b"\n"
        buffer = buffer[end:]
        assert len(buffer) <= LINE_BYTES_MAX
    return lines, long


@given(st.lists(st.one_of(st.binary(max_size=20).filter(lambda data: b"\n" not in data), st.just(b"y" * 9000))), st.data())
def test_lines_are_the_same_however_they_arrive(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    found, long = read(chunks)
    assert found == [line for line in lines if len(line) <= LINE_BYTES_MAX]
    assert long == sum(len(line) > LINE_BYTES_MAX for line in lines)
