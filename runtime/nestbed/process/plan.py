"""From a spec to the keeper's ``launch.json``: what runs, with which environment, rights and files. Pure: reads nothing, makes nothing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from nestbed.errors import InvalidArgument, shown
from nestbed.model import ExecSpec, FsMode, Mount, ProcessSpec, RestartPolicy, Spec
from nestbed.process.accounts import User
from nestbed.process.limits import Membership
from nestbed.process.protocol import Launch, LaunchMount, LaunchRoot

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LOG_BYTES_MAX = 10 << 20
LOG_FILES = 3

_SYSCTL_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,63}", re.ASCII)
_SYSCTLS = re.compile(
    r"net/.+|fs/mqueue/[^/]+"
    r"|kernel/(?:msgmax|msgmnb|msgmni|msg_next_id|sem|sem_next_id|shmall|shmmax|shmmni|shm_next_id|shm_rmid_forced|auto_msgmni|domainname)"
)
_SYSCTL_VALUE = re.compile(r"[\x20\x09\x21-\x2a\x2c-\x7e]{1,1024}", re.ASCII)
_ENV_NAME = re.compile(r"[^=\0]+")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the node found out for one launch."""

    user: User
    capabilities: int
    seccomp: str
    membership: Membership
    mounts: tuple[LaunchMount, ...] = ()
    rlimits: tuple[tuple[int, int, int], ...] = ()
    init: str = ""
    own: str = ""
    """For a sandbox of another runtime its bundle, whose content it may see; "" otherwise."""


def launch(spec: Spec, facts: Facts) -> Launch:
    """``launch.json`` of the container.

    Raises:
        InvalidArgument: an impossible argument, environment, directory or sysctl.
    """
    process = spec.process
    _check_words("argument", process.args)
    hostname = spec.hostname or spec.name
    return Launch(
        id=spec.id,
        argv=list(process.args),
        env=environment(process.env, facts.user, hostname=hostname, tty=process.tty),
        cwd=working_directory(process.cwd),
        uid=facts.user.uid,
        gid=facts.user.gid,
        groups=list(facts.user.groups),
        hostname=hostname,
        root=_root(process, facts.own),
        mounts=list(facts.mounts),
        caps=facts.capabilities,
        seccomp=facts.seccomp,
        rlimits=[list(limit) for limit in facts.rlimits],
        sysctls=[list(sysctl(key, value)) for key, value in process.sysctls],
        cgroup2=facts.membership.cgroup2,
        cgroups=list(facts.membership.cgroups),
        cgroup2_mount=facts.membership.cgroup2_mount,
        init=facts.init,
        tty=process.tty,
        stdin=process.stdin,
        rows=24,
        columns=80,
        restart=restart(spec.restart),
        log={"bytes_max": LOG_BYTES_MAX, "files": LOG_FILES},
        machine=process.machine,
        kvm=bool(facts.own),
    )


def further(container: Launch, spec: ExecSpec, user: User | None) -> Launch:
    """What ``exec`` of a further program is given: confined as the container, which ``container`` launched; ``user`` None is its user.

    Raises:
        InvalidArgument: an impossible argument, environment or directory.
    """
    _check_words("argument", spec.args)
    values = dict(item.split("=", 1) for item in container["env"])
    values.pop("TERM", None)
    if user is not None:
        values |= _identity(user)
    if spec.tty:
        values["TERM"] = "xterm"
    return Launch(
        argv=list(spec.args),
        env=_assigned(values, spec.env),
        cwd=working_directory(spec.cwd) if spec.cwd else container["cwd"],
        uid=user.uid if user else container["uid"],
        gid=user.gid if user else container["gid"],
        groups=list(user.groups) if user else container["groups"],
        caps=container["caps"],
        seccomp=container["seccomp"],
        rlimits=container["rlimits"],
        tty=spec.tty,
        rows=spec.rows,
        columns=spec.columns,
    )


def environment(given: Sequence[tuple[str, str]], user: User, *, hostname: str, tty: bool) -> list[str]:
    """``K=V`` items: the defaults, overridden by what is given, made afresh for every container.

    Raises:
        InvalidArgument: a name that is empty or holds ``=``, or a NUL anywhere (reason BAD_ENVIRONMENT).
    """
    values = {"PATH": DEFAULT_PATH, **_identity(user), "HOSTNAME": hostname}
    if tty:
        values["TERM"] = "xterm"
    return _assigned(values, given)


def _identity(user: User) -> dict[str, str]:
    return {"HOME": user.home, "USER": user.name or str(user.uid)}


def _assigned(values: dict[str, str], given: Sequence[tuple[str, str]]) -> list[str]:
    for name, value in given:
        if not _ENV_NAME.fullmatch(name) or "\0" in value:
            raise InvalidArgument(
                f"{shown(name)} is no environment variable", reason="BAD_ENVIRONMENT", remedy="give it as NAME=VALUE", variable=shown(name)
            )
        values[name] = value
    return [f"{name}={value}" for name, value in values.items()]


def working_directory(text: str) -> str:
    """The directory to start in; "" is the root.

    Raises:
        InvalidArgument: not absolute (reason BAD_DIRECTORY).
    """
    if text and (not text.startswith("/") or "\0" in text):
        raise InvalidArgument(f"{shown(text)} is no absolute path", reason="BAD_DIRECTORY", remedy="begin it with /", path=shown(text))
    return text or "/"


