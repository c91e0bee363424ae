"""``hack/dev-net``: machines that stay, as namespaces below a directory, each with a daemon; a switch joins them.

Nothing is remembered: what there is stands in the directory, ``/run/nestbed-dev`` unless told otherwise. A machine is ``NAME/net`` and
``NAME/mnt`` (namespaces, kept by bind mounts), ``NAME/run`` and ``NAME/state`` of its daemon, and ``NAME/log``. Each command may be killed
and given again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from nestbed.linux.mount import MNT_DETACH, MS_BIND, MS_PRIVATE, mount, mountpoints, umount2
from nestbed.linux.pidfd import open_process, start_time

DIRECTORY = Path("/run/nestbed-dev")
READY_SECONDS = 20.0
END_SECONDS = 10.0
_POLL_SECONDS = 0.02
_BIN = Path(sys.executable).parent
_SWITCH = "switch"
_CGROUPS = Path("/sys/fs/cgroup")


class Place:
    """A directory with namespaces kept in it: a machine's, or the switch's, which has no daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = directory.name
        self.net, self.mnt = directory / "net", directory / "mnt"
        self.run_dir, self.state_dir, self.log = directory / "run", directory / "state", directory / "log"

    @property
    def address(self) -> str:
        """What ``nbctl -H`` takes."""
        return f"unix:{self.run_dir}/admin.sock"

    def make(self) -> None:
        """Make what is missing of the directory and its namespaces."""
        self.directory.mkdir(exist_ok=True)
        kept = {point for point, _, _ in mountpoints()}
        if {str(self.net), str(self.mnt)} <= kept:
            return
        self.let_go()
        for path in (self.net, self.mnt):
            path.touch()
        _run("unshare", f"--net={self.net}", f"--mount={self.mnt}", "--propagation", "private", "true")
        self.do("ip", "link", "set", "lo", "up")

    def do(self, *argv: str) -> None:
        """Run a program there, which succeeds."""
        _run(*self.entering, *argv)

    def can(self, *argv: str) -> bool:
        """Whether a program that is run there succeeds."""
        return subprocess.run([*self.entering, *argv], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    @property
    def entering(self) -> tuple[str, ...]:
        """What stands before an argument list that is to be run there."""
        # The switch stays in our mount namespace, in which the machines' namespaces are seen.
        inside = () if self.name == _SWITCH else (f"--mount={self.mnt}",)
        return ("nsenter", f"--net={self.net}", *inside, "--")

    @property
    def daemon_pid(self) -> int:
        """The process that has the run directory locked; 0 if there is none."""
        with contextlib.suppress(FileNotFoundError), (self.run_dir / "lock").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0)
        return 0

    def start_daemon(self, options: Sequence[str]) -> None:
        """Start the daemon unless one runs, and wait until it serves."""
        if self.daemon_pid:
            return
        directories = ("--run-dir", str(self.run_dir), "--state-dir", str(self.state_dir))
        argv = (*self.entering, str(_BIN / "nestbedd"), "--name", self.name, *directories, "--underlay", "u0", *options)
        with self.log.open("wb") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + READY_SECONDS
        while b'"ready"' not in self.log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                _fail(f"the daemon of {self.name} did not become ready", f"read {self.log}")
            time.sleep(_POLL_SECONDS)
        process.returncode = 0  # it goes on without us: no warning of a child that was not waited for

    def end(self) -> None:
        """End daemon, keeper and relay, with every container, and remove everything."""
        if not self.daemon_pid and any(self.state_dir.glob("containers/*")):
            self.start_daemon([])  # it knows how to end what an earlier one made
        if self.daemon_pid:
            for words in (("rm", "-f", "*"), ("lan", "rm", "*")):
                self.can(str(_BIN / "nbctl"), "-H", self.address, *words)
        pid = self.daemon_pid
        if pid:
            _kill(pid, signal.SIGTERM)
        while left := self._processes():
            for pid in left:
                _kill(pid, signal.SIGKILL)
        self._remove_cgroups()
        self.let_go()
        shutil.rmtree(self.directory)

    def let_go(self) -> None:
        """Let the namespaces go, with all that is in them."""
        for path in (self.net, self.mnt):
            with contextlib.suppress(OSError):
                umount2(str(path), MNT_DETACH)

    def _processes(self) -> list[int]:
        """What runs in the machine's network namespace, or is on its way there and writes to the daemon's log."""
        net = self.net.stat().st_ino if self.net.exists() else 0
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                is_inside = (path / "ns" / "net").stat().st_ino == net
                if is_inside or (path / "fd" / "2").readlink() == self.log:
                    found.append(int(path.name))
        return found

    def _remove_cgroups(self) -> None:
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            node = json.loads((self.run_dir / "node.json").read_bytes())["id"]
            for hierarchy in (_CGROUPS, *_CGROUPS.iterdir()):
                for name in ("devices", ""):
                    with contextlib.suppress(OSError):
                        (hierarchy / f"nestbed-{node}" / name).rmdir()


