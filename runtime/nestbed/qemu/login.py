"""Logging in to a machine that boots the node's own root: an sshd on the control network alone, for the node's users with their keys.

The users are the node's, because ``/etc/passwd`` is. What only the node's root may read is not in the guest: it has a host key of its own,
no password of anybody, and, where an administrator made it, the rules of sudo.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from nestbed.model import ExecSpec, Spec
from nestbed.qemu import frames
from nestbed.qemu.frames import FRAME_BYTES_MAX

SSHD = Path("/usr/sbin/sshd")
_CONFIG, _KEY, _SHADOW, _SUDOERS = (f"/run/nestbed-{name}" for name in ("sshd.conf", "sshd.key", "shadow", "sudoers"))
_CHANNEL, _PROGRAM_CHANNEL = 0, 3
_ROOM_BYTES = FRAME_BYTES_MAX - 64
_SCRIPT = f"""\
mkdir -p /run/sshd
cp --remove-destination -p {_SHADOW} /etc/shadow
[ ! -e {_SUDOERS} ] || cp --remove-destination -p {_SUDOERS} /etc/sudoers
exec {SSHD} -D -e -f {_CONFIG}
"""
"""What is copied is unreadable below: it is replaced, not opened."""


def is_possible(spec: Spec) -> bool:
    """Whether the machine boots this node's root, has a control NIC, and the node has an sshd."""
    return spec.control is not None and spec.qemu is not None and not spec.qemu.has_disk and os.access(SSHD, os.X_OK)


def new_host_key() -> bytes:
    """A host key, in OpenSSH's form."""
    # 9 MB of memory, which a node without machines has no use for.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat  # noqa: PLC0415

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def program(spec: Spec, host_key: bytes, etc: Path = Path("/etc")) -> bytes:
    """The frames that start it; ``etc`` is the node's."""
    assert spec.control is not None
    files = {
        _CONFIG: (_config(spec.control.addresses[0].partition("/")[0]), 0o644),
        _KEY: (host_key, 0o600),
        _SHADOW: (shadow(etc), 0o640),
        # Whoever may share directories is an administrator, who may read the rules.
        **({_SUDOERS: (sudoers(etc), 0o440)} if spec.process.mounts else {}),
    }
    told = [frames.write(_CHANNEL, path, content, mode) for path, (content, mode) in files.items() if 0 < len(content) <= _ROOM_BYTES]
    return b"".join((*told, frames.keep(_PROGRAM_CHANNEL, ExecSpec(("/bin/sh", "-c", _SCRIPT)))))


def _config(address: str) -> bytes:
    lines = (
        f"ListenAddress {address}",
        f"HostKey {_KEY}",
        "PidFile none",
        "LogLevel ERROR",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "Subsystem sftp internal-sftp",
    )
    return "".join(f"{line}\n" for line in lines).encode()


def shadow(etc: Path) -> bytes:
    """The guest's ``/etc/shadow``: nobody has a password, and nobody is expired; what does not fit is left out."""
    lines = b""
    with contextlib.suppress(OSError):
        for entry in (etc / "passwd").read_bytes().splitlines():
            line = entry.partition(b":")[0] + b":*:19000:0:99999:7:::\n"
            if len(lines) + len(line) <= _ROOM_BYTES and line[:1] != b":":
                lines += line
    return lines


def sudoers(etc: Path) -> bytes:
    """The node's rules of sudo in one file; b"" if it has none."""
    try:
        text = (etc / "sudoers").read_bytes()
    except OSError:
        return b""
    kept = [line for line in text.splitlines() if not line.lstrip().startswith((b"@include", b"#include"))]
    with contextlib.suppress(OSError):
        for path in sorted((etc / "sudoers.d").iterdir()):
            if "." not in path.name and not path.name.endswith("~") and path.is_file():
                kept += path.read_bytes().splitlines()
    return b"\n".join(kept) + b"\n"
