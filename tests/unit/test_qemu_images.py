"""What a machine with a disk is to QEMU, to cloud-init and to its users: text of pure functions, and the node's files read."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from pathlib import Path

import pytest

from nestbed.errors import InvalidArgument, NotFound, Unsupported
from nestbed.imagemodel import BootWay, DiskFormat, Image, ImageOrigin
from nestbed.model import Bundle, FsMode, Kind, ProcessSpec, QemuSpec, Spec
from nestbed.qemu import accounts, command, drive, plan, recipes, sandbox, seed
from nestbed.qemu.command import Disk, Loader, Machine
from nestbed.qemu.frames import Parser, Type

BUILT = Image("debian-12", ImageOrigin.BUILT, BootWay.KERNEL, format=DiskFormat.RAW)
STOCK = Image("stock", ImageOrigin.IMPORTED, BootWay.FIRMWARE, format=DiskFormat.QCOW2)
MACHINE = Machine("vm1", 512, 1, "tcg", shares=1, append="debug", disk=Disk("raw"))


def blocks(machine: Machine) -> dict[str, dict[str, object]]:
    words = command.qemu(machine)
    found = [json.loads(words[index + 1]) for index, word in enumerate(words) if word == "-blockdev"]
    return {block.pop("node-name"): block for block in found}


def test_disk_is_a_layer_over_the_image_with_every_format_named() -> None:
    assert blocks(MACHINE) == {
        "base-file": {"driver": "file", "filename": "/vm/base", "read-only": True},
        "base": {"driver": "raw", "file": "base-file", "read-only": True},
        "disk-file": {"driver": "file", "filename": "/vm/disk.qcow2", "discard": "unmap"},
        "disk": {"driver": "qcow2", "file": "disk-file", "backing": "base", "discard": "unmap"},
    }
    line = shlex.join(command.qemu(MACHINE))
    assert "-device virtio-blk-pci,drive=disk,disable-legacy=on,addr=5.0,multifunction=on,werror=report,rerror=report" in line
    assert "nestbed.root=disk:/dev/vda cloud-init=disabled debug" in line


def test_an_image_in_qcow2_is_said_to_have_nothing_under_it() -> None:
    base = blocks(dataclasses.replace(MACHINE, disk=Disk("qcow2", Loader.FIRMWARE)))["base"]
    assert base == {"driver": "qcow2", "file": "base-file", "read-only": True, "backing": None}


@pytest.mark.parametrize(
    ("loader", "present", "absent"),
    [
        (Loader.OURS, ("-kernel", "-initrd", "nestbed.root=disk:"), ("seed",)),
        (Loader.FIRMWARE, ("seed",), ("-kernel", "-initrd", "-append")),
        (Loader.KERNEL, ("-kernel", "console=ttyS0 panic=-1 debug", "seed"), ("-initrd", "nestbed.root")),
        (Loader.KERNEL_AND_INITRD, ("-kernel", "-initrd", "seed"), ("nestbed.root",)),
    ],
)
def test_what_starts_a_machine(loader: Loader, present: tuple[str, ...], absent: tuple[str, ...]) -> None:
    line = " ".join(command.qemu(dataclasses.replace(MACHINE, disk=Disk("raw", loader))))
    assert [word for word in present if word not in line] == []
    assert [word for word in absent if word in line] == []


def test_a_machine_with_a_disk_has_no_share_of_the_nodes_root() -> None:
    line = " ".join(command.qemu(MACHINE))
    assert command.ROOT_TAG not in line
    assert "-chardev socket,id=share0,fd=14 " in line
    words = plan.warden(uid=7, machine=MACHINE, taps=[], has_program=False, has_input=False).split(b"\0")
    assert b"share" not in words
    assert b"files" in words
    spec = Spec("0123456789ab", "vm1", Kind.QEMU, ProcessSpec((), fs=FsMode.OVERLAY), qemu=QemuSpec(image="debian-12"))
    shown = [mount.source for mount in sandbox.spec_of(spec, Bundle(Path("/b/0123456789ab"))).process.mounts]
    assert shown == ["/usr", "/b/0123456789ab/vm"]


@pytest.mark.parametrize(
    ("spec", "image", "loader"),
    [
        (QemuSpec(image="a"), BUILT, Loader.OURS),
        (QemuSpec(image="a"), STOCK, Loader.FIRMWARE),
        (QemuSpec(image="a", kernel="/k"), STOCK, Loader.KERNEL),
        (QemuSpec(image="a", kernel="/k", initrd="/i"), BUILT, Loader.KERNEL_AND_INITRD),
    ],
)
def test_a_given_kernel_goes_before_what_the_image_has(spec: QemuSpec, image: Image, loader: Loader) -> None:
    assert drive.loader(spec, image) is loader


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (QemuSpec(kernel="/etc/passwd"), InvalidArgument),
        (QemuSpec(image="host", initrd="/etc/passwd"), InvalidArgument),
        (QemuSpec(image="a", initrd="/etc/passwd"), InvalidArgument),
        (QemuSpec(image="a", kernel="/nonexistent"), NotFound),
        (QemuSpec(image="a", kernel="/etc"), NotFound),
        (QemuSpec(image="a", kernel="etc/passwd"), NotFound),
        (QemuSpec(image="a", node=True), Unsupported),
    ],
)
def test_what_does_not_go_together_is_refused(spec: QemuSpec, error: type[Exception]) -> None:
    with pytest.raises(error):
        drive.check(spec)


def test_what_cloud_init_reads() -> None:
    files = seed.files("0123456789ab", "vm1")
    assert json.loads(files["meta-data"]) == {"instance-id": "nestbed-0123456789ab", "local-hostname": "vm1"}
    head, _, config = files["user-data"].partition("\n")
    assert head == "#cloud-config"
    assert json.loads(config)["users"] == []
    assert json.loads(files["network-config"]) == {"version": 1, "config": []}


# ---------------------------------------------------------------- users


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    me = os.getuid()
    for name in ("tess", "jo"):
        (tmp_path / name / ".ssh").mkdir(parents=True)
        (tmp_path / name / ".ssh/authorized_keys").write_text(f"ssh-ed25519 AAAA {name}\n")
    (tmp_path / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\n"
        "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
        f"tess:x:4242:4242:Tess:{tmp_path}/tess:/bin/bash\n"
        f"jo:x:4243:100:Jo:{tmp_path}/jo:/bin/zsh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        "broken:x\n"
        "+::::::\n"
    )
    (tmp_path / "group").write_text("root:x:0:\nsudo:x:27:tess,root\nusers:x:100:\nlab:x:4300:jo,tess,ghost\ntess:x:4242:\nempty:x:4301:\n")
    assert me not in (4242, 4243)
    return tmp_path


def test_people_are_the_testbeds_users(etc: Path) -> None:
    groups, users = accounts.read(etc)
    assert [(user.name, user.uid, user.gid, user.may_sudo) for user in users] == [("tess", 4242, 4242, True), ("jo", 4243, 100, False)]
    assert [(group.name, group.gid, group.members) for group in groups] == [
        ("sudo", 27, ("tess",)),
        ("users", 100, ()),
        ("lab", 4300, ("jo", "tess")),
        ("tess", 4242, ()),
    ]


def test_keys_that_are_not_the_users_are_not_read(etc: Path) -> None:
    """A link in a user's home would otherwise bring out what only root may read."""
    assert [user.keys for user in accounts.read(etc)[1]] == ["", ""], "the files belong to who runs the tests"
    own = etc.stat().st_uid
    keys = etc / "tess/.ssh/authorized_keys"
    assert accounts._keys(str(etc / "tess"), own) == "ssh-ed25519 AAAA tess\n"
    keys.unlink()
    keys.symlink_to(etc / "jo/.ssh/authorized_keys")
    assert accounts._keys(str(etc / "tess"), own) == ""
    keys.unlink()
    os.mkfifo(keys)
    assert accounts._keys(str(etc / "tess"), own) == ""


