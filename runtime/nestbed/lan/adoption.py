"""A NIC of the machine as a port of a bridge of ours, without the machine losing what it has by that NIC, and back.

The bridge takes over the NIC's MAC, settings, addresses, routes and permanent neighbours; then the NIC has none. What there was is on
record before anything is changed, and every step may be repeated: whenever a daemon is killed, the next one goes on to the end, or back.

::

    addresses to the bridge -> NIC becomes its port -> routes, neighbours to the bridge -> routes, neighbours, addresses off the NIC
    addresses to the NIC -> routes, neighbours to the NIC -> routes off the bridge -> NIC leaves the bridge -> addresses off the bridge

Between any two steps packets get through: an address that both have answers on both, of two routes to one place the older one counts
until it goes, and by the NIC what is sent gets out though it is a port, to neighbours that are known. (Where
``net.ipv4.conf.all.rp_filter`` is 1, what comes in is dropped as long as the NIC is a port and has the routes: for a millisecond, or until
the daemon that was killed there is started again.)

What has the NIC's name in it stays behind: sockets bound to it, rules of ``ip rule`` and of firewalls, whoever renews its addresses.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nestbed.errors import CorruptState, HostLacks, InvalidArgument, NotFound, WrongState, from_errno, translated
from nestbed.linux import devices, ifreq, inventory
from nestbed.linux.inventory import FOREVER, Device, Entry, Kind
from nestbed.linux.rtnl import Link, Rtnl
from nestbed.log import fields

_ADOPTING, _ADOPTED, _RELEASING = "adopting", "adopted", "releasing"
_GONE = (errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV)
_SYSCTLS = Path("/proc/sys/net")
_UNCOPIED = frozenset({"disable_ipv6", "stable_secret", "mc_forwarding", "rp_filter"})
_logger = logging.getLogger(__name__)


def _nothing(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Record:
    """An adoption under way or done. ``entries`` are what moves, as it was on the device that has it at first, at the time ``at`` since the
    machine was started; ``own`` is what the bridge had before.
    """

    boot: str
    phase: str
    nic: Device
    bridge: Device
    mac: str
    at: float
    disable_ipv6: str
    addr_gen_mode: str
    entries: tuple[Entry, ...] = ()
    own: tuple[Entry, ...] = ()


class Adoption:
    """The adoption that the file ``path`` is the record of; not for two threads. Errors are ``nestbed.errors``.

    ``on_step`` is called with a name after each change, for tests that end there.
    """

    def __init__(self, path: Path, rtnl: Rtnl, *, on_step: Callable[[str], None] = _nothing) -> None:
        self._path = path
        self._rtnl = rtnl
        self._on_step = on_step

    def record(self) -> Record | None:
        """What is on record of this boot of the machine.

        Raises:
            CorruptState: it cannot be understood.
        """
        try:
            data = json.loads(self._path.read_bytes())
            record = _unpacked(data)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptState(
                f"the record of the adopted NIC cannot be understood: {error}",
                reason="CORRUPT_RECORD",
                remedy=f"see what the file says and set the NIC right by hand, then remove {self._path}",
                path=self._path,
            ) from error
        return record if record.boot == _this_boot() else None

    def adopt(self, nic: str, bridge: str) -> None:
        """NIC -> port of the bridge, which is up. Idempotent: what an earlier daemon began is finished. After an error it is as it was.

        Raises:
            NotFound, InvalidArgument, WrongState, HostLacks: the NIC cannot be adopted, and why.
        """
        record = self.record()
        if record is not None and (record.nic.name != nic or record.bridge.name != bridge or record.phase == _RELEASING):
            self.release()
            record = None
        if record is not None and not self._is_same(record):
            self._path.unlink(missing_ok=True)  # the NIC was replaced by another one of its name, or the bridge was
            record = None
        if record is None:
            record = self._begun(check(self._rtnl, nic), bridge)
        try:
            self._adopt(record)
        except BaseException:
            self.release()
            raise

    def release(self, *, keep: Collection[str] = ()) -> None:
        """The NIC is on its own again, with all that the bridge has but the addresses ``keep`` (in CIDR form), and what it had before.

        Idempotent; without a record nothing. What cannot be given back is logged.
        """
        record = self.record()
        if record is not None and self._is_same(record):
            if record.phase == _ADOPTED:
                entries = [entry for entry in self._inventory(record.bridge) if not _is_kept(entry, record.own, keep)]
                entries = [inventory.moved(entry, record.bridge, record.nic) for entry in entries]
                record = self._write(replace(record, phase=_RELEASING, at=_now(), entries=tuple(entries)))
            self._release(record)
        with translated("removing the record of the adopted NIC", path=self._path):
            self._path.unlink(missing_ok=True)

    def is_whole(self, record: Record) -> bool:
        """Whether the NIC is the bridge's port."""
        with translated("looking at the adopted NIC", nic=record.nic.name):
            return self._is_same(record) and self._rtnl.link(record.nic.name).master == record.bridge.index

    # ---- the steps

    def _begun(self, nic: Link, bridge: str) -> Record:
        """The record, written: nothing is changed yet."""
        device = Device(nic.index, nic.name)
        with translated(f"looking at the NIC {nic.name}", nic=nic.name):
            entries = self._inventory(device)
            target = Device(self._rtnl.link_index(bridge), bridge)
            own = self._inventory(target)
        if any(entry.has_nexthop_object for entry in entries):
            raise HostLacks(
                f"the NIC {nic.name} has routes through nexthop objects, which cannot be moved",
                reason="NEXTHOP_OBJECTS",
                remedy="make these routes without `nhid`",
                nic=nic.name,
            )
        for entry in entries:
            if entry.kind is Kind.ADDRESS and entry.valid_seconds != FOREVER:
                _logger.warning(
                    "address with a lifetime: whoever renews it must do so on the bridge",
                    extra=fields(nic=nic.name, address=entry.address, seconds=entry.valid_seconds, bridge=bridge),
                )
        disable_ipv6, addr_gen_mode = (_read(nic.name, name) for name in ("disable_ipv6", "addr_gen_mode"))
        record = Record(_this_boot(), _ADOPTING, device, target, nic.mac, _now(), disable_ipv6, addr_gen_mode, tuple(entries), tuple(own))
        return self._write(record)

    def _adopt(self, record: Record) -> None:
        nic, bridge = record.nic, record.bridge
        with translated(f"looking at the NIC {nic.name}", nic=nic.name):
            now, there = self._rtnl.link(nic.name), self._rtnl.link(bridge.name)
        if there.mac != record.mac:  # to set it, even to what it is, makes the kernel forget all neighbours
            self._do("mac", [devices.link_mac(bridge.index, record.mac)])
        self._do("mtu", [devices.link_mtu(bridge.index, now.mtu)])
        if record.phase == _ADOPTING:
            _copy_sysctls(nic.name, bridge.name)
            _write(bridge.name, "disable_ipv6", record.disable_ipv6)
            entries = [inventory.moved(entry, nic, bridge) for entry in record.entries]
            self._give(record, _in_order(entries))
            self._join(record, bridge.index)
            self._give(record, _routes_and_neighbours(entries))
            self._take(record.entries)
            _write(bridge.name, "rp_filter", _read(nic.name, "rp_filter", "ipv4"), "ipv4")
            self._write(replace(record, phase=_ADOPTED, entries=()))
        else:
            self._join(record, bridge.index)
        _write(nic.name, "disable_ipv6", "1")  # else it would give itself a link-local address again

    def _release(self, record: Record) -> None:
        nic, bridge = record.nic, record.bridge
        gone = [inventory.moved(entry, nic, bridge) for entry in record.entries]
        _write(nic.name, "addr_gen_mode", "1")  # none: it gets its link-local address back, and needs not ask whether somebody has it
        _write(nic.name, "disable_ipv6", record.disable_ipv6)
        self._give(record, _in_order(record.entries), is_tolerant=True)
        # As long as the bridge gets what comes in, the NIC can learn no neighbour.
        known = inventory.neighbours(self._rtnl, bridge.index, learned=True)
        self._give(record, [inventory.moved(entry, bridge, nic) for entry in known], is_tolerant=True)
        self._give(record, _routes_and_neighbours(record.entries), is_tolerant=True)
        self._take(_routes_and_neighbours(gone))
        self._join(record, 0)
        self._take(gone)
        _write(nic.name, "addr_gen_mode", record.addr_gen_mode)

    def _join(self, record: Record, master: int) -> None:
        """Have the NIC be a port of that bridge, or, with 0, of none."""
        self._do("port", [devices.link_master(record.nic.index, master)])

    def _give(self, record: Record, entries: Iterable[Entry], *, is_tolerant: bool = False) -> None:
        """Have the entries be there, in this order."""
        elapsed = _now() - record.at
        for entry in entries:
            requests = inventory.creation(entry, elapsed_seconds=elapsed)
            self._do(f"{entry.kind} {entry.name}", requests, (errno.EEXIST,), is_tolerant=is_tolerant)

    def _take(self, entries: Sequence[Entry]) -> None:
        """Have the entries not be there: routes and neighbours first, then addresses, the last one first."""
        for entry in (*_routes_and_neighbours(entries), *reversed(_in_order(entries))):
            self._do(f"no {entry.kind} {entry.name}", [inventory.deletion(entry)], _GONE)

    def _do(self, step: str, requests: Sequence[bytes], harmless: Collection[int | None] = (), *, is_tolerant: bool = False) -> None:
        try:
            for request in requests:
                self._rtnl.batch([request])
        except OSError as error:
            if error.errno not in harmless:
                if not is_tolerant:
                    raise from_errno(error.errno or 0, f"moving {step} of a NIC: {error.strerror}", step=step) from error
                _logger.warning("not given back to the NIC", extra=fields(what=step, cause=str(error)))
        self._on_step(step)

    def _inventory(self, device: Device) -> list[Entry]:
        reads = (inventory.addresses, inventory.routes, inventory.neighbours)
        return [entry for read in reads for entry in read(self._rtnl, device.index)]

    def _is_same(self, record: Record) -> bool:
        """Whether both devices are still those of the record."""
        with contextlib.suppress(OSError):
            return all(self._rtnl.link_index(device.name) == device.index for device in (record.nic, record.bridge))
        return False

    def _write(self, record: Record) -> Record:
        new = self._path.with_suffix(".new")
        with translated("writing the record of the adopted NIC", path=self._path):
            new.write_text(json.dumps(_packed(record)))
            new.rename(self._path)
        self._on_step(record.phase)
        return record


