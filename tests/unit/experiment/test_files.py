"""Files of elements: what the vtopo says of them, and how they are packed."""

from __future__ import annotations

import base64
import gzip
import io
import os
import tarfile

import pytest

from nestbed.errors import InvalidArgument
from nestbed.experiment import files, plan, vtopo
from nestbed.experiment.plan import IDLE

TEXT = """\
experiment: e
elements:
  bot[1-2]:
    files:
      /etc/bot/name: "bot {n}\\n"
      /srv/{n}/key: {source: "keys/{n}", mode: 0600, owner: "1000:100"}
  plain: {}
"""
SOURCES = {"keys/1": b"\0one", "keys/2": b"two"}


def test_contents_and_sources() -> None:
    assert files.sources(vtopo.read(TEXT, "v")[0]) == ["keys/1", "keys/2"]
    made = plan.make((TEXT, "v"), None, SOURCES)
    first, second = made.elements["bot1"], made.elements["bot2"]
    assert [(file.path, file.content, file.mode, file.owner, file.group) for file in first.files] == [
        ("/etc/bot/name", b"bot 1\n", 0o644, 0, 0),
        ("/srv/1/key", b"\0one", 0o600, 1000, 100),
    ]
    assert second.files[1].content == b"two"
    assert made.document()["elements"]["bot2"]["files"]["/srv/2/key"]["owner"] == "1000:100"
    assert made.elements["plain"].files == ()
    assert files.with_files(IDLE, ()) == IDLE
    command = files.with_files(first.args, first.files)
    assert command[:2] == ("/bin/sh", "-c")
    assert command[-2:] == IDLE
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(base64.b64decode(command[4])))) as archive:
        assert [(entry.name, entry.mode, entry.uid) for entry in archive] == [("etc/bot/name", 0o644, 0), ("srv/1/key", 0o600, 1000)]
    assert files.pack(first.files) == files.pack(first.files) != files.pack(second.files)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("keys/{n}", "none/{n}"), "v:6:30: the file none/1 was not given"),
        (("source:", "content: x, source:"), "has both, or none"),
        (("/etc/bot/name", "etc/bot/name"), "is no absolute path"),
        (("/etc/bot/name", "/etc/../name"), "is no absolute path"),
        (("0600", "0800"), "is no mode"),
        (('"1000:100"', "nobody"), "is no number of a user"),
        (("mode:", "mod:"), "mod"),
    ],
)
def test_mistakes_are_told_with_their_place(change: tuple[str, str], says: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^v:") as caught:
        plan.make((TEXT.replace(*change), "v"), None, SOURCES)
    assert says in caught.value.message
    assert caught.value.remedy


def test_what_is_too_large_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="more than 72 KiB, compressed"):
        plan.make((TEXT, "v"), None, SOURCES | {"keys/2": os.urandom(80_000)})
    assert plan.make((TEXT, "v"), None, SOURCES | {"keys/2": bytes(800_000)})
