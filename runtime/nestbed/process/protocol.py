"""What nestbedd and the keeper say to each other, and what they leave in a bundle for each other.

**The channel** is a SOCK_SEQPACKET socket pair that is passed, never a path. One message is one JSON object of at most
``MESSAGE_BYTES_MAX`` bytes, with up to ``FDS_MAX`` descriptors (SCM_RIGHTS). Requests carry ``op`` and ``seq``; the reply has the
same ``seq`` and either ``result`` (an object) or ``error`` (``{"step", "errno", "message"}``). Events have ``event`` and no ``seq``.
Big things never travel: they stand in the bundle, which the keeper reads when told its id.

**Reaching a keeper that runs**: the run directory's ``keeper.json`` holds ``{"pid", "start_time", "rendezvous"}``. A new nestbedd
opens a pidfd, checks the start time (``/proc/PID/stat`` field 22), takes a duplicate of the keeper's descriptor number ``rendezvous``
with pidfd_getfd(2), and sends one byte with one end of a fresh SOCK_SEQPACKET pair over it. The newest channel replaces the older one.

**Starting a keeper**: ``python -I -m nestbed.process.keeper --bundles-fd N --run-fd N --channel-fd N`` with directory descriptors of the
bundles directory (``STATE_DIR/containers``) and the run directory, and one end of the channel, inherited by number. The keeper detaches
into a session of its own, writes ``keeper.json`` and sends the event ``ready`` (``{"pid", "version", "adopted": [ids]}``).

Requests (``id`` is a container's id = name of its bundle), results, and descriptors:

===================  =====================================================  ==========================================================
op                   arguments                                              result
===================  =====================================================  ==========================================================
``template``         ``masks``: list of absolute paths to hide              ``{}``; the masks hold for every later start
``prepare``          ``id``, ``machine``                                    ``{}`` + fds [netns, rtnetlink socket inside it]; makes the
                                                                            network namespace (loopback up), or gives the one it has,
                                                                            or with ``machine`` the node's own,
                                                                            and clones: the clone sets itself up and waits for ``start``
``netlink``          ``id``                                                 ``{}`` + fd [rtnetlink socket inside its namespace]
``start``            ``id``                                                 ``{"pid", "start_time"}`` + fds [pidfd, out, err] (``out``,
                                                                            ``err``: further read ends of the log pipes or of the
                                                                            terminal; never read, they keep output alive if the
                                                                            keeper dies). Reads ``launch.json``
``stop``             ``id``, ``grace`` (s)                                  ``{}`` at once; ``exited`` follows. Ends restarts
``signal``           ``id``, ``signal``                                     ``{}``
``attach``           ``id`` + fds [out, err] (write ends, non-blocking)     ``{"stdin": bool, "tty": bool}`` + fd [stdin writer or
                                                                            terminal] if it runs and has one. Output goes to the log
                                                                            and to every sink; a sink that is full holds the program
                                                                            up; a closed sink is dropped. Before ``start``: kept for it
``stdin``            ``id``                                                 ``{}`` + fd [stdin writer or terminal], if there is one
``close_stdin``      ``id``                                                 ``{}``
``exec``             ``id``, ``exec_id``, ``launch`` (keys as in            ``{"pid", "start_time"}`` + fds [pidfd] or, with ``tty``,
                     ``launch.json``: argv env cwd uid gid groups caps      [pidfd, terminal]
                     seccomp tty rows columns) + fds [in, out, err]
                     without ``tty``
``adopt``            ``id``, ``wait_status`` (of waitpid(2), or null) +     ``{"status"}``; after a keeper died: nestbedd gives what it held
                     fds [netns] or [netns, out, err]                       (duplicates), and how the program ended if it saw that
``restart_policy``   ``id``, ``mode``, ``max_retries``                      ``{}``
``release``          ``id``                                                 ``{}``; forgets the container (it must not run) and lets
                                                                            its network namespace go
``list``                                                                    ``{"containers": {id: status}}`` (as in ``status.json``)
===================  =====================================================  ==========================================================

Events: ``exited`` ``{"id", "status"}`` (after the log is complete and ``status.json`` written; ``status["state"]`` is ``stopped`` or
``restarting``), ``started`` ``{"id", "status"}`` + fds [pidfd, out, err] (a start by the restart policy), ``exec_exited``
``{"id", "exec_id", "code", "signal"}``, ``log_lost`` ``{"id", "bytes"}`` (total).

**Errors of start and exec**: ``step`` is one of STEPS; for ``execve`` errno ENOENT/ENOTDIR means program not found, EACCES and ENOEXEC
not executable.

**In the bundle**: ``launch.json`` (nestbedd's, written before ``prepare``; the keys of :class:`Launch`), ``hosts`` (nestbedd's,
before ``prepare``; shown inside, so rewritten in place, never replaced), ``report`` (a FIFO, nestbedd's, shown inside; the keeper holds
it open from the first start until ``release``), ``status.json`` (the keeper's, a line for each change, of
which the last whole one counts, :func:`last_status`: ``state``
created|running|restarting|stopped, ``pid``, ``start_time`` (clock ticks), ``started_at``, ``exit`` (code, signal, reason, message, at)
or null, ``restarts``, ``log_bytes_lost``, ``stop_asked``, ``pipes`` (inode numbers), ``holder``), ``log`` and ``log.1`` ... (the
keeper's; format in ``nestbed.runlog``).
"""