def check(rtnl: Rtnl, name: str) -> Link:
    """The NIC, which can be adopted.

    Raises:
        NotFound: there is none. InvalidArgument, WrongState: it cannot, and why.
    """
    try:
        link = rtnl.link(name)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise from_errno(error.errno or 0, f"looking at the NIC {name}", nic=name) from error
        raise NotFound(
            f"the node has no NIC {name}", reason="NIC_NOT_FOUND", remedy="give the name of an interface, as `ip link` shows it", nic=name
        ) from error
    why = ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, translated(f"looking at the NIC {name}", nic=name):
        if ifreq.hardware_type(sock, name) != ifreq.ARPHRD_ETHER:
            why = "is no Ethernet interface"
        elif ifreq.is_wireless(sock, name):
            why = "is wireless: an access point takes frames of one MAC only"
    if link.kind == "bridge":
        why = "is a bridge itself"
    if why:
        raise InvalidArgument(f"the NIC {name} {why}", reason="BAD_NIC", remedy="give an Ethernet NIC of the node", nic=name)
    if link.master:
        raise WrongState(
            f"the NIC {name} belongs to a bridge or bond already",
            reason="NIC_IN_USE",
            remedy="take it out of that, or give another NIC",
            nic=name,
        )
    return link


def check_if_new(rtnl: Rtnl, name: str, record: Record | None) -> None:
    """As :func:`check`, unless the NIC is adopted already, or half."""
    if record is None or record.nic.name != name:
        check(rtnl, name)


