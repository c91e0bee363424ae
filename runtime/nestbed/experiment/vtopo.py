"""The words of a vtopo file: what an experiment is, without a word about machines. ``docs/experiments.md`` explains them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from nestbed.experiment import quantities
from nestbed.experiment.ranges import expand
from nestbed.experiment.source import Source
from nestbed.experiment.words import FLAG, POSITIVE, TEXT, Command, ListOf, MapOf, OneOf, Record, Scalar, load, quantity, whole, word
from nestbed.lan.addressing import MTU_MAX, MTU_MIN, check_mac

KINDS = ("process", "qemu", "machine")
ROUTINGS = ("static", "manual", "none")
NO_SUBNET = "none"

DEFAULT_PROJECT = "nestbed"
"""Of `compat: emulab`."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_PATH_MAX = 1024
_NAMES_TAKEN = ("localhost", "ip6-localhost", "ip6-loopback", "ip6-allnodes", "ip6-allrouters")


def check_name(text: str) -> str:
    """A name of an experiment, LAN, element or node, without a range.

    Raises:
        ValueError: it is none.
    """
    if not _NAME.fullmatch(text) or text.lower() in _NAMES_TAKEN:
        raise ValueError("is no name: use 1 to 31 of A-Z a-z 0-9 _ - and begin with a letter or digit")
    return text


def _names(text: str) -> str:
    for name, _ in expand(text):
        check_name(name)
    return text


def _pattern(text: str) -> str:
    if "{n}" not in text:
        return _names(text)
    _names(text.replace("{n}", "1"))
    return text


def _interface(text: str) -> str:
    if not _INTERFACE.fullmatch(text) or text in ("lo", "all", "default"):
        raise ValueError("is no name of an interface: use 1 to 15 of A-Z a-z 0-9 _ . -; lo, all and default are taken")
    return text


def _mount(text: str) -> tuple[str, str, bool]:
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(part.startswith("/") for part in parts[:2]) or parts[2:] not in ([], ["ro"], ["rw"]):
        raise ValueError("is not written like /source:/destination or /source:/destination:ro")
    return parts[0], parts[1], parts[2:] == ["ro"]


def _path(text: str) -> str:
    parts = text.split("/")
    if not text.startswith("/") or "\0" in text or len(text) > _PATH_MAX or any(part in ("", ".", "..") for part in parts[1:]):
        raise ValueError("is no absolute path of a file, without . and ..")
    return text