from __future__ import annotations

import array
import json
import socket
from typing import Any, NotRequired, TypedDict

MESSAGE_BYTES_MAX = 256 * 1024
FDS_MAX = 8
VERSION = 1
_ANCILLARY_BYTES = socket.CMSG_LEN(FDS_MAX * array.array("i").itemsize)

STEPS = (
    "cgroup",
    "netns",
    "root",
    "overlay",
    "proc",
    "sys",
    "dev",
    "run",
    "mount",
    "files",
    "mask",
    "pivot",
    "hostname",
    "sysctl",
    "terminal",
    "rlimit",
    "cwd",
    "credentials",
    "capabilities",
    "seccomp",
    "execve",
    "namespaces",
    "clone",
)
"""The steps of setting a container up, in no order; an error names one of them."""


class LaunchMount(TypedDict):
    """A bind mount; ``masks`` are absolute paths inside that must be hidden within it. ``own``: the source is relative to the bundle;
    ``code``: it is nestbed's own code.
    """

    source: str
    destination: str
    read_only: bool
    masks: list[str]
    own: NotRequired[bool]
    code: NotRequired[bool]


class LaunchRoot(TypedDict, total=False):
    """The file system. ``mode`` is host, host-ro, overlay or rootfs; ``path`` a rootfs, with ``own`` relative to the bundle; ``upper`` a
    directory to keep changes in.
    """

    mode: str
    path: str
    upper: str
    own: bool


class Launch(TypedDict, total=False):
    """``launch.json``: all the keeper needs to start the container, also without nestbedd."""

    id: str
    argv: list[str]
    env: list[str]
    """``K=V`` items; ``PATH`` among them decides where the program is looked for, inside."""
    cwd: str
    uid: int
    gid: int
    groups: list[int]
    hostname: str
    root: LaunchRoot
    mounts: list[LaunchMount]
    caps: int
    """Bit mask: bounding, effective and permitted; inheritable and ambient are empty."""
    seccomp: str
    """Name of a file in the run directory with the compiled BPF program; "" is none."""
    rlimits: list[list[int]]
    """[resource, soft, hard]"""
    sysctls: list[list[str]]
    """[path below /proc/sys, value]"""
    cgroup2: str
    """Path below the v2 mount, or ""; the container is cloned into it."""
    cgroups: list[str]
    """Absolute paths of v1 cgroup directories to join."""
    cgroup2_mount: str
    """Where cgroup v2 is mounted, or ""."""
    init: str
    """Path of a static init program on the node, or ""."""
    tty: bool
    stdin: bool
    rows: int
    columns: int
    restart: dict[str, Any]
    """{"mode": no|on-failure|always, "max_retries": N}"""
    log: dict[str, int]
    """{"bytes_max": per file, "files": how many}"""
    machine: bool
    """Whether its network namespace is the node's own."""
    kvm: bool
    """Whether /dev/kvm is there, if the node has it."""


def last_status(text: bytes) -> dict[str, Any] | None:
    """What ``status.json`` says; None if nothing was written yet. What a crash tore does not count.

    Raises:
        ValueError: none of it can be understood.
    """
    lines = [line for line in text.split(b"\n") if line]
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    if lines:
        raise ValueError("no line of status.json can be understood")
    return None


def receive(channel: socket.socket, buffer: bytearray) -> tuple[bytes, list[int], int]:
    """One message of the channel, through a buffer of ``MESSAGE_BYTES_MAX``: its bytes, its descriptors (close-on-exec), and the flags of
    recvmsg(2).
    """
    length, ancillary, flags, _ = channel.recvmsg_into([buffer], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return bytes(buffer[:length]), list(fds), flags
