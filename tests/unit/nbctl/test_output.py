"""nbctl: text, tables, selection, messages as data, the keys of a terminal, unpacking."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest
import yaml
from google.protobuf.json_format import ParseDict
from hypothesis import given, settings
from hypothesis import strategies as st

from nbctl import output, select, signals, stream, text
from nbctl.commands.logs import Stamps
from nbctl.commands.stats import Processors
from nbctl.failure import Failure
from nbctl.unpack import Unpacker
from nestbed.v1 import container_pb2 as api

# ---------------------------------------------------------------- text


@given(st.text(max_size=50))
def test_escaped_text_is_one_harmless_line(anything: str) -> None:
    shown = text.escape(anything)
    assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in shown)
    assert not set(shown) & set("\u2028\u2029\u202e\u200f\ufeff")
    assert len(shown.splitlines()) <= 1


def test_escape_keeps_what_prints() -> None:
    assert text.escape("größe 東京 \x1b[31m\n\u202e") == r"größe 東京 \x1b[31m\n\u202e"


@given(st.text(max_size=40), st.integers(0, 45))
def test_cut_fits(anything: str, width: int) -> None:
    shown = text.escape(anything)
    assert text.cells(text.cut(shown, width)) <= width
    if text.cells(shown) <= width:
        assert text.cut(shown, width) == shown


def test_columns_are_aligned_by_cells() -> None:
    lines = text.table(("NAME", "X"), [("東京", "1"), ("e\u0301", "2"), ("a\tb", "3")])
    assert lines == ["NAME  X", "東京  1", "e\u0301     2", "a\\tb  3"]


@given(st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60), st.text(max_size=9)), max_size=5), st.integers(20, 120))
def test_a_table_fits_the_terminal(rows: list[tuple[str, str, str]], width: int) -> None:
    lines = text.table(("NAME", "COMMAND", "AGE"), rows, width=width)
    assert all(text.cells(line) <= width for line in lines)
    assert len(lines) == len(rows) + 1


def test_the_widest_columns_are_cut_first() -> None:
    lines = text.table(("NAME", "COMMAND"), [("web", "x" * 60)], width=30)
    assert lines[1] == "web   " + "x" * 23 + "…"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (-5, "0s"), (119, "119s"), (180, "3m"), (3600 * 3, "3h"), (86400 * 3, "3d"), (1e9, "11574d")]
)
def test_age(seconds: float, shown: str) -> None:
    assert text.age(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (64 << 20, "64MiB"), (150.5 * 1024, "150KiB"), (1 << 60, "1048576TiB")],
)
def test_size(count: float, shown: str) -> None:
    assert text.size(count) == shown


# ---------------------------------------------------------------- messages


def container(name: str = "web", identifier: str = "0123456789ab") -> api.Container:
    made = api.Container(id=identifier, name=name, state=api.CONTAINER_STATE_RUNNING, pid=7)
    made.create_time.FromJsonString("2026-01-02T03:04:05.5Z")
    made.spec.labels["b"] = "2"
    made.spec.labels["a"] = "1"
    made.spec.resources.memory_bytes = 64 << 20
    made.nics.add(lan="lan0", name="eth0", addresses=["10.5.0.1/24"])
    return made


def test_a_message_as_data_has_the_names_of_the_api() -> None:
    data = output.plain(container())
    assert data["state"] == "CONTAINER_STATE_RUNNING"
    assert data["create_time"] == "2026-01-02T03:04:05.500Z"
    assert data["spec"]["resources"] == {"memory_bytes": 64 << 20}
    assert list(data["spec"]["labels"].items()) == [("a", "1"), ("b", "2")]
    assert data["nics"][0]["addresses"] == ["10.5.0.1/24"]
    assert data["restarts"] == 0
    assert "exit" not in data
    assert ParseDict(data, api.Container()) == container()


def test_bytes_survive() -> None:
    entry = api.LogEntry(data=b"\xff\x00")
    assert ParseDict(output.plain(entry), api.LogEntry()) == entry


@settings(max_examples=25)
@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_yaml_and_json_read_back(data: object) -> None:
    assert json.loads(output.encode("json", data)) == data
    assert yaml.safe_load(output.encode("yaml", data)) == data


def test_streams_are_lines_or_documents() -> None:
    assert output.encode("json", {"a": [1]}, stream=True) == '{"a": [1]}\n'
    assert list(yaml.safe_load_all(output.encode("yaml", {"a": 1}, stream=True) * 2)) == [{"a": 1}, {"a": 1}]


# ---------------------------------------------------------------- selection

THREE = [container("web", "aaa111"), container("web2", "aaa222"), container("db", "bbb333")]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["web"], ["web"]),
        (["bb"], ["db"]),
        (["aaa111"], ["web"]),
        (["web*"], ["web", "web2"]),
        (["db", "*"], ["db", "web", "web2"]),
        (["web", "web", "aaa1"], ["web"]),
        (["[wd]?"], ["db"]),
    ],
)
def test_choose(names: list[str], chosen: list[str]) -> None:
    assert [item.name for item in select.choose(names, THREE)] == chosen


@pytest.mark.parametrize(
    ("glob", "matched"), [("*", ["vm1"]), ("vm1/*", ["vm1/web"]), ("*/w*", ["vm1/web"]), ("*/*/*", ["vm1/vm2/x"]), ("vm*", ["vm1"])]
)
def test_globs_match_paths_part_by_part(glob: str, matched: list[str]) -> None:
    assert [path for path in ("vm1", "vm1/web", "vm1/vm2/x") if select.matches_path(path, glob)] == matched


@pytest.mark.parametrize(
    ("name", "message", "remedy"),
    [
        ("wbe", "nothing is named 'wbe'", "did you mean web?"),
        ("aaa", "'aaa' is the beginning of 2 ids", "write more of the id, or the name"),
        ("x*", "nothing matches 'x*'", "`nbctl ps -a` and `nbctl lan ls` show what there is"),
    ],
)
def test_choose_refuses(name: str, message: str, remedy: str) -> None:
    with pytest.raises(Failure) as refusal:
        select.choose([name], THREE)
    assert (refusal.value.message, refusal.value.remedy) == (message, remedy)


def test_choose_takes_an_empty_glob_if_told() -> None:
    assert select.choose(["x*"], THREE, none_is_fine=True) == []


# ---------------------------------------------------------------- streams


@given(st.binary(max_size=30), st.data())
def test_detach_keys_are_found_however_they_come(typed: bytes, data: st.DataObject) -> None:
    whole = typed.replace(stream.DETACH_KEYS, b"") + stream.DETACH_KEYS + b"rest"
    keys, passed, at = stream.DetachKeys(), b"", 0
    while at < len(whole):
        step = data.draw(st.integers(1, 4))
        piece, found = keys.feed(whole[at : at + step])
        passed += piece
        at += step
        if found:
            break
    assert found
    assert passed == whole[: whole.index(stream.DETACH_KEYS)]


def test_other_keys_are_not_held_back() -> None:
    keys = stream.DetachKeys()
    assert keys.feed(b"ab") == (b"ab", False)
    assert keys.feed(b"\x10") == (b"", False)
    assert keys.feed(b"x") == (b"\x10x", False)


def test_insistence_counts_within_two_seconds() -> None:
    insistence = signals.Insistence()
    assert [insistence.press(at) for at in (0, 1.5, 3, 3.1, 3.2)] == [2, 1, 1, 0, 0]


def test_stamps_stand_before_lines_only() -> None:
    def entry(number: int, data: bytes, *, partial: bool) -> api.LogEntry:
        made = api.LogEntry(stream=api.LogStream.ValueType(number), data=data, partial=partial)
        made.time.FromSeconds(1767323045)
        return made

    stamps = Stamps()
    shown = [
        stamps.stamped(entry(1, b"a", partial=True)),
        stamps.stamped(entry(2, b"x\n", partial=False)),
        stamps.stamped(entry(1, b"b\n", partial=False)),
        stamps.stamped(entry(1, b"c\n", partial=False)),
    ]
    assert b"".join(shown) == b"2026-01-02T03:04:05Z a2026-01-02T03:04:05Z x\nb\n2026-01-02T03:04:05Z c\n"


def test_processors_are_told_from_the_second_measurement_on() -> None:
    def measured(at: int, cpu: float) -> api.ContainerStats:
        made = api.ContainerStats(id="a", cpu_seconds=cpu)
        made.time.FromSeconds(at)
        return made

    processors = Processors()
    processors.measure([measured(100, 5)])
    assert processors.share == {}
    processors.measure([measured(102, 6)])
    assert processors.share == {"a": pytest.approx(0.5)}
    processors.measure([])
    assert processors.share == {}


# ---------------------------------------------------------------- unpacking


def member(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644, size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode, made.size = kind, link, mode, size
    return made


def unpack(folder: Path, name: str, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with Unpacker(str(folder), name) as unpacker:
        for each, content in members:
            unpacker.put(each, io.BytesIO(content) if each.isreg() else None)


TOP = (member("etc", tarfile.DIRTYPE, mode=0o755), b"")


def test_a_tree_is_unpacked(tmp_path: Path) -> None:
    unpack(
        tmp_path,
        "copy",
        [
            TOP,
            (member("etc/a", mode=0o6777), b"one"),
            (member("etc/deep/b"), b"two"),
            (member("etc/link", tarfile.SYMTYPE, link="/nowhere"), b""),
            (member("etc/hard", tarfile.LNKTYPE, link="etc/a"), b""),
        ],
    )
    top = tmp_path / "copy"
    assert (top / "a").read_bytes() == b"one"
    assert stat.S_IMODE((top / "a").stat().st_mode) == 0o755
    assert (top / "deep" / "b").read_bytes() == b"two"
    assert os.readlink(top / "link") == "/nowhere"
    assert (top / "hard").samefile(top / "a")


@pytest.mark.parametrize("name", ["etc/../../evil", "evil", "/evil", "etcetera/evil", "../etc/evil"])
def test_no_name_leads_out(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(Failure):
        unpack(inside, "copy", [TOP, (member(name), b"x")])
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "copy"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    inside = tmp_path / "inside"
    inside.mkdir()
    link = (member("etc/l", tarfile.SYMTYPE, link=str(outside)), b"")
    with pytest.raises(FileExistsError):
        unpack(inside, "copy", [TOP, link, (member("etc/l/evil"), b"x")])
    to_file = (member("etc/f", tarfile.SYMTYPE, link=str(outside / "kept")), b"")
    unpack(inside, "again", [TOP, to_file, (member("etc/f"), b"new")])
    assert (outside / "kept").read_text() == "kept"
    assert (inside / "again" / "f").read_text() == "new"
    assert [path.name for path in outside.iterdir()] == ["kept"]


def test_no_hard_link_leads_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(Failure):
        unpack(tmp_path, "copy", [TOP, (member("etc/h", tarfile.LNKTYPE, link="../secret"), b"")])
    with pytest.raises(Failure):
        unpack(tmp_path, "copy", [TOP, (member("etc/h", tarfile.LNKTYPE, link="secret"), b"")])


def test_a_top_that_becomes_a_link_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure):
        unpack(tmp_path, "copy", [TOP, (member("etc", tarfile.SYMTYPE, link="/"), b"")])
    with pytest.raises(FileExistsError):
        unpack(tmp_path, "other", [(member("etc", tarfile.SYMTYPE, link="/tmp"), b""), (member("etc/evil"), b"")])


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_are_not_made(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(Failure):
        unpack(tmp_path, "copy", [TOP, (member("etc/x", kind), b"")])


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "copy")
    with pytest.raises(Failure):
        unpack(tmp_path, "copy", [(member("hosts"), b"x")])
    assert stat.S_ISFIFO((tmp_path / "copy").stat().st_mode)
