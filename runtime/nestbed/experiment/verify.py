"""The proof that only the vtopo shows: what every element sees of itself and of all others, against what the plan says.

The *observation* is a canonical document: it holds no measured value and nothing of the nodes, so that it is the same, byte by byte,
wherever the elements are. What was measured (times, rates, losses) is told apart, and compared within a tolerance.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from nestbed.errors import NestbedError
from nestbed.experiment import deviations, flows, pacing, probe
from nestbed.experiment.deviations import Membership, Overflow, is_in_time
from nestbed.experiment.fleet import Fleet
from nestbed.experiment.flows import Flow
from nestbed.experiment.forwarding import Expected, Forwarding
from nestbed.experiment.plan import Plan, PlannedElement
from nestbed.v1 import container_pb2 as api

VERSION = 2
AT_ONCE = pacing.AT_ONCE
"""Elements of one node that look around at the same time: more would measure each other."""
FLOWS_AT_ONCE = 2
PATIENCE_SECONDS = 0.4
MEASURES = 3
"""How often something is measured that is not as declared: what else a machine does makes times longer, never shorter."""
FLOW_MEASURES = 5
HELPS_SHARE = 0.9
"""To measure again helps if a time is shorter then than so much of what it was."""
_QUEUE_SECONDS_MAX = 20.0
_OUTPUT_BYTES_MAX = 64 * 1024 * 1024

Expectations = Mapping[str, Expected | None]


@dataclass(frozen=True, slots=True)
class MeasuredFlow:
    """What came of calls in numbers of an address: shares of all calls, and the rate of the answers, 0 for unknown."""

    element: str
    address: str
    loss: float
    duplicates: float
    rate_bps: float


@dataclass(slots=True)
class Verdict:
    """The observation's text, the times (milliseconds, by element and address), flows, and every deviation, a line each."""

    observation: str = ""
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    flows: list[MeasuredFlow] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)


async def verify(plan: Plan, fleet: Fleet) -> Verdict:
    """Look from inside every element. An element that cannot be asked is a deviation."""
    return await _Verification(plan, fleet).run()


