"""Whether KVM works on this machine: tried, not believed. ``/dev/kvm`` may be there, open, and then never run a guest.

The trial is a guest of a few instructions that switches to protected mode, counts, and ends QEMU by its debug port. What came of
it is kept in the run directory together with the boot id, so that a daemon that starts anew does not try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nestbed.errors import translated
from nestbed.qemu.command import QEMU

_DEVICE = "/dev/kvm"
_FILE = "accelerator.json"
_SECONDS = 3.0
_LIMIT_SECONDS = 5
_ANSWER = 0x21
"""QEMU's exit code when the guest wrote 0x10 to the debug port: (0x10 << 1) | 1 (hw/misc/debugexit.c)."""
_FIRMWARE_BYTES = 1 << 16

_PROTECTED = bytes.fromhex(
    # 32-bit code at linear 0xf0000: mov eax,10 / mov cr.. was done; count; mov al,0x10; out 0xf4,al; hlt
    "b900000100"  # mov ecx, 0x10000
    "e2fe"  # loop $
    "b010"  # mov al, 0x10
    "e6f4"  # out 0xf4, al
    "f4"  # hlt
)
_REAL = bytes.fromhex(
    "fa"  # cli
    "2e0f01163001"  # lgdt cs:[0x130]
    "0f20c0"  # mov eax, cr0
    "0c01"  # or al, 1
    "0f22c0"  # mov cr0, eax
    "66ea00000f000800"  # jmp dword 0x08:0x000f0000
)
_GDT = bytes.fromhex("0000000000000000ffff0000009acf00ffff00000092cf00")
_GDT_AT, _GDTR_AT, _REAL_AT, _RESET_AT = 0x100, 0x130, 0x80, 0xFFF0


@dataclass(frozen=True, slots=True)
class Accelerator:
    """``name`` is ``kvm`` or ``tcg``; ``why`` says what decided."""

    name: str
    why: str


def firmware() -> bytes:
    """The trial's firmware: 64 KiB that the machine shows at 0xf0000, where it begins."""
    image = bytearray(b"\xf4" * _FIRMWARE_BYTES)
    jump = b"\xe9" + ((_REAL_AT - (_RESET_AT + 3)) & 0xFFFF).to_bytes(2, "little")
    descriptor = (len(_GDT) - 1).to_bytes(2, "little") + (0xF0000 + _GDT_AT).to_bytes(4, "little")
    for at, code in ((0, _PROTECTED), (_REAL_AT, _REAL), (_GDT_AT, _GDT), (_GDTR_AT, descriptor), (_RESET_AT, jump)):
        image[at : at + len(code)] = code
    return bytes(image)


def this_boot() -> str:
    """The boot id (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def known(run_dir: Path) -> Accelerator | None:
    """What was found out since the machine was started; None if nobody has tried, and it takes a trial to know."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads((run_dir / _FILE).read_bytes())
        if kept["boot_id"] == this_boot():
            return Accelerator(str(kept["name"]), str(kept["why"]))
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return Accelerator("tcg", f"there is no {_DEVICE} to use")
    return None


async def find(run_dir: Path) -> Accelerator:
    """What this machine runs guests with; tries at most once per boot."""
    found = known(run_dir)
    if found is None:
        found = await _try(run_dir)
        path = run_dir / _FILE
        with translated(f"writing {path}", path=path):
            new = path.with_suffix(".new")
            new.write_text(json.dumps({"boot_id": this_boot(), "name": found.name, "why": found.why}))
            new.rename(path)
    return found


def _forget_trials(run_dir: Path) -> None:
    """Remove what a daemon left that died while it tried."""
    for stale in run_dir.glob("trial-*"):
        shutil.rmtree(stale)


async def _try(run_dir: Path) -> Accelerator:
    _forget_trials(run_dir)
    with tempfile.TemporaryDirectory(prefix="trial-", dir=run_dir) as directory:
        image = Path(directory) / "firmware"
        image.write_bytes(firmware())
        code = await trial(image, "kvm")
    if code == _ANSWER:
        return Accelerator("kvm", f"a trial guest ran with {_DEVICE}")
    if code is None:
        return Accelerator("tcg", f"{_DEVICE} is there, but a trial guest did not end within {_SECONDS:.0f} s")
    return Accelerator("tcg", f"{_DEVICE} is there, but QEMU ended with code {code} when it used it")


async def trial(image: Path, accelerator: str, seconds: float = _SECONDS) -> int | None:
    """Run the trial guest: QEMU's exit code (33 if it ran), None if it did not end in time."""
    # A guest that hangs ends by itself, whatever becomes of us: by its processor time, or else by the clock.
    words = (
        "/usr/bin/timeout", "--signal=KILL", f"{_LIMIT_SECONDS}", "/usr/bin/prlimit", f"--cpu={_LIMIT_SECONDS}", "--",
        QEMU, "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
        "-machine", "pc,usb=off", "-accel", accelerator, "-m", "16M", "-bios", str(image),
        "-device", "isa-debug-exit,iobase=0xf4,iosize=0x01",
    )  # fmt: skip
    devnull = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *words, stdin=devnull, stdout=devnull, stderr=devnull, env={"PATH": "/usr/bin:/bin"}, start_new_session=True
    )
    try:
        async with asyncio.timeout(seconds):
            return await process.wait()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session
            await process.wait()