def up(directory: Path, count: int, *, mtu: int, options: Sequence[str]) -> list[Place]:
    """Have at least ``count`` machines, joined, with daemons that serve. Those that are there stay as they are."""
    directory.mkdir(mode=0o700, exist_ok=True)
    if str(directory) not in {point for point, _, _ in mountpoints()}:
        # A mount namespace can only be kept in a mount that is not shared with others.
        mount(str(directory), str(directory), "", MS_BIND)
    mount("", str(directory), "", MS_PRIVATE)
    switch = Place(directory / _SWITCH)
    switch.make()
    if not switch.can("ip", "link", "show", "dev", _SWITCH):
        switch.do("ip", "link", "add", "dev", _SWITCH, "mtu", str(mtu), "type", "bridge", "mcast_snooping", "0")
    switch.do("ip", "link", "set", _SWITCH, "up")
    machines = [Place(directory / f"m{number}") for number in range(1, count + 1)]
    for number, machine in enumerate(machines, 1):
        machine.make()
        _plug(switch, machine, f"192.168.77.{number}/24", mtu)
        machine.start_daemon(options)
    return machines


def down(directory: Path) -> None:
    """End and remove all of it. Idempotent."""
    if not directory.exists():
        return
    for machine in _machines(directory):
        machine.end()
    switch = Place(directory / _SWITCH)
    if switch.directory.exists():
        switch.let_go()
        shutil.rmtree(switch.directory)
    with contextlib.suppress(OSError):
        umount2(str(directory), MNT_DETACH)
    shutil.rmtree(directory)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="hack/dev-net", description="Machines for development: namespaces joined by a switch, a daemon in each."
    )
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="where everything is kept (%(default)s)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    to_up = verbs.add_parser("up", help="make N machines m1, m2...; idempotent")
    to_up.add_argument("count", metavar="N", type=int, choices=range(1, 65), help="how many (1 to 64)")
    to_up.add_argument("--mtu", type=int, default=1600, help="of the underlay u0 (%(default)s)")
    to_up.add_argument("options", metavar="OPTION", nargs="*", help="further options of nestbedd, behind --")
    verbs.add_parser("down", help="remove all of it")
    verbs.add_parser("list", help="print how to reach each machine")
    to_shell = verbs.add_parser("shell", help="a shell, or a program, on a machine")
    to_shell.add_argument("name", metavar="NAME", help="such as m1")
    to_shell.add_argument("argv", metavar="ARG", nargs="*", help="program and arguments, behind --")
    given = parser.parse_args()
    if os.geteuid() != 0:
        _fail("only root can make namespaces", "run it as root")
    if given.verb == "down":
        down(given.directory)
        return 0
    if given.verb == "shell":
        _shell(Place(given.directory / given.name), given.argv)
    if given.verb == "up":
        up(given.directory, given.count, mtu=given.mtu, options=given.options)
    _print(_machines(given.directory))
    return 0


def _machines(directory: Path) -> list[Place]:
    found = [Place(path) for path in directory.glob("m*") if path.is_dir()] if directory.exists() else []
    return sorted(found, key=lambda machine: (len(machine.name), machine.name))


def _plug(switch: Place, machine: Place, address: str, mtu: int) -> None:
    if not machine.can("ip", "link", "show", "dev", "u0"):
        if switch.can("ip", "link", "show", "dev", machine.name):  # its far end was in namespaces that are gone
            switch.do("ip", "link", "del", "dev", machine.name)
        peer = ("type", "veth", "peer", "name", "u0", "mtu", str(mtu), "netns", str(machine.net))
        switch.do("ip", "link", "add", "dev", machine.name, "mtu", str(mtu), *peer)
    switch.do("ip", "link", "set", machine.name, "master", _SWITCH, "up")
    machine.do("ip", "addr", "replace", address, "dev", "u0")
    machine.do("ip", "link", "set", "u0", "up")


def _shell(machine: Place, argv: Sequence[str]) -> NoReturn:
    if not machine.net.exists() or machine.name == _SWITCH:
        _fail(f"there is no machine {machine.name}", "make it with hack/dev-net up N, or see hack/dev-net list")
    environment = {**os.environ, "NBCTL_HOST": machine.address, "PATH": f"{_BIN}:{os.environ['PATH']}", "debian_chroot": machine.name}
    os.execvpe("nsenter", [*machine.entering, *(argv or ["bash"])], environment)  # noqa: S606 - it takes our place


def _print(machines: Sequence[Place]) -> None:
    for machine in machines:
        state = "" if machine.daemon_pid else "   (its daemon does not run: hack/dev-net up again)"
        sys.stdout.write(f"{machine.name}   nbctl -H {machine.address}   hack/dev-net shell {machine.name}{state}\n")


def _kill(pid: int, number: int) -> None:
    """Send a signal and wait for the end; SIGKILL if it does not come."""
    try:
        pidfd = open_process(pid, start_time(pid))
    except ProcessLookupError:
        return
    try:
        for signal_number in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal_number)
            if select.select([pidfd], [], [], END_SECONDS)[0]:
                return
    finally:
        os.close(pidfd)


def _run(*argv: str) -> None:
    result = subprocess.run(argv, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        _fail(
            f"{' '.join(argv)}: {result.stderr.strip() or result.returncode}",
            "see what hack/dev-net list says, or begin again: hack/dev-net down",
        )


def _fail(cause: str, remedy: str) -> NoReturn:
    sys.stderr.write(f"hack/dev-net: {cause}\nremedy: {remedy}\n")
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
