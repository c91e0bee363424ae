"""What nestbedd is told: options over the configuration file over defaults."""

from __future__ import annotations

import argparse
import difflib
import enum
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from nestbed import __version__
from nestbed.errors import InvalidArgument, translated
from nestbed.lan.addressing import check_subnet
from nestbed.lanmodel import RelayMode


class LogLevel(enum.StrEnum):
    """From which level on messages are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class YesNo(enum.StrEnum):
    """Whether something is so."""

    YES = "yes"
    NO = "no"


PORT = 7411
_ONCE = "release_control_nic"
"""No setting, but what is to be done instead of serving."""
_INTERFACE_BYTES = 16
"""IFNAMSIZ, with the final NUL."""
Choice = TypeVar("Choice", bound=enum.StrEnum)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_NAME_RULE = "begin with a letter or digit and go on with up to 62 letters, digits, `_`, `.`, `-`"


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked settings. ``listen`` are pairs of host and port; the TLS files are all given or all None. ``release_control_nic``: do that
    instead of serving.
    """

    name: str
    run_dir: Path
    state_dir: Path
    listen: tuple[tuple[str, int], ...]
    tls_cert: Path | None
    tls_key: Path | None
    tls_client_ca: Path | None
    underlay: tuple[str, ...]
    relay: RelayMode
    file_systems: tuple[str, ...]
    control_subnet: str
    control_nic: str
    machine_element: bool
    log_level: str
    release_control_nic: bool


