"""What the relay process tells the BPF programs: which LANs have other sockets of this machine as members. It imports little."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

from nestbed.linux import bpf

_SLOTS = 65536
_WORD = struct.Struct("=I")


def lan_key(lan_id: str) -> int:
    """What the maps call a LAN."""
    return int.from_bytes(hashlib.sha256(lan_id.encode()).digest()[:8], "big")


def set_flags(pin_dir: Path, has_members: Mapping[str, bool]) -> None:
    """For each of these LANs, by id, whether its frames are copied to its tap. The map is ``members`` of ``bpf/lan_maps.h``.

    Raises:
        OSError: ENOENT, there is no fast path.
    """
    with bpf.Map.pinned(pin_dir / "members") as flags:
        for lan_id, value in has_members.items():
            flags.update(_WORD.pack(lan_key(lan_id) % _SLOTS), _WORD.pack(value))