def test_long_keys_are_cut_at_a_line(etc: Path) -> None:
    line = "ssh-ed25519 " + "A" * 80 + "\n"
    (etc / "tess/.ssh/authorized_keys").write_text(line * 200)
    kept = accounts._keys(str(etc / "tess"), etc.stat().st_uid)
    assert len(kept) <= accounts.KEYS_BYTES_MAX
    assert kept == line * (len(kept) // len(line))


def test_users_are_told_after_their_groups(etc: Path) -> None:
    told = Parser().feed(accounts.frames_of(etc))
    assert [frame.type for frame in told] == [Type.GROUP] * 4 + [Type.ACCOUNT] * 2
    assert told[0].payload == b"sudo\00027\0tess\0"
    assert told[4].payload.split(b"\0")[:7] == [b"tess", b"4242", b"4242", b"Tess", str(etc / "tess").encode(), b"/bin/bash", b"sudo"]
    assert all(frame.channel == 0 for frame in told)


def test_many_members_are_told_in_several_frames(etc: Path) -> None:
    names = [f"user{number:03}-{'x' * 24}" for number in range(300)]
    passwd = "".join(f"{name}:x:{2000 + number}:100::/nonexistent:/bin/sh\n" for number, name in enumerate(names))
    (etc / "passwd").write_text(passwd + f"long:x:3000:100:{'y' * 300}:/nonexistent:/bin/sh\n")
    (etc / "group").write_text(f"lab:x:4300:{','.join(names)}\n")
    told = Parser().feed(accounts.frames_of(etc))
    groups = [frame.payload.split(b"\0")[2].decode().split(",") for frame in told if frame.type == Type.GROUP]
    assert [len(group) for group in groups] == [100, 100, 100]
    assert [name for group in groups for name in group] == names
    assert sum(frame.type == Type.ACCOUNT for frame in told) == 300


# ---------------------------------------------------------------- recipes


def test_the_recipe_is_whole() -> None:
    recipe = recipes.find("debian-12")
    assert recipe.suite == "bookworm"
    assert {"systemd-sysv", "linux-image-cloud-amd64", "openssh-server", "sudo", "python3"} <= set(recipe.packages)
    assert os.access(recipe.customize, os.X_OK)


def test_what_others_may_write_is_not_taken_for_prebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "CACHE", tmp_path)
    recipe = recipes.find("debian-12")
    assert recipes.prebuilt(recipe) is None
    recipes.cached(recipe).mkdir(parents=True)
    if os.geteuid() == 0:
        tmp_path.chmod(0o755)
        assert recipes.prebuilt(recipe) == recipes.cached(recipe)
    (tmp_path / "images").chmod(0o777)
    assert recipes.prebuilt(recipe) is None
