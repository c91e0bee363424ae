"""What is launched for a spec, who it runs as, what is hidden from it: decided without touching anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestbed.errors import InvalidArgument, NestbedError, NotFound
from nestbed.model import ExecSpec, FsMode, Kind, Mount, ProcessSpec, RestartMode, RestartPolicy, Spec
from nestbed.process import masks, plan
from nestbed.process.accounts import TextAccounts, User, accounts_in, resolve_user
from nestbed.process.limits import Membership
from nestbed.process.lookup import Lookup

ROOT = User(0, 0, (0,), "root", "/root")
MEMBERSHIP = Membership("nestbed-00/aa", "/sys/fs/cgroup", ("/sys/fs/cgroup/pids/nestbed-00/aa",))
FACTS = plan.Facts(ROOT, 0xFF, "seccomp-1.bpf", MEMBERSHIP)
PASSWD = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\nodd:x:0x0:0::/:/\nneg:x:-1:0::/:/\nshort:x:1\nsp:x: 5:5::/:/\n"
GROUP = "root:x:0:\nwww:x:34:\nlog:x:4:web,other\nbad:x:4294967296:web\n"


def spec(**process: object) -> Spec:
    changes = {"args": ("/bin/true",), **process}
    return Spec("aa", "web", Kind.PROCESS, ProcessSpec(**changes), hostname="", restart=RestartPolicy(RestartMode.ON_FAILURE, 3))


def test_launch_of_a_plain_program() -> None:
    launch = plan.launch(spec(), FACTS)
    assert launch["argv"] == ["/bin/true"]
    assert launch["env"] == [f"PATH={plan.DEFAULT_PATH}", "HOME=/root", "USER=root", "HOSTNAME=web"]
    assert (launch["cwd"], launch["hostname"], launch["uid"], launch["gid"], launch["groups"]) == ("/", "web", 0, 0, [0])
    assert launch["root"] == {"mode": "host"}
    assert launch["restart"] == {"mode": "on-failure", "max_retries": 3}
    assert (launch["cgroup2"], launch["cgroups"]) == ("nestbed-00/aa", ["/sys/fs/cgroup/pids/nestbed-00/aa"])
    assert launch["caps"] == 0xFF


def test_environment_is_the_containers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the daemon")
    env = plan.launch(spec(env=(("PATH", "/x"), ("A", "b=c")), tty=True), FACTS)["env"]
    assert not any("SECRET" in item for item in env)
    assert "PATH=/x" in env
    assert "A=b=c" in env
    assert "TERM=xterm" in env
    assert len(env) == len({item.split("=")[0] for item in env})


@pytest.mark.parametrize(
    ("process", "reason"),
    [
        ({"args": ()}, "NO_PROGRAM"),
        ({"args": ("",)}, "NO_PROGRAM"),
        ({"args": ("a", "b\0c")}, "BAD_ARGUMENT"),
        ({"env": (("", "x"),)}, "BAD_ENVIRONMENT"),
        ({"env": (("A=B", "x"),)}, "BAD_ENVIRONMENT"),
        ({"env": (("A", "x\0y"),)}, "BAD_ENVIRONMENT"),
        ({"cwd": "relative"}, "BAD_DIRECTORY"),
        ({"cwd": "/a\0"}, "BAD_DIRECTORY"),
    ],
)
def test_impossible_launches_are_refused(process: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        plan.launch(spec(**process), FACTS)
    assert caught.value.reason == reason


def test_file_systems() -> None:
    assert plan.launch(spec(fs=FsMode.ROOTFS, rootfs="/srv/root"), FACTS)["root"] == {"mode": "rootfs", "path": "/srv/root"}
    assert plan.launch(spec(fs=FsMode.OVERLAY, overlay_dir="/srv/up"), FACTS)["root"] == {"mode": "overlay", "upper": "/srv/up"}
    assert plan.launch(spec(fs=FsMode.OVERLAY), FACTS)["root"] == {"mode": "overlay"}
    assert plan.launch(spec(fs=FsMode.HOST_RO), FACTS)["root"] == {"mode": "host-ro"}


def test_further_program_is_confined_as_the_container() -> None:
    container = plan.launch(spec(env=(("A", "1"),), cwd="/srv"), FACTS)
    own = plan.further(container, ExecSpec(("id",)), None)
    assert (own["uid"], own["cwd"], own["caps"], own["seccomp"], own["env"]) == (0, "/srv", 0xFF, "seccomp-1.bpf", container["env"])
    other = plan.further(container, ExecSpec(("id",), env=(("A", "2"),), cwd="/", tty=True), User(33, 34, (4, 34), "web", "/srv"))
    assert (other["uid"], other["gid"], other["groups"], other["cwd"]) == (33, 34, [4, 34], "/")
    assert {"A=2", "HOME=/srv", "USER=web", "TERM=xterm"} <= set(other["env"])
    assert "A=1" not in other["env"]


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.100/rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("kernel.shmmax", "kernel/shmmax"),
        ("kernel.domainname", "kernel/domainname"),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
    ],
)
def test_sysctls_of_a_container(key: str, path: str) -> None:
    assert plan.sysctl(key, "4096 16384\t4194304") == (path, "4096 16384\t4194304")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("kernel.core_pattern", "|/bin/sh", "SYSCTL_NOT_NAMESPACED"),
        ("kernel.hostname", "x", "SYSCTL_NOT_NAMESPACED"),
        ("vm.swappiness", "1", "SYSCTL_NOT_NAMESPACED"),
        ("fs.file-max", "1", "SYSCTL_NOT_NAMESPACED"),
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|x", "BAD_SYSCTL"),
        ("net.ipv4.ip_forward", "1\nkernel.core_pattern=x", "BAD_SYSCTL"),
        ("net.ipv4.ip_forward", "", "BAD_SYSCTL"),
        ("net/../kernel/core_pattern", "1", "BAD_SYSCTL"),
        ("net...kernel", "1", "BAD_SYSCTL"),
        ("net", "1", "BAD_SYSCTL"),
        ("/net/ipv4/ip_forward", "1", "BAD_SYSCTL"),
        ("net.ipv4.ip_forward\n", "1", "BAD_SYSCTL"),
        ("", "1", "BAD_SYSCTL"),
    ],
)
def test_sysctls_of_the_whole_machine_are_refused(key: str, value: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        plan.sysctl(key, value)
    assert caught.value.reason == reason
    assert caught.value.remedy


# ---- users


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (0,), "root", "/root")),
        ("web", User(33, 34, (4, 34), "web", "/srv")),
        ("33", User(33, 34, (4, 34), "web", "/srv")),
        ("web:log", User(33, 4, (4,), "web", "/srv")),
        ("1234", User(1234, 0, (0,), "", "/")),
        ("1234:5678", User(1234, 5678, (5678,), "", "/")),
        ("4294967294", User(4294967294, 0, (0,), "", "/")),
    ],
)
def test_users(text: str, user: User) -> None:
    assert resolve_user(text, TextAccounts(PASSWD, GROUP)) == user


@pytest.mark.parametrize(
    "text",
    [
        "0x0",
        "-1",
        " 1",
        "1 ",
        "1:",
        ":1",
        "4294967295",
        "4294967296",
        "٣",
        "00",
        "1:2:3",
        "a/b",
        "root\n",
        "odd",
        "neg",
        "sp",
        "web:bad",
        "nobody",
    ],
)
def test_odd_users_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        resolve_user(text, TextAccounts(PASSWD, GROUP))


@given(st.text())
def test_any_user_is_resolved_exactly_or_refused(text: str) -> None:
    try:
        user = resolve_user(text, TextAccounts(PASSWD, GROUP))
    except InvalidArgument:
        return
    name = text.partition(":")[0]
    assert name in ("", "root", "web") or name == str(user.uid)


@given(st.text(), st.text())
def test_hostile_accounts_are_no_trouble(passwd: str, group: str) -> None:
    accounts = TextAccounts(passwd, group)
    account = accounts.by_uid(0)
    assert account is None or account.uid == 0


def test_accounts_of_a_rootfs_cannot_lead_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "etc/group")
    fd = os.open(tmp_path, os.O_PATH)
    accounts = accounts_in(fd)
    os.close(fd)
    assert accounts.by_name("root") is None
    assert accounts.gid_of("root") is None


# ---- mounts and masks


def test_mounts_hide_what_is_hidden() -> None:
    bound = plan.bind(Mount("/srv", "/mnt/../data"), "/srv", ["/srv/run", "/etc/shadow", "/srv2/x"])
    assert bound == {"source": "/srv", "destination": "/data", "read_only": False, "masks": ["/data/run"]}
    assert plan.bind(Mount("/", "/node", read_only=True), "/", ["/srv/run"])["masks"] == ["/node/srv/run"]


@pytest.mark.parametrize(
    ("mount", "source", "reason"),
    [
        (Mount("/srv/run", "/x"), "/srv/run", "HIDDEN_SOURCE"),
        (Mount("/link", "/x"), "/srv/run/deep", "HIDDEN_SOURCE"),
        (Mount("relative", "/x"), "/relative", "BAD_MOUNT"),
        (Mount("/a", "x"), "/a", "BAD_MOUNT"),
        (Mount("/a", "/x/.."), "/a", "BAD_MOUNT"),
        (Mount("/a", "/proc/x"), "/a", "BAD_MOUNT"),
        (Mount("/a", "/x/../sys"), "/a", "BAD_MOUNT"),
    ],
)
def test_bad_mounts_are_refused(mount: Mount, source: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        plan.bind(mount, source, ["/srv/run"])
    assert caught.value.reason == reason


def test_code_is_shown_to_nodes_inside_and_never_to_be_written() -> None:
    hidden, code = ["/opt/nestbed", "/srv/run"], {"/opt/nestbed"}
    bound = plan.bind(Mount("/opt/nestbed", "/x", read_only=True), "/opt/nestbed", hidden, "/srv/run/b", code)
    assert (bound["code"], bound["read_only"], bound["source"]) == (True, True, "/opt/nestbed")
    for mount in (Mount("/opt/nestbed", "/x"), Mount("/srv/run", "/x", read_only=True)):
        with pytest.raises(InvalidArgument):
            plan.bind(mount, mount.source, hidden, "/srv/run/b", code)


def test_masks_are_outermost() -> None:
    assert masks.outermost(["/b/c", "/b", "/b-c", "/a/x", "/b/c/d", "/a/x"]) == ("/a/x", "/b", "/b-c")


def test_secrets_and_code_are_hidden(tmp_path: Path) -> None:
    hidden = masks.Masks([tmp_path]).paths(skip_netns=set)
    assert str(tmp_path) in hidden
    assert any("nestbed" in path or "venv" in path for path in hidden)
    assert {"/etc/shadow", "/root/.ssh", "/boot"} <= set(hidden)


def test_sockets_that_somebody_listens_on() -> None:
    text = (
        b"Num       RefCount Protocol Flags    Type St Inode Path\n"
        b"0000000000000000: 00000002 00000000 00010000 0001 01  1001 /var/lib/db/db sock\n"
        b"0000000000000000: 00000003 00000000 00000000 0001 03  1002 /var/lib/db/db sock\n"
        b"0000000000000000: 00000002 00000000 00000000 0002 01  1003 /var/spool/log\n"
        b"0000000000000000: 00000002 00000000 00010000 0001 01  1004 @abstract\n"
        b"0000000000000000: 00000003 00000000 00000000 0001 03  1005\n"
    )
    assert masks.parse_unix(text) == {"/var/lib/db/db sock", "/var/spool/log"}


# ---- looking before leaping


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for directory in ("bin", "etc", "work"):
        (root / directory).mkdir(parents=True)
    (root / "bin/tool").write_text("#!/bin/sh\n")
    (root / "bin/tool").chmod(0o755)
    (root / "bin/text").write_text("text")
    (root / "bin/out").symlink_to("/usr/bin/env")
    (root / "bin/up").symlink_to("../../../../../../../../usr/bin/env")
    (root / "bin/alias").symlink_to("/bin/tool")
    return root


def look(process: ProcessSpec, program: str, hidden: tuple[str, ...] = ()) -> None:
    with Lookup(process, hidden) as lookup:
        lookup.mounts()
        lookup.check_program(program, ["PATH=/usr/bin:/bin"], "/")


@pytest.mark.parametrize("program", ["tool", "/bin/tool", "alias", "bin/tool"])
def test_programs_of_a_rootfs_are_found(rootfs: Path, program: str) -> None:
    look(ProcessSpec((program,), fs=FsMode.ROOTFS, rootfs=str(rootfs)), program)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("nosuch", "PROGRAM_NOT_FOUND"),
        ("out", "PROGRAM_NOT_FOUND"),
        ("up", "PROGRAM_NOT_FOUND"),
        ("text", "NOT_EXECUTABLE"),
        ("/bin", "NOT_EXECUTABLE"),
    ],
)
def test_programs_outside_a_rootfs_are_not(rootfs: Path, program: str, reason: str) -> None:
    with pytest.raises(NestbedError) as caught:
        look(ProcessSpec((program,), fs=FsMode.ROOTFS, rootfs=str(rootfs)), program)
    assert caught.value.reason == reason


def test_hidden_program_is_not_there(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    look(ProcessSpec((str(tool),)), str(tool))
    with pytest.raises(NotFound):
        look(ProcessSpec((str(tool),)), str(tool), (str(tmp_path),))


@pytest.mark.parametrize(
    ("process", "reason"),
    [
        (ProcessSpec(("a",), fs=FsMode.ROOTFS, rootfs="/nonexistent/root"), "ROOTFS_NOT_FOUND"),
        (ProcessSpec(("a",), fs=FsMode.ROOTFS, rootfs="relative"), "BAD_DIRECTORY"),
        (ProcessSpec(("a",), fs=FsMode.OVERLAY, overlay_dir="/nonexistent/dir"), "OVERLAY_DIR_NOT_FOUND"),
        (ProcessSpec(("a",), mounts=(Mount("/nonexistent/source", "/mnt"),)), "MOUNT_SOURCE_NOT_FOUND"),
        (ProcessSpec(("a",), mounts=(Mount("/usr", "/nonexistent/place"),)), "MOUNT_DESTINATION_NOT_FOUND"),
    ],
)
def test_missing_directories_are_told(process: ProcessSpec, reason: str) -> None:
    with pytest.raises(NestbedError) as caught:
        look(process, "a")
    assert caught.value.reason == reason


def test_working_directory(rootfs: Path) -> None:
    with Lookup(ProcessSpec(("a",), fs=FsMode.ROOTFS, rootfs=str(rootfs)), ()) as lookup:
        lookup.check_directory("/work")
        lookup.check_directory("/run/anything")
        for path, reason in (("/nosuch", "DIRECTORY_NOT_FOUND"), ("/bin/tool", "NOT_A_DIRECTORY")):
            with pytest.raises(NestbedError) as caught:
                lookup.check_directory(path)
            assert caught.value.reason == reason


def test_program_of_a_mount_is_found_in_its_source(rootfs: Path) -> None:
    process = ProcessSpec(("/opt/tool",), mounts=(Mount(str(rootfs / "bin"), "/opt"),))
    look(process, "/opt/tool")
