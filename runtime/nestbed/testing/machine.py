"""Machines for tests: a network namespace, a run and a state directory, and a real daemon in them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from nestbed.linux.mount import MNT_DETACH, umount2
from nestbed.linux.namespace import CLONE_NEWNET, setns, unshare
from nestbed.linux.pidfd import open_process

READY_SECONDS = 20.0
_BIN = Path(sys.executable).parent
_CGROUPS = Path("/sys/fs/cgroup")


class Machine:
    """A machine of its own as far as networks go. The namespace lives as long as this object is open."""

    def __init__(self, name: str, base: Path) -> None:
        self.name = name
        self.run_dir = base / "run"
        self.state_dir = base / "state"
        self.daemon = Daemon(self)
        self.netns_fd = _new_netns()

    @property
    def address(self) -> str:
        """Where an admin reaches the daemon."""
        return f"unix:{self.run_dir}/admin.sock"

    @property
    def node_id(self) -> str:
        """The node's id; "" before the first daemon."""
        try:
            return str(json.loads((self.run_dir / "node.json").read_bytes())["id"])
        except FileNotFoundError:
            return ""

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in the machine's network namespace, with this thread, for the block."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(self.netns_fd, CLONE_NEWNET)
            yield
        finally:
            setns(own, CLONE_NEWNET)
            os.close(own)

    def popen(self, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program on the machine; ``options`` as of Popen."""
        # By path, not by inheritance: the program gets no descriptor of ours.
        return subprocess.Popen(["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.netns_fd}", "--", *argv], **options)

    def run(self, *argv: str | Path, timeout_seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a program on the machine and wait for it."""
        process = self.popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=timeout_seconds)
        finally:
            process.kill()
            process.wait()
        return subprocess.CompletedProcess(argv, process.returncode, out.decode(), err.decode())

    def nbctl(self, *args: str, timeout_seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run nbctl as admin of the machine's daemon."""
        return self.run(_BIN / "nbctl", "-H", self.address, *args, timeout_seconds=timeout_seconds)

    def close(self) -> None:
        """Remove what the daemon holds, if it runs; end daemon and keeper; let the namespace go. What else there is stays, to be found."""
        if self.daemon.is_running:
            if _has_entries(self.state_dir / "containers"):
                self.nbctl("rm", "-f", "*")
            if _has_entries(self.state_dir / "lans"):
                self.nbctl("lan", "rm", "*")
        self.daemon.stop()
        self.kill_keeper()
        self.kill_relay()
        self.remove_empty_cgroups()
        with contextlib.suppress(OSError):
            umount2(str(self.run_dir / "bpf"), MNT_DETACH)  # the LAN plane's pins: a reboot would take them
        os.close(self.netns_fd)

    def kill_keeper(self) -> None:
        """SIGKILL the keeper, if there is one, and wait until it is dead."""
        self._kill("keeper.json")

    def kill_relay(self) -> None:
        """SIGKILL the relay, if there is one, and wait until it is dead."""
        self._kill("relay.lock")

    def _kill(self, file: str) -> None:
        try:
            record = json.loads((self.run_dir / file).read_bytes())
            pidfd = open_process(record["pid"], record["start_time"])
        except (FileNotFoundError, ProcessLookupError):
            return
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        finally:
            os.close(pidfd)

    def remove_empty_cgroups(self) -> None:
        """Remove the node's own cgroups, below which it has its containers'."""
        if self.node_id:
            for hierarchy in (_CGROUPS, *_CGROUPS.iterdir()):
                for name in ("devices", ""):
                    with contextlib.suppress(OSError):
                        (hierarchy / f"nestbed-{self.node_id}" / name).rmdir()


class Daemon:
    """nestbedd on a machine. It may be killed and started again."""

    def __init__(self, machine: Machine) -> None:
        self.log: list[dict[str, Any]] = []
        self.starter: Sequence[str] = ()
        """A program that executes the words that follow it, and with them the daemon: what gives it surroundings of its own."""
        self._machine = machine
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._is_ready = threading.Event()

    @property
    def is_running(self) -> bool:
        """Whether its process has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def start(self, *options: str) -> None:
        """Start it and wait until it serves.

        Raises:
            RuntimeError: it ended instead, with what it said; or it was not ready within READY_SECONDS.
        """
        machine = self._machine
        self._is_ready.clear()
        directories = ("--run-dir", str(machine.run_dir), "--state-dir", str(machine.state_dir))
        argv = (*self.starter, str(_BIN / "nestbedd"), "--name", machine.name, *directories, *options)
        process = machine.popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        self._process = process
        self._reader = threading.Thread(target=self._read, args=(process.stderr,), daemon=True)
        self._reader.start()
        if not self._is_ready.wait(READY_SECONDS) or not self.is_running:
            self.kill()
            raise RuntimeError(f"nestbedd did not become ready: {self.log[-20:]}")

    def stop(self) -> int:
        """End it by SIGTERM; containers run on. Its exit code; 0 if it did not run."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """End it by SIGKILL."""
        return self._end(signal.SIGKILL)

    def wait(self) -> int:
        """Wait until it ends by itself, READY_SECONDS at most. Its exit code: the number of a signal is negative."""
        assert self._process is not None
        return self._process.wait(READY_SECONDS)

    def _end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            code = process.wait(READY_SECONDS)
        finally:
            process.kill()
            process.wait()
        if self._reader is not None:
            # The keeper may hold the pipe open.
            self._reader.join(0.1)
        return code

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                try:
                    entry = json.loads(line)
                except ValueError:
                    entry = {"message": line.decode("utf-8", "replace").rstrip()}
                self.log.append(entry)
                if entry.get("message") == "ready":
                    self._is_ready.set()
        self._is_ready.set()


def _new_netns() -> int:
    made: list[int] = []

    def make() -> None:
        unshare(CLONE_NEWNET)
        made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    # A thread of its own, so that the caller stays where it is.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def _has_entries(path: Path) -> bool:
    return path.exists() and any(path.iterdir())
