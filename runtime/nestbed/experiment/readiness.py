"""Whether an element has become what its file calls ready. Waits for facts where there are any; what listens inside must be asked for."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from nestbed.client import Client
from nestbed.errors import NestbedError, shown
from nestbed.experiment.plan import STARTUP_DONE, PlannedElement
from nestbed.experiment.ranges import fill
from nestbed.node.agent import lines
from nestbed.v1 import container_pb2 as api

ASK_SECONDS = 0.2
TAIL_LINES = 10
_LISTENING = "0A"
"""TCP_LISTEN of the kernel's enum in include/net/tcp_states.h, as /proc/net/tcp shows it."""


@dataclass(slots=True)
class NotReady(Exception):
    """An element failed; ``why`` is one line, ``output`` the end of what its program wrote."""

    why: str
    output: str = ""


async def wait_ready(client: Client, planned: PlannedElement) -> None:
    """Wait until the element's conditions hold.

    Raises:
        NotReady: they do not within their time, or cannot any more. NestbedError: the node cannot be asked.
    """
    ready = planned.element.words.ready
    try:
        async with asyncio.timeout(ready.timeout):
            if planned.element.words.startup:
                await _startup_ended(client, planned)
            if ready.log:
                await _log_holds(client, planned, fill(ready.log, planned.element.number))
            if ready.port:
                await _asked_until(client, planned, ["cat", "/proc/net/tcp", "/proc/net/tcp6"], port=ready.port)
            if ready.command:
                await _asked_until(client, planned, [fill(arg, planned.element.number) for arg in ready.command])
            if ready.report:
                await _reported(client, planned, fill(ready.report, planned.element.number))
            if ready.ended:
                await _ended(client, planned)
    except TimeoutError:
        raise NotReady(f"was not ready within {ready.timeout:g} s", await tail(client, planned)) from None


def has_conditions(planned: PlannedElement) -> bool:
    """Whether there is anything to wait for once it runs."""
    ready = planned.element.words.ready
    return bool(planned.element.words.startup or ready.log or ready.port or ready.command or ready.report or ready.ended)


def how_it_ended(container: api.Container) -> str:
    """For people: how its program ended."""
    status = container.exit
    if status.HasField("code"):
        return f"ended with status {status.code}"
    if status.HasField("signal"):
        return f"was ended by signal {status.signal}" + (f" ({status.reason})" if status.reason not in ("", "signaled") else "")
    return f"could not be run: {status.message}" if status.message else "has ended, it is not known how"


async def tail(client: Client, planned: PlannedElement) -> str:
    """The last lines that its program wrote; nothing if they cannot be had."""
    try:
        pieces = [entry.data async for entry in client.logs(planned.node_name, tail=TAIL_LINES)]
    except NestbedError:
        return ""
    return b"".join(pieces).decode(errors="replace").rstrip("\n")


async def failure(client: Client, planned: PlannedElement) -> NotReady:
    """What is to be said of an element whose program has ended."""
    return NotReady(how_it_ended(await client.get_container(planned.node_name)), await tail(client, planned))


async def _startup_ended(client: Client, planned: PlannedElement) -> None:
    mark = STARTUP_DONE.encode()
    rest = b""
    async for entry in client.logs(planned.node_name, follow=True):
        rest += entry.data
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if line.startswith(mark):
                status = line[len(mark) :].decode(errors="replace")
                if status != "0":
                    raise NotReady(f"startup ended with status {status}", await tail(client, planned))
                return
    raise await failure(client, planned)


async def _log_holds(client: Client, planned: PlannedElement, text: str) -> None:
    wanted, seen = text.encode(), b""
    async for entry in client.logs(planned.node_name, follow=True):
        seen = seen[-len(wanted) :] + entry.data
        if wanted in seen:
            return
    raise await failure(client, planned)


async def _reported(client: Client, planned: PlannedElement, text: str) -> None:
    """Wait until a report of this run holds every field of ``text``."""
    since = (await client.get_container(planned.node_name)).start_time.ToNanoseconds()
    try:
        wanted = dict(lines.parse(text.encode()))
    except lines.Garbage as error:
        raise NotReady(f"cannot become ready: nobody can report {shown(text)}") from error

    async def heard(*, follow: bool) -> bool:
        async with contextlib.aclosing(client.reports(planned.node_name, follow=follow)) as reports:
            async for report in reports:
                if report.time.ToNanoseconds() >= since and wanted.items() <= dict(report.fields).items():
                    return True
        return False

    hearing, ending = asyncio.ensure_future(heard(follow=True)), asyncio.ensure_future(client.wait_container(planned.node_name))
    try:
        await asyncio.wait((hearing, ending), return_when=asyncio.FIRST_COMPLETED)
        if not (hearing.done() and hearing.result()) and not await heard(follow=False):
            raise await failure(client, planned)
    finally:
        for task in (hearing, ending):
            task.cancel()
        await asyncio.gather(hearing, ending, return_exceptions=True)


async def _ended(client: Client, planned: PlannedElement) -> None:
    status = await client.wait_container(planned.node_name)
    if not (status.HasField("code") and status.code == 0):
        raise await failure(client, planned)


async def _asked_until(client: Client, planned: PlannedElement, args: list[str], *, port: int = 0) -> None:
    """Run ``args`` inside until it ends with 0, or, with ``port``, until its output shows a socket that listens there."""
    while True:
        container = await client.get_container(planned.node_name)
        if container.state not in (api.CONTAINER_STATE_RUNNING, api.CONTAINER_STATE_RESTARTING, api.CONTAINER_STATE_PAUSED):
            raise await failure(client, planned)
        if container.state == api.CONTAINER_STATE_RUNNING:
            output = bytearray()
            async with client.exec(api.ExecStart(container=planned.node_name, args=args)) as session:
                async for _, data in session.output():
                    output += data
                ended = session.exit
            if ended is not None and (_listens(output.decode(errors="replace"), port) if port else ended.shell_code == 0):
                return
        await asyncio.sleep(ASK_SECONDS)


def _listens(table: str, port: int) -> bool:
    """Whether the table in the form of /proc/net/tcp (proc_pid_net(5)) has a listening socket of that port."""
    rows = (line.split() for line in table.splitlines())
    return any(len(row) > 3 and row[3] == _LISTENING and row[1].endswith(f":{port:04X}") for row in rows)
