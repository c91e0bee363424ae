"""The keeper by itself, spoken to over its channel: no gRPC, no nestbedd, no cgroups."""

import errno
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nestbed import runlog
from nestbed.linux.pidfd import open_process, pidfd_getfd, start_time
from nestbed.process.protocol import MESSAGE_BYTES_MAX, last_status

pytestmark = pytest.mark.net

CAPS = 0xA80435FB
WAIT_SECONDS = 10


class Failed(Exception):
    def __init__(self, error):
        super().__init__(error)
        self.step, self.errno = error["step"], error["errno"]


class KeeperUser:
    """A stand-in for nestbedd: starts a keeper, talks to it, kills it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.bundles = base / "state" / "containers"
        self.bundles.mkdir(parents=True)
        (base / "run").mkdir()
        self.process = None
        self.channel = None
        self.events = []
        self._seq = 0
        self._count = 0

    def start(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        bundles = os.open(self.bundles, os.O_RDONLY | os.O_DIRECTORY)
        run = os.open(self.base / "run", os.O_RDONLY | os.O_DIRECTORY)
        fds = {"bundles": bundles, "run": run, "channel": theirs.fileno()}
        words = [sys.executable, "-I", "-m", "nestbed.process.keeper", *(f"--{name}-fd={fd}" for name, fd in fds.items())]
        self.process = subprocess.Popen(words, pass_fds=tuple(fds.values()))
        theirs.close()
        os.close(bundles)
        os.close(run)
        self.channel = ours
        ours.settimeout(WAIT_SECONDS)
        return self.event("ready")

    def _receive(self):
        data, fds, _, _ = socket.recv_fds(self.channel, MESSAGE_BYTES_MAX, 8)
        if not data:
            raise ConnectionResetError
        return json.loads(data), fds

    def raw(self, data: bytes):
        """Send bytes and give the answer to them."""
        self.channel.send(data)
        while True:
            message, fds = self._receive()
            for fd in fds:
                os.close(fd)
            if "event" not in message:
                return message

    def call(self, op, fds=(), *, keep=False, **arguments):
        self._seq += 1
        socket.send_fds(self.channel, [json.dumps({"op": op, "seq": self._seq, **arguments}).encode()], list(fds))
        while True:
            message, received = self._receive()
            if message.get("seq") == self._seq:
                break
            self.events.append(message)
            for fd in received:
                os.close(fd)
        if "error" in message:
            raise Failed(message["error"])
        if keep:
            return message["result"], received
        for fd in received:
            os.close(fd)
        return message["result"]

    def event(self, kind, id=None):
        while True:
            for message in self.events:
                if message["event"] == kind and (id is None or message["id"] == id):
                    self.events.remove(message)
                    return message
            message, fds = self._receive()
            for fd in fds:
                os.close(fd)
            self.events.append(message)

    def bundle(self, *argv, **changes):
        self._count += 1
        id = f"{self._count:012x}"
        (self.bundles / id).mkdir()
        launch = {
            "id": id,
            "argv": list(argv),
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "uid": 0,
            "gid": 0,
            "groups": [],
            "hostname": "box",
            "root": {"mode": "host-ro"},
            "mounts": [],
            "caps": CAPS,
            "seccomp": "",
            "rlimits": [],
            "sysctls": [],
            "cgroup2": "",
            "cgroup2_mount": "",
            "cgroups": [],
            "init": "",
            "tty": False,
            "stdin": False,
            "restart": {"mode": "no", "max_retries": 0},
            "log": {"bytes_max": 1 << 20, "files": 2},
        } | changes
        (self.bundles / id / "launch.json").write_text(json.dumps(launch))
        (self.bundles / id / "hosts").write_text("127.0.0.1 localhost\n")
        return id

    def begin(self, *argv, **changes):
        id = self.bundle(*argv, **changes)
        self.call("prepare", id=id, machine=False)
        self.call("start", id=id)
        return id

    def run(self, *argv, **changes):
        """Id and exit status of a program that has ended."""
        id = self.begin(*argv, **changes)
        return id, self.event("exited", id)["status"]["exit"]

    def log(self, id):
        path = self.bundles / id / "log"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return b"".join(entry.data for entry in map(runlog.decode, lines) if entry)

    def status(self, id):
        return last_status((self.bundles / id / "status.json").read_bytes())

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.channel.close()
        self.events.clear()

    def close(self):
        if self.process.poll() is not None:
            self.start()
        for id, status in self.call("list")["containers"].items():
            self.call("stop", id=id, grace=0)
            if status["state"] == "running":
                self.event("exited", id)
            self.call("release", id=id)
        self.channel.close()
        assert self.process.wait(WAIT_SECONDS) == 0


@pytest.fixture
def keeper(tmp_path):
    user = KeeperUser(tmp_path)
    user.start()
    yield user
    user.close()


def until(path: Path, text: bytes):
    """Wait until the log of a container holds ``text``."""
    deadline = time.monotonic() + WAIT_SECONDS
    while text not in (path.read_bytes() if path.exists() else b""):
        assert time.monotonic() < deadline, f"{text!r} never came"
        select.select([], [], [], 0.005)


def test_program_runs_with_its_own_names_and_its_status_is_kept(keeper):
    id, ended = keeper.run("sh", "-c", "hostname; echo out; echo err >&2; exit 3")
    assert ended["code"] == 3
    assert keeper.log(id).split() == [b"box", b"out", b"err"]
    assert keeper.status(id)["exit"]["code"] == 3


def test_program_begins_with_no_signal_ignored_or_blocked(keeper):
    id, _ = keeper.run("grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status")
    assert [int(line.split()[1], 16) for line in keeper.log(id).splitlines()] == [0, 0]


def test_missing_program_and_program_that_is_none_name_the_step(keeper, tmp_path):
    (tmp_path / "text").write_text("not a program")
    for word, number in (("no-such-program", errno.ENOENT), (str(tmp_path / "text"), errno.EACCES)):
        id = keeper.bundle(word)
        keeper.call("prepare", id=id, machine=False)
        with pytest.raises(Failed) as failure:
            keeper.call("start", id=id)
        assert (failure.value.step, failure.value.errno) == ("execve", number)
        assert keeper.status(id)["exit"]["reason"] == "start-failed"


@pytest.mark.parametrize("cwd", ["/proc/self/fd/3", "/proc/self/fd/5", "/proc/self/fd/9", "/nowhere"])
def test_working_directory_cannot_be_a_descriptor_of_the_keeper(keeper, cwd):
    id = keeper.bundle("true", cwd=cwd)
    keeper.call("prepare", id=id, machine=False)
    with pytest.raises(Failed) as failure:
        keeper.call("start", id=id)
    assert failure.value.step == "cwd"


def test_signal_without_handler_ends_the_first_process_and_one_with_handler_is_handled(keeper):
    plain = keeper.begin("sleep", "60")
    begin = time.monotonic()
    keeper.call("stop", id=plain, grace=30)
    assert keeper.event("exited", plain)["status"]["exit"]["signal"] == signal.SIGTERM
    assert time.monotonic() - begin < 5
    minds = keeper.begin("sh", "-c", "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.05; done")
    until(keeper.bundles / minds / "log", b"ready")
    keeper.call("stop", id=minds, grace=30)
    assert keeper.event("exited", minds)["status"]["exit"]["code"] == 4


def test_stop_ends_what_does_not_mind_after_the_grace_period(keeper):
    id = keeper.begin("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    until(keeper.bundles / id / "log", b"ready")
    keeper.call("stop", id=id, grace=0.2)
    assert keeper.event("exited", id)["status"]["exit"]["signal"] == signal.SIGKILL


def test_restart_policy_counts_and_gives_up(keeper):
    id = keeper.begin("sh", "-c", "echo run; exit 1", restart={"mode": "on-failure", "max_retries": 2})
    states = [keeper.event("exited", id)["status"]["state"] for _ in range(3)]
    assert states == ["restarting", "restarting", "stopped"]
    assert keeper.log(id).split() == [b"run"] * 3
    assert keeper.status(id)["restarts"] == 2


def test_terminal_has_its_size_and_stdin(keeper):
    id = keeper.bundle("sh", "-c", "tty; stty size; read word; echo got $word", tty=True, rows=30, columns=100)
    keeper.call("prepare", id=id, machine=False)
    _, fds = keeper.call("start", id=id, keep=True)
    os.write(fds[1], b"word\n")
    keeper.event("exited", id)
    for fd in fds:
        os.close(fd)
    assert b"/dev/pts/0" in keeper.log(id)
    assert b"30 100" in keeper.log(id)
    assert b"got word" in keeper.log(id)


def test_exec_joins_every_namespace(keeper):
    id = keeper.begin("sleep", "60")
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    launch = json.loads((keeper.bundles / id / "launch.json").read_text())
    same = "test $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n)"
    launch["argv"] = ["sh", "-c", f"for n in cgroup ipc mnt net pid uts; do {same} || echo $n; done; ls /proc/self/fd"]
    keeper.call("exec", [null, write, write], id=id, exec_id="x", launch=launch)
    os.close(write)
    os.close(null)
    assert keeper.event("exec_exited")["code"] == 0
    assert os.read(read, 1000).split() == [b"0", b"1", b"2", b"3"]  # 3 is the directory ls reads
    os.close(read)


def test_full_sink_holds_the_program_up_and_nothing_is_lost(keeper):
    id = keeper.bundle("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x")
    read, write = os.pipe()
    other = os.open("/dev/null", os.O_WRONLY)
    keeper.call("attach", [write, other], id=id)
    os.close(write)
    os.close(other)
    keeper.call("prepare", id=id, machine=False)
    keeper.call("start", id=id)
    select.select([], [], [], 0.2)
    assert keeper.call("list")["containers"][id]["state"] == "running"
    total = 0
    while data := os.read(read, 1 << 16):
        total += len(data)
    os.close(read)
    assert total == 3_000_000
    keeper.event("exited", id)


def test_new_keeper_takes_over_pipes_terminal_stdin_and_exit_status(keeper):
    pipes = keeper.begin("sh", "-c", "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; sleep 0.02; done; exit 5")
    terminal = keeper.begin("sh", "-c", "while read word; do echo got $word; done", tty=True)
    reader = keeper.begin("sh", "-c", "read word; echo got $word; exit 6", stdin=True)
    keeper.kill()
    assert sorted(keeper.start()["adopted"]) == sorted([pipes, terminal, reader])
    for id in (terminal, reader):
        _, fds = keeper.call("stdin", id=id, keep=True)
        os.write(fds[0], b"word\n")
        os.close(fds[0])
    until(keeper.bundles / terminal / "log", b"got word")
    assert keeper.event("exited", reader)["status"]["exit"]["code"] == 6
    assert keeper.event("exited", pipes)["status"]["exit"]["code"] == 5
    assert keeper.log(pipes).split() == b" ".join(b"line %d" % number for number in range(1, 41)).split()


def test_what_ended_without_a_keeper_keeps_its_status_and_last_words(keeper):
    id = keeper.bundle("sh", "-c", "sleep 0.3; echo last words; exit 7")
    keeper.call("prepare", id=id, machine=False)
    _, fds = keeper.call("start", id=id, keep=True)
    keeper.kill()
    select.select([fds[0]], [], [], WAIT_SECONDS)
    keeper.start()
    null = os.open("/dev/null", os.O_RDONLY)
    keeper.call("adopt", [null, *fds[1:]], id=id, wait_status=7 << 8)
    for fd in (null, *fds):
        os.close(fd)
    assert keeper.event("exited", id)["status"]["exit"]["code"] == 7
    assert keeper.log(id) == b"last words\n"


def test_new_daemon_reaches_the_keeper_without_a_path(keeper):
    id = keeper.begin("sleep", "60")
    record = json.loads((keeper.base / "run" / "keeper.json").read_text())
    keeper.channel.close()
    pidfd = open_process(record["pid"], record["start_time"])
    rendezvous = socket.socket(fileno=pidfd_getfd(pidfd, record["rendezvous"]))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    socket.send_fds(rendezvous, [b"c"], [theirs.fileno()])
    for thing in (rendezvous, theirs):
        thing.close()
    os.close(pidfd)
    ours.settimeout(WAIT_SECONDS)
    keeper.channel = ours
    assert keeper.call("list")["containers"][id]["state"] == "running"


def test_keeper_is_not_dumpable_and_its_interpreter_is_read_only(keeper):
    pid = keeper.process.pid
    id = keeper.begin("sleep", "60")
    assert Path(f"/proc/{pid}/comm").read_text() == "nestbed-keeper\n"
    with pytest.raises(OSError, match=r"Read-only file system|Text file busy") as refused:
        os.open(f"/proc/{pid}/exe", os.O_WRONLY)
    assert refused.value.errno in (errno.EROFS, errno.ETXTBSY)
    mounts = Path(f"/proc/{pid}/mountinfo").read_text()
    usr = next(line for line in mounts.splitlines() if line.split()[4] == "/usr")
    assert usr.split()[5].startswith("ro")
    assert keeper.status(id)["start_time"] == start_time(keeper.status(id)["pid"])


def test_bootstrap_protocol_survives_anything(keeper):
    rng = random.Random(1)
    id = keeper.begin("sleep", "60")
    operations = ("signal", "attach", "exec", "netlink", "nope")
    good = [{"op": name, "seq": 1, "id": id, "grace": 1, "signal": 0, "mode": "no", "max_retries": 0} for name in operations]
    for _ in range(400):
        message = bytearray(json.dumps(rng.choice(good)).encode())
        for _ in range(rng.randrange(6)):
            message[rng.randrange(len(message))] = rng.randrange(256)
        if rng.random() < 0.2:
            message = bytearray(rng.randbytes(rng.randrange(1, 3000)))
        answer = keeper.raw(bytes(message))
        assert "error" in answer or "result" in answer
    keeper.channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    assert "error" in keeper.raw(b"[" * 100_000)
    assert keeper.call("list")["containers"][id]["state"] == "running"
    assert len(os.listdir(f"/proc/{keeper.process.pid}/fd")) < 40


def test_log_rotates_and_is_never_a_link(keeper, tmp_path):
    script = "i=0; while [ $i -lt 9000 ]; do i=$((i+1)); echo a line of some length $i; done"
    id = keeper.bundle("sh", "-c", script, log={"bytes_max": 65536, "files": 3})
    secret = tmp_path / "secret"
    secret.write_text("")
    keeper.call("prepare", id=id, machine=False)
    keeper.call("start", id=id)
    keeper.event("exited", id)
    assert sorted(path.name for path in (keeper.bundles / id).glob("log*")) == ["log", "log.1", "log.2"]
    for name in ("link", "fifo"):
        id = keeper.bundle("echo", "words")
        if name == "link":
            (keeper.bundles / id / "log").symlink_to(secret)
        else:
            os.mkfifo(keeper.bundles / id / "log")
        keeper.call("prepare", id=id, machine=False)
        keeper.call("start", id=id)
        assert keeper.event("exited", id)["status"]["log_bytes_lost"] == len("words\n")
    assert secret.read_text() == ""
