"""The birth of a process in a container: what it needs is opened, it is cloned, sets itself up, waits for the word, and executes.

The clone is made early (``prepare``), so that it sets up its mounts on another processor while nestbedd plugs NICs; the word to go
comes with ``start``. A program that joins a running container (``exec``) is born the same way and told to go at once.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nestbed.linux.descriptors import keep
from nestbed.linux.namespace import (
    CLONE_FILES,
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
)
from nestbed.linux.pidfd import start_time
from nestbed.process.launch import Prepared, write_first, write_joining
from nestbed.process.program import Program
from nestbed.process.protocol import Launch
from nestbed.process.roots import Covers

if TYPE_CHECKING:
    from nestbed.process.keeper import Keeper

_NEW = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
_JOINED = _NEW | CLONE_NEWNET | CLONE_NEWCGROUP
_APART_MS = 1000


class Refusal(Exception):
    """What nestbedd is answered when something cannot be done: the step, an errno, and a text."""

    def __init__(self, step: str, number: int, text: str) -> None:
        super().__init__(text)
        self.step = step
        self.number = number
        self.text = text


Completion = Callable[["Refusal | None", dict[str, Any], list[int]], None]
"""Hears the end of a start: why it failed, or what is to be told and the descriptors that go with it."""


class Join:
    """For ``exec``: the container's own launch, its first process, and the program's standard streams (none with a terminal)."""

    def __init__(self, container: Launch, pidfd: int, streams: list[int]) -> None:
        self.container = container
        self.pidfd = pidfd
        self.streams = streams


class Birth:
    """One clone from its making to the execution of its program. Its descriptors are the owner's to take after success."""

    def __init__(self, keeper: Keeper, launch: Launch, netns_fd: int, join: Join | None = None) -> None:
        """Clone. ``join.streams`` are closed here in any case.

        Raises:
            Refusal: something it needs is not there, or the kernel refused the clone; nothing is left.
        """
        self._keeper = keeper
        self._theirs: list[int] = list(join.streams) if join else []
        """Descriptors for the child alone; closed once it has its copies."""
        self._error_fd = self._go_fd = self._terminal_socket = -1
        self._program: Program
        self.pid = 0
        self.pidfd = self.stdin_fd = self.out_fd = self.err_fd = self.terminal_fd = -1
        try:
            self._clone(launch, netns_fd, join)
        except BaseException:
            self._close_ours()
            raise
        finally:
            for fd in self._theirs:
                os.close(fd)
            self._theirs = []

    @cached_property
    def start_time(self) -> int:
        """Of its process."""
        return start_time(self.pid)

    def alive(self) -> bool:
        """Whether it still waits for the word (it may have been killed)."""
        return self.pid != 0 and os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def go(self, done: Callable[[Refusal | None], None]) -> None:
        """Let it execute; ``done`` hears when it has, or why not (then :meth:`bury` it)."""
        if self._go_fd >= 0:
            with suppress(BrokenPipeError):  # its error pipe tells why
                os.write(self._go_fd, b"g")
            os.close(self._go_fd)
            self._go_fd = -1

        def told() -> None:
            self._keeper.waiting.discard(self)
            self._keeper.loop.watch(self._error_fd, None)
            report = os.read(self._error_fd, 4096)
            os.close(self._error_fd)
            self._error_fd = -1
            self._receive_terminal()
            if report:
                done(Refusal(*self._program.explain(report)))
            elif not self.pid:
                done(Refusal("namespaces", errno.ESRCH, "the container ended meanwhile"))
            else:
                done(None)

        self._keeper.loop.watch(self._error_fd, told)

    def bury(self) -> None:
        """It is not wanted or has failed: end it, reap it, close everything."""
        self._keeper.waiting.discard(self)
        if self.pid:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self._keeper.reap_later(self.pidfd)
            self.pid, self.pidfd = 0, -1
        self._close_ours()

    def _close_ours(self) -> None:
        names = ("_error_fd", "_go_fd", "_terminal_socket", "pidfd", "stdin_fd", "out_fd", "err_fd", "terminal_fd")
        for name in names:
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)

    def _clone(self, launch: Launch, netns_fd: int, join: Join | None) -> None:
        self._keeper.template.refresh()
        container = join.container if join else launch
        prepared = Prepared(launch)
        template = self._keeper.template
        prepared.covers = Covers(template.points(with_memory=launch.get("root", {}).get("mode") == "host-ro"), template.masks)
        prepared.spare_fd = self._keeper.run_fd
        prepared.seccomp = self._seccomp(launch["seccomp"])
        self._open_streams(launch, prepared, join)
        self._open_cgroups(container, prepared)
        self._open_files(launch, prepared)
        cgroup_fd = self._cgroup2_fd(container)
        error_out, prepared.error_fd = os.pipe2(os.O_CLOEXEC)
        self._error_fd = keep(error_out)
        self._theirs.append(prepared.error_fd)
        try:
            if join is None:
                self._clone_first(prepared, netns_fd, cgroup_fd)
            else:
                self._join(prepared, join.pidfd, cgroup_fd)
        except OSError as error:
            raise Refusal("clone", error.errno or errno.EIO, str(error.strerror)) from error

    def _clone_first(self, prepared: Prepared, netns_fd: int, cgroup_fd: int) -> None:
        prepared.netns_fd = os.dup(netns_fd)  # under a low number
        prepared.go_fd, go_in = os.pipe2(os.O_CLOEXEC)
        self._go_fd = keep(go_in)
        prepared.apart_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._theirs += [prepared.netns_fd, prepared.go_fd, prepared.apart_fd]
        self._program = write_first(self._keeper.memory, prepared)
        self.pid, pidfd = self._program.spawn(_NEW | CLONE_FILES, exit_signal=signal.SIGCHLD, cgroup_fd=cgroup_fd)
        self.pidfd = keep(pidfd)
        self._keeper.waiting.add(self)
        self._wait_apart(prepared.apart_fd)

    def _wait_apart(self, apart_fd: int) -> None:
        """Wait until the clone has descriptors of its own, its first deed, or has ended: before, what is closed here it would lose."""
        poll = select.poll()
        for fd in (apart_fd, self.pidfd):
            poll.register(fd, select.POLLIN)
        if not poll.poll(_APART_MS):
            self.bury()
            raise Refusal("clone", errno.EAGAIN, "the new process does not begin: its cgroup may be frozen")

    def _join(self, prepared: Prepared, pidfd: int, cgroup_fd: int) -> None:
        """Have a child of the keeper born inside the namespaces of the process ``pidfd``; without one the error pipe tells why."""
        answer_out, answer_in = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                self._program = write_joining(self._keeper.memory, prepared, pidfd, _JOINED, answer_in)
                _, outer_pidfd = self._program.spawn(0, exit_signal=signal.SIGCHLD, cgroup_fd=cgroup_fd)
            finally:
                os.close(answer_in)
            answer = os.read(answer_out, 4)
        finally:
            os.close(answer_out)
        os.waitid(os.P_PIDFD, outer_pidfd, os.WEXITED)
        os.close(outer_pidfd)
        if len(answer) == 4:
            (self.pid,) = struct.unpack("i", answer)
            self.pidfd = os.pidfd_open(self.pid)

    def _open_streams(self, launch: Launch, prepared: Prepared, join: Join | None) -> None:
        if launch["tty"]:
            near, far = socket.socketpair()
            self._terminal_socket = near.detach()
            prepared.terminal_fd = far.detach()
            self._theirs.append(prepared.terminal_fd)
            if join and join.streams:
                raise Refusal("message", errno.EINVAL, "with a terminal exec takes no descriptors")
            return
        if join is not None:
            if len(join.streams) != 3:
                raise Refusal("message", errno.EINVAL, "exec takes three descriptors")
            prepared.stdio = (join.streams[0], join.streams[1], join.streams[2])
            return
        if launch["stdin"]:
            child_in, stdin = os.pipe2(os.O_CLOEXEC)
            self.stdin_fd = keep(stdin)
            self._theirs.append(child_in)
        else:
            child_in = -1
        said, out = os.pipe2(os.O_CLOEXEC)
        self.out_fd = keep(said)
        self._theirs.append(out)
        said, err = os.pipe2(os.O_CLOEXEC)
        self.err_fd = keep(said)
        self._theirs.append(err)
        # Opened for both ways, a pipe has a reader as long as the program lives: no SIGPIPE while there is no keeper.
        prepared.stdio = (child_in, self._open(f"/proc/self/fd/{out}", os.O_RDWR), self._open(f"/proc/self/fd/{err}", os.O_RDWR))

    def _open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC, dir_fd=dir_fd)
        self._theirs.append(fd)
        return fd

    def _open_cgroups(self, container: Launch, prepared: Prepared) -> None:
        for path in container["cgroups"]:
            try:
                prepared.task_fds.append(self._open(f"{path.lstrip('/')}/tasks", os.O_WRONLY, dir_fd=self._keeper.host_root_fd))
            except OSError as error:
                raise Refusal("cgroup", error.errno or errno.EIO, path) from error

    def _cgroup2_fd(self, container: Launch) -> int:
        if not container["cgroup2"]:
            return -1
        path = f"{container['cgroup2_mount']}/{container['cgroup2']}".lstrip("/")
        try:
            return self._open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._keeper.host_root_fd)
        except OSError as error:
            raise Refusal("cgroup", error.errno or errno.EIO, f"/{path}") from error

    def _open_files(self, launch: Launch, prepared: Prepared) -> None:
        try:
            if launch.get("init"):
                # From the keeper's read-only copy of the node: /proc/1/exe must never be writable.
                prepared.init_fd = self._open(launch["init"], os.O_RDONLY)
        except OSError as error:
            raise Refusal("root", error.errno or errno.EIO, str(error)) from error

    def _seccomp(self, name: str) -> bytes:
        if not name:
            return b""
        program = self._keeper.seccomp.get(name)
        if program is None:
            if "/" in name:
                raise Refusal("seccomp", errno.EINVAL, name)
            try:
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._keeper.run_fd)
            except OSError as error:
                raise Refusal("seccomp", error.errno or errno.EIO, name) from error
            with os.fdopen(fd, "rb") as file:
                program = self._keeper.seccomp[name] = file.read()
        return program

    def _receive_terminal(self) -> None:
        if self._terminal_socket < 0:
            return
        with socket.socket(fileno=self._terminal_socket) as channel:
            self._terminal_socket = -1
            channel.setblocking(False)
            try:
                _, fds, _, _ = socket.recv_fds(channel, 1, 1)
            except OSError:
                return
        for fd in fds:
            os.set_inheritable(fd, False)
            self.terminal_fd = keep(fd)