class _Verification:
    def __init__(self, plan: Plan, fleet: Fleet) -> None:
        self._plan, self._fleet = plan, fleet
        self._members = Membership(plan)
        self._sizes = sorted({lan.lan.words.mtu for lan in plan.lans.values()}, reverse=True)
        forwarding = Forwarding(plan)
        addresses = {
            planned.name: [address.partition("/")[0] for nic in planned.element.nics for address in nic.addresses]
            for planned in plan.elements.values()
        }
        self._expected: dict[str, Expectations] = {
            name: {address: forwarding.expected(name, address) for other, its in addresses.items() if other != name for address in its}
            for name in plan.elements
        }
        self._flows = flows.choose(plan, self._expected)
        self._owner = {address: name for name, its in addresses.items() for address in its}
        self._ignored: dict[str, list[str]] = {}
        """NICs on nodes' control networks, by element: they are no part of the experiment."""
        self._verdict = Verdict()

    async def run(self) -> Verdict:
        """Ask all, then measure what needs a LAN for itself."""
        holdings = await self._fleet.holdings(self._plan.name)
        self._ignored = {name: [held.control.name] for (_, name), held in holdings.containers.items() if held.HasField("control")}
        results = await self._ask_all()
        suspects: list[Flow] = [flow for flow in self._flows if flow.is_declared]
        seen: dict[str, Any] = {}
        together = zip(self._plan.elements.values(), results, strict=True)
        full = Overflow((planned, found) for planned, (found, _) in together if found is not None)
        for planned, (found, why) in zip(self._plan.elements.values(), results, strict=True):
            if found is None:
                self._verdict.deviations.append(f"{planned.name} cannot be asked: {why}")
                continue
            wanted = full.without(self._expected[planned.name], found["calls"])
            await self._measure_again(planned, wanted, found["calls"])
            self._tell(deviations.tell(self._plan, planned, found, wanted, self._members), planned.name)
            suspects += self._first_look(planned, found.pop("flows"))
            times = {address: round(call.pop("seconds") * 1000, 2) for address, call in found["calls"].items()}
            self._verdict.measured[planned.name] = times
            seen[planned.name] = self._canonical(planned, found)
        await self._measure_flows([flow for flow in suspects if flow.element in seen])
        self._verdict.deviations += full.lines()
        document = {"version": VERSION, "experiment": self._plan.name, "elements": seen}
        self._verdict.observation = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        return self._verdict

    def _tell(self, lines: Iterable[str], element: str) -> None:
        self._verdict.deviations += (f"{element}: {line}" for line in lines)

    def _canonical(self, planned: PlannedElement, found: dict[str, Any]) -> dict[str, Any]:
        """What is seen without what depends on chance: who happened to speak, how often something came twice."""
        found["foreign"] = self._members.strangers(planned, found.pop("heard"))
        found["neighbours"] = sorted(set(found["neighbours"].values()) - self._members.of(planned))
        for address, call in found["calls"].items():
            want = self._expected[planned.name][address]
            if want is not None and want.copies > 1:
                call["duplicates"] = 0
        return found

    # ---- asking

    async def _ask_all(self) -> Sequence[tuple[dict[str, Any] | None, str]]:
        """What each element sees, by the plan's order; a step after the other, so that no table of neighbours overflows."""
        gates = {node: asyncio.Semaphore(AT_ONCE) for node in self._fleet.clients}
        found: dict[str, dict[str, Any]] = {}
        lost: dict[str, str] = {}
        members = {lan: [element.name for element, _ in its] for lan, its in self._plan.topology.members().items()}
        steps = pacing.steps(members, list(self._plan.elements))
        for step in steps:
            callers = [name for name in step if name not in lost]
            together = asyncio.Barrier(len(callers)) if len(steps) > 1 else None

            async def one(name: str, called: set[str], together: asyncio.Barrier | None) -> None:
                planned = self._plan.elements[name]
                expected = {address: want for address, want in self._expected[name].items() if self._owner[address] in called}
                flows_ = [flow for flow in self._flows if flow.element == name and self._owner[flow.address] in called]
                asked = [flows.request(flow, again=False) for flow in flows_ if not flow.is_declared]
                async with gates[planned.node]:
                    got, why = await self._ask(planned, expected, asked, look=name not in found, together=together)
                if got is None:
                    lost[name] = why
                else:
                    _merge(found.setdefault(name, got), got)

            async with asyncio.TaskGroup() as tasks:
                for name in callers:
                    tasks.create_task(one(name, set(step[name]), together))
        return [(None, lost[name]) if name in lost else (found[name], "") for name in self._plan.elements]

    async def _ask(
        self,
        planned: PlannedElement,
        expected: Expectations,
        asked: list[dict[str, Any]],
        *,
        look: bool = False,
        thorough: bool = True,
        together: asyncio.Barrier | None = None,
    ) -> tuple[dict[str, Any] | None, str]:
        """What the element sees; None, and why, if it cannot be asked. With ``together`` it forgets its neighbours when all are there."""
        wants = [want for want in expected.values() if want]
        slowest = max((want.delay_us + want.jitter_us for want in wants), default=0) / 1e6
        queue = max((len(wants) * want.path_mtu * 16 / want.rate_bps for want in wants if want.rate_bps), default=0.0)
        request = {
            "targets": {address: want.path_mtu if want else 0 for address, want in expected.items()},
            "seconds": PATIENCE_SECONDS + 1.5 * slowest + min(queue, _QUEUE_SECONDS_MAX),
            "sizes": self._sizes,
            "flows": asked,
            "ignored": self._ignored.get(planned.name, []),
            "only": [nic.name for nic in planned.element.nics] if planned.element.words.kind == "machine" else [],
            "look": look,
            "thorough": thorough,
            "forget": together is not None,
        }
        args = ["python3", "-I", "-S", "-c", inspect.getsource(probe), json.dumps(request)]
        async with _meeting(together) as meet:
            try:
                return await self._run(planned, args, meet)
            except NestbedError as error:
                return None, error.message

    async def _run(
        self, planned: PlannedElement, args: list[str], meet: Callable[[], Awaitable[None]]
    ) -> tuple[dict[str, Any] | None, str]:
        output = {1: bytearray(), 2: bytearray()}
        start = api.ExecStart(container=planned.node_name, args=args, user="0:0", stdin=True)
        async with self._fleet.clients[planned.node].exec(start) as session:
            async for stream, data in session.output():
                output[stream] += data[: _OUTPUT_BYTES_MAX - len(output[stream])]
                if stream == 1 and data.endswith(b"\n"):
                    await meet()
                    await session.close_stdin()
            ended = session.exit
        if ended is None or ended.shell_code != 0:
            last = (output[2].decode(errors="replace").strip().split("\n") or [""])[-1]
            return None, last or "the program that looks around was ended"
        try:
            found = json.loads(output[1])
        except ValueError:
            return None, "the program that looks around wrote something else"
        return (found, "") if isinstance(found, dict) else (None, "the program that looks around wrote something else")

    # ---- measuring again

    async def _measure_again(self, planned: PlannedElement, expected: Expectations, calls: dict[str, Any]) -> None:
        """What took too long while all looked around is measured again, by itself, as long as that helps: the shortest time counts."""
        for _ in range(MEASURES):
            slow: dict[str, Expected | None] = {
                address: want
                for address, want in expected.items()
                if want and address in calls and not is_in_time(calls[address]["seconds"], want, len(expected))
            }
            if not slow:
                return
            found, _why = await self._ask(planned, slow, [], thorough=False)
            helps = False
            for address, call in (found or {"calls": {}})["calls"].items():
                helps = helps or call["seconds"] < calls[address]["seconds"] * HELPS_SHARE
                calls[address]["seconds"] = min(calls[address]["seconds"], call["seconds"])
            if not helps:
                return

    def _first_look(self, planned: PlannedElement, got: Mapping[str, Mapping[str, float]]) -> Iterable[Flow]:
        """Note the flows over LANs on which nothing is declared; those that are not right are to be measured again."""
        for flow in self._flows:
            if flow.element == planned.name and flow.address in got:
                if any(flows.deviations(flow, got[flow.address])):
                    yield flow
                else:
                    self._note(flow, got[flow.address])

    async def _measure_flows(self, wanted: Iterable[Flow]) -> None:
        """One flow at a time on each LAN; one that is not right is measured again."""
        gate = asyncio.Semaphore(FLOWS_AT_ONCE)
        locks = {name: asyncio.Lock() for name in self._plan.lans}

        async def one(flow: Flow) -> None:
            planned = self._plan.elements[flow.element]
            lines, got = [f"{flow.address} on {flow.lan} could not be called in numbers"], None
            for number in range(FLOW_MEASURES):
                async with locks[flow.lan], gate:
                    again = number > 0 or not flow.is_declared
                    found, _why = await self._ask(planned, {}, [flows.request(flow, again=again)], thorough=False)
                if found is not None:
                    got = found["flows"][flow.address]
                    lines = list(flows.deviations(flow, got))
                if not lines:
                    break
            if got is not None:
                self._note(flow, got)
            self._tell(lines, flow.element)

        await asyncio.gather(*(one(flow) for flow in wanted))

    def _note(self, flow: Flow, got: Mapping[str, float]) -> None:
        calls, answered = got["calls"], got["answered"]
        loss = 1 - answered / calls if calls else 0.0
        self._verdict.flows.append(MeasuredFlow(flow.element, flow.address, loss, got["duplicates"] / max(answered, 1), got["rate"]))


@asynccontextmanager
async def _meeting(together: asyncio.Barrier | None) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """How one of those who are ``together`` waits for the others; whoever leaves without it does not hold them up."""
    waited = together is None

    async def meet() -> None:
        nonlocal waited
        if together is not None and not waited:
            waited = True
            await together.wait()

    yield meet
    await meet()


def _merge(found: dict[str, Any], got: Mapping[str, Any]) -> None:
    """Add what was seen in a later step."""
    for what in ("calls", "flows", "neighbours", "full"):
        found[what] |= got[what]
    for nic, macs in got["heard"].items():
        found["heard"][nic] = sorted({*found["heard"][nic], *macs})
