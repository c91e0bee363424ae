"""The part of the contract about standard streams and further programs; see ``nestbed.testing.contract``."""

from __future__ import annotations

import signal

import pytest

from nestbed.errors import InvalidArgument, NotFound, WrongState
from nestbed.model import ExecSpec, State
from nestbed.testing.bench import SLEEP, Bench, heard, logged, said


class StreamsContract:
    """Consoles, the log and executions."""

    async def test_console_before_start_misses_nothing(self, bench: Bench) -> None:
        container = await bench.create("sh", "-c", "echo out; echo err >&2")
        consoles = [await container.console() for _ in range(2)]
        await container.start()
        for console in consoles:
            assert await said(console) == (b"out\n", b"err\n")
            await console.aclose()
            await console.aclose()

    async def test_console_passes_input(self, bench: Bench) -> None:
        container = await bench.create("cat", stdin=True)
        console = await container.console()
        await container.start()
        await console.write(b"one\n")
        await heard(console, b"one\n")
        await console.write(b"two\n")
        await console.close_stdin()
        await console.close_stdin()
        assert await said(console) == (b"two\n", b"")
        assert (await container.wait()).code == 0
        with pytest.raises(WrongState):
            await console.write(b"three\n")
        await console.aclose()

    async def test_console_without_input_refuses_it(self, bench: Bench) -> None:
        container = await bench.create()
        console = await container.console()
        await container.start()
        with pytest.raises(WrongState):
            await console.write(b"x")
        console.resize(24, 80)
        await console.aclose()
        assert container.status.state is State.RUNNING

    async def test_output_is_logged(self, bench: Bench) -> None:
        container = await bench.start("sh", "-c", "echo out; echo err >&2")
        await container.wait()
        assert sorted(logged(bench, container).splitlines()) == [b"err", b"out"]

    # ------------------------------------------------------------ exec

    async def test_exec_needs_a_running_container(self, bench: Bench) -> None:
        container = await bench.create()
        with pytest.raises(WrongState):
            await container.exec(ExecSpec(("true",)))
        await container.start()
        await container.stop(0.0)
        with pytest.raises(WrongState):
            await container.exec(ExecSpec(("true",)))

    async def test_exec_has_streams_and_a_status(self, bench: Bench) -> None:
        container = await bench.start()
        execution = await container.exec(ExecSpec(("sh", "-c", "echo out; echo err >&2; exit 5")))
        assert await said(execution) == (b"out\n", b"err\n")
        assert (await execution.wait()).code == 5
        assert (await execution.wait()).code == 5
        execution.signal(signal.SIGTERM)
        await execution.aclose()
        assert container.status.state is State.RUNNING

    async def test_exec_passes_input(self, bench: Bench) -> None:
        container = await bench.start()
        execution = await container.exec(ExecSpec(("cat",), stdin=True))
        await execution.write(b"through\n")
        await execution.close_stdin()
        assert await said(execution) == (b"through\n", b"")
        assert (await execution.wait()).code == 0
        await execution.aclose()

    async def test_exec_can_be_signalled(self, bench: Bench) -> None:
        container = await bench.start()
        execution = await container.exec(ExecSpec(SLEEP))
        execution.signal(signal.SIGTERM)
        assert (await execution.wait()).signal == signal.SIGTERM
        await execution.aclose()

    async def test_closing_an_execution_kills_it(self, bench: Bench) -> None:
        container = await bench.start()
        execution = await container.exec(ExecSpec(SLEEP))
        await execution.aclose()
        await execution.aclose()
        assert (await execution.wait()).signal == signal.SIGKILL
        assert container.status.state is State.RUNNING

    async def test_exec_ends_with_the_container(self, bench: Bench) -> None:
        container = await bench.start()
        execution = await container.exec(ExecSpec(SLEEP))
        await container.kill(signal.SIGKILL)
        assert (await execution.wait()).signal == signal.SIGKILL
        await execution.aclose()

    async def test_exec_tells_what_cannot_run(self, bench: Bench) -> None:
        container = await bench.start()
        with pytest.raises(NotFound) as missing:
            await container.exec(ExecSpec(("/nonexistent/program",)))
        assert missing.value.reason == "PROGRAM_NOT_FOUND"
        with pytest.raises(InvalidArgument) as no_program:
            await container.exec(ExecSpec(("/etc/passwd",)))
        assert no_program.value.reason == "NOT_EXECUTABLE"
