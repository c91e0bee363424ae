"""What goes in and out of a container's programs: the streams of the first one, and further programs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable

from nestbed.errors import Unavailable, WrongState
from nestbed.model import Bundle, ExecSpec, ExitStatus, FsMode, Spec, State, Status
from nestbed.process import bundle as files
from nestbed.process import plan, transfer
from nestbed.process.accounts import NodeAccounts, User, accounts_in, resolve_user
from nestbed.process.console import ProcessConsole
from nestbed.process.execution import ProcessExecution
from nestbed.process.keeper_client import KeeperError, close_all
from nestbed.process.parts import Parts, is_paused, translated_answer, translated_refusal
from nestbed.process.streams import Reader, Writer, set_size, stdin_closed
from nestbed.refusals import not_running


class Dialogue:
    """One container's; owns what of its streams nestbedd holds. Fulfils :class:`console.Terminal`."""

    def __init__(
        self, spec: Spec, bundle: Bundle, parts: Parts, *, status: Callable[[], Status], settled: Callable[[], Awaitable[None]]
    ) -> None:
        """``status`` tells where the container is; ``settled`` waits while it is being started."""
        self._spec = spec
        self._bundle = bundle
        self._parts = parts
        self._status = status
        self._settled = settled
        self._fds: list[int] = []
        self._stdin: Writer | None = None
        self._size: tuple[int, int] | None = None
        self._executions: dict[str, ProcessExecution] = {}
        self._consoles: set[ProcessConsole] = set()

    # ---- the first program

    def begin(self, fds: list[int]) -> None:
        """A run began; takes its descriptors ``[pidfd, out, err]`` or ``[pidfd, terminal]``, as many of them as are known.

        They are kept so that the death of a keeper loses nothing of what the program says.
        """
        self.end()
        self._fds = list(fds)
        fds.clear()
        self._apply_size()

    def end(self) -> None:
        """The run ended: let its streams go. Idempotent."""
        close_all(self._fds)
        if self._stdin is not None:
            self._stdin.close()
            self._stdin = None

    @property
    def pidfd(self) -> int:
        """Of the first process, or -1."""
        return self._fds[0] if self._fds else -1

    @property
    def kept(self) -> list[int]:
        """The streams kept, still owned here."""
        return self._fds[1:]

    def is_alive(self) -> bool:
        """Whether the first process has not ended, as far as the kernel tells here."""
        return bool(self._fds) and not transfer.has_ended(self._fds[0])

    async def console(self) -> ProcessConsole:
        """Attach to the first program."""
        console = ProcessConsole(self)
        await console.open()
        self._consoles.add(console)
        return console

    async def attach(self, fds: list[int]) -> int:
        """See :class:`console.Terminal`."""
        keeper = self._parts.keeper.pid
        (await self._parts.call("attach", self._spec.id, fds=fds)).close()
        return keeper

    async def is_interrupted(self, keeper: int) -> bool:
        """See :class:`console.Terminal`."""
        if keeper == self._parts.keeper.pid:
            try:
                (await self._parts.call("stdin", self._spec.id)).close()
            except Unavailable:
                pass
            except WrongState:  # it is not known any more
                return False
            else:
                return False
        await self._parts.keeper_back.wait()
        return self._status().state is not State.STOPPED

    def detach(self, console: ProcessConsole) -> None:
        """See :class:`console.Terminal`."""
        self._consoles.discard(console)

    async def write_stdin(self, data: bytes) -> None:
        """See :class:`console.Terminal`."""
        await (await self._input()).write(data)

    async def close_stdin(self) -> None:
        """See :class:`console.Terminal`."""
        await self._settled()
        if self._status().state not in (State.RUNNING, State.PAUSED):
            return
        try:
            stdin = await self._input()
        except WrongState:
            return
        await stdin.end()
        if not self._spec.process.tty:
            (await self._parts.call("close_stdin", self._spec.id)).close()

    async def _input(self) -> Writer:
        if not (self._spec.process.stdin or self._spec.process.tty):
            raise stdin_closed()
        await self._settled()
        if self._stdin is None:
            reply = await self._parts.call("stdin", self._spec.id)
            if not reply.fds:
                raise stdin_closed()
            if self._stdin is None:
                self._stdin = Writer(reply.fds.pop(), tty=reply.result["tty"])
            reply.close()
        return self._stdin

    def resize(self, rows: int, columns: int) -> None:
        """See :class:`console.Terminal`."""
        self._size = rows, columns
        self._apply_size()

    def _apply_size(self) -> None:
        if self._spec.process.tty and self._size is not None and len(self._fds) > 1:
            set_size(self._fds[1], *self._size)

    # ---- further programs

    async def exec(self, spec: ExecSpec) -> ProcessExecution:
        """See the contract."""
        if self._status().state is State.PAUSED:
            raise is_paused(self._spec.id)
        if self._status().state is not State.RUNNING:
            raise not_running(self._spec.id)
        launch = plan.further(files.read_launch(self._bundle), spec, self._user(spec.user) if spec.user else None)
        execution = ProcessExecution(secrets.token_hex(8))
        self._executions[execution.id] = execution
        ours: dict[int, int] = {}
        theirs: list[int] = []
        try:
            if not spec.tty:
                ours = _pipes(theirs, stdin=spec.stdin)
            reply = await self._parts.keeper.call("exec", fds=theirs, id=self._spec.id, exec_id=execution.id, launch=launch)
        except BaseException as error:
            self._executions.pop(execution.id, None)
            close_all(list(ours.values()))
            if isinstance(error, KeeperError):
                translate = translated_answer(error, self._spec.id) if error.step == "keeper" else None
                raise (translate or translated_refusal(error, self._spec.id, spec.args[0])) from error
            raise
        finally:
            close_all(theirs)
        pidfd, *terminal = reply.fds
        if terminal:
            execution.started(pidfd, Reader({1: os.dup(terminal[0])}), Writer(terminal[0], tty=True))
        else:
            stdin = ours.pop(0, -1)
            execution.started(pidfd, Reader(ours), Writer(stdin, tty=False) if stdin >= 0 else None)
        if execution.id not in self._executions:  # it ended already, or the keeper that was to tell of it has
            execution.keeper_gone()
        return execution

    def _user(self, text: str) -> User:
        if self._spec.process.fs is not FsMode.ROOTFS:
            return resolve_user(text, NodeAccounts())
        root_fd = self.open_root()
        try:
            return resolve_user(text, accounts_in(root_fd))
        finally:
            os.close(root_fd)

    def exec_ended(self, exec_id: str, code: int | None, signal: int | None, at: float) -> None:
        """The keeper tells that a further program ended."""
        execution = self._executions.pop(exec_id, None)
        if execution is not None:
            reason = "unknown" if code is None and signal is None else "exited" if signal is None else "signaled"
            execution.ended(ExitStatus(code, signal, reason, at=at))

    def keeper_gone(self) -> None:
        """Follow the further programs without a keeper: a new one does not know them."""
        for execution in self._executions.values():
            execution.keeper_gone()
        self._executions.clear()

    async def keeper_back(self) -> None:
        """There is a new keeper: attach everybody who was."""
        for console in list(self._consoles):
            await console.renew()

    # ---- files

    def open_root(self) -> int:
        """The container's root directory as it is now, or as it will be.

        Raises:
            WrongState: it is only there while the container runs.
        """
        if self._fds:
            return transfer.open_root(self._status().pid, self._fds[0])
        if self._spec.process.fs is FsMode.ROOTFS:
            return transfer.open_directory(self._spec.process.rootfs)
        raise not_running(self._spec.id)


def _pipes(theirs: list[int], *, stdin: bool) -> dict[int, int]:
    """Pipes for a program: our ends by stream number; its ends are added to ``theirs`` in order."""
    ours: dict[int, int] = {}
    try:
        if stdin:
            read, ours[0] = os.pipe2(os.O_CLOEXEC)
            theirs.append(read)
        else:
            # A pipe at its end, not the node's /dev/null: root inside could change the mode of that for everybody.
            read, write = os.pipe2(os.O_CLOEXEC)
            theirs.append(read)
            os.close(write)
        for stream in (1, 2):
            ours[stream], write = os.pipe2(os.O_CLOEXEC)
            theirs.append(write)
    except BaseException:
        close_all(list(ours.values()))
        raise
    return ours
