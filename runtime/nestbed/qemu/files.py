"""What a machine has in its bundle, below ``vm/``: written whole, by renaming, so that the warden never reads half of it.

``vmlinuz initrd warden`` (links to the node's), ``root/ empty/`` (the sandbox's root), ``plan program hosts nics.json`` (ours),
``image.json base disk.qcow2 seed.iso`` (of a machine with a disk: ``nestbed.qemu.drive``),
``state console.log console.log.1 agent.sock qmp.sock`` (the warden's).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from pathlib import Path

from nestbed.errors import CorruptState, translated
from nestbed.model import Bundle
from nestbed.qemu import login, sandbox
from nestbed.qemu.plan import Word, parse_state
from nestbed.qemu.store import Boot
from nestbed.runtime import NODE_CREDENTIALS

_STATE_BYTES = 4096
_TAIL_BYTES = 4096
_TERMINAL = re.compile(r"\x1b(?:\[[0-9;?]*[@-~]|c)")
"""What a console is told about colours and places."""


class Files:
    """The directory ``vm`` of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self.directory = bundle.path / sandbox.DIRECTORY
        self._id = bundle.id
        self._console_past = 0

    def make(self, boot: Boot) -> None:
        """Make the directory with what does not change."""
        with translated(f"making {self.directory}", path=self.directory):
            self.directory.mkdir(mode=0o711)
            self.directory.chmod(0o711)
            sandbox.make_root(self.directory)
            for source, name in ((boot.kernel, "vmlinuz"), (boot.initrd, "initrd"), (boot.warden, "warden")):
                if source is not None:
                    link(source, self.directory / name)
            if boot.modules is not None:
                # 1,100 hard links, 15 ms: a mount from elsewhere in the state directory is hidden from every container.
                shutil.copytree(boot.modules, self.directory / "modules" / boot.modules.name, copy_function=link, symlinks=True)
                for path in (self.directory / "modules", *(self.directory / "modules").rglob("*/")):
                    path.chmod(0o755)
        self.write("hosts", b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")

    def write(self, name: str, content: bytes) -> None:
        """Replace a file."""
        path = self.directory / name
        with translated(f"writing {path}", path=path):
            new = self.directory / f"{name}.new"
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(content)
            new.rename(path)

    def hosts(self) -> bytes:
        """The guest's hosts file."""
        with translated(f"reading the hosts of container {self._id}"):
            return (self.directory / "hosts").read_bytes()

    def host_key(self) -> bytes:
        """By what sshd in the guest is known: made when it is first asked for."""
        path = self.directory / "sshd.key"
        with translated(f"reading the host key of container {self._id}", container=self._id), contextlib.suppress(FileNotFoundError):
            return path.read_bytes()
        key = login.new_host_key()
        self.write(path.name, key)
        return key

    def credentials(self) -> dict[str, bytes]:
        """By what the node inside is known."""
        with translated(f"reading the certificate of the node in container {self._id}", container=self._id):
            return {path.name: path.read_bytes() for path in (self.directory.parent / NODE_CREDENTIALS).iterdir()}

    def write_numbers(self, numbers: dict[str, int]) -> None:
        """Keep which NIC has which device."""
        self.write("nics.json", json.dumps(numbers).encode())

    def read_numbers(self) -> dict[str, int]:
        """Which NIC has which device.

        Raises:
            CorruptState: that is not known.
        """
        try:
            numbers = json.loads((self.directory / "nics.json").read_bytes())
            return {str(name): int(number) for name, number in numbers.items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise CorruptState(
                f"the bundle of container {self._id} cannot be understood: nics.json: {error}",
                reason="CORRUPT_BUNDLE",
                remedy="delete the container",
                container=self._id,
                cause=error,
            ) from error

    def forget_state(self) -> None:
        """Remove what the warden wrote of an earlier run, and take what the console said in it for the past."""
        with translated(f"removing the state of container {self._id}"):
            (self.directory / "state").unlink(missing_ok=True)
            self._console_past = (self.directory / "console.log").stat().st_size if (self.directory / "console.log").exists() else 0

    def state(self) -> Word:
        """What the warden wrote last."""
        try:
            fd = os.open(self.directory / "state", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return Word("none")
        with open(fd, "rb") as file:
            return parse_state(file.read(_STATE_BYTES).decode(errors="replace"))

    def console_tail(self, lines: int = 3) -> str:
        """The last lines of the guest's console that tell something, as one line of text."""
        try:
            fd = os.open(self.directory / "console.log", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return ""
        with open(fd, "rb") as file:
            size = os.fstat(fd).st_size
            past = self._console_past if self._console_past <= size else 0  # it was rotated
            file.seek(max(past, size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
        text = _TERMINAL.sub("", text)
        kept = ["".join(char for char in line if char.isprintable()).strip() for line in text.splitlines()]
        kept = [line for line in kept if line]
        telling = [line for line in kept if "panic" in line or line.startswith("nestbed:")]
        return " | ".join((telling or kept)[-lines:])


def link(source: Path | str, target: Path | str) -> None:
    """A hard link, or where another file system begins a copy."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        shutil.copy2(source, target)
