"""What is asked of QEMU, of the warden and of the agent: text of pure functions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nestbed.errors import InvalidArgument, Unsupported
from nestbed.lanmodel import Nic
from nestbed.model import Bundle, FsMode, Kind, Mount, ProcessSpec, QemuSpec, Resources, Route, Spec
from nestbed.qemu import command, inside, plan, sandbox
from nestbed.qemu.command import Machine, NicDevice
from nestbed.qemu.frames import Parser, Type

MACHINE = Machine("vm1", 512, 2, "tcg", (NicDevice(3, "02:00:00:00:00:01", 1400),), append="debug")


def spec(**changes: object) -> Spec:
    process = ProcessSpec(args=("sh", "-c", "true"), fs=FsMode.OVERLAY)
    return dataclasses.replace(Spec("0123456789ab", "vm1", Kind.QEMU, process, qemu=QemuSpec()), **changes)  # type: ignore[arg-type]


def test_command_line_of_qemu() -> None:
    assert " ".join(command.qemu(MACHINE)) == (
        "/usr/bin/qemu-system-x86_64 -name guest=vm1 -no-user-config -nodefaults -no-reboot -display none"
        " -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        " -machine pc,memory-backend=ram,usb=off,vmport=off,graphics=off"
        " -accel tcg,thread=multi,tb-size=128 -cpu max -smp 2 -m 512M -object memory-backend-memfd,id=ram,size=512M,share=on"
        " -kernel /vm/vmlinuz -initrd /vm/initrd"
        " -append console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check nestbed.root=virtiofs:nestbed-root debug"
        " -chardev socket,id=console,fd=11 -serial chardev:console"
        " -device virtio-serial-pci,id=ports,addr=3,disable-legacy=on"
        " -chardev socket,id=main,fd=10 -device virtserialport,bus=ports.0,nr=1,chardev=main,name=nestbed.main"
        " -chardev socket,id=control,fd=12,server=on,wait=off"
        " -device virtserialport,bus=ports.0,nr=2,chardev=control,name=nestbed.control"
        " -chardev socket,id=qmp,fd=13,server=on,wait=off -mon chardev=qmp,mode=control"
        " -object rng-builtin,id=rng -device virtio-rng-pci,rng=rng,addr=4,disable-legacy=on"
        " -chardev socket,id=root,fd=14 -device vhost-user-fs-pci,chardev=root,tag=nestbed-root,addr=5,queue-size=1024"
        " -netdev tap,id=nic3-net,ifname=nbtap3,script=no,downscript=no"
        " -device virtio-net-pci,id=nic3,netdev=nic3-net,mac=02:00:00:00:00:01,addr=b,host_mtu=1400,disable-legacy=on,romfile="
    )


CONTROL = Nic("control0", "control", "control", "02:00:00:00:00:09", ("172.31.240.2/20",), 1500, "nbp1", "control0")


def test_a_node_inside_is_kept_running_and_sees_the_code() -> None:
    node = spec(qemu=QemuSpec(node=True), control=CONTROL)
    assert inside.address(node) == "172.31.240.2:7411"
    assert inside.address(spec(control=CONTROL)) == ""
    code = inside.Code(("/opt/nestbed",), ("/opt/nestbed/bin/python", "-m", "nestbedd"))
    told = Parser().feed(inside.program(node, code, {"ca.pem": b"CA", "node.pem": b"CERT", "node.key": b"KEY"}))
    files = [frame.payload for frame in told if frame.type == Type.WRITE]
    assert (0o600).to_bytes(4, "little") + b"/run/nestbed-node.key\0KEY" in files
    words = b" ".join(frame.payload for frame in told if frame.type == Type.ARGUMENT)
    assert words.startswith(b"/opt/nestbed/bin/python -m nestbedd --name vm1 ")
    assert b"--listen tcp://172.31.240.2:7411" in words
    assert b"KEY" not in words
    assert told[-1].type == Type.KEEP
    shown = Mount("/opt/nestbed", "/export/root/opt/nestbed", read_only=True)
    bundle = Bundle(Path("/b"))
    assert shown in sandbox.spec_of(node, bundle, code.paths).process.mounts
    assert shown not in sandbox.spec_of(spec(), bundle, code.paths).process.mounts


def test_kvm_is_used_where_it_works() -> None:
    words = command.qemu(dataclasses.replace(MACHINE, accelerator="kvm"))
    assert words[words.index("-accel") + 1 : words.index("-accel") + 4] == ["kvm", "-cpu", "host"]


def test_commas_do_not_end_a_value() -> None:
    words = command.qemu(dataclasses.replace(MACHINE, name="vm1,debug-threads=on"))
    assert words[words.index("-name") + 1] == "guest=vm1,,debug-threads=on"


def test_plan_of_the_warden() -> None:
    written = plan.warden(uid=7, machine=MACHINE, taps=[("eth0", MACHINE.nics[0])], has_program=True, has_input=False)
    words = written.split(b"\0")
    assert words[:6] == [b"uid", b"7", b"program", b"tap", b"eth0", b"nbtap3"]
    assert words[6:8] == [b"share", b"/usr/lib/qemu/virtiofsd"]
    assert words[words.index(b"qemu") - 1] == b""
    assert words[-2:] == [b"", b""]


def test_program_of_the_guest() -> None:
    nic = Nic("lan0", "0" * 12, "eth0", "02:00:00:00:00:01", ("10.5.0.7/24",), 1500, "nbp", "nbb")
    routes = (Route("10.6.0.0/16", "10.5.0.1"), Route("10.7.0.0/16", "10.9.0.1"))
    told = plan.program(spec(routes=routes, gateway="10.5.0.2"), [nic], b"127.0.0.1\tlocalhost\n")
    frames = Parser().feed(told)
    assert frames[0].payload == b"vm1"
    (interface,) = (frame.payload.split(b"\0") for frame in frames if frame.type == Type.NIC)
    assert interface == [
        *(b"02:00:00:00:00:01", b"eth0", b"1500", b"10.5.0.7/24", b""),
        *(b"10.6.0.0/16", b"10.5.0.1", b"default", b"10.5.0.2", b""),
    ]
    assert [frame.payload for frame in frames if frame.type == Type.ARGUMENT] == [b"sh", b"-c", b"true"]
    assert frames[-1].type == Type.RUN


def test_machine_without_program_tells_when_it_is_up() -> None:
    told = Parser().feed(plan.program(spec(process=ProcessSpec(args=(), fs=FsMode.OVERLAY)), [], b""))
    assert (told[-1].type, told[-1].channel) == (Type.WRITE, 1)


def test_every_machine_has_a_user_of_its_own() -> None:
    assert plan.uid_of("000000000000") == 0x70000000
    assert plan.uid_of("fffffff00000") == 0x7FFFFFFF


@pytest.mark.parametrize(("cpus", "vcpus"), [(None, 1), (0.5, 1), (1.0, 1), (1.5, 2), (3.0, 3)])
def test_processors_are_rounded_up(cpus: float | None, vcpus: int) -> None:
    assert plan.vcpus_of(cpus) == vcpus


def test_sandbox_shows_the_machine_its_directory_and_the_export() -> None:
    made = sandbox.spec_of(spec(), Bundle(Path("/b/0123456789ab")))
    shown = [(mount.source, mount.destination, mount.read_only) for mount in made.process.mounts]
    assert shown[:3] == [("/usr", "/usr", True), ("/b/0123456789ab/vm", "/vm", False), ("/", "/export/root", True)]
    assert all(read_only for _, destination, read_only in shown if destination != "/vm")
    assert made.resources.memory_bytes == (512 + 384) << 20
    assert made.process.args == ("/vm/warden", "run")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"resources": Resources(memory_bytes=64 << 20)}, InvalidArgument),
        ({"process": ProcessSpec(args=("x",), fs=FsMode.HOST)}, Unsupported),
        ({"process": ProcessSpec(args=("x",), fs=FsMode.OVERLAY, mounts=(Mount("/etc/passwd", "/mnt"),))}, Unsupported),
        ({"process": ProcessSpec(args=("x",), fs=FsMode.OVERLAY, mounts=(Mount("/usr", "/proc/x"),))}, InvalidArgument),
        ({"process": ProcessSpec(args=("x",), fs=FsMode.OVERLAY, cap_add=("SYS_ADMIN",))}, InvalidArgument),
        ({"process": ProcessSpec(args=("x",), fs=FsMode.OVERLAY, sysctls=(("net/../kernel/x", "1"),))}, InvalidArgument),
    ],
)
def test_what_a_machine_does_not_have_is_refused(changes: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        plan.check(spec(**changes))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("booting", plan.Word("booting")),
        ("started 12\n", plan.Word("started", 12)),
        ("failed 2 execve", plan.Word("failed", 2, "execve")),
        ("lost QEMU was ended by signal 9", plan.Word("lost", 0, "QEMU was ended by signal 9")),
        ("exited many", plan.Word("none")),
        ("", plan.Word("none")),
    ],
)
def test_what_the_warden_writes_is_understood(text: str, word: plan.Word) -> None:
    assert plan.parse_state(text) == word
