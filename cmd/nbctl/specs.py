"""Parsed options -> messages of the API."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nbctl import values
from nbctl.failure import Failure
from nbctl.values import LanArgument
from nestbed.errors import translated
from nestbed.v1 import container_pb2 as api
from nestbed.v1.traffic_pb2 import Impairment

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

_FS = {"host": api.FS_MODE_HOST, "host-ro": api.FS_MODE_HOST_RO, "overlay": api.FS_MODE_OVERLAY, "rootfs": api.FS_MODE_ROOTFS}
_RESTART = {"no": api.RESTART_MODE_NO, "on-failure": api.RESTART_MODE_ON_FAILURE, "always": api.RESTART_MODE_ALWAYS}


def resources(args: Namespace) -> api.Resources | None:
    """The limits that were given; None if none was."""
    given = {"cpus": args.cpus, "memory_bytes": args.memory, "pids": args.pids_limit, "io_weight": args.io_weight}
    given = {name: value for name, value in given.items() if value is not None}
    return api.Resources(**given) if given else None


def restart(args: Namespace) -> api.RestartPolicy | None:
    """The restart policy that was given; None if none was."""
    if args.restart is None:
        return None
    mode, retries = args.restart
    return api.RestartPolicy(mode=_RESTART[mode], max_retries=retries)


def nic(lan: LanArgument) -> api.NicSpec:
    """A NIC as asked for."""
    impaired = Impairment(**dict(lan.impairment)) if lan.impairment else None  # type: ignore[arg-type]
    return api.NicSpec(lan=lan.lan, name=lan.name, mac=lan.mac, addresses=lan.addresses, impair_to=impaired, impair_from=impaired)


def environment(args: Namespace, own: Mapping[str, str]) -> dict[str, str]:
    """Variables of the files of ``--env-file``, then those of ``-e``, which win. A bare name takes the caller's value, if it has one.

    Raises:
        Usage: a file holds something else.
        NestbedError: a file cannot be read.
    """
    given = [
        values.variable(line.lstrip(), f"line {number} of {path}")
        for path in args.env_files
        for number, line in enumerate(_lines(path), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    wanted: dict[str, str] = {}
    for text in [*given, *args.env]:
        name, equals, value = text.partition("=")
        if equals:
            wanted[name] = value
        elif name in own:
            wanted[name] = own[name]
    return wanted


def _lines(path: str) -> list[str]:
    try:
        with translated(f"reading the environment file {path}", path=path), open(path, encoding="utf-8") as file:
            return file.read().split("\n")
    except UnicodeDecodeError as error:  # proto strings are UTF-8
        raise Failure(f"the environment file {path} is not UTF-8 text", remedy="convert it with iconv") from error


def _qemu(args: Namespace) -> api.QemuSpec:
    kernel, initrd = (os.path.abspath(path) if path else "" for path in (args.kernel, args.initrd))
    spec = api.QemuSpec(append=args.append, node=args.node, image=args.image, kernel=kernel, initrd=initrd)
    if args.boot_timeout is not None:
        spec.boot_timeout.FromNanoseconds(round(args.boot_timeout * 1e9))
    return spec


def container(args: Namespace, kind: str) -> api.ContainerSpec:
    """The container that ``run`` and ``create`` ask for.

    Raises:
        Failure, NestbedError: as :func:`environment`.
    """
    is_machine = kind == "qemu"
    fs, directory = ("", "") if is_machine else args.fs or ("", "")
    return api.ContainerSpec(
        name=f"{args.on}/{args.name}" if args.on else args.name,
        kind=api.ContainerKind.Value(f"CONTAINER_KIND_{kind.upper()}"),
        labels=dict(args.labels),
        hostname=args.hostname,
        nics=[nic(lan) for lan in args.lans],
        routes=[api.Route(destination=destination, via=via) for destination, via in args.routes],
        gateway=args.gateway,
        control=args.control,
        resources=resources(args),
        restart=restart(args),
        auto_remove=args.rm,
        qemu=_qemu(args) if is_machine else None,
        process=api.ProcessSpec(
            args=args.program,
            env=environment(args, os.environ),
            cwd=args.workdir,
            user=args.user,
            fs_mode=_FS.get(fs, api.FS_MODE_UNSPECIFIED),
            rootfs=directory if fs == "rootfs" else "",
            overlay_dir=directory if fs == "overlay" else "",
            mounts=[
                api.Mount(source=source, destination=destination, read_only=read_only) for source, destination, read_only in args.mounts
            ],
            cap_add=[] if is_machine else args.cap_add,
            cap_drop=[] if is_machine else args.cap_drop,
            sysctls=dict(args.sysctls),
            init=not is_machine and args.init,
            tty=args.tty,
            stdin=args.interactive,
        ),
    )