def read(arguments: Sequence[str]) -> Settings:
    """The settings of a command line and of the file it names.

    ``--help``, ``--version`` and options that do not exist end the process, as argparse does.

    Raises:
        NestbedError: a file cannot be read, or a value is wrong.
    """
    options = vars(_parser().parse_args(arguments))
    config = options.pop("config")
    given = {key: value for key, value in options.items() if value is not None}
    told = _file(Path(config)) if config else {}
    return _checked({**_defaults(), **told, **given})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nestbedd",
        description="Run containers and LANs on this machine.",
        epilog="Options win over the file. See docs/operations.md.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with the settings below, `_` for `-` (none unless given)")
    parser.add_argument("--name", metavar="NODE", help="name of the node (the host name)")
    parser.add_argument("--run-dir", metavar="DIR", help="sockets and what a reboot may forget (/run/nestbed)")
    parser.add_argument("--state-dir", metavar="DIR", help="what must outlive a reboot (/var/lib/nestbed)")
    parser.add_argument(
        "--listen", metavar="tcp://ADDR:PORT", action="append", help="serve TCP, too; needs the three TLS files; may be repeated"
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate of the node, PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its key, PEM")
    parser.add_argument("--tls-client-ca", metavar="FILE", help="authority that signs clients' certificates, PEM")
    parser.add_argument(
        "--underlay",
        metavar="IF[,IF...]",
        action="extend",
        type=lambda text: text.split(","),
        help="interfaces that carry LANs to other nodes (none: LANs stay on this one); may be repeated",
    )
    parser.add_argument(
        "--relay", metavar="HOW", help="what carries them: auto, kernel (only by BPF) or userspace (only by the relay process) (auto)"
    )
    parser.add_argument(
        "--file-system",
        dest="file_systems",
        metavar="DIR[,DIR...]",
        action="extend",
        type=lambda text: [path for path in text.split(",") if path],
        help="directories of the testbed that an administrator's virtual machines share (/home,/proj,/groups,/share; `,` for none)",
    )
    parser.add_argument(
        "--control-subnet", metavar="CIDR", help="IPv4 subnet of the control network of virtual machines (a free one of 172.31.0.0/16)"
    )
    parser.add_argument(
        "--control-nic",
        metavar="IF",
        help="the node's NIC that is to be in the control network, so that its virtual machines are reached by it (none)",
    )
    parser.add_argument(
        "--release-control-nic",
        action="store_true",
        default=None,
        help="take that NIC out of the control network again, and end: for a node whose daemon is stopped",
    )
    parser.add_argument(
        "--machine-element",
        metavar="yes|no",
        help="whether administrators may make this machine itself an element of experiments, with NICs on their LANs (no)",
    )
    parser.add_argument("--log-level", metavar="LEVEL", help=f"one of {', '.join(LogLevel)} (info)")
    parser.add_argument("--version", action="version", version=f"nestbedd {__version__}")
    return parser


def _defaults() -> dict[str, Any]:
    return {
        "name": re.sub(r"[^A-Za-z0-9_.-]", "-", os.uname().nodename).strip("-_.")[:63] or "node",
        "run_dir": "/run/nestbed",
        "state_dir": "/var/lib/nestbed",
        "listen": [],
        "tls_cert": None,
        "tls_key": None,
        "tls_client_ca": None,
        "underlay": [],
        "relay": "auto",
        "file_systems": ["/home", "/proj", "/groups", "/share"],
        "control_subnet": "",
        "control_nic": "",
        "machine_element": "no",
        "log_level": "info",
    }


def _file(path: Path) -> Mapping[str, Any]:
    """The settings in a TOML file: only known keys, each of its type."""
    with translated(f"reading {path}", path=path), path.open("rb") as file:
        try:
            told = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidArgument(
                f"{path} is no TOML: {error}", reason="BAD_CONFIG", remedy="correct the place that is named", path=path
            ) from error
    for key, value in told.items():
        _check_key(path, key)
        _check_type(path, key, value)
    return told


def _check_key(path: Path, key: str) -> None:
    known = [field.name for field in fields(Settings) if field.name != _ONCE]
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        raise InvalidArgument(
            f"{path}: there is no setting {key!r}", reason="UNKNOWN_SETTING", remedy=f"did you mean {nearest!r}?", path=path, key=key
        )


def _check_type(path: Path, key: str, value: object) -> None:
    if key in ("listen", "underlay", "file_systems"):
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        wanted = "a list of texts"
    else:
        fits, wanted = isinstance(value, str), "a text in quotes"
    if not fits:
        raise InvalidArgument(f"{path}: {key} is not {wanted}", reason="BAD_SETTING", remedy=f"give {wanted}", path=path, key=key)


def _checked(values: Mapping[str, Any]) -> Settings:
    if not _NAME.fullmatch(values["name"]):
        raise _bad("name", values["name"], _NAME_RULE)
    settings = Settings(
        name=values["name"],
        run_dir=_absolute("run_dir", values["run_dir"]),
        state_dir=_absolute("state_dir", values["state_dir"]),
        listen=tuple(_endpoint(text) for text in values["listen"]),
        tls_cert=_optional(values["tls_cert"]),
        tls_key=_optional(values["tls_key"]),
        tls_client_ca=_optional(values["tls_client_ca"]),
        underlay=_underlays(values["underlay"]),
        relay=_one_of(RelayMode, "relay", values["relay"]),
        file_systems=tuple(str(_absolute("file_systems", path)) for path in values["file_systems"]),
        control_subnet=check_subnet(values["control_subnet"], 4) if values["control_subnet"] else "",
        control_nic=_control_nic(values["control_nic"], values["underlay"]),
        machine_element=_one_of(YesNo, "machine_element", values["machine_element"]) is YesNo.YES,
        release_control_nic=bool(values.get(_ONCE)),
        log_level=_one_of(LogLevel, "log_level", values["log_level"]).value,
    )
    _check_tls(settings)
    return settings


def _check_tls(settings: Settings) -> None:
    files = {"--tls-cert": settings.tls_cert, "--tls-key": settings.tls_key, "--tls-client-ca": settings.tls_client_ca}
    missing = [option for option, path in files.items() if path is None]
    if settings.listen and missing:
        raise InvalidArgument(
            f"TCP is served with mutual TLS only, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            reason="TLS_REQUIRED",
            remedy="give --tls-cert, --tls-key and --tls-client-ca, or no --listen",
            missing=",".join(missing),
        )
    if missing and len(missing) < len(files):
        raise InvalidArgument(
            f"mutual TLS needs three files, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            reason="TLS_INCOMPLETE",
            remedy="give all three, or none",
            missing=",".join(missing),
        )


def _absolute(key: str, text: str) -> Path:
    """Both directories must be absolute, so that containers, keeper and daemon mean the same by them."""
    if not text.startswith("/") or "\0" in text or ".." in Path(text).parts:
        raise _bad(key, text, "give an absolute path without `..`")
    return Path(text)


def _optional(text: str | None) -> Path | None:
    return Path(text).absolute() if text else None


def _one_of(kind: type[Choice], key: str, text: str) -> Choice:
    try:
        return kind(text)
    except ValueError as error:
        nearest = difflib.get_close_matches(text, list(kind), n=1, cutoff=0.0)[0]
        raise _bad(key, text, f"did you mean {str(nearest)!r}?") from error


def _underlays(names: Sequence[str]) -> tuple[str, ...]:
    """Names of interfaces; whether they are there, and fit, may change while the daemon runs."""
    for name in names:
        _check_interface("underlay", name)
        if name == "lo":
            raise _bad("underlay", name, "give an interface that reaches other nodes")
    if len(set(names)) < len(names):
        raise _bad("underlay", ",".join(names), "name each interface once")
    return tuple(names)


def _control_nic(name: str, underlays: Sequence[str]) -> str:
    if name:
        _check_interface("control_nic", name)
        if name in underlays:
            raise _bad("control_nic", name, "give a NIC that is no underlay: the control network never carries LANs")
    return name


def _check_interface(key: str, name: str) -> None:
    if not 0 < len(name.encode()) < _INTERFACE_BYTES or "/" in name or not name.isprintable() or " " in name or name in (".", ".."):
        raise _bad(key, name, "give names of interfaces, as `ip link` shows them")


def _endpoint(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(text)
        port = PORT if parts.port is None else parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme != "tcp" or not parts.hostname or parts.path or parts.query or parts.username:
        raise _bad("listen", text, "write tcp://ADDRESS:PORT, such as tcp://192.0.2.1:7411")
    return parts.hostname, port


def _bad(key: str, value: str, remedy: str) -> InvalidArgument:
    shown = value if len(value) <= 100 else value[:100] + "…"
    return InvalidArgument(f"{key}: {shown!r} will not do", reason="BAD_SETTING", remedy=remedy, key=key, value=shown)
