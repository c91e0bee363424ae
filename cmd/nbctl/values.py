"""Values as they are written on a command line. Each function reads one form and raises :class:`Usage` for anything else."""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from nbctl import impairments
from nbctl.failure import Usage, nearest

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
BYTES_MAX = (1 << 63) - 1


def size(text: str) -> int:
    """Bytes of ``64m``, ``1.5g``, ``512k``, ``64MiB``, ``1048576``: all units are powers of 1024, in either case.

    >>> size("1.5k")
    1536
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise Usage(f"'{text}' is not a size", remedy="write a number and k, m, g or t, such as 64m or 1.5g")
    number, unit = match.groups()
    scale = _UNITS[unit.lower()]
    count = int(number) * scale if number.isdecimal() else round(float(number) * scale)
    if not 0 < count <= BYTES_MAX:
        raise Usage(f"the size '{text}' is out of range", remedy="write a size above 0 and below 8192p")
    return count


_SPANS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", re.ASCII)


def duration(text: str) -> float:
    """Seconds of ``10``, ``1.5s``, ``10m``, ``1h30m``, ``250ms``, ``2d``.

    >>> duration("1h30m")
    5400.0
    """
    parts = list(_SPAN.finditer(text))
    if not parts or "".join(part[0] for part in parts) != text or (len(parts) > 1 and not all(part[2] for part in parts)):
        raise Usage(f"'{text}' is not a span of time", remedy="write a number and ms, s, m, h or d, such as 10s, 1h30m or 250ms")
    seconds = sum(float(number) * _SPANS[unit] for number, unit in (part.groups() for part in parts))
    if seconds > 10_000 * 365 * 86400.0:
        raise Usage(f"the span of time '{text}' is out of range", remedy="write less than ten thousand years")
    return seconds


def moment(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time, or of a span of time before now (``10m``)."""
    if not re.match(r"\d{4}-", text):
        return time.time() - duration(text)
    from datetime import datetime  # noqa: PLC0415 - most commands know no time

    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError) as error:
        raise Usage(
            f"'{text}' is not a time",
            remedy="write 2026-01-02T03:04:05Z, with another zone +02:00, or a span of time before now such as 10m",
        ) from error


def cpus(text: str) -> float:
    """Processors: ``0.5``, ``2``."""
    try:
        count = float(text)
    except ValueError:
        count = math.nan
    if not 0 < count < math.inf:
        raise Usage(f"'{text}' is not a number of processors", remedy="write a number above 0, such as 0.5 or 2")
    return count


def whole(least: int, most: int = (1 << 63) - 1) -> Callable[[str], int]:
    """A reader of whole numbers from ``least`` to ``most``."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,19}", text) or not least <= int(text) <= most:
            bounds = f"from {least} to {most}" if most < 1 << 31 else f"of {least} or more"
            raise Usage(f"'{text}' is not a number that fits here", remedy=f"write a whole number {bounds}")
        return int(text)

    return read


def tail(text: str) -> int | None:
    """Lines to show from the end: a number, or None for ``all``."""
    return None if text == "all" else whole(0)(text)


def signal_number(text: str) -> int:
    """The number of ``9``, ``KILL``, ``SIGKILL``, ``kill`` or ``RTMIN+1``."""
    if re.fullmatch(r"[0-9]{1,3}", text) and 1 <= int(text) <= signal.SIGRTMAX:
        return int(text)
    name = text.upper().removeprefix("SIG")
    known = {member.name.removeprefix("SIG"): int(member) for member in signal.Signals}
    match = re.fullmatch(r"RTMIN\+([0-9]{1,2})", name)
    if match and signal.SIGRTMIN + int(match[1]) <= signal.SIGRTMAX:
        return signal.SIGRTMIN + int(match[1])
    if name not in known:
        meant = nearest(name, list(known))
        raise Usage(
            f"'{text}' is no signal", remedy=f"did you mean {meant}?" if meant else "write a name such as TERM or a number such as 15"
        )
    return known[name]


def pair(text: str) -> tuple[str, str]:
    """``KEY=VALUE``; the value may be empty and may hold further ``=``."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise Usage(f"'{text}' is not KEY=VALUE", remedy="write a name, = and a value, without blanks around the =")
    return key, value


def variable(text: str, where: str = "--env") -> str:
    """``NAME=VALUE``, or ``NAME`` for the value nbctl itself has; ``where`` says where it stands."""
    name = text.partition("=")[0]
    if not name or any(char.isspace() for char in name):
        raise Usage(f"{where}: '{text}' sets no variable", remedy="write NAME=VALUE, or NAME to pass the value nbctl itself has")
    return text


