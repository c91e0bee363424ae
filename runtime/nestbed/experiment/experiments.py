"""The experiments of one node: what the service calls. Work goes on whether or not its caller stays, and when the daemon comes back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nestbed.errors import Busy, InvalidArgument, NestbedError, NotFound, shown
from nestbed.experiment import agents, everywhere, present, requests
from nestbed.experiment import links as cables
from nestbed.experiment import plan as planning
from nestbed.experiment import verify as verification
from nestbed.experiment.fleet import Connect, Fleet, addresses, check_may, compare
from nestbed.experiment.plan import Plan
from nestbed.experiment.progress import Progress
from nestbed.experiment.records import ExperimentRecord, File, Phase, Store, encoded
from nestbed.experiment.requests import Digests
from nestbed.experiment.verify import Verdict
from nestbed.experiment.work import Rise, fall
from nestbed.log import fields
from nestbed.v1 import agent_pb2, container_pb2, experiment_pb2

_logger = logging.getLogger(__name__)


class Publish(Protocol):
    """Tells those who watch the node's events."""

    def __call__(self, kind: str, object_id: str, name: str, /, **attributes: object) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class _Run:
    progress: Progress
    task: asyncio.Task[None]


class Experiments:
    """All experiments that this node was asked to bring up. For one event loop; ``open`` before use."""

    def __init__(self, folder: Path, connect: Connect, publish: Publish) -> None:
        self._store = Store(folder)
        self._connect = connect
        self._publish = publish
        self._records: dict[str, ExperimentRecord] = {}
        self._plans: dict[str, tuple[Plan, Digests]] = {}
        self._runs: dict[str, _Run] = {}
        self._barriers: dict[str, asyncio.Task[None]] = {}

    def open(self) -> None:
        """Read the records, and go on with what was under way. The node answers already."""
        for record in self._store.records():
            if isinstance(record, NestbedError):
                _logger.error("experiment's record cannot be read", extra=fields(reason=record.reason, cause=record.message))
                continue
            self._records[record.name] = record
            if record.phase is Phase.RISING:
                self._launch(record, self._rise)
                self._let_meet(record)
            elif record.phase is Phase.FALLING:
                self._launch(record, self._fall)
            else:
                self._let_meet(record)

    async def aclose(self) -> None:
        """Leave off; the next daemon goes on. Idempotent."""
        tasks = [*(run.task for run in self._runs.values()), *self._barriers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------ what callers ask for

    async def up(self, vtopo: File, ptopo: File | None, sources: Mapping[str, bytes], *, keep: bool, admin: bool) -> Progress:
        """Begin to bring an experiment up, or to what the files say now. One that was there before is kept whatever fails.

        Raises:
            InvalidArgument: a mistake in a file. Busy: the experiment is on its way up or down.
            PermissionDenied, Unsupported, HostLacks, Unavailable: it cannot be; nothing was begun.
        """
        record = ExperimentRecord("", vtopo, ptopo, Phase.RISING, secrets.token_hex(8), admin=admin, keep=keep, started_at=time.time())
        record = dataclasses.replace(record, sources=encoded(sources))
        plan, digests = await _plan(record)
        record = dataclasses.replace(record, name=plan.name)
        check_may(plan, admin=admin)
        self._check_idle(plan.name)
        before = self._records.get(plan.name)
        if before is not None:
            earlier = (before.vtopo, *([before.ptopo] if before.ptopo else []))
            record = dataclasses.replace(record, earlier=earlier, earlier_sources=before.sources, keep=True)
        async with Fleet(addresses(plan), self._connect, admin=admin) as fleet:
            await fleet.check(plan)
        self._check_idle(plan.name)
        self._plans[plan.name] = plan, digests
        self._keep_record(record)
        self._store.write_copies(record, plan.text())
        self._let_meet(record)
        return self._launch(record, self._rise)

    async def down(self, name: str, *, force: bool, admin: bool) -> Progress:
        """Begin to remove an experiment. One on its way up is stopped first.

        Raises:
            NotFound: there is none. Busy: it is on its way down.
        """
        record = self._find(name)
        run = self._runs.get(name)
        if run is not None and record.phase is Phase.RISING:
            run.task.cancel()
            await asyncio.gather(run.task, return_exceptions=True)
        self._check_idle(name)
        check_may((await self._planned(record))[0], admin=admin)
        record = dataclasses.replace(record, phase=Phase.FALLING, admin=record.admin and admin, force=force)
        self._keep_record(record)
        return self._launch(record, self._fall)

    async def get(self, name: str) -> experiment_pb2.Experiment:
        """How an experiment is now.

        Raises:
            NotFound: there is none.
        """
        record = self._find(name)
        plan, _ = await self._planned(record)
        async with Fleet(addresses(plan), self._connect, admin=record.admin) as fleet:
            return present.whole(record, plan, await fleet.holdings(name))

    async def all(self) -> list[experiment_pb2.Experiment]:
        """All of them, by name, without their elements."""
        return [await self._summary(record) for _, record in sorted(self._records.items())]

    async def diff(self, vtopo: File, ptopo: File | None, sources: Mapping[str, bytes], *, admin: bool) -> list[experiment_pb2.Change]:
        """What ``up`` would change.

        Raises:
            as :meth:`up`.
        """
        plan, digests = await _plan(ExperimentRecord("", vtopo, ptopo, Phase.RISING, "", sources=encoded(sources)))
        check_may(plan, admin=admin)
        async with Fleet(addresses(plan), self._connect, admin=admin) as fleet:
            holdings = await fleet.holdings(plan.name)
        for error in holdings.unreachable.values():
            raise error
        return compare(plan, digests, holdings)

    async def wait(self, name: str) -> experiment_pb2.Experiment:
        """The experiment without its elements, when nothing is under way with it.

        Raises:
            NotFound: there is none.
        """
        record = self._find(name)
        while (run := self._runs.get(name)) is not None:
            await asyncio.wait([run.task])
            if name not in self._records:
                return run.progress.outcome
        return await self._summary(self._records.get(name, record))

    async def exec(
        self, name: str, labels: Mapping[str, str], start: container_pb2.ExecStart, *, admin: bool
    ) -> AsyncGenerator[experiment_pb2.ExecInElementsResponse, None]:
        """Run a program in all elements that run and have the labels (``nestbed.experiment.everywhere``).

        Raises:
            NotFound: there is no such experiment or element. PermissionDenied: as :meth:`verify`. InvalidArgument: it is to have input.
        """
        if start.container or start.stdin or start.tty:
            raise InvalidArgument(
                "a program in many elements has no container, input and terminal",
                reason="CONFLICTING_OPTIONS",
                remedy="leave these fields out",
            )
        async with self._nodes(name, admin=admin) as (plan, fleet):
            pieces = everywhere.run(fleet, await everywhere.choose(plan, fleet, labels), start)
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    yield piece

    async def set_links(self, name: str, links: Sequence[str], *, up: bool, admin: bool) -> list[experiment_pb2.Link]:
        """Plug cables in or out (``nestbed.experiment.links``).

        Raises:
            NotFound: there is no such experiment, element, LAN or NIC. Busy, PermissionDenied: as :meth:`verify`.
        """
        self._check_idle(name)
        async with self._nodes(name, admin=admin) as (plan, fleet):
            return await cables.plug(plan, fleet, cables.choose(plan, links), up=up)

    async def verify(self, name: str, *, admin: bool) -> Verdict:
        """Look from inside every element.

        Raises:
            NotFound: there is none. Busy: it is on its way up or down. PermissionDenied: it acts as administrator, and the caller is none.
        """
        self._check_idle(name)
        async with self._nodes(name, admin=admin) as (plan, fleet):
            return await verification.verify(plan, fleet)

    async def agents(self, name: str, elements: Sequence[str]) -> list[agent_pb2.Agent]:
        """What the agents know of an experiment's elements (names or globs; none is all).

        Raises:
            NotFound: there is no such experiment or element.
        """
        async with self._nodes(name) as (plan, fleet):
            return await agents.views(plan, fleet, elements)

    async def traffic(self, name: str, elements: Sequence[str]) -> list[container_pb2.ContainerStats]:
        """What an experiment's elements use now.

        Raises:
            NotFound: there is no such experiment or element.
        """
        async with self._nodes(name) as (plan, fleet):
            return await agents.traffic(plan, fleet, elements)

    async def tell(self, name: str, element: str, text: str, *, admin: bool) -> None:
        """Add a line to the orders of an experiment's elements (a name or a glob).

        Raises:
            NotFound: there is no such experiment or element. PermissionDenied: an element is privileged and the caller is not admin.
        """
        async with self._nodes(name, admin=admin) as (plan, fleet):
            await agents.tell(plan, fleet, element, text)

    async def reports(self, name: str, element: str, *, tail: int | None, follow: bool) -> AsyncGenerator[agent_pb2.Report, None]:
        """What an element's programs reported.

        Raises:
            NotFound: there is no such experiment or element.
        """
        async with self._nodes(name) as (plan, fleet):
            planned = plan.elements.get(element) or agents.select(plan, [element])[0]
            async with contextlib.aclosing(fleet.clients[planned.node].reports(planned.node_name, tail=tail, follow=follow)) as found:
                async for report in found:
                    yield report

    # ------------------------------------------------------------ work

    def _let_meet(self, record: ExperimentRecord) -> None:
        """Let the experiment's elements meet at barriers, for as long as it is there; by its latest plan."""

        async def run(before: asyncio.Task[None] | None) -> None:
            if before is not None:
                before.cancel()
                await asyncio.gather(before, return_exceptions=True)
            plan, _ = await self._planned(record)
            async with Fleet(addresses(plan), self._connect, admin=record.admin) as fleet:
                await agents.Barriers(plan, fleet, self._store.folder(record.name)).run()

        task = asyncio.create_task(run(self._barriers.get(record.name)), name=f"barriers of {record.name}")
        task.add_done_callback(_report)
        self._barriers[record.name] = task

    def _launch(self, record: ExperimentRecord, work: Callable[[ExperimentRecord, Progress], Coroutine[Any, Any, None]]) -> Progress:
        progress = Progress()

        async def run() -> None:
            try:
                await work(record, progress)
            except NestbedError as error:
                self._finish(record, progress, [error.message])
            finally:
                self._runs.pop(record.name, None)
                if not progress.outcome.name:  # it was stopped, by `down` or with the daemon
                    progress.outcome = self._known(self._records.get(record.name, record))
                progress.end()

        task = asyncio.create_task(run(), name=f"experiment {record.name}")
        task.add_done_callback(_report)
        self._runs[record.name] = _Run(progress, task)
        return progress

    async def _rise(self, record: ExperimentRecord, progress: Progress) -> None:
        plan, digests = await self._planned(record)
        earlier = None
        if record.earlier:
            with contextlib.suppress(NestbedError):  # they were understood by another version
                earlier = await asyncio.to_thread(planning.make, *record.earlier_files())
        began = time.monotonic()
        async with Fleet(addresses(plan, earlier), self._connect, admin=record.admin) as fleet:
            rise = Rise(plan, digests, fleet, progress, run_id=record.run_id, keep=record.keep)
            try:
                await rise.run()
            except NestbedError as error:
                rise.problems.append(error.message)
        if rise.problems and not record.keep:
            falling = dataclasses.replace(record, phase=Phase.FALLING, problems=tuple(rise.problems))
            self._keep_record(falling)
            await self._fall(falling, progress)
            return
        record = dataclasses.replace(record, seconds=time.monotonic() - began, failed=tuple(rise.failed.items()))
        self._finish(record, progress, rise.problems)

    async def _fall(self, record: ExperimentRecord, progress: Progress) -> None:
        plan, _ = await self._planned(record)
        async with Fleet(addresses(plan), self._connect, admin=record.admin) as fleet:
            problems = await fall(record.name, fleet, progress, force=record.force)
        if problems:
            self._finish(record, progress, [*record.problems, *problems])
            return
        meeting = self._barriers.pop(record.name, None)
        if meeting is not None:
            meeting.cancel()
            await asyncio.gather(meeting, return_exceptions=True)
        self._store.remove(record.name)
        self._records.pop(record.name, None)
        self._plans.pop(record.name, None)
        progress.outcome = present.summary(record, plan)
        progress.outcome.state = experiment_pb2.EXPERIMENT_STATE_DOWN
        self._publish("experiment.down", record.name, record.name)

    def _finish(self, record: ExperimentRecord, progress: Progress, problems: Sequence[str]) -> None:
        phase = Phase.FAILED if problems else Phase.UP
        record = dataclasses.replace(record, phase=phase, problems=tuple(problems), earlier=(), earlier_sources=())
        self._keep_record(record)
        progress.outcome = self._known(record)
        self._publish(f"experiment.{phase.value}", record.name, record.name, problems=len(problems))
        _logger.info("experiment settled", extra=fields(experiment=record.name, phase=phase.value, problems=len(problems)))

    # ------------------------------------------------------------ what is known

    def _find(self, name: str) -> ExperimentRecord:
        record = self._records.get(name)
        if record is None:
            raise NotFound(
                f"there is no experiment {shown(name)}",
                reason="EXPERIMENT_NOT_FOUND",
                remedy="see `nbctl status` for those there are",
                experiment=shown(name),
            )
        return record

    def _check_idle(self, name: str) -> None:
        if name in self._runs:
            phase = self._records[name].phase
            raise Busy(
                f"experiment {name} is {phase.value}",
                reason="EXPERIMENT_BUSY",
                remedy=f"wait for it: nbctl wait --ready {name}",
                experiment=name,
                phase=phase.value,
            )

    def _keep_record(self, record: ExperimentRecord) -> None:
        self._store.write(record)
        self._records[record.name] = record

    async def _planned(self, record: ExperimentRecord) -> tuple[Plan, Digests]:
        if record.name not in self._plans:
            self._plans[record.name] = await _plan(record)
        return self._plans[record.name]

    @contextlib.asynccontextmanager
    async def _nodes(self, name: str, *, admin: bool | None = None) -> AsyncIterator[tuple[Plan, Fleet]]:
        """The plan of an experiment, and its nodes to call. ``admin`` is the caller's right to act; without one it is only looked at.

        Raises:
            NotFound: there is none. PermissionDenied: it acts as administrator, and the caller is none.
        """
        record = self._find(name)
        plan, _ = await self._planned(record)
        if admin is not None:
            check_may(plan, admin=admin)
        async with Fleet(addresses(plan), self._connect, admin=record.admin and admin is not False) as fleet:
            yield plan, fleet

    def _known(self, record: ExperimentRecord) -> experiment_pb2.Experiment:
        """What is known without reading the files, which may be those of another version."""
        planned = self._plans.get(record.name)
        return present.summary(record, planned[0] if planned else None)

    async def _summary(self, record: ExperimentRecord) -> experiment_pb2.Experiment:
        with contextlib.suppress(NestbedError):
            await self._planned(record)
        return self._known(record)


async def _plan(record: ExperimentRecord) -> tuple[Plan, Digests]:
    """In a thread: large ones take a second or two, and the node goes on meanwhile."""

    def make() -> tuple[Plan, Digests]:
        made = planning.make(*record.files())
        return made, requests.digests(made)

    return await asyncio.to_thread(make)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _logger.error("experiment's work met a defect", exc_info=task.exception())