def _is_kept(entry: Entry, own: Sequence[Entry], keep: Collection[str]) -> bool:
    """Whether the bridge had it before, or has it for itself: one of the addresses ``keep``, or the route to its subnet."""
    if any(entry.is_like(other) for other in own):
        return True
    if entry.kind is Kind.ADDRESS:
        return entry.address in keep
    return entry.kind is Kind.ROUTE and entry.is_for_address and entry.preferred_source in {text.partition("/")[0] for text in keep}


def _of(entries: Iterable[Entry], kind: Kind) -> Iterable[Entry]:
    return (entry for entry in entries if entry.kind is kind)


def _routes_and_neighbours(entries: Iterable[Entry]) -> list[Entry]:
    """What rests on addresses, in the order in which it is to be added: a next hop must be reachable by another route."""
    entries = list(entries)
    return [*sorted(_of(entries, Kind.ROUTE), key=lambda entry: entry.has_gateway), *_of(entries, Kind.NEIGHBOUR)]


def _in_order(entries: Iterable[Entry]) -> list[Entry]:
    """The addresses in the order in which they are to be added, and taken away the other way round: an IPv4 address comes behind those of
    its device, a primary one before its secondaries; an IPv6 address comes before them.
    """
    addresses = list(_of(entries, Kind.ADDRESS))
    return [one for one in addresses if not one.is_ipv6] + [one for one in reversed(addresses) if one.is_ipv6]


