"""The proof that only the vtopo shows: what every element sees of itself and of all others, against what the plan says.

The *observation* is a canonical document: it holds no measured value and nothing of the nodes, so that it is the same, byte by byte,
wherever the elements are. What was measured (times) is told apart, and compared within a tolerance.
"""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nestbed.errors import NestbedError
from nestbed.experiment import probe
from nestbed.experiment.fleet import Fleet
from nestbed.experiment.forwarding import Expected, Forwarding
from nestbed.experiment.plan import Plan, PlannedElement
from nestbed.v1 import container_pb2 as api

VERSION = 1
AT_ONCE = 16
"""Elements of one node that look around at the same time: more would measure each other."""
PATIENCE_SECONDS = 0.4
DELAY_TOLERANCE_US = 5_000
DELAY_TOLERANCE_SHARE = 0.2
CLOCK_TOLERANCE_US = 500
MEASURES = 3
"""How often a time is measured again that was too long: what else a machine does makes times longer, never shorter."""
_OUTPUT_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """The observation's text, the times (milliseconds, by element and address), and every deviation, a line each."""

    observation: str
    measured: dict[str, dict[str, float]]
    deviations: list[str]


async def verify(plan: Plan, fleet: Fleet) -> Verdict:
    """Look from inside every element. An element that cannot be asked is a deviation."""
    forwarding = Forwarding(plan)
    gates = {node: asyncio.Semaphore(AT_ONCE) for node in fleet.clients}
    expected = {
        planned.name: {address: forwarding.expected(planned.name, address) for address in _addresses(plan, planned)}
        for planned in plan.elements.values()
    }

    async def one(planned: PlannedElement) -> tuple[dict[str, Any] | None, str]:
        async with gates[planned.node]:
            return await _ask(plan, fleet, planned, expected[planned.name])

    results = await asyncio.gather(*(one(planned) for planned in plan.elements.values()))
    seen: dict[str, Any] = {}
    measured: dict[str, dict[str, float]] = {}
    deviations: list[str] = []
    for planned, (found, why) in zip(plan.elements.values(), results, strict=True):
        if found is None:
            deviations.append(f"{planned.name} cannot be asked: {why}")
            continue
        wanted = expected[planned.name]
        await _measure_again(plan, fleet, planned, wanted, found["calls"])
        measured[planned.name] = {address: round(call.pop("seconds") * 1000, 2) for address, call in found["calls"].items()}
        seen[planned.name] = found
        deviations += (f"{planned.name}: {line}" for line in _deviations(plan, planned, found, wanted, measured[planned.name]))
        found["foreign"] = _foreign(plan, planned, found.pop("heard"))
        found["neighbours"] = sorted(set(found["neighbours"].values()) - _macs(plan, planned))
    document = {"version": VERSION, "experiment": plan.name, "elements": seen}
    text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    return Verdict(text, measured, deviations)


async def _measure_again(
    plan: Plan, fleet: Fleet, planned: PlannedElement, expected: Mapping[str, Expected | None], calls: dict[str, Any]
) -> None:
    """What took too long while all looked around at once is measured again, by itself: the shortest time counts."""
    for _ in range(MEASURES):
        slow = {
            address: want
            for address, want in expected.items()
            if want and address in calls and not _is_in_time(calls[address]["seconds"] * 1e6, want)
        }
        if not slow:
            return
        found, _why = await _ask(plan, fleet, planned, slow)
        for address, call in (found or {"calls": {}})["calls"].items():
            calls[address]["seconds"] = min(calls[address]["seconds"], call["seconds"])


def _is_in_time(microseconds: float, want: Expected) -> bool:
    slack = DELAY_TOLERANCE_US + DELAY_TOLERANCE_SHARE * want.delay_us
    return want.delay_us - CLOCK_TOLERANCE_US <= microseconds <= want.delay_us + slack


async def _ask(
    plan: Plan, fleet: Fleet, planned: PlannedElement, expected: Mapping[str, Expected | None]
) -> tuple[dict[str, Any] | None, str]:
    """What the element sees; None, and why, if it cannot be asked."""
    slowest = max((found.delay_us for found in expected.values() if found), default=0) / 1e6
    targets = {address: found.path_mtu if found else 0 for address, found in expected.items()}
    request = {"targets": targets, "seconds": PATIENCE_SECONDS + 1.5 * slowest, "sizes": _sizes(plan)}
    args = ["python3", "-I", "-c", inspect.getsource(probe), json.dumps(request)]
    try:
        return await _run(fleet, planned, args)
    except NestbedError as error:
        return None, error.message


