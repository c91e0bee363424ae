"""Names, selection, bounds and hosts files: what the node decides without doing anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestbed.errors import InvalidArgument, NestbedError, PermissionDenied
from nestbed.lan.hosts import LOOPBACK, hosts_text, member_lines, own_lines
from nestbed.lanmodel import Nic, NicSpec
from nestbed.model import Change, ContainerRequest, ExecSpec, FsMode, Kind, Mount, ProcessSpec, Resources, RestartMode, RestartPolicy
from nestbed.node import bounds, privilege
from nestbed.node.names import Selection, check_interface, check_name, matcher

BAD_NAMES = [
    "",
    "a/b",
    "..",
    ".hidden",
    "-x",
    "a b",
    "a\n",
    "a\x00b",
    "a\x1bb",
    "é",
    "\u0430",  # Cyrillic
    "x" * 64,
    "x" * 10_000,
    "localhost",
    "LocalHost",
    "0123456789ab",
]


@pytest.mark.parametrize("name", ["a", "A.b_c-d", "0", "x" * 63, "web..1"])
def test_name(name: str) -> None:
    assert check_name(name, "container") == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_name(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_name(name, "container")
    assert caught.value.reason == "BAD_NAME"
    assert caught.value.remedy
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("name", ["lo", "all", "default", "a/b", "..", "x" * 16, "a:1", "e%d", "", "a b"])
def test_bad_interface_name(name: str) -> None:
    with pytest.raises(InvalidArgument):
        check_interface(name)


@given(st.lists(st.text(alphabet="ab*?[]!^-\\()|.", max_size=12), max_size=4), st.text(max_size=12))
def test_any_glob_matches_or_is_refused(patterns: list[str], text: str) -> None:
    error = refusal(lambda: matcher(patterns)(text))
    assert error is None or error.remedy


def test_selection() -> None:
    labels = (("role", "router"), ("rack", "1"))
    assert Selection((), ()).takes("0123456789ab", "web", labels)
    assert Selection(("w*",), ()).takes("0123456789ab", "web", ())
    assert Selection(("0123",), ()).takes("0123456789ab", "web", ())
    assert not Selection(("0*",), ()).takes("0123456789ab", "web", ())
    assert Selection((), (("role", "router"),)).takes("0123456789ab", "web", labels)
    assert not Selection(("web",), (("role", "host"),)).takes("0123456789ab", "web", labels)
    with pytest.raises(InvalidArgument):
        Selection(("x",) * 1000, ())
    with pytest.raises(InvalidArgument):
        Selection(("x" * 1000,), ())


def request(**changes: object) -> ContainerRequest:
    process = {field.name: changes.pop(field.name) for field in dataclasses.fields(ProcessSpec) if field.name in changes}
    spec = ProcessSpec(**{"args": ("true",), **process})  # type: ignore[arg-type]
    return ContainerRequest(**{"kind": Kind.PROCESS, "process": spec, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"args": ()},
        {"args": ("",)},
        {"args": ("x",) * 1025},
        {"args": ("x", "y" * (128 * 1024))},
        {"args": ("x\0y",)},
        {"args": ("\ud800",)},
        {"env": (("", "x"),)},
        {"env": (("a=b", "x"),)},
        {"env": (("a", "x\0"),)},
        {"env": (("a", "x" * (200 * 1024)),)},
        {"env": tuple((f"k{number}", "x" * 60_000) for number in range(5))},
        {"cwd": "relative"},
        {"cwd": "/" + "x" * 5000},
        {"cwd": "/a\nb"},
        {"user": "x" * 1000},
        {"user": "a\x00"},
        {"mounts": (Mount("relative", "/x"),)},
        {"mounts": (Mount("/x", "relative"),)},
        {"mounts": (Mount("/x", "/a/../b"),)},
        {"mounts": (Mount("/x", "/"),)},
        {"mounts": (Mount("/x", "/y"),) * 129},
        {"cap_add": ("X",) * 65},
        {"sysctls": (("a", "b\n"),)},
        {"sysctls": (("a", "b"),) * 257},
        {"labels": (("a", "b"),) * 65},
        {"labels": (("", "b"),)},
        {"labels": (("a" * 257, "b"),)},
        {"labels": (("a", "\u2028"),)},
        {"name": "a/b"},
        {"hostname": "a b"},
        {"nics": (NicSpec("a/b"),)},
        {"nics": (NicSpec("lan", name="lo"),)},
        {"nics": (NicSpec("lan", addresses=("10.0.0.1",) * 65),)},
        {"restart": RestartPolicy(RestartMode.NO, 3)},
        {"restart": RestartPolicy(RestartMode.ON_FAILURE, -1)},
        {"restart": RestartPolicy(RestartMode.ALWAYS), "auto_remove": True},
        {"resources": Resources(cpus=float("nan"))},
        {"resources": Resources(cpus=float("inf"))},
        {"resources": Resources(cpus=-1.0)},
        {"resources": Resources(memory_bytes=-1)},
        {"resources": Resources(memory_bytes=1 << 63)},
        {"resources": Resources(pids=1 << 40)},
        {"resources": Resources(io_weight=10_001)},
    ],
)
def test_container_out_of_bounds(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        bounds.check_container(request(**changes))
    assert caught.value.remedy
    assert len(caught.value.message) < 300
    assert caught.value.message.isprintable()


def test_zero_means_the_default() -> None:
    checked = bounds.check_container(request(resources=Resources(0.0, 0, 0, 0)))
    assert checked.resources == Resources()


def test_scripts_with_line_feeds_are_arguments() -> None:
    bounds.check_container(request(args=("sh", "-c", "echo a\necho b\t\x1b[0m")))


@pytest.mark.parametrize("spec", [ExecSpec(()), ExecSpec(("x",), rows=-1), ExecSpec(("x",), columns=1 << 20), ExecSpec(("x",), cwd="x")])
def test_exec_out_of_bounds(spec: ExecSpec) -> None:
    with pytest.raises(InvalidArgument):
        bounds.check_exec(spec)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
def test_grace_out_of_bounds(seconds: float) -> None:
    with pytest.raises(InvalidArgument):
        bounds.check_grace(seconds)


@pytest.mark.parametrize("number", [-1, 0, 65, 1 << 31])
def test_signal_out_of_bounds(number: int) -> None:
    with pytest.raises(InvalidArgument):
        bounds.check_signal(number)


def test_change_out_of_bounds() -> None:
    for change in (Change(name="a/b"), Change(resources=Resources(pids=-1)), Change(restart=RestartPolicy(RestartMode.NO, 1))):
        with pytest.raises(InvalidArgument):
            bounds.check_change(change)


@given(st.text(max_size=40), st.text(max_size=40), st.lists(st.text(max_size=20), max_size=3), st.floats(), st.integers(-5, 1 << 70))
def test_any_request_is_taken_or_refused(name: str, text: str, args: list[str], number: float, whole: int) -> None:
    spec = request(
        name=name,
        args=tuple(args),
        cwd=text,
        user=text,
        env=((name, text),),
        labels=((text, name),),
        nics=(NicSpec(text, name, text, (text,)),),
        resources=Resources(number, whole, whole, whole),
        mounts=(Mount(text, name),),
    )
    for check in (lambda: bounds.check_container(spec), lambda: bounds.check_request_id(text), lambda: bounds.check_path("it", text)):
        error = refusal(check)
        assert error is None or error.remedy


def refusal(check: Callable[[], object]) -> NestbedError | None:
    try:
        check()
    except NestbedError as error:
        return error
    return None


def test_privileged_is_for_admin() -> None:
    plain = ProcessSpec(("true",), fs=FsMode.OVERLAY)
    privilege.check_creation(plain, admin=False)
    privilege.check_creation(dataclasses.replace(plain, fs=FsMode.HOST_RO), admin=False)
    for changes in (
        {"fs": FsMode.HOST},
        {"fs": FsMode.ROOTFS, "rootfs": "/x"},
        {"mounts": (Mount("/x", "/y", read_only=True),)},
        {"overlay_dir": "/x"},
        {"cap_add": ("SYS_PTRACE",)},
    ):
        spec = dataclasses.replace(plain, **changes)  # type: ignore[arg-type]
        assert privilege.reasons(spec)
        privilege.check_creation(spec, admin=True)
        with pytest.raises(PermissionDenied) as caught:
            privilege.check_creation(spec, admin=False)
        assert caught.value.remedy


def nic(lan: str, *addresses: str) -> Nic:
    return Nic(lan, "0" * 12, "eth0", "02:00:00:00:00:01", addresses, 1500, "port", "bridge")


def test_hosts_file() -> None:
    own = own_lines("web", "www", [nic("lan0", "10.5.0.3/24", "fd00::3/64"), nic("lan1", "10.6.0.3/24")])
    text = hosts_text(own, [member_lines("irc", nic("lan0", "10.5.0.2/24"))])
    assert text == LOOPBACK + (
        "10.5.0.3\tweb web-lan0 www\nfd00::3\tweb web-lan0 www\n10.6.0.3\tweb web-lan1 www\n10.5.0.2\tirc irc-lan0\n"
    )


def test_hosts_file_without_addresses() -> None:
    assert own_lines("web", "web", []) == "127.0.1.1\tweb\n"
    assert own_lines("web", "www", [nic("lan0")]) == "127.0.1.1\tweb www\n"
