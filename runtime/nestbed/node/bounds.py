"""What a request may hold, whatever the state of the node: sizes, characters, numbers. Pure.

What is left after this can be recorded, shown and compared without surprise. Whether the kernel and the runtime can do it is asked of
them (``Runtime.validate``); whether the addresses fit the LANs is asked of ``nestbed.node.wiring``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import NoReturn

from nestbed.errors import InvalidArgument, shown
from nestbed.lan import impair
from nestbed.lanmodel import NO_IMPAIRMENT, CaptureRequest, LanRequest, NicSpec
from nestbed.model import Change, ContainerRequest, ExecSpec, Kind, Mount, ProcessSpec, QemuSpec, Resources, RestartMode, RestartPolicy
from nestbed.node.names import check_interface, check_name

ARGS_MAX = 1024
ARGS_BYTES_MAX = 128 * 1024
ENV_BYTES_MAX = 256 * 1024
ENTRY_BYTES_MAX = 128 * 1024 - 1
"""MAX_ARG_STRLEN of execve(2): 32 pages, with the final NUL."""
MOUNTS_MAX = 128
NICS_MAX = 4096
ADDRESSES_MAX = 64
ROUTES_MAX = 4096
CAPABILITIES_MAX = 64
SYSCTLS_MAX = 256
LABELS_MAX = 64
LABEL_CHARS_MAX = 256
TEXT_CHARS_MAX = 256
VALUE_CHARS_MAX = 4096
PATH_BYTES_MAX = 4095
HOSTS_BYTES_MAX = 2 * 1024 * 1024
REQUEST_ID_CHARS_MAX = 64
CPUS_MAX = 65536
MEMORY_BYTES_MAX = 1 << 60
PIDS_MAX = 1 << 22
"""PID_MAX_LIMIT of 64-bit kernels."""
RETRIES_MAX = 1 << 30
GRACE_SECONDS_MAX = 7 * 24 * 3600
TERMINAL_MAX = 65535
SNAP_BYTES_MAX = 262144
"""What libpcap takes at most (MAXIMUM_SNAPLEN)."""

_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNPASSABLE = re.compile("[\0\ud800-\udfff]")


def check_container(request: ContainerRequest) -> ContainerRequest:
    """``request`` with numbers that mean "the default" (0) made None.

    Raises:
        InvalidArgument: something in it is too long, too many, or not what it should be.
    """
    if request.name:
        check_name(request.name, "container")
    if request.hostname:
        check_name(request.hostname, "host")
    check_labels(request.labels)
    check_restart(request.restart)
    if request.auto_remove and request.restart.mode is not RestartMode.NO:
        _refuse(
            "a container that is removed when it stops cannot be restarted",
            "CONFLICTING_OPTIONS",
            "give a restart policy or automatic removal, not both",
        )
    check_count("NICs", request.nics, NICS_MAX)
    for nic in request.nics:
        check_nic(nic)
    check_count("routes", request.routes, ROUTES_MAX)
    _check_hosts(request.hosts)
    if request.qemu is not None:
        _check_qemu(request.qemu)
        if request.qemu.node and request.control is False:
            _refuse("a node inside a virtual machine is reached by the control network", "CONFLICTING_OPTIONS", "leave out --no-control")
    _check_process(request.process, needs_program=request.kind is Kind.PROCESS)
    return dataclasses.replace(request, resources=check_resources(request.resources))


def _check_qemu(spec: QemuSpec) -> None:
    _check_text("what is added to the kernel's command line", spec.append, VALUE_CHARS_MAX)
    if spec.image:
        check_name(spec.image, "image")
    for path in filter(None, (spec.kernel, spec.initrd)):
        check_path("the path", path)


def check_lan(request: LanRequest) -> None:
    """Name and labels of a LAN; ``nestbed.lan.addressing`` checks the rest.

    Raises:
        InvalidArgument: as :func:`check_container`.
    """
    check_name(request.name, "LAN")
    check_labels(request.labels)


def check_exec(spec: ExecSpec) -> None:
    """A program to run beside the first one.

    Raises:
        InvalidArgument: as :func:`check_container`.
    """
    _check_args(spec.args)
    _check_env(spec.env)
    if spec.cwd:
        check_path("the working directory", spec.cwd)
    _check_text("the user", spec.user)
    if not (0 <= spec.rows <= TERMINAL_MAX and 0 <= spec.columns <= TERMINAL_MAX):
        _refuse(
            f"a terminal cannot have {spec.rows} rows and {spec.columns} columns",
            "BAD_TERMINAL_SIZE",
            f"give numbers from 0 to {TERMINAL_MAX}",
            rows=spec.rows,
            columns=spec.columns,
        )


def check_change(change: Change) -> Change:
    """A change, its numbers as they came: 0 there means "back to the default".

    Raises:
        InvalidArgument: as :func:`check_container`.
    """
    if change.name is not None:
        check_name(change.name, "container")
    if change.restart is not None:
        check_restart(change.restart)
    if change.resources is not None:
        check_resources(change.resources)
    return change


def check_request_id(text: str) -> None:
    """The text that makes a call idempotent; may be empty.

    Raises:
        InvalidArgument: too long or not printable.
    """
    if len(text) > REQUEST_ID_CHARS_MAX or not text.isprintable():
        _refuse(
            f"{shown(text)} cannot be a request id",
            "BAD_REQUEST_ID",
            f"use at most {REQUEST_ID_CHARS_MAX} printable characters",
            request_id=shown(text),
        )


def check_grace(seconds: float) -> None:
    """The time between asking a program to end and ending it.

    Raises:
        InvalidArgument: negative, not a number, or over a week.
    """
    if not 0 <= seconds <= GRACE_SECONDS_MAX:
        _refuse(
            f"a grace period cannot be {seconds} seconds",
            "BAD_GRACE",
            f"give 0 to {GRACE_SECONDS_MAX} seconds",
            seconds=seconds,
        )


def check_signal(number: int) -> None:
    """A signal that a program can be sent.

    Raises:
        InvalidArgument: no signal of Linux has the number.
    """
    if not 1 <= number <= 64:
        _refuse(f"there is no signal {number}", "BAD_SIGNAL", "give a signal from 1 to 64", signal=number)


def check_path(what: str, path: str) -> None:
    """An absolute path.

    Raises:
        InvalidArgument: it is relative, too long, or has a control character.
    """
    if not path.startswith("/") or not _is_plain(path) or len(path.encode()) > PATH_BYTES_MAX:
        _refuse(
            f"{what} {shown(path)} is not an absolute path of at most {PATH_BYTES_MAX} bytes without control characters",
            "BAD_PATH",
            "give an absolute path",
            path=shown(path),
        )


def check_labels(labels: Sequence[tuple[str, str]]) -> None:
    """Labels, for an object or to select by.

    Raises:
        InvalidArgument: too many, too long, an empty key, or a control character.
    """
    check_count("labels", labels, LABELS_MAX)
    for key, value in labels:
        if not key or len(key) > LABEL_CHARS_MAX or len(value) > LABEL_CHARS_MAX or not (_is_plain(key) and _is_plain(value)):
            _refuse(
                f"{shown(key)} cannot be a label with this value",
                "BAD_LABEL",
                f"use up to {LABEL_CHARS_MAX} characters in key and value, no control characters, and a key that is not empty",
                label=shown(key),
            )


def check_nic(spec: NicSpec) -> None:
    """The form of a NIC, apart from its addresses.

    Raises:
        InvalidArgument: a name or an impairment that cannot be, or too many addresses.
    """
    for impairment in (spec.impair_to, spec.impair_from):
        if impairment is not NO_IMPAIRMENT:
            impair.check(impairment)
    check_name(spec.lan, "LAN")
    if spec.name:
        check_interface(spec.name)
    check_count("addresses of a NIC", spec.addresses, ADDRESSES_MAX)


def check_capture(request: CaptureRequest, *, lan: str, container: str, nic_name: str) -> None:
    """What a capture is of, and its bounds; its filter is checked by what captures.

    Raises:
        InvalidArgument: not exactly one thing is named, or a number or text that cannot be.
    """
    if bool(lan) == bool(container) or (nic_name and not container):
        _refuse(
            "a capture is of one LAN, or of one container's NIC",
            "CONFLICTING_OPTIONS",
            "name a LAN, or a container and perhaps its NIC",
        )
    _check_text("the filter", request.filter, VALUE_CHARS_MAX)
    _number("snap_bytes", request.snap_bytes, SNAP_BYTES_MAX)
    _number("count", request.count, (1 << 63) - 1)
    _number("size_bytes", request.size_bytes, (1 << 63) - 1)
    _number("seconds", request.seconds, GRACE_SECONDS_MAX)


def check_restart(policy: RestartPolicy) -> None:
    """A restart policy.

    Raises:
        InvalidArgument: a number of retries that cannot be, or with a mode that has none.
    """
    if not 0 <= policy.max_retries <= RETRIES_MAX or (policy.max_retries and policy.mode is not RestartMode.ON_FAILURE):
        _refuse(
            f"the restart policy {policy.mode.value} cannot have {policy.max_retries} retries",
            "BAD_RESTART_POLICY",
            f"use no, always, on-failure or on-failure:N with N up to {RETRIES_MAX}",
            mode=policy.mode.value,
            max_retries=policy.max_retries,
        )


def check_resources(resources: Resources) -> Resources:
    """Limits, with 0 made None.

    Raises:
        InvalidArgument: a number that cannot be.
    """
    _number("cpus", resources.cpus, CPUS_MAX)
    _number("memory_bytes", resources.memory_bytes, MEMORY_BYTES_MAX)
    _number("pids", resources.pids, PIDS_MAX)
    _number("io_weight", resources.io_weight, 10000)
    return Resources(resources.cpus or None, resources.memory_bytes or None, resources.pids or None, resources.io_weight or None)


def check_count(what: str, items: Sequence[object], most: int) -> None:
    """Not more of something than ``most``.

    Raises:
        InvalidArgument: there are (reason TOO_MANY).
    """
    if len(items) > most:
        _refuse(f"{len(items)} {what} are more than {most}", "TOO_MANY", f"give at most {most}", what=what, count=len(items), maximum=most)


def _check_process(spec: ProcessSpec, *, needs_program: bool) -> None:
    if spec.args or needs_program:
        _check_args(spec.args)
    _check_env(spec.env)
    for what, path in (
        ("the working directory", spec.cwd),
        ("the root directory", spec.rootfs),
        ("the overlay's directory", spec.overlay_dir),
    ):
        if path:
            check_path(what, path)
    _check_text("the user", spec.user)
    check_count("mounts", spec.mounts, MOUNTS_MAX)
    for mount in spec.mounts:
        _check_mount(mount)
    check_count("capabilities", (*spec.cap_add, *spec.cap_drop), CAPABILITIES_MAX)
    for name in (*spec.cap_add, *spec.cap_drop):
        _check_text("the capability", name)
    check_count("sysctls", spec.sysctls, SYSCTLS_MAX)
    for key, value in spec.sysctls:
        _check_text("the sysctl", key)
        _check_text(f"the value of {key}", value, VALUE_CHARS_MAX)


def _check_hosts(text: str) -> None:
    if len(text.encode(errors="replace")) > HOSTS_BYTES_MAX or _UNPRINTABLE.search(text.replace("\t", "").replace("\n", "")):
        _refuse(
            f"the hosts file is longer than {HOSTS_BYTES_MAX} bytes or holds a control character",
            "BAD_HOSTS",
            "give lines of an address, a tab and names",
            bytes_max=HOSTS_BYTES_MAX,
        )


def _check_mount(mount: Mount) -> None:
    check_path("the source", mount.source)
    check_path("the destination", mount.destination)
    if ".." in mount.destination.split("/") or not mount.destination.strip("/"):
        _refuse(
            f"nothing can be mounted at {shown(mount.destination)}",
            "BAD_PATH",
            "give a path other than / and without ..",
            path=shown(mount.destination),
        )


def _check_args(args: Sequence[str]) -> None:
    if not args or not args[0]:
        _refuse("there is no program to run", "NO_PROGRAM", "give a program and its arguments")
    check_count("arguments", args, ARGS_MAX)
    _strings("arguments", args, ARGS_BYTES_MAX)


def _check_env(env: Sequence[tuple[str, str]]) -> None:
    for key, _ in env:
        if not key or "=" in key:
            _refuse(f"{shown(key)} cannot be the name of a variable", "BAD_ENVIRONMENT", "use names without =", variable=shown(key))
    _strings("environment variables", (f"{key}={value}" for key, value in env), ENV_BYTES_MAX)


def _strings(what: str, texts: Iterable[str], bytes_max: int) -> None:
    total = 0
    for text in texts:
        if _UNPASSABLE.search(text):
            _refuse(f"one of the {what} holds a NUL character", "NUL_CHARACTER", "the kernel cannot pass it: leave it out")
        length = len(text.encode()) + 1
        total += length
        if length > ENTRY_BYTES_MAX or total > bytes_max:
            _refuse(
                f"the {what} take more than {bytes_max} bytes, or one of them more than {ENTRY_BYTES_MAX}",
                "TOO_LONG",
                "pass long things in a file",
                bytes_max=bytes_max,
                entry_bytes_max=ENTRY_BYTES_MAX,
            )


def _check_text(what: str, text: str, chars_max: int = TEXT_CHARS_MAX) -> None:
    if len(text) > chars_max or not _is_plain(text):
        _refuse(
            f"{what} {shown(text)} is longer than {chars_max} characters or holds a control character",
            "BAD_TEXT",
            "give a shorter, printable text",
            text=shown(text),
            characters_max=chars_max,
        )


def _number(what: str, value: float | None, most: float) -> None:
    if value is not None and not (math.isfinite(value) and 0 <= value <= most):
        _refuse(
            f"{what} cannot be {value}",
            "BAD_LIMIT",
            f"give a number up to {most}, or none for the default",
            what=what,
            value=value,
            maximum=most,
        )


def _is_plain(text: str) -> bool:
    return _UNPRINTABLE.search(text) is None


def _refuse(message: str, reason: str, remedy: str, **metadata: object) -> NoReturn:
    raise InvalidArgument(message, reason=reason, remedy=remedy, **metadata)