class LanArgument(NamedTuple):
    """``--lan LAN[,ip=CIDR]...[,mac=MAC][,name=IF][,delay=TIME]...``: the node decides whether the values fit.

    ``impairment`` are fields of the API's message, for both directions.
    """

    lan: str
    name: str = ""
    mac: str = ""
    addresses: tuple[str, ...] = ()
    impairment: tuple[tuple[str, float], ...] = ()


def lan(text: str) -> LanArgument:
    """Read the argument of ``--lan``; ``ip=`` may be repeated, the others may not."""
    name, *options = text.split(",")
    if not name or "=" in name:
        raise Usage(f"'{text}' names no LAN", remedy="write --lan LAN[,ip=CIDR][,mac=MAC][,name=IF][,delay=5ms]...")
    values: dict[str, list[str]] = {key: [] for key in ("ip", "mac", "name", *impairments.KINDS)}
    for option in options:
        key, value = _option(option, list(values), f"--lan {name}")
        if values[key] and key != "ip":
            raise Usage(f"--lan {name} has {key}= twice", remedy="leave one of them out")
        values[key].append(value)
    impaired = tuple((kind.field, kind.read(values[key][0])) for key, kind in impairments.KINDS.items() if values[key])
    return LanArgument(name, "".join(values["name"]), "".join(values["mac"]), tuple(values["ip"]), impaired)


def _option(text: str, known: list[str], where: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if key not in known:
        meant = nearest(key, known)
        hint = f"did you mean {meant}=?" if meant else "the options are " + ", ".join(f"{name}=" for name in known)
        raise Usage(f"{where}: there is no option '{key}'", remedy=hint)
    if not equals or not value:
        raise Usage(f"{where}: {key} has no value", remedy=f"write {key}=VALUE")
    return key, value


def mount(text: str) -> tuple[str, str, bool]:
    """``SOURCE:DESTINATION[:ro|rw]``: source, destination, and whether it is read-only."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise Usage(f"'{text}' is not SOURCE:DESTINATION[:ro]", remedy="write two absolute paths, such as /srv/data:/data:ro")
    mode = parts[2] if len(parts) == 3 else "rw"
    if mode not in {"ro", "rw"}:
        raise Usage(f"'{mode}' is no mode of a mount", remedy="write :ro, or nothing for read and write")
    for path in parts[:2]:
        if not path.startswith("/"):
            raise Usage(f"the path '{path}' of a mount is not absolute", remedy="write the whole path, beginning with /")
    return parts[0], parts[1], mode == "ro"


def route(text: str) -> tuple[str, str]:
    """``DESTINATION,via=GATEWAY``: both."""
    destination, _, rest = text.partition(",")
    key, _, via = rest.partition("=")
    if not destination or key != "via" or not via:
        raise Usage(f"'{text}' is not DESTINATION,via=GATEWAY", remedy="write a route such as 10.6.0.0/24,via=10.5.0.1")
    return destination, via


FS_MODES = ("host", "host-ro", "overlay", "rootfs")


def fs(text: str) -> tuple[str, str]:
    """``host|host-ro|overlay[=DIR]|rootfs=DIR``: mode and directory."""
    mode, equals, directory = text.partition("=")
    if mode not in FS_MODES:
        meant = nearest(mode, list(FS_MODES))
        raise Usage(
            f"'{mode}' is no file system mode", remedy=f"did you mean {meant}?" if meant else "the modes are " + ", ".join(FS_MODES)
        )
    if (mode == "rootfs") > bool(directory) or (equals and not directory):
        raise Usage(f"'{text}' names no directory", remedy=f"write {mode}=DIR")
    if mode in {"host", "host-ro"} and equals:
        raise Usage(f"the file system mode {mode} takes no directory", remedy=f"write --fs {mode}")
    if directory and not directory.startswith("/"):
        raise Usage(f"the directory '{directory}' of --fs is not absolute", remedy="write the whole path, beginning with /")
    return mode, directory


def restart(text: str) -> tuple[str, int]:
    """``no|on-failure[:N]|always``: mode and most retries, 0 for without bound."""
    mode, colon, count = text.partition(":")
    known = ["no", "on-failure", "always"]
    if mode not in known:
        meant = nearest(mode, known)
        raise Usage(
            f"'{mode}' is no restart policy", remedy=f"did you mean {meant}?" if meant else "the policies are no, on-failure[:N], always"
        )
    if colon and (mode != "on-failure" or not re.fullmatch(r"[0-9]{1,9}", count)):
        raise Usage(f"'{text}' is no restart policy", remedy="only on-failure takes a number of retries, such as on-failure:3")
    return mode, int(count) if count else 0
