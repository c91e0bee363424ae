"""What an element saw that is not as the plan says, a line each. Pure."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import Any

from nestbed.experiment.forwarding import Expected
from nestbed.experiment.plan import Plan, PlannedElement

DELAY_TOLERANCE_US = 5_000
DELAY_TOLERANCE_SHARE = 0.2
CLOCK_TOLERANCE_US = 500
_CALL_BITS = (64 + 14) * 8 * 2


class Membership:
    """Who has which MAC and address, for all elements of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.macs: dict[str, set[str]] = {name: set() for name in plan.lans}
        """Of each LAN."""
        self.mac_of: dict[str, str] = {}
        """By address."""
        for planned in plan.elements.values():
            for nic in planned.element.nics:
                self.macs[nic.lan].add(nic.mac)
                self.mac_of |= {address.partition("/")[0]: nic.mac for address in nic.addresses}

    def of(self, planned: PlannedElement) -> set[str]:
        """The MACs that may be seen on an element's LANs."""
        return {mac for nic in planned.element.nics for mac in self.macs[nic.lan]}

    def strangers(self, planned: PlannedElement, heard: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
        """By NIC, the MACs that frames came from and that no other member of the LAN has."""
        found = {nic.name: sorted(set(heard.get(nic.name, ())) - (self.macs[nic.lan] - {nic.mac})) for nic in planned.element.nics}
        return {name: macs for name, macs in found.items() if macs}


class Overflow:
    """Tables of neighbours that were full. What would have answered otherwise nobody can tell: that is not told of each address."""

    def __init__(self, seen: Iterable[tuple[PlannedElement, Mapping[str, Any]]]) -> None:
        self._full: dict[str, dict[str, int]] = {"4": {}, "6": {}}
        """Limits, by version and kernel: that of a node or of a virtual machine."""
        self._calls = {"4": 0, "6": 0}
        for planned, found in seen:
            kernel = f"the virtual machine {planned.name}" if planned.element.words.kind == "qemu" else f"node {planned.node}"
            for version, limit in found["full"].items():
                self._full[version][kernel] = limit

    def without(self, expected: Mapping[str, Expected | None], calls: Mapping[str, Any]) -> dict[str, Expected | None]:
        """What is expected, but for what had no answer and may have had none for that."""

        def is_known(address: str, want: Expected | None) -> bool:
            version = "6" if ":" in address else "4"
            if want is None or address in calls or not self._full[version]:
                return True
            self._calls[version] += 1
            return False

        return {address: want for address, want in expected.items() if is_known(address, want)}

    def lines(self) -> Iterable[str]:
        """One for each table that calls may have failed for."""
        for version, kernels in self._full.items():
            setting = f"net.ipv{version}.neigh.default.gc_thresh3"
            for kernel, limit in kernels.items() if self._calls[version] else ():
                yield (
                    f"{self._calls[version]} calls had no answer while the one table of neighbours that the kernel of {kernel} has was"
                    f" full; raise its limit of {limit} there: sysctl -w {setting}={max(8 * limit, 8192)}"
                )


def is_in_time(seconds: float, want: Expected, calls: int) -> bool:
    """Whether an answer took as long as it should; ``calls`` were under way at once."""
    found = seconds * 1e6
    queue = calls * _CALL_BITS / want.rate_bps * 1e6 if want.rate_bps else 0
    least = 0 if want.reorders else want.delay_us - want.jitter_us - CLOCK_TOLERANCE_US
    return least <= found <= want.delay_us * (1 + DELAY_TOLERANCE_SHARE) + want.jitter_us + DELAY_TOLERANCE_US + queue


def tell(
    plan: Plan, planned: PlannedElement, found: Mapping[str, Any], expected: Mapping[str, Expected | None], members: Membership
) -> Iterable[str]:
    """What differs from the plan in what the program inside saw (``nestbed.experiment.probe``)."""
    if found["hostname"] != planned.name:
        yield f"its host name is {found['hostname']}"
    yield from _interfaces(plan, planned, found["interfaces"])
    wanted = {_destination(route.destination, route.via): route.via for route in planned.routes}
    yield from _differences("route to", wanted, found["routes"])
    yield from _differences("name", _names(plan.hosts.text(planned.element)), found["names"])
    yield from _neighbours(planned, found["neighbours"], members)
    for name, macs in members.strangers(planned, found["heard"]).items():
        yield f"frames came to {name} from {', '.join(macs)}, which no member of the LAN has"
    for address, want in expected.items():
        yield from _call(address, want, found["calls"].get(address), len(expected))


def _destination(destination: str, via: str) -> str:
    if destination == "default":
        return "::/0" if ":" in via else "0.0.0.0/0"
    return destination


def _neighbours(planned: PlannedElement, found: Mapping[str, str], members: Membership) -> Iterable[str]:
    allowed = members.of(planned)
    for address, mac in sorted(found.items()):
        if address in members.mac_of:
            if members.mac_of[address] != mac:
                yield f"its neighbour {address} has the MAC {mac}, not {members.mac_of[address]}"
        elif not ipaddress.ip_address(address).is_link_local or mac not in allowed:
            yield f"its neighbour {address} with the MAC {mac} is no member of its LANs"


def _interfaces(plan: Plan, planned: PlannedElement, found: dict[str, Any]) -> Iterable[str]:
    wanted = {
        nic.name: {
            "mac": nic.mac,
            "mtu": plan.lans[nic.lan].lan.words.mtu,
            "carrier": True,
            "addresses": sorted(str(ipaddress.ip_interface(address)) for address in nic.addresses),
        }
        for nic in planned.element.nics
    }
    for entry in found.values():
        entry["addresses"].sort()
    yield from _differences("interface", wanted, found)


def _differences(what: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Iterable[str]:
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


def _call(address: str, want: Expected | None, got: Mapping[str, Any] | None, calls: int) -> Iterable[str]:
    if want is None or got is None:
        if want is not None:
            yield f"{address} does not answer"
        if got is not None:
            yield f"{address} answers, although no route leads there and back"
        return
    if got["ttl"] != want.ttl:
        yield f"answers from {address} have the TTL {got['ttl']}, not {want.ttl}"
    if got["duplicates"] and want.copies == 1:
        yield f"{got['duplicates']} answers of {address} came twice"
    if got.get("path_mtu", 0) != want.path_mtu:
        yield f"the path MTU to {address} is {got.get('path_mtu', 'unknown')}, not {want.path_mtu}"
    if not is_in_time(got["seconds"], want, calls):
        yield f"{address} answers after {got['seconds'] * 1000:.2f} ms, not {want.delay_us / 1000:g} ms"
