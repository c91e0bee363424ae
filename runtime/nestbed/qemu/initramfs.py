"""The initial file system of a guest: our agent as its first process, and the modules it loads. Pure but for reading the modules.

Format: cpio "newc", as the kernel's Documentation/driver-api/early-userspace/buffer-format.rst has it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nestbed.errors import HostLacks

MODULES = ("virtio_pci", "virtio_console", "virtio_net", "virtio_blk", "virtio-rng", "virtiofs", "overlay")
"""What a guest needs before it has a root file system, with what these depend on."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of the archive."""

    name: str
    mode: int
    content: bytes = b""


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive; the same for the same entries."""
    pieces = [_member(number, entry) for number, entry in enumerate((*entries, Entry("TRAILER!!!", 0)), 1)]
    return b"".join(pieces)


def _member(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    fields = (number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(header) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def contents(agent: bytes, modules: Sequence[tuple[str, bytes]]) -> list[Entry]:
    """What is in it: ``modules`` are names and contents in the order in which they are loaded."""
    folders = [Entry(name, stat.S_IFDIR | 0o755) for name in ("dev", "proc", "sys", "root", "lower", "changes", "lib")]
    files = [Entry(f"lib/{name}", stat.S_IFREG | 0o644, content) for name, content in modules]
    listing = "".join(f"/lib/{name}\n" for name, _ in modules)
    return [
        *folders,
        Entry("init", stat.S_IFREG | 0o755, agent),
        Entry("modules", stat.S_IFREG | 0o644, listing.encode()),
        *files,
    ]


def find_modules(tree: Path, wanted: Sequence[str] = MODULES) -> list[tuple[str, bytes]]:
    """The modules ``wanted`` of the kernel whose ``lib/modules/VERSION`` is ``tree``, each after those it depends on; not those that are
    built into the kernel.

    Raises:
        HostLacks: this kernel has no such module (reason KERNEL_UNSUITABLE).
    """
    files = {_canonical(path.name.removesuffix(".ko")): path for path in tree.rglob("*.ko")}
    builtin = tree / "modules.builtin"
    found: dict[str, bytes] = {}
    done = {_canonical(Path(line).stem) for line in (builtin.read_text().splitlines() if builtin.exists() else ())}

    def add(name: str) -> None:
        name = _canonical(name)
        if name in found or name in done:
            return
        if name not in files:
            raise HostLacks(
                f"the kernel for virtual machines has no module {name}",
                reason="KERNEL_UNSUITABLE",
                remedy="remove STATE_DIR/vm/kernels, so that it is fetched again",
                module=name,
            )
        content = files[name].read_bytes()
        for dependency in dependencies(content):
            add(dependency)
        found[name] = content

    for name in wanted:
        add(name)
    return [(f"{name}.ko", content) for name, content in found.items()]


def dependencies(module: bytes) -> list[str]:
    """What a module needs loaded before it, by its ``depends=`` (modinfo(8))."""
    start = module.find(b"\0depends=")
    if start < 0:
        return []
    start += len(b"\0depends=")
    text = module[start : module.index(b"\0", start)].decode()
    return [name for name in text.split(",") if name]


def _canonical(name: str) -> str:
    return name.replace("-", "_")