def sysctl(key: str, value: str) -> tuple[str, str]:
    """``(path below /proc/sys, value)`` of a setting that belongs to a container's own namespaces.

    The key is written as for sysctl(8): with dots or with slashes, whichever comes first; the other one is then part of a name.

    Raises:
        InvalidArgument: reason BAD_SYSCTL, or SYSCTL_NOT_NAMESPACED for one that would change the whole machine.
    """
    first = next((char for char in key if char in "./"), "")
    path = key if first == "/" else key.translate(str.maketrans("./", "/."))
    parts = path.split("/")
    if len(parts) < 2 or not all(_SYSCTL_PART.fullmatch(part) and ".." not in part for part in parts) or not _SYSCTL_VALUE.fullmatch(value):
        raise InvalidArgument(
            f"{shown(f'{key}={value}')} is no sysctl setting",
            reason="BAD_SYSCTL",
            remedy="write it as net.ipv4.ip_forward=1; without line feeds and +",
            sysctl=shown(key),
            value=shown(value),
        )
    if path == "kernel/hostname":
        raise _not_namespaced(key, "give the name with --hostname")
    if not _SYSCTLS.fullmatch(path):
        raise _not_namespaced(
            key, "only net.*, fs.mqueue.* and the System V IPC settings of kernel.* belong to a container; set others on the node"
        )
    return path, value


def _not_namespaced(key: str, remedy: str) -> InvalidArgument:
    return InvalidArgument(f"{shown(key)} does not belong to a container", reason="SYSCTL_NOT_NAMESPACED", remedy=remedy, sysctl=shown(key))


def restart(policy: RestartPolicy) -> dict[str, object]:
    """The policy as the keeper reads it."""
    return {"mode": policy.mode.value, "max_retries": policy.max_retries}


def bind(mount: Mount, source: str, hidden: Iterable[str], own: str = "", code: Collection[str] = ()) -> LaunchMount:
    """The bind mount of ``mount``, whose source is ``source`` once symbolic links are resolved; ``hidden`` are the resolved paths of the
    node that no container sees, except for what is in ``own``, and read-only for the directories ``code``.

    Raises:
        InvalidArgument: it would show something hidden (reason HIDDEN_SOURCE), or a path is not absolute (reason BAD_MOUNT).
    """
    destination = _normal(mount.destination)
    if destination == "/" or not mount.source.startswith("/") or not mount.destination.startswith("/"):
        raise _bad_mount(mount, "source and destination must be absolute paths, the destination not the root itself")
    if destination.split("/")[1] in ("proc", "sys", "dev"):
        raise _bad_mount(mount, "/proc, /sys and /dev are the container's own")
    if own and is_within(source, own):
        return LaunchMount(source=source[len(own) + 1 :], destination=destination, read_only=mount.read_only, masks=[], own=True)
    if source in code and mount.read_only:
        return LaunchMount(source=source, destination=destination, read_only=True, masks=[], code=True)
    masks = []
    for path in hidden:
        if is_within(source, path):
            raise InvalidArgument(
                f"{shown(mount.source)} is hidden from containers",
                reason="HIDDEN_SOURCE",
                remedy="it belongs to nestbed or to another daemon of the node; mount another directory",
                source=shown(mount.source),
            )
        if is_within(path, source):
            masks.append(_normal(f"{destination}/{path[len(source) :]}"))
    return LaunchMount(source=source, destination=destination, read_only=mount.read_only, masks=masks)


def _bad_mount(mount: Mount, why: str) -> InvalidArgument:
    text = f"{mount.source}:{mount.destination}"
    return InvalidArgument(
        f"cannot mount {shown(text)}: {why}", reason="BAD_MOUNT", remedy="write it as /SOURCE:/DESTINATION[:ro]", mount=shown(text)
    )


def is_within(path: str, directory: str) -> bool:
    """Whether ``path`` is ``directory`` or below it; both absolute and normal."""
    return directory in (path, "/") or path.startswith(f"{directory}/")


def _normal(path: str) -> str:
    """An absolute path without ``.``, ``..`` and double slashes, as it reads: no link is followed."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return f"/{'/'.join(parts)}"


def _root(process: ProcessSpec, own: str) -> LaunchRoot:
    if process.fs is FsMode.ROOTFS and own and is_within(process.rootfs, own):
        return LaunchRoot(mode="rootfs", path=process.rootfs[len(own) + 1 :], own=True)
    if process.fs is FsMode.ROOTFS:
        return LaunchRoot(mode="rootfs", path=process.rootfs)
    if process.fs is FsMode.OVERLAY and process.overlay_dir:
        return LaunchRoot(mode="overlay", upper=process.overlay_dir)
    return LaunchRoot(mode=process.fs.value)


def _check_words(what: str, words: Sequence[str]) -> None:
    if not words or not words[0]:
        raise InvalidArgument("there is no program to run", reason="NO_PROGRAM", remedy="give a program and its arguments after --")
    for word in words:
        if "\0" in word:
            raise InvalidArgument(f"an {what} holds a NUL", reason="BAD_ARGUMENT", remedy="leave it out")
