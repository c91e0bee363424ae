"""SIGKILL of the daemon, of the keeper and of both, at random moments under load: what runs is unharmed, nothing half-made is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import select
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nestbed.client import Client
from nestbed.errors import Busy, NestbedError, NotFound, Unavailable, WrongState
from nestbed.linux.pidfd import open_process
from nestbed.testing.machine import Machine
from nestbed.v1 import container_pb2 as api

KILLS = 50
CALLERS = 4
SEED = int(os.environ.get("NESTBED_SEED", "1"))
PATIENCE_SECONDS = 20.0
RETRY_SECONDS = 0.02
COUNT = "$| = 1; for ($i = 0; ; $i++) { print STDOUT $i, qq(\\n); select(undef, undef, undef, 0.004) }"
VICTIMS = ("daemon", "keeper", "both")
LAST_WORDS = b"last words\n"


def spec(name: str, *args: str, lan: str = "", **changes: Any) -> api.ContainerSpec:
    process = api.ProcessSpec(args=args, tty=changes.pop("tty", False))
    nics = [api.NicSpec(lan=lan)] if lan else []
    return api.ContainerSpec(name=name, kind=api.CONTAINER_KIND_PROCESS, process=process, nics=nics, **changes)


def ending(seconds: float, code: int) -> tuple[str, ...]:
    """A program that says something and ends with ``code`` after so long."""
    return "sh", "-c", f"sleep {seconds:.3f}; echo last words; exit {code}"


def keeper_of(machine: Machine) -> int:
    """A pidfd of the machine's keeper.

    Raises:
        ProcessLookupError: there is none now.
    """
    try:
        record = json.loads((machine.run_dir / "keeper.json").read_bytes())
    except FileNotFoundError as error:
        raise ProcessLookupError from error
    return open_process(record["pid"], record["start_time"])


def has_ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


@contextlib.contextmanager
def orphans_reaped() -> Iterator[None]:
    """Be the init process of what dead keepers leave: reap it as soon as it ends. In the main thread, in an event loop.

    Programs that this process started itself are left to those who wait for them.
    """
    own = {"nsenter", "nestbedd", "nbctl", "python", "python3"}

    def reap() -> None:
        for children in Path("/proc/self/task").glob("*/children"):
            for pid in children.read_text().split():
                with contextlib.suppress(OSError):
                    name, rest = Path(f"/proc/{pid}/stat").read_text().split("(", 1)[1].rsplit(")", 1)
                    if rest.split()[0] == "Z" and name not in own:
                        os.waitpid(int(pid), os.WNOHANG)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, reap)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGCHLD)
        reap()


class Site:
    """A machine whose daemon comes and goes, and callers that try again until they are answered."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._up = asyncio.Event()
        self._client: Client | None = None

    async def start(self) -> None:
        """Have a daemon that serves."""
        await asyncio.to_thread(self.machine.daemon.start)
        self._client = Client.connect(self.machine.address)
        self._up.set()

    async def start_for(self, seconds: float) -> None:
        """Start a daemon and SIGKILL it so much later, wherever it is then."""
        starting = asyncio.create_task(asyncio.to_thread(self.machine.daemon.start))
        await asyncio.wait([starting], timeout=seconds)
        with contextlib.suppress(AssertionError, ProcessLookupError):  # not even started
            os.kill(self.machine.daemon.pid, signal.SIGKILL)
        with contextlib.suppress(RuntimeError):
            await starting
        self.machine.daemon.kill()

    async def kill_daemon(self) -> None:
        self._up.clear()
        await asyncio.to_thread(self.machine.daemon.kill)
        await self.close()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def call(self, call: Callable[[Client], Awaitable[Any]]) -> Any:
        """The answer to a call, however often it takes until there is a daemon with a keeper that gives it."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                await self._up.wait()
                client = self._client
                assert client is not None
                try:
                    return await call(client)
                except NestbedError as error:
                    if not isinstance(error, Unavailable | Busy) and error.reason != "CANCELLED":
                        raise
                    await asyncio.sleep(RETRY_SECONDS)
                except asyncio.CancelledError:
                    # gRPC cancels the calls of a channel that is closed.
                    if asyncio.current_task().cancelling():
                        raise

    async def view(self, name: str) -> api.Container:
        return await self.call(lambda client: client.get_container(name))

    async def wait(self, name: str) -> api.ExitStatus:
        try:
            return await self.call(lambda client: client.wait_container(name))
        except TimeoutError as error:
            view = await self.view(name)
            raise AssertionError(f"nobody ever told how this one ended: {view} {self._recorded(view.id)}") from error

    async def log(self, name: str) -> bytes:
        async def read(client: Client) -> bytes:
            return b"".join([entry.data async for entry in client.logs(name)])

        return await self.call(read)

    async def create(self, wanted: api.ContainerSpec) -> api.Container:
        return await self.call(lambda client: client.create_container(wanted, request_id=wanted.name))

    async def run(self, wanted: api.ContainerSpec) -> api.Container:
        await self.create(wanted)
        with contextlib.suppress(WrongState):  # an earlier try has started it
            await self.call(lambda client: client.start_container(wanted.name))
        return await self.view(wanted.name)

    async def delete(self, name: str) -> None:
        with contextlib.suppress(NotFound):  # an earlier try has removed it
            await self.call(lambda client: client.delete_container(name, force=True))

    async def until(self, name: str, wanted: Callable[[api.Container], bool]) -> api.Container:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not wanted(view := await self.view(name)):
            assert time.monotonic() < deadline, f"it stays so: {view} {self._recorded(view.id)}"
            await asyncio.sleep(RETRY_SECONDS)
        return view

    def _recorded(self, id: str) -> str:
        path = self.machine.state_dir / "containers" / id / "status.json"
        return path.read_text() if path.exists() else "without a status.json"

    async def audit(self) -> list[str]:
        answer = await self.call(lambda client: client.audit())
        return [f"{one.problem} {one.kind} {one.name} {one.detail}" for one in answer.leftovers]


class Caller:
    """Creates, starts, runs programs in, stops and deletes containers of its own; knows which ones there must be."""

    def __init__(self, site: Site, number: int) -> None:
        self.names: set[str] = set()
        self.wrong: list[str] = []
        self._site = site
        self._random = random.Random(f"{SEED}/{number}")
        self._prefix = f"c{number}"
        self._count = 0
        self.operations = 0

    async def work(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._count += 1
            name = f"{self._prefix}-{self._count}"
            await self._random.choice((self._unstarted, self._short, self._short, self._long))(name)
            if self._random.random() < 0.8 or len(self.names) > 5:
                victim = self._random.choice(sorted(self.names))
                await self._site.delete(victim)
                self.names.remove(victim)
            self.operations += 1

    async def _unstarted(self, name: str) -> None:
        await self._site.create(spec(name, "true", lan="lan0"))
        self.names.add(name)

    async def _short(self, name: str) -> None:
        code = self._random.randrange(100)
        await self._site.run(spec(name, *ending(self._random.random() / 20, code), lan="lan0"))
        self.names.add(name)
        self._check(name, await self._site.wait(name), code=code)

    async def _long(self, name: str) -> None:
        await self._site.run(spec(name, "sleep", "1000", lan="lan0"))
        self.names.add(name)
        with contextlib.suppress(WrongState):
            self._check(name, await self._site.call(lambda client: _executed(client, name)), code=5)
        if self._random.random() < 0.5:
            await self._site.call(lambda client: client.stop_container(name, grace_seconds=0.05))
            view = await self._site.view(name)
            if view.state != api.CONTAINER_STATE_STOPPED:
                self.wrong.append(f"stopped, and yet {view}")
            self._check(name, view.exit, signal=(signal.SIGTERM, signal.SIGKILL))

    def _check(self, name: str, ended: api.ExitStatus, *, code: int | None = None, signal: tuple[int, ...] = ()) -> None:
        """Its own code or one of the signals, or said to be unknown: nothing else."""
        if ended.HasField("signal"):
            is_right = ended.signal in signal
        elif ended.HasField("code"):
            is_right = ended.code == code
        else:
            is_right = ended.reason == "unknown"
        if not is_right:
            self.wrong.append(f"{name}: {ended}".replace("\n", " "))


async def _executed(client: Client, name: str) -> api.ExitStatus:
    async with client.exec(api.ExecStart(container=name, args=["sh", "-c", "exit 5"])) as session:
        async for _ in session.output():
            pass
        assert session.exit is not None
        return session.exit


class Round:
    """Some kills in a row, and what is checked after them."""

    def __init__(self, site: Site, number: int) -> None:
        self._site = site
        self._number = number
        self._random = random.Random(f"{SEED}/round/{number}")
        self.kills = 0
        self.victims = VICTIMS[number % 3]

    async def kill(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(self._random.random() * 0.2)
            if self.victims in ("daemon", "both"):
                await self._site.kill_daemon()
                self.kills += 1
            if self.victims == "both" and self._killed_keeper():
                self.kills += 1
            if self.victims == "both":
                await self._site.start_for(self._random.random())
                self.kills += 1
            if self.victims == "keeper":
                await self._kill_keeper()
            else:
                await self._site.start()

    async def _kill_keeper(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self._killed_keeper():  # noqa: ASYNC110 - a file tells where it is, and has no event
                await asyncio.sleep(RETRY_SECONDS)
        self.kills += 1

    def _killed_keeper(self) -> bool:
        try:
            pidfd = keeper_of(self._site.machine)
        except ProcessLookupError:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [])
        os.close(pidfd)
        return True

    async def run(self, callers: list[Caller]) -> None:
        stop = asyncio.Event()
        site = self._site
        works = [asyncio.create_task(caller.work(stop)) for caller in callers]
        dying = {f"d{self._number}-{n}": n for n in range(4)}
        for name, code in dying.items():
            await site.run(spec(name, *ending(self._random.random() * 2, code)))
        phoenix = await site.until("phoenix", lambda view: view.state == api.CONTAINER_STATE_RUNNING)
        await asyncio.sleep(self._random.random() * 0.2)
        os.kill(phoenix.pid, signal.SIGKILL)
        await self.kill(4 if self.victims == "keeper" else 2)
        stop.set()
        await asyncio.gather(*works)
        for name, code in dying.items():
            await self._check_ended(name, code)
            await site.delete(name)
        await site.until("phoenix", lambda view: view.state == api.CONTAINER_STATE_RUNNING and view.pid != phoenix.pid)

    async def _check_ended(self, name: str, code: int) -> None:
        ended = await self._site.wait(name)
        if self.victims == "both" and ended.reason == "unknown":
            assert not ended.HasField("code")
            assert ended.shell_code == 255
        else:
            assert (ended.reason, ended.code) == ("exited", code), f"{name} in {self.victims}"
            # With both away there was nobody to hold the pipe.
            silent = [b""] if self.victims == "both" else []
            assert await self._site.log(name) in [LAST_WORDS, *silent], f"{name} in {self.victims}"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_kills_at_random_moments(machine) -> None:
    site = Site(machine)
    with orphans_reaped():
        await site.start()
        await site.call(lambda client: client.create_lan("lan0", subnet="10.5.0.0/16"))
        before = {}
        for wanted in (
            spec("count", "perl", "-e", COUNT),
            spec("count-tty", "perl", "-e", COUNT, tty=True),
            spec("web", "sleep", "100000", lan="lan0"),
            spec("ping", "ping", "-n", "-i", "0.1", "web", lan="lan0"),
        ):
            before[wanted.name] = await site.run(wanted)
        pidfds = {name: os.pidfd_open(view.pid) for name, view in before.items()}
        await site.run(spec("phoenix", "sleep", "100000", restart=api.RestartPolicy(mode=api.RESTART_MODE_ALWAYS)))
        callers = [Caller(site, number) for number in range(CALLERS)]
        kills = number = 0
        while kills < KILLS:
            this = Round(site, number)
            await this.run(callers)
            kills, number = kills + this.kills, number + 1
            where = f"after {kills} kills, the last of {this.victims}"
            assert [name for name, pidfd in pidfds.items() if has_ended(pidfd)] == [], where
            for name, was in before.items():
                now = await site.view(name)
                assert (now.state, now.pid, now.start_time) == (was.state, was.pid, was.start_time), where
            there = {view.name for view in await site.call(lambda client: client.list_containers())}
            assert there == {*before, "phoenix"}.union(*(caller.names for caller in callers)), where
            assert await site.audit() == [], where
        assert [wrong for caller in callers for wrong in caller.wrong] == []
        assert all(caller.operations > number for caller in callers), "that was no load"
        for name in ("count", "count-tty"):
            await site.call(lambda client, name=name: client.kill_container(name, signal=9))
            await site.call(lambda client, name=name: client.wait_container(name))
            check_sequence(name, [int(line) for line in (await site.log(name)).split()])
        heard = [int(number) for number in re.findall(rb"icmp_seq=(\d+) ttl", await site.log("ping"))]
        check_sequence("ping", heard, first=1)
        for pidfd in pidfds.values():
            os.close(pidfd)
        for view in await site.call(lambda client: client.list_containers()):
            await site.delete(view.name)
        await site.call(lambda client: client.delete_lan("lan0"))
        assert await site.audit() == []
        assert list((machine.state_dir / "containers").iterdir()) == []
        await site.close()


def check_sequence(name: str, found: list[int], *, first: int = 0) -> None:
    """Every number once, in order."""
    assert len(found) > 100, name
    breaks = [(a, b) for a, b in zip([first - 1, *found], found, strict=False) if b != a + 1]
    assert breaks == [], f"{name}: {breaks}"