def _mode(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError("is no mode in octal digits")
    return int(text, 8)


def _owner(text: str) -> tuple[int, int]:
    user, colon, group = text.partition(":")
    numbers = (user, group if colon else user)
    if not all(number.isascii() and number.isdecimal() and len(number) < 10 for number in numbers):
        raise ValueError("is no number of a user, or two of a user and a group")
    return int(numbers[0]), int(numbers[1])


def _compat(text: str) -> str:
    kind, _, project = text.partition(":")
    if kind != "emulab" or not _NAME.fullmatch(project or DEFAULT_PROJECT):
        raise ValueError("is neither emulab nor emulab:PROJECT")
    return f"{kind}:{project or DEFAULT_PROJECT}"


def _restart(text: str) -> tuple[str, int]:
    mode, colon, retries = text.partition(":")
    if mode not in ("no", "on-failure", "always") or (colon and not (mode == "on-failure" and retries.isdecimal() and len(retries) < 10)):
        raise ValueError("is none of no, on-failure, on-failure:N, always")
    return mode, int(retries or 0)


NAME = Scalar("a name such as web", check_name, {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,30}$"})
NAMES = Scalar("a name such as web, or a range such as bot[1-40]", _names, {"type": "string"})
PATTERN = Scalar("a name, a range such as link[1-4], or one with {n} such as link{n}", _pattern, {"type": "string"})
INTERFACE = Scalar("the name of an interface, such as eth0", _interface, {"type": "string", "maxLength": 15})
MAC = Scalar("a unicast MAC address such as 02:00:00:00:00:07", check_mac, {"type": "string"})
PATH = Scalar("an absolute path such as /etc/motd", _path, {"type": "string", "pattern": "^/"})
MODE = Scalar('a mode such as "0644"', _mode, {"type": ["string", "number"], "examples": ["0644"]})
OWNER = Scalar("USER or USER:GROUP in numbers, such as 1000:1000", _owner, {"type": ["string", "number"], "examples": ["1000:1000"]})
DURATION = quantity("a time such as 10ms, 0.5s", quantities.duration_us)
TIME_LIMIT = quantity("a time such as 30s, 2m", quantities.duration_seconds)
RATE = quantity("a rate such as 10Mbit, 1Gbit", quantities.rate_bps)
FRACTION = quantity("a fraction such as 1%, 0.01", quantities.fraction)
SIZE = quantity("a size such as 64M, 2G", quantities.size_bytes)


@dataclass(frozen=True, slots=True)
class Impairing:
    """What is done to the frames of one direction of a NIC."""

    rate: int = word(RATE, "bits per second of Ethernet frames", 0)
    delay: int = word(DURATION, "delay", 0)
    jitter: int = word(DURATION, "most by which the delay of a frame differs", 0)
    loss: float = word(FRACTION, "share of frames that are lost", 0.0)
    duplicate: float = word(FRACTION, "share of frames that come twice", 0.0)
    corrupt: float = word(FRACTION, "share of frames in which a bit is changed", 0.0)
    reorder: float = word(FRACTION, "share of frames that overtake others", 0.0)
    limit: int = word(whole(1, 1_000_000), "frames that may wait", 0)


NOT_IMPAIRED = Impairing()


@dataclass(frozen=True, slots=True)
class LanWords:
    """One Ethernet segment."""

    subnet: str = word(TEXT, "IPv4 subnet such as 10.1.0.0/24; `none` for a LAN without IPv4; handed out of `pool` unless given", "")
    subnet6: str = word(TEXT, "IPv6 subnet such as fd00:1::/64; handed out of `pool6`, if there is one, unless given", "")
    mtu: int = word(whole(MTU_MIN, MTU_MAX), "largest packet in bytes", 1500)
    rate: int = word(RATE, "bits per second of Ethernet frames, from each member and to each", 0)
    delay: int = word(DURATION, "delay from one member to another, one way", 0)
    jitter: int = word(DURATION, "most by which the delay of a frame differs", 0)
    loss: float = word(FRACTION, "share of frames that are lost from one member to another", 0.0)
    duplicate: float = word(FRACTION, "share of frames that come twice", 0.0)
    corrupt: float = word(FRACTION, "share of frames in which a bit is changed", 0.0)
    reorder: float = word(FRACTION, "share of frames that overtake others", 0.0)
    limit: int = word(whole(1, 1_000_000), "frames that may wait", 0)


@dataclass(frozen=True, slots=True)
class NicWords:
    """An interface of an element on a LAN. The name of the LAN alone stands for one with all defaults; a range for several NICs."""

    lan: str = word(PATTERN, "the LAN")
    name: str = word(INTERFACE, "name inside: eth0, eth1, ... unless given", "")
    addresses: tuple[str, ...] = word(ListOf(TEXT), "addresses, such as 10.1.0.7/24 or 10.1.0.7; handed out lowest first unless given", ())
    mac: str = word(MAC, "MAC address; derived from the names of LAN and element unless given", "")
    to: Impairing = word(Record(Impairing), "what is done to frames to the element, beside the LAN's", NOT_IMPAIRED)
    from_: Impairing = word(Record(Impairing), "what is done to frames from the element, beside the LAN's", NOT_IMPAIRED, key="from")


@dataclass(frozen=True, slots=True)
class RouteWords:
    """A route of an element."""

    to: str = word(TEXT, "destination: CIDR, `default`, or the name of a LAN")
    via: str = word(TEXT, "next hop: an address, or the name of an element on the same LAN")


@dataclass(frozen=True, slots=True)
class LimitWords:
    """What an element may use."""

    cpus: float | None = word(POSITIVE, "processors, such as 1.5", None)
    memory: int | None = word(SIZE, "memory", None)
    pids: int | None = word(whole(1, 1 << 22), "processes and threads", None)
    io_weight: int | None = word(whole(1, 10000), "weight of block I/O", None)


@dataclass(frozen=True, slots=True)
class ReadyWords:
    """When an element counts as ready, and how long that may take. All that is given must hold."""

    log: str = word(TEXT, "its output holds this text", "")
    port: int = word(whole(1, 65535), "something inside listens on this TCP port", 0)
    command: tuple[str, ...] = word(Command(), "this, run inside, ends with 0", ())
    report: str = word(TEXT, "its programs reported this, such as state=ready", "")
    ended: bool = word(FLAG, "its program has ended with 0", False)
    timeout: float = word(TIME_LIMIT, "how long it may take", 30.0)


READY_WHEN_RUNNING = ReadyWords()


@dataclass(frozen=True, slots=True)
class FileWords:
    """A file of an element: there before its program, at every start. A text alone is its content."""

    content: str = word(TEXT, "what it holds", "")
    source: str = word(TEXT, "path of a file with what it holds, seen from the vtopo file", "")
    mode: int = word(MODE, "access rights", 0o644)
    owner: tuple[int, int] = word(OWNER, "whose it is; root's unless given", (0, 0))


@dataclass(frozen=True, slots=True)
class ElementWords:
    """A member of the experiment: a process, a virtual machine, or a machine."""

    kind: str = word(OneOf(KINDS), "what realises it: process, qemu or machine", "process")
    nics: tuple[NicWords, ...] = word(ListOf(Record(NicWords, short="lan")), "its interfaces, in order", ())
    command: tuple[str, ...] = word(Command(), "its program: a list, or a text for the shell; without one it idles", ())
    startup: tuple[str, ...] = word(Command(), "run first, inside, to its end; must end with 0. Only without `command`", ())
    user: str = word(TEXT, "USER[:GROUP] of the program", "")
    workdir: str = word(TEXT, "working directory of the program", "")
    env: dict[str, str] = word(MapOf(TEXT, TEXT), "environment variables", {})
    fs: str = word(TEXT, "file system: host, host-ro, overlay, overlay=DIR, rootfs=DIR; the node's default unless given", "")
    files: dict[str, FileWords] = word(MapOf(Record(FileWords, short="content"), PATH), "files by their paths inside", {})
    mounts: tuple[tuple[str, str, bool], ...] = word(
        ListOf(Scalar("/source:/destination[:ro]", _mount, {"type": "string"})), "further mounts, /source:/destination[:ro]", ()
    )
    sysctls: dict[str, str] = word(MapOf(TEXT, TEXT), "sysctls of its namespaces", {})
    cap_add: tuple[str, ...] = word(ListOf(TEXT), "capabilities beside the default ones", ())
    cap_drop: tuple[str, ...] = word(ListOf(TEXT), "capabilities of the default ones that it does not get; ALL is all", ())
    limits: LimitWords = word(Record(LimitWords), "what it may use", LimitWords())
    restart: tuple[str, int] = word(
        Scalar("no, on-failure, on-failure:N or always", _restart, {"type": "string"}),
        "whether it is started again when it ends",
        ("no", 0),
    )
    image: str = word(TEXT, "disk image of a qemu element; the node's own root unless given", "")
    labels: dict[str, str] = word(MapOf(TEXT, TEXT), "labels to select by", {})
    control: bool | None = word(FLAG, "whether it has a NIC on its node's control network: if it is a virtual machine, unless given", None)
    compat: str = word(
        Scalar("emulab, or emulab:PROJECT", _compat, {"type": "string"}),
        "whose boot files a qemu element has: emulab's in /var/emulab/boot; none unless given",
        "",
    )
    forward: bool | None = word(FLAG, "whether it forwards packets: if it has several NICs, unless given", None)
    routes: tuple[RouteWords, ...] = word(ListOf(Record(RouteWords)), "routes of its own, beside the computed ones", ())
    after: tuple[str, ...] = word(ListOf(NAMES), "elements (or ranges) that must be ready before it starts", ())
    ready: ReadyWords = word(Record(ReadyWords), "when it counts as ready: as soon as it runs, unless given", READY_WHEN_RUNNING)


@dataclass(frozen=True, slots=True)
class Vtopo:
    """A virtual topology: elements on LANs."""

    experiment: str = word(NAME, "its name")
    lans: dict[str, LanWords] = word(MapOf(Record(LanWords), NAMES), "LANs by name; a name may be a range", {})
    elements: dict[str, ElementWords] = word(MapOf(Record(ElementWords), NAMES), "elements by name; a name may be a range", {})
    description: str = word(TEXT, "what it is for", "")
    pool: str = word(TEXT, "IPv4 subnet out of which LANs get theirs", "10.0.0.0/8")
    pool6: str = word(TEXT, "IPv6 subnet out of which LANs get theirs; without it they get none", "")
    prefix: int = word(whole(1, 30), "prefix length of IPv4 subnets that are handed out; a LAN with more members gets a larger one", 24)
    routing: str = word(OneOf(ROUTINGS), "static: shortest paths for every element; manual: only `routes`; none", "static")


def read(text: str, name: str) -> tuple[Vtopo, Source]:
    """The vtopo file ``name`` with this content, and where its words stand. Only words are checked here.

    Raises:
        InvalidArgument: with file, line and column.
    """
    found: tuple[Any, Source] = load(text, name, Vtopo)
    return found