async def _run(fleet: Fleet, planned: PlannedElement, args: list[str]) -> tuple[dict[str, Any] | None, str]:
    output = {1: bytearray(), 2: bytearray()}
    start = api.ExecStart(container=planned.node_name, args=args, user="0:0")
    async with fleet.clients[planned.node].exec(start) as session:
        async for stream, data in session.output():
            output[stream] += data[: _OUTPUT_BYTES_MAX - len(output[stream])]
        ended = session.exit
    if ended is None or ended.shell_code != 0:
        last = (output[2].decode(errors="replace").strip().split("\n") or [""])[-1]
        return None, last or "the program that looks around was ended"
    try:
        found = json.loads(output[1])
    except ValueError:
        return None, "the program that looks around wrote something else"
    return (found, "") if isinstance(found, dict) else (None, "the program that looks around wrote something else")


def _addresses(plan: Plan, planned: PlannedElement) -> list[str]:
    return [
        address.partition("/")[0]
        for other in plan.elements.values()
        if other.name != planned.name
        for nic in other.element.nics
        for address in nic.addresses
        if ":" not in address
    ]


def _sizes(plan: Plan) -> list[int]:
    """Each MTU that there is, the largest first."""
    return sorted({lan.lan.words.mtu for lan in plan.lans.values()}, reverse=True)


def _macs(plan: Plan, planned: PlannedElement) -> set[str]:
    """The MACs that may be seen on its LANs."""
    own = {nic.lan for nic in planned.element.nics}
    return {nic.mac for other in plan.elements.values() for nic in other.element.nics if nic.lan in own}


def _foreign(plan: Plan, planned: PlannedElement, heard: dict[str, list[str]]) -> dict[str, list[str]]:
    """By NIC, the MACs that frames came from and that no other member of the LAN has."""
    found = {}
    for nic in planned.element.nics:
        members = {
            other.mac for each in plan.elements.values() for other in each.element.nics if other.lan == nic.lan and other.mac != nic.mac
        }
        strangers = sorted(set(heard.get(nic.name, [])) - members)
        if strangers:
            found[nic.name] = strangers
    return found


def _deviations(
    plan: Plan, planned: PlannedElement, found: dict[str, Any], expected: Mapping[str, Expected | None], times: dict[str, float]
) -> Iterable[str]:
    """What differs from the plan."""
    if found["hostname"] != planned.name:
        yield f"its host name is {found['hostname']}"
    yield from _interfaces(plan, planned, found["interfaces"])
    wanted = {route.destination: route.via for route in planned.routes}
    yield from _differences("route to", wanted, found["routes"])
    yield from _differences("name", _names(plan.hosts.text(planned.element)), found["names"])
    known = {
        address.partition("/")[0]: nic.mac for other in plan.elements.values() for nic in other.element.nics for address in nic.addresses
    }
    for address, mac in sorted(found["neighbours"].items()):
        if known.get(address) != mac:
            yield f"its neighbour {address} has the MAC {mac}, not {known.get(address, 'any')}"
    for name, macs in _foreign(plan, planned, found["heard"]).items():
        yield f"frames came to {name} from {', '.join(macs)}, which no member of the LAN has"
    for address, want in expected.items():
        yield from _call(address, want, found["calls"].get(address), times.get(address, 0.0))


def _interfaces(plan: Plan, planned: PlannedElement, found: dict[str, Any]) -> Iterable[str]:
    wanted = {
        nic.name: {
            "mac": nic.mac,
            "mtu": plan.lans[nic.lan].lan.words.mtu,
            "addresses": sorted(str(ipaddress.ip_interface(address)) for address in nic.addresses),
        }
        for nic in planned.element.nics
    }
    for entry in found.values():
        entry["addresses"].sort()
    yield from _differences("interface", wanted, found)


def _differences(what: str, wanted: dict[str, Any], found: dict[str, Any]) -> Iterable[str]:
    for key in sorted(wanted.keys() | found.keys()):
        if key not in found:
            yield f"the {what} {key} is missing"
        elif key not in wanted:
            yield f"the {what} {key} ({_short(found[key])}) is too much"
        elif wanted[key] != found[key]:
            yield f"the {what} {key} is {_short(found[key])}, not {_short(wanted[key])}"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _names(hosts: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in hosts.splitlines():
        address, *words = line.split()
        if not address.startswith("127."):
            for word in words:
                found.setdefault(word, []).append(address)
    return found


def _call(address: str, want: Expected | None, got: dict[str, Any] | None, milliseconds: float) -> Iterable[str]:
    if want is None or got is None:
        if want is not None:
            yield f"{address} does not answer"
        if got is not None:
            yield f"{address} answers, although no route leads there and back"
        return
    if got["ttl"] != want.ttl:
        yield f"answers from {address} have the TTL {got['ttl']}, not {want.ttl}"
    if got["duplicates"]:
        yield f"{got['duplicates']} answers of {address} came twice"
    if got.get("path_mtu", 0) != want.path_mtu:
        yield f"the path MTU to {address} is {got.get('path_mtu', 'unknown')}, not {want.path_mtu}"
    if not _is_in_time(milliseconds * 1000, want):
        yield f"{address} answers after {milliseconds} ms, not {want.delay_us / 1000:g} ms"