# ---- settings


def _path_of(device: str, name: str, family: str) -> Path:
    return _SYSCTLS / family / "conf" / device / name


def _read(device: str, name: str, family: str = "ipv6") -> str:
    """A setting of a device; "" on a kernel without that family."""
    try:
        return _path_of(device, name, family).read_text().strip()
    except OSError:
        return ""


def _write(device: str, name: str, value: str, family: str = "ipv6") -> None:
    if value:
        with contextlib.suppress(OSError):
            _path_of(device, name, family).write_text(value)


def _copy_sysctls(source: str, target: str) -> None:
    """Have the target treat packets as the source does; but the reverse path is not checked, for on the way it is another device's."""
    for family in ("ipv4", "ipv6"):
        with contextlib.suppress(FileNotFoundError):
            for path in (_SYSCTLS / family / "conf" / source).iterdir():
                if path.name not in _UNCOPIED:
                    value = _read(source, path.name, family)
                    if value != _read(target, path.name, family):
                        _write(target, path.name, value, family)
    _write(target, "rp_filter", "0", "ipv4")


# ---- the record


def _this_boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _packed(record: Record) -> dict[str, Any]:
    def entries(of: Sequence[Entry]) -> list[Any]:
        return [[one.kind.value, one.header.hex(), [[number, data.hex()] for number, data in one.attributes]] for one in of]

    return {
        "boot": record.boot,
        "phase": record.phase,
        "nic": [record.nic.index, record.nic.name],
        "bridge": [record.bridge.index, record.bridge.name],
        "mac": record.mac,
        "at": record.at,
        "disable_ipv6": record.disable_ipv6,
        "addr_gen_mode": record.addr_gen_mode,
        "entries": entries(record.entries),
        "own": entries(record.own),
    }


def _unpacked(data: dict[str, Any]) -> Record:
    def entries(of: Any) -> tuple[Entry, ...]:
        return tuple(
            Entry(Kind(kind), bytes.fromhex(header), tuple((int(number), bytes.fromhex(text)) for number, text in attributes))
            for kind, header, attributes in of
        )

    return Record(
        boot=str(data["boot"]),
        phase=str(data["phase"]),
        nic=Device(int(data["nic"][0]), str(data["nic"][1])),
        bridge=Device(int(data["bridge"][0]), str(data["bridge"][1])),
        mac=str(data["mac"]),
        at=float(data["at"]),
        disable_ipv6=str(data["disable_ipv6"]),
        addr_gen_mode=str(data["addr_gen_mode"]),
        entries=entries(data["entries"]),
        own=entries(data["own"]),
    )
