"""The keeper: one small process per node that clones containers, reaps them, keeps their output and restarts them.

It is started by exec, has no threads, no gRPC and no event library, and outlives nestbedd. ``nestbed.process.protocol`` says what it
is told and what it answers; ``nestbed.process.charge`` is one container under its care. It keeps nothing that cannot be found
again: a new keeper takes over from ``status.json``, the kernel's pidfds and what nestbedd holds.

It ends by itself when no daemon is connected and it has nothing to keep.
"""

from __future__ import annotations

import errno
import gc
import heapq
import json
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import prctl

from nestbed.linux.pidfd import start_time
from nestbed.process import template
from nestbed.process.birth import Birth, Completion, Refusal
from nestbed.process.charge import Charge
from nestbed.process.inflight import Inflight
from nestbed.process.netns import NetworkNamespaces
from nestbed.process.output import CHUNK_BYTES, Sink
from nestbed.process.places import BUNDLES
from nestbed.process.program import Memory
from nestbed.process.protocol import MESSAGE_BYTES_MAX, VERSION, receive

Handler = Callable[[], object]

_UNMOUNT_SECONDS = 1.0
_ID = re.compile(r"[0-9a-f]{12}")


class Loop:
    """epoll with callbacks, and timers."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Handler] = {}
        self._writers: dict[int, Handler] = {}
        self._urgent: dict[int, Handler] = {}
        self._deserted: dict[int, Handler] = {}
        self._masks: dict[int, int] = {}
        self._timers: list[tuple[float, int, Handler]] = []
        self._count = 0

    def watch(self, fd: int, handler: Handler | None) -> None:
        """Call ``handler`` whenever ``fd`` can be read or hung up; None ends that."""
        self._change(self._readers, fd, handler)

    def drain(self, fd: int, handler: Handler | None) -> None:
        """Call ``handler`` whenever ``fd`` can be written; None ends that."""
        self._change(self._writers, fd, handler)

    def watch_urgent(self, fd: int, handler: Handler) -> None:
        """Call ``handler`` on exceptional conditions: how procfs tells of a change."""
        self._change(self._urgent, fd, handler)

    def watch_reader(self, fd: int, handler: Handler | None) -> None:
        """Call ``handler`` when nobody can read any more what is written to the pipe ``fd``; None ends that."""
        try:
            self._change(self._deserted, fd, handler)
        except PermissionError:  # no pipe: it has no reader to lose
            del self._deserted[fd]

    def _change(self, table: dict[int, Handler], fd: int, handler: Handler | None) -> None:
        if handler is None:
            table.pop(fd, None)
        else:
            table[fd] = handler
        mask = (select.EPOLLIN if fd in self._readers else 0) | (select.EPOLLOUT if fd in self._writers else 0)
        mask |= (select.EPOLLPRI if fd in self._urgent else 0) | (select.EPOLLERR if fd in self._deserted else 0)
        before = self._masks.get(fd, 0)
        if mask == before:
            return
        if not mask:
            self._epoll.unregister(fd)
            del self._masks[fd]
            return
        (self._epoll.modify if before else self._epoll.register)(fd, mask)
        self._masks[fd] = mask

    def later(self, seconds: float, handler: Handler) -> None:
        """Call ``handler`` once after ``seconds``; who no longer wants it checks that itself."""
        self._count += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._count, handler))

    def step(self, idle: Callable[[], bool]) -> None:
        """Wait for something and handle it; when there is nothing, let ``idle`` do something useful while it says True."""
        ready = self._epoll.poll(0)
        while not ready and idle():
            ready = self._epoll.poll(0)
        if not ready:
            ready = self._epoll.poll(max(self._timers[0][0] - time.monotonic(), 0) if self._timers else -1)
        for fd, events in ready:
            if events & (select.EPOLLPRI | select.EPOLLERR) and fd in self._urgent:
                self._urgent[fd]()
            if events & (select.EPOLLOUT | select.EPOLLERR) and fd in self._writers:
                self._writers[fd]()
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and fd in self._readers:
                self._readers[fd]()
            if events & select.EPOLLERR and fd in self._deserted:
                self._deserted[fd]()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()


class Keeper:
    """The keeper's state: the channel to nestbedd and the containers in its charge."""

    def __init__(self, *, channel: socket.socket, run_fd: int, host_root_fd: int, node_mnt_fd: int, mounts_fd: int) -> None:
        self.loop = Loop()
        self.run_fd = run_fd
        self.host_root_fd = host_root_fd
        self.inflight = Inflight(run_fd, CHUNK_BYTES)
        self.netns = NetworkNamespaces()
        self.template = template.Template(node_mnt_fd)
        self.memory = Memory()
        self.charges: dict[str, Charge] = {}
        self.waiting: set[Birth] = set()
        """Clones that set themselves up or wait for the word to go."""
        self.seccomp: dict[str, bytes] = {}
        self._channel: socket.socket | None = None
        self._rendezvous, self._rendezvous_far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._mounts_fd = mounts_fd
        self._operations: dict[str, Callable[..., tuple[dict[str, Any], list[int]] | None]] = {
            "template": self._op_template,
            "prepare": lambda id, machine: self._charge(id, make=True).prepare(is_machine=machine),
            "netlink": lambda id: self._charge(id).netlink(),
            "start": lambda id: self._charge(id, make=True).start(self._completion()),
            "stop": lambda id, grace: self._charge(id).stop(float(grace)),
            "signal": lambda id, signal: self._charge(id).signal(int(signal)),
            "attach": self._op_attach,
            "stdin": lambda id: self._charge(id).stdin(),
            "close_stdin": lambda id: self._charge(id).close_stdin(),
            "exec": self._op_exec,
            "adopt": self._op_adopt,
            "restart_policy": lambda id, mode, max_retries: self._charge(id).set_policy(str(mode), int(max_retries)),
            "release": self._op_release,
            "list": lambda: ({"containers": {id: charge.status() for id, charge in self.charges.items()}}, []),
        }
        self._received: list[int] = []
        self._buffer = bytearray(MESSAGE_BYTES_MAX)
        self._seq: object = None
        """Of the request that is being served."""
        self._use(channel)
        self.loop.watch(self._rendezvous.fileno(), self._meet)
        self.loop.watch_urgent(mounts_fd, self._mounts_changed)

    def run(self) -> None:
        """Announce itself, take over what runs, and serve until there is nothing left to do."""
        piece = self.inflight.left()
        if piece is not None:
            Charge(self, piece.id).log_again(piece)
        self.inflight.clear()
        for id in sorted(os.listdir(BUNDLES)):
            charge = Charge(self, id)
            if charge.take_over():
                self.charges[id] = charge
        record = {"pid": os.getpid(), "start_time": start_time(os.getpid()), "rendezvous": self._rendezvous_far.fileno()}
        self._write_record(record)
        self.template.refresh()
        gc.collect()
        gc.freeze()
        self.send({"event": "ready", "pid": os.getpid(), "version": VERSION, "adopted": sorted(self.charges)})
        while self._channel is not None or self.charges:
            self.loop.step(self._idle)

    def _idle(self) -> bool:
        """With time to spare, make a network namespace ahead; not while a clone that sets itself up needs the processor."""
        return not self.waiting and self.netns.restock()

    def _write_record(self, record: dict[str, int]) -> None:
        fd = os.open("keeper.json.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self.run_fd)
        os.write(fd, json.dumps(record).encode())
        os.close(fd)
        os.rename("keeper.json.new", "keeper.json", src_dir_fd=self.run_fd, dst_dir_fd=self.run_fd)

    def _mounts_changed(self) -> None:
        os.lseek(self._mounts_fd, 0, os.SEEK_SET)
        while os.read(self._mounts_fd, 1 << 16):
            pass
        if not self.template.stale:
            self.template.stale = True
            self.loop.later(_UNMOUNT_SECONDS, self._let_mounts_go)

    def _let_mounts_go(self) -> None:
        """Follow the node's mounts also when nothing is started: what it unmounts must not be held here."""
        with suppress(OSError):  # stale as it is, the next start tries again and tells
            self.template.refresh()

    # ---- the channel

    def _use(self, channel: socket.socket) -> None:
        if self._channel is not None:
            self._hang_up()
        channel.setblocking(True)
        self._channel = channel
        self.loop.watch(channel.fileno(), self._serve)

    def _hang_up(self) -> None:
        if self._channel is not None:
            self.loop.watch(self._channel.fileno(), None)
            self._channel.close()
            self._channel = None

    def _meet(self) -> None:
        """A new nestbedd sends its end of a fresh channel over the rendezvous."""
        _, fds, _, _ = socket.recv_fds(self._rendezvous, 16, 1)
        if fds:
            self._use(socket.socket(fileno=fds[0]))

    def send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        """Send to nestbedd, if there is one. The descriptors stay the caller's."""
        if self._channel is None:
            return
        data = json.dumps(message).encode()
        try:
            socket.send_fds(self._channel, [data], fds or [])
        except OSError:
            self._hang_up()

    def _serve(self) -> None:
        assert self._channel is not None
        try:
            data, fds, flags = receive(self._channel, self._buffer)
        except OSError:
            data, fds, flags = b"", [], 0
        if not data:
            self._hang_up()
            return
        self._received = fds
        self._seq = None
        try:
            answer = self._perform(data, flags)
        except Refusal as refusal:
            self._fail(self._seq, refusal)
        except OSError as error:
            self._fail(self._seq, Refusal("keeper", error.errno or errno.EIO, str(error)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._fail(self._seq, Refusal("message", errno.EPROTO, f"{type(error).__name__}: {error}"))
        else:
            if answer is not None:
                self._answer(self._seq, *answer)
        finally:
            for fd in self._received:
                os.close(fd)
            self._received = []

    def _perform(self, data: bytes, flags: int) -> tuple[dict[str, Any], list[int]] | None:
        """Do what the message asks: the answer, or None if it comes later."""
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise Refusal("message", errno.EMSGSIZE, "message too long")
        message = json.loads(data)
        self._seq = message.pop("seq")
        return self._operations[message.pop("op")](**message)

    def _fail(self, seq: object, refusal: Refusal) -> None:
        error = {"step": refusal.step, "errno": refusal.number, "message": refusal.text[:4000]}
        self.send({"seq": seq, "error": error})

    def _answer(self, seq: object, result: dict[str, Any], fds: list[int]) -> None:
        """Send a result; its descriptors were duplicates made for it."""
        self.send({"seq": seq, "result": result}, fds)
        for fd in fds:
            os.close(fd)

    def reap_later(self, pidfd: int) -> None:
        """Reap a clone that is about to end, and close its pidfd."""

        def reap() -> None:
            self.loop.watch(pidfd, None)
            with suppress(ChildProcessError):  # an earlier keeper's child
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)

        self.loop.watch(pidfd, reap)

    def _completion(self) -> Completion:
        """What a start calls when it is over, to answer the request that is being served now."""
        seq = self._seq

        def complete(refusal: Refusal | None, result: dict[str, Any], fds: list[int]) -> None:
            if refusal is not None:
                self._fail(seq, refusal)
            else:
                self._answer(seq, result, fds)

        return complete

    def _take_fds(self) -> list[int]:
        """The descriptors that came with the message: the operation's from now on."""
        fds, self._received = self._received, []
        return fds

    # ---- operations

    def _charge(self, id: str, *, make: bool = False) -> Charge:
        charge = self.charges.get(id)
        if charge is None:
            if not make or not _ID.fullmatch(id):
                raise Refusal("keeper", errno.ENOENT, f"no container {id!r}")
            charge = self.charges[id] = Charge(self, id)
        return charge

    def _op_template(self, masks: list[str]) -> tuple[dict[str, Any], list[int]]:
        self.template.hide([str(path) for path in masks])
        self.template.refresh()
        return {}, []

    def _op_attach(self, id: str) -> tuple[dict[str, Any], list[int]]:
        charge = self._charge(id, make=True)
        fds = self._take_fds()
        if len(fds) != 2:
            for fd in fds:
                os.close(fd)
            raise Refusal("message", errno.EINVAL, "attach takes two descriptors")
        return charge.attach(Sink({1: fds[0], 2: fds[1]}, self.loop.watch_reader))

    def _op_exec(self, id: str, exec_id: str, launch: dict[str, Any]) -> None:
        self._charge(id).exec(str(exec_id), launch, self._take_fds(), self._completion())

    def _op_adopt(self, id: str, wait_status: int | None = None) -> tuple[dict[str, Any], list[int]]:
        if id not in self.charges:
            self._charge(id, make=True).recall()
        return self._charge(id).adopt(wait_status, self._take_fds())

    def _op_release(self, id: str) -> tuple[dict[str, Any], list[int]]:
        charge = self.charges.get(id)
        if charge is not None:
            charge.release()
            del self.charges[id]
        return {}, []


_DESCRIPTORS = ("bundles", "run", "channel", "host-root", "node-mnt", "mounts")


def _arguments(words: list[str]) -> dict[str, int]:
    """The descriptors given as ``--NAME-fd=N``. (argparse would make every clone of this process dearer.)"""
    given = {}
    for word in words:
        name, _, number = word.removeprefix("--").partition("-fd=")
        if name not in _DESCRIPTORS or not number.isdecimal():
            raise SystemExit(f"nestbed-keeper is started by nestbedd, with descriptors it understands; not with {word!r}")
        given[name] = int(number)
    return given


def main() -> None:
    """Run as ``python -I -m nestbed.process.keeper``: first to build its namespace, then, executed again inside it, to serve."""
    given = _arguments(sys.argv[1:])
    if "host-root" not in given:
        _enter_namespace(given)
    prctl.set_dumpable(False)
    prctl.set_name("nestbed-keeper")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for fd in given.values():
        os.set_inheritable(fd, False)
    os.close(given["bundles"])
    Keeper(
        channel=socket.socket(fileno=given["channel"]),
        run_fd=given["run"],
        host_root_fd=given["host-root"],
        node_mnt_fd=given["node-mnt"],
        mounts_fd=given["mounts"],
    ).run()


def _enter_namespace(given: dict[str, int]) -> NoReturn:
    """Become a keeper whose interpreter and modules are a read-only copy in a mount namespace of its own."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    given["host-root"] = os.open("/", os.O_PATH | os.O_DIRECTORY)
    given["node-mnt"] = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    given["mounts"] = os.open("/proc/self/mountinfo", os.O_RDONLY)
    template.enter(given["bundles"])
    for fd in given.values():
        os.set_inheritable(fd, True)
    words = [sys.executable, "-I", "-B", "-m", "nestbed.process.keeper", *(f"--{name}-fd={fd}" for name, fd in given.items())]
    os.execve(sys.executable, words, {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})


if __name__ == "__main__":
    main()
