"""The contract of ``nestbed.runtime`` as a test suite: a runtime's tests subclass :class:`RuntimeContract` and give it a ``bench``.

::

    class TestMine(RuntimeContract):
        @pytest.fixture
        async def bench(self, tmp_path):
            async with Bench(lambda: MyRuntime(...), tmp_path, make_nic) as bench:
                yield bench

Programs are a few that Debian has and that the fake knows (``nestbed.testing.programs``). Nothing here waits for time to pass.
"""

from __future__ import annotations

import asyncio
import io
import signal
import tarfile

import pytest

from nestbed.errors import AlreadyExists, CorruptState, InvalidArgument, NotFound, WrongState
from nestbed.model import (
    ExecSpec,
    Mount,
    Resources,
    RestartMode,
    RestartPolicy,
    State,
    Status,
)
from nestbed.runtime import Container, FileAccess, HostsAware, Pausable, Updatable
from nestbed.testing.bench import RECORD, SLEEP, Bench, heard, logged, pieces, said, tar_of
from nestbed.testing.streams_contract import StreamsContract

FOLDER = "/tmp"  # noqa: S108 - the container's own
STUBBORN = ("sh", "-c", "trap '' TERM; echo ready; sleep 1000")


class RuntimeContract(StreamsContract):
    """Subclass it with a fixture ``bench``; its tests are collected then."""

    # ------------------------------------------------------------ create

    async def test_created_container_runs_nothing(self, bench: Bench) -> None:
        container = await bench.create()
        assert container.id == bench.bundle_of(container).id
        assert container.status == Status(State.CREATED)
        assert not any(item.startswith("process:") for item in container.objects())

    async def test_wait_before_the_first_start_is_refused(self, bench: Bench) -> None:
        container = await bench.create()
        with pytest.raises(WrongState):
            await container.wait()

    async def test_failed_create_leaves_nothing(self, bench: Bench) -> None:
        bundle = bench.bundle()
        spec = bench.spec(bundle, mounts=(Mount("/nonexistent/source", "/mnt"),), nics=(bench.nic(bundle.id, 0),))
        with pytest.raises(NotFound):
            await bench.runtime.create(spec, bundle)
        assert [path.name for path in bundle.path.iterdir()] == [RECORD]
        await bench.assert_nothing_left()

    async def test_validate_refuses_what_cannot_be(self, bench: Bench) -> None:
        bundle = bench.bundle()
        with pytest.raises(InvalidArgument):
            await bench.runtime.validate(bench.spec(bundle, cap_add=("no such",)))
        with pytest.raises(NotFound):
            await bench.runtime.validate(bench.spec(bundle, mounts=(Mount("/nonexistent/source", "/mnt"),)))
        assert [path.name for path in bundle.path.iterdir()] == [RECORD]

    async def test_cancelled_create_can_be_discarded(self, bench: Bench) -> None:
        bundle = bench.bundle()
        making = asyncio.ensure_future(bench.runtime.create(bench.spec(bundle, nics=(bench.nic(bundle.id, 0),)), bundle))
        await asyncio.sleep(0)
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)
        await bench.runtime.discard(bundle)
        assert [path.name for path in bundle.path.iterdir()] == [RECORD]
        await bench.assert_nothing_left()

    # ------------------------------------------------------------ start and end

    async def test_start_runs_the_program(self, bench: Bench) -> None:
        container = await bench.start()
        status = container.status
        assert status.state is State.RUNNING
        assert status.pid > 0
        assert status.started_at > 0
        assert status.exit is None

    async def test_second_start_is_refused(self, bench: Bench) -> None:
        container = await bench.start()
        with pytest.raises(WrongState) as caught:
            await container.start()
        assert caught.value.reason == "ALREADY_RUNNING"
        assert container.status.state is State.RUNNING

    @pytest.mark.parametrize("code", [0, 3, 255])
    async def test_exit_code_is_kept(self, bench: Bench, code: int) -> None:
        container = await bench.start("sh", "-c", f"exit {code}")
        ended = await container.wait()
        assert (ended.code, ended.signal, ended.reason) == (code, None, "exited")
        assert ended.at > 0
        assert container.status.state is State.STOPPED
        assert container.status.exit == ended
        assert container.status.pid == 0

    async def test_wait_may_be_called_many_times(self, bench: Bench) -> None:
        container = await bench.start()
        waits = [asyncio.ensure_future(container.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        await container.kill(signal.SIGKILL)
        assert len({await one for one in waits}) == 1
        assert await container.wait() == waits[0].result()

    async def test_cancelled_wait_changes_nothing(self, bench: Bench) -> None:
        container = await bench.start()
        waiting = asyncio.ensure_future(container.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert container.status.state is State.RUNNING
        await container.kill(signal.SIGKILL)
        assert (await container.wait()).signal == signal.SIGKILL

    async def test_missing_program_is_told(self, bench: Bench) -> None:
        container = await bench.create("/nonexistent/program")
        with pytest.raises(NotFound) as caught:
            await container.start()
        assert caught.value.reason == "PROGRAM_NOT_FOUND"
        self._assert_not_started(container)

    async def test_file_that_is_no_program_is_told(self, bench: Bench) -> None:
        container = await bench.create("/etc/passwd")
        with pytest.raises(InvalidArgument) as caught:
            await container.start()
        assert caught.value.reason == "NOT_EXECUTABLE"
        self._assert_not_started(container)

    @staticmethod
    def _assert_not_started(container: Container) -> None:
        assert container.status.state is State.CREATED
        assert container.status.exit is not None
        assert container.status.exit.reason == "start-failed"

    async def test_stop_asks_and_is_idempotent(self, bench: Bench) -> None:
        container = await bench.start()
        await container.stop(30.0)
        assert container.status.state is State.STOPPED
        ended = await container.wait()
        assert ended.code is None
        assert ended.signal in (signal.SIGTERM, signal.SIGKILL)
        await container.stop(30.0)
        assert await container.wait() == ended

    async def test_stop_leaves_a_created_container(self, bench: Bench) -> None:
        container = await bench.create()
        await container.stop(0.0)
        assert container.status.state is State.CREATED

    async def test_stop_makes_a_stubborn_program_end(self, bench: Bench) -> None:
        container = await bench.create(*STUBBORN)
        console = await container.console()
        await container.start()
        await heard(console, b"ready")
        await container.stop(0.05)
        assert (await container.wait()).signal == signal.SIGKILL
        await console.aclose()

    async def test_kill_needs_a_running_program(self, bench: Bench) -> None:
        container = await bench.create("true")
        with pytest.raises(WrongState):
            await container.kill(signal.SIGTERM)
        await container.start()
        await container.wait()
        with pytest.raises(WrongState):
            await container.kill(signal.SIGTERM)

    async def test_stopped_container_runs_again(self, bench: Bench) -> None:
        container = await bench.start("sh", "-c", "echo again; exit 7")
        assert (await container.wait()).code == 7
        await container.start()
        assert (await container.wait()).code == 7
        assert logged(bench, container) == b"again\nagain\n"

    async def test_listener_follows(self, bench: Bench) -> None:
        container = await bench.start("true")
        await container.wait()
        await bench.until(container, lambda status: status.state is State.STOPPED)
        states = [status.state for status in bench.statuses[container.id]]
        assert states[-1] is State.STOPPED
        assert State.RUNNING in states

    # ------------------------------------------------------------ NICs

    async def test_nics_come_and_go_in_every_state(self, bench: Bench) -> None:
        container = await bench.create()
        await container.plug(bench.nic(container.id, 0))
        with pytest.raises(AlreadyExists):
            await container.plug(bench.nic(container.id, 0))
        await container.start()
        await container.plug(bench.nic(container.id, 1))
        await container.unplug(bench.nic(container.id, 0).name)
        with pytest.raises(NotFound):
            await container.unplug(bench.nic(container.id, 0).name)
        await container.stop(0.0)
        await container.plug(bench.nic(container.id, 2))
        await container.start()
        ports = {item for item in container.objects() if item.startswith("link:")}
        assert ports == {f"link:{bench.nic(container.id, number).port}" for number in (1, 2)}
        assert list(await bench.runtime.audit([container])) == []

    async def test_cables_of_nics(self, bench: Bench) -> None:
        container = await bench.create(nics=())
        nic = bench.nic(container.id, 0)
        await container.plug(nic)
        await container.set_link(nic.name, up=False)
        await container.start()
        await container.set_link(nic.name, up=False)
        await container.set_link(nic.name, up=True)
        with pytest.raises(NotFound):
            await container.set_link("absent", up=True)
        await container.stop(0.0)
        await container.set_link(nic.name, up=False)
        await container.start()
        assert list(await bench.runtime.audit([container])) == []

    # ------------------------------------------------------------ stats, limits, files

    async def test_stats_in_every_state(self, bench: Bench) -> None:
        container = await bench.create()
        assert (await container.stats()).at > 0
        await container.plug(bench.nic(container.id, 0))
        await container.start()
        stats = await container.stats()
        assert [nic.name for nic in stats.nics] == [bench.nic(container.id, 0).name]
        await container.stop(0.0)
        assert (await container.stats()).at >= stats.at

    async def test_limits_and_policy_change_while_it_lives(self, bench: Bench) -> None:
        container = await bench.start()
        if not isinstance(container, Updatable):
            pytest.skip("the runtime changes no limits")
        await container.update(Resources(memory_bytes=bench.memory_bytes), RestartPolicy(RestartMode.ON_FAILURE, 1))
        assert (await container.stats()).memory_limit_bytes in (bench.memory_bytes, None)
        await container.kill(signal.SIGKILL)
        await bench.until(container, lambda status: status.restarts == 1)

    async def test_paused_container(self, bench: Bench) -> None:
        container = await bench.create()
        if not isinstance(container, Pausable):
            pytest.skip("the runtime pauses nothing")
        with pytest.raises(WrongState):
            await container.pause()
        await container.start()
        with pytest.raises(WrongState):
            await container.resume()
        await container.pause()
        assert _state(container) is State.PAUSED
        with pytest.raises(WrongState):
            await container.pause()
        with pytest.raises(WrongState):
            await container.exec(ExecSpec(("true",)))
        await container.resume()
        assert _state(container) is State.RUNNING
        await container.pause()
        await container.stop(0.0)
        assert _state(container) is State.STOPPED

    async def test_files_in_and_out(self, bench: Bench) -> None:
        container = await bench.start()
        if not isinstance(container, FileAccess):
            pytest.skip("the runtime copies no files")
        await container.extract(FOLDER, pieces(tar_of("note", b"kept")))
        with tarfile.open(fileobj=io.BytesIO(b"".join([chunk async for chunk in await container.archive(f"{FOLDER}/note")]))) as tar:
            (member,) = tar.getmembers()
            content = tar.extractfile(member)
            assert member.name == "note"
            assert content is not None
            assert content.read() == b"kept"
        with pytest.raises(NotFound):
            b"".join([chunk async for chunk in await container.archive("/nonexistent")])
        with pytest.raises(NotFound):
            await container.extract("/nonexistent", pieces(tar_of("note", b"")))
        with pytest.raises(InvalidArgument):
            await container.extract(FOLDER, pieces(b"no tar stream" * 100))

    async def test_hosts_file_may_change_in_every_state(self, bench: Bench) -> None:
        container = await bench.create()
        if not isinstance(container, HostsAware):
            pytest.skip("the runtime keeps no hosts file")
        await container.update_hosts("127.0.0.1\tone\n")
        await container.start()
        await container.update_hosts("127.0.0.1\ttwo\n")
        await container.stop(0.0)
        await container.update_hosts("127.0.0.1\tthree\n")

    # ------------------------------------------------------------ restart policy

    async def test_always_starts_again_until_stopped(self, bench: Bench) -> None:
        container = await bench.start("true", restart=RestartPolicy(RestartMode.ALWAYS))
        await bench.until(container, lambda status: status.restarts >= 2)
        await container.stop(0.0)
        assert container.status.state is State.STOPPED
        assert any(status.state is State.RESTARTING for status in bench.statuses[container.id])

    async def test_on_failure_gives_up(self, bench: Bench) -> None:
        container = await bench.start("sh", "-c", "exit 9", restart=RestartPolicy(RestartMode.ON_FAILURE, 1))
        assert (await container.wait()).code == 9
        assert container.status.state is State.STOPPED
        assert container.status.restarts == 1

    async def test_success_is_no_failure(self, bench: Bench) -> None:
        container = await bench.start("true", restart=RestartPolicy(RestartMode.ON_FAILURE))
        assert (await container.wait()).code == 0
        assert container.status.restarts == 0

    # ------------------------------------------------------------ destroy

    @pytest.mark.parametrize("state", [State.CREATED, State.RUNNING, State.PAUSED, State.RESTARTING, State.STOPPED])
    async def test_destroy_from_every_state(self, bench: Bench, state: State) -> None:
        policy = RestartPolicy(RestartMode.ALWAYS if state is State.RESTARTING else RestartMode.NO)
        container = await bench.create(*(("true",) if state is State.RESTARTING else SLEEP), restart=policy)
        await container.plug(bench.nic(container.id, 0))
        await self._bring_to(bench, container, state)
        await container.destroy()
        assert [path.name for path in bench.bundle_of(container).path.iterdir()] == [RECORD]
        assert list(container.objects()) == []
        await bench.assert_nothing_left()
        await container.destroy()

    @staticmethod
    async def _bring_to(bench: Bench, container: Container, state: State) -> None:
        if state is State.CREATED:
            return
        await container.start()
        if state is State.PAUSED:
            if not isinstance(container, Pausable):
                pytest.skip("the runtime pauses nothing")
            await container.pause()
        elif state is State.STOPPED:
            await container.stop(0.0)
        elif state is State.RESTARTING:
            await bench.until(container, lambda status: status.state is State.RESTARTING)

    async def test_destroy_wakes_who_waits(self, bench: Bench) -> None:
        container = await bench.create()
        console = await container.console()
        await container.start()
        waiting = asyncio.ensure_future(container.wait())
        await asyncio.sleep(0)
        await container.destroy()
        assert (await waiting).signal == signal.SIGKILL
        assert await said(console) == (b"", b"")
        await console.aclose()

    async def test_many_at_once(self, bench: Bench) -> None:
        async def one(number: int) -> int | None:
            container = await bench.start("sh", "-c", f"exit {number}")
            ended = await container.wait()
            await container.destroy()
            return ended.code

        assert await asyncio.gather(*(one(number) for number in range(8))) == list(range(8))
        await bench.assert_nothing_left()

    # ------------------------------------------------------------ recover

    async def test_recover_finds_what_runs(self, bench: Bench) -> None:
        container = await bench.start("cat", stdin=True)
        await bench.restart()
        again = await bench.recover(container, "cat", stdin=True)
        assert again.status.state is State.RUNNING
        assert again.status.pid == container.status.pid
        console = await again.console()
        await console.write(b"still here\n")
        await heard(console, b"still here\n")
        await console.close_stdin()
        assert (await again.wait()).code == 0
        await console.aclose()

    async def test_recover_knows_how_it_ended_before(self, bench: Bench) -> None:
        container = await bench.start("sh", "-c", "exit 4")
        ended = await container.wait()
        await bench.restart()
        again = await bench.recover(container, "sh", "-c", "exit 4")
        assert again.status.state is State.STOPPED
        assert await again.wait() == ended

    async def test_recover_finds_what_never_ran(self, bench: Bench) -> None:
        container = await bench.create("sh", "-c", "exit 4")
        await container.plug(bench.nic(container.id, 0))
        await bench.restart()
        again = await bench.recover(container, "sh", "-c", "exit 4", nics=(bench.nic(container.id, 0),))
        assert again.status.state is State.CREATED
        assert list(await bench.runtime.audit([again])) == []
        await again.start()
        assert (await again.wait()).code == 4

    async def test_recover_of_an_empty_bundle_is_refused(self, bench: Bench) -> None:
        bundle = bench.bundle()
        with pytest.raises(CorruptState):
            await bench.runtime.recover(bench.spec(bundle), bundle)

    async def test_discard_removes_by_the_bundle_alone(self, bench: Bench) -> None:
        container = await bench.start(nics=())
        await container.plug(bench.nic(container.id, 0))
        await bench.restart()
        await bench.runtime.discard(bench.bundle_of(container))
        await bench.runtime.discard(bench.bundle_of(container))
        assert [path.name for path in bench.bundle_of(container).path.iterdir()] == [RECORD]
        await bench.assert_nothing_left()

    async def test_probe_names_abilities(self, bench: Bench) -> None:
        for ability in await bench.runtime.probe():
            assert ability.name
            assert ability.detail
            assert ability.available or ability.consequence


def _state(container: Container) -> State:
    return container.status.state
