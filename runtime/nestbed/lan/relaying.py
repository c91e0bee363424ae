"""LANs of several machines: what joins a LAN's bridge to its group or peers, and keeps it joined.

One object for a node. It follows the underlays (rtnetlink): one that goes, comes back, or gets another address, MAC or MTU is taken out
of the maps and memberships and put into them again by itself. Everything is found again by the next daemon, which puts its own programs in
the place of the old ones; frames go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nestbed.errors import HostLacks, NestbedError, translated
from nestbed.lan import fastpath, traffic, uplink
from nestbed.lan.attachment import Attachments
from nestbed.lan.fastpath import Entry, FastPath, Leg, Peer, Refusal
from nestbed.lan.loops import Loops
from nestbed.lan.members import lan_key
from nestbed.lan.membership import Membership
from nestbed.lan.pins import pin_dir
from nestbed.lan.relay.wanted import RelayedLan
from nestbed.lan.relay_client import RelayClient
from nestbed.lan.underlays import Outlook, look_out
from nestbed.lan.uplink import Uplink, Uplinks
from nestbed.lanmodel import Lan, LanCounters, LanPath, PathKind, RelayMode
from nestbed.linux import neighbour
from nestbed.linux.rtnews import News
from nestbed.model import Ability
from nestbed.runtime import Leftover, PlaneListener

_ROUND_SECONDS = 1.0


@dataclass(slots=True)
class _Held:
    """A LAN that is carried. ``aside`` are the underlays that it does not use, because they are one segment with another."""

    lan: Lan
    uplink: Uplink
    membership: Membership
    aside: set[str] = field(default_factory=set)


class Relaying:
    """See the module. Everything belongs to the network namespace in which it is made; not for two threads."""

    def __init__(
        self,
        *,
        node_id: str,
        run_dir: Path,
        underlays: Sequence[str],
        mode: RelayMode,
        relay: RelayClient,
        listener: PlaneListener,
    ) -> None:
        """``relay`` is open already, and is closed by whoever made it."""
        self._relay = relay
        self._run_dir = run_dir
        self._is_relay_used = mode is not RelayMode.KERNEL
        self._is_fast_wanted = mode is not RelayMode.USERSPACE
        self._names = tuple(underlays)
        self._listener = listener
        self._uplinks = Uplinks(node_id)
        self._attachments = Attachments(run_dir, self._uplinks.rtnl)
        self._fast, self._why_not = _load(run_dir) if self._names and self._is_fast_wanted else (None, "not asked for (--relay userspace)")
        self._segmenter = 0
        self._is_stale = False
        self._held: dict[str, _Held] = {}
        self._outlooks: dict[str, Outlook] = {name: look_out(name) for name in self._names}
        self._loops = Loops()
        self._news: News | None = None
        self._rounds: asyncio.Task[None] | None = None

    def use(self, underlays: Sequence[str]) -> None:
        """Carry LANs on these underlays from now on. After :meth:`start`."""
        if tuple(underlays) == self._names:
            return
        is_less = not set(self._names) <= set(underlays)
        self._names = tuple(underlays)
        self._outlooks = {name: self._outlooks.get(name, Outlook(name)) for name in self._names}
        if self._names and self._fast is None and self._is_fast_wanted:
            self._fast, self._why_not = _load(self._run_dir)
        self.start()
        self._is_stale = True
        self._catch_up()
        if is_less:
            self._detach()

    def start(self) -> None:
        """Follow the underlays from now on, in this event loop. Idempotent."""
        if self._names and self._news is None:
            self._news = News()
            asyncio.get_running_loop().add_reader(self._news.fileno(), self._hear)
            self._refresh()
            self._rounds = asyncio.create_task(self._go_round(), name="lan-relaying")

    async def aclose(self) -> None:
        """Let go; LANs are carried on. Idempotent."""
        if self._rounds is not None:
            self._rounds.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._rounds
            self._rounds = None
        if self._news is not None:
            asyncio.get_running_loop().remove_reader(self._news.fileno())
            self._news.close()
            self._news = None
        for held in self._held.values():
            held.membership.close()
        self._held.clear()
        if self._fast is not None:
            self._fast.close()
        self._uplinks.close()

    # ---- LANs

    def take_up(self, lan: Lan) -> None:
        """Carry a LAN whose bridge is there, or go on carrying it; make what is missing. Idempotent.

        Raises:
            HostLacks: this machine has nothing to carry it with. AlreadyExists: a name it needs is another's.
        """
        if self._fast is None and not self._is_relay_used:
            raise HostLacks(
                f"LAN {lan.name} cannot be carried to other machines by this node: {self._why_not}",
                reason="NO_RELAY",
                remedy="see `nbctl info` for what this machine lacks, or make the LAN with --local",
                lan=lan.name,
                why=self._why_not,
            )
        if self._fast is not None:
            self._make_segmenter(self._fast)
        found = self._uplinks.make(lan, has_pair=self._fast is not None)
        held = self._held.get(lan.id)
        if held is None:
            held = self._held[lan.id] = _Held(lan, found, Membership(lan.group_address))
        held.lan, held.uplink = lan, found
        with translated(f"joining LAN {lan.name} to {lan.group}", lan=lan.name, group=lan.group):
            self._attach()
            self._apply(held)
            if self._fast is not None:
                self._uplinks.rtnl.batch([self._fast.on_uplink(found.port), self._fast.on_tap(found.tap)])
        if self._fast is not None:
            self._uplinks.open_pair(lan)

    async def settle(self, lan: Lan) -> None:
        """Wait until the LAN that was taken up is joined to its group or peers by the relay process, too.

        Raises:
            Unavailable: that process does not come to it. HostLacks: it cannot.
        """
        if self._is_relay_used:
            await self._relay.settle()
            self._relay.check(lan.id)

    def remove(self, lan: Lan) -> None:
        """Carry the LAN no more and remove what did. Idempotent."""
        self._relay.drop_lan(lan.id)
        found = self._uplinks.find(lan)
        port, _, tap = uplink.names(lan)
        if self._fast is not None:
            with translated(f"taking LAN {lan.name} out of the fast path", lan=lan.name):
                self._fast.remove(lan.id, [index for index in (found.port, found.tap) if index])
        held = self._held.pop(lan.id, None)
        if held is not None:
            held.membership.close()
        self._uplinks.remove([port, tap])
        if not self._held:
            self._detach()

    def sweep(self, lans: Collection[Lan]) -> None:
        """Remove what an earlier daemon left of LANs that are not among ``lans``, and of underlays that are not named any more."""
        relayed = {lan.id for lan in lans if lan.is_relayed}
        self._relay.keep_only(lan_ids=relayed if self._is_relay_used else ())
        self._uplinks.remove([name for name, lan_id in self._uplinks.ours() if lan_id not in relayed and name[:3] != "nbu"])
        if self._fast is not None:
            indexes = [index for held in self._held.values() for index in (held.uplink.port, held.uplink.tap)]
            with translated("clearing the maps of the fast path"):
                self._fast.keep_only(relayed, indexes)
        self._detach()

    def audit(self, lans: Collection[Lan]) -> list[Leftover]:
        """What is there and should not be, and the other way round, of uplinks and of underlays' filters."""
        relayed = [lan for lan in lans if lan.is_relayed]
        wanted = {(name, lan.id): lan for lan in relayed for name in self._names_of(lan)}
        found = set(self._uplinks.ours())
        report = [Leftover("extra", "link", name, "a device of no LAN") for name, lan_id in sorted(found) if (name, lan_id) not in wanted]
        report += [
            Leftover("missing", "link", name, f"a device of LAN {lan.name}")
            for (name, lan_id), lan in wanted.items()
            if (name, lan_id) not in found
        ]
        return report + self._audit_underlays(has_lans=bool(relayed))

    def _names_of(self, lan: Lan) -> tuple[str, ...]:
        names = uplink.names(lan)
        return names if self._fast is not None else names[2:]

    def paths(self, lan: Lan) -> list[LanPath]:
        """How the LAN uses each underlay now."""
        held = self._held.get(lan.id)
        return [self._path(lan, self._outlooks[name], held) for name in self._names] if lan.is_relayed else []

    def counters(self, lan_id: str) -> LanCounters:
        """What the LAN exchanged with other machines."""
        received, sent = self._fast.traffic(lan_id) if self._fast is not None else ([], [])
        by_relay = self._relay.traffic(lan_id)
        if by_relay is not None:
            received, sent = [*received, by_relay[0]], [*sent, by_relay[1]]
        return LanCounters(lan_id, received=traffic.decode(received), sent=traffic.decode(sent))

    def abilities(self) -> list[Ability]:
        """Whether the kernel can carry LANs, and whether the relay process may."""
        if not self._names:
            return []
        found = []
        if self._fast is not None:
            found.append(Ability("fast-path", available=True, detail="BPF programs carry LANs between machines"))
        else:
            consequence = (
                "the relay process carries LANs, slower and with more delay" if self._is_relay_used else "LANs with a group are refused"
            )
            found.append(Ability("fast-path", available=False, detail=self._why_not, consequence=consequence))
        if self._is_relay_used:
            what = "what the kernel does not: oversize frames, stock QEMU on this machine" if self._fast is not None else "all frames"
            found.append(Ability("relay", available=True, detail=f"a process carries {what}"))
        else:
            lost = "frames over the underlay's MTU are dropped, and stock QEMU on this machine gets none"
            found.append(Ability("relay", available=False, detail="not asked for", consequence=lost))
        return found

    # ---- underlays

    def _hear(self) -> None:
        assert self._news is not None
        changes = self._news.read()
        if changes is None or changes.links & set(self._names) or changes.addressed & {one.index for one in self._outlooks.values()}:
            self._catch_up()
        elif changes.has_routing:
            self._catch_up_with_peers()

    def _catch_up(self) -> None:
        try:
            self._refresh()
            self._is_stale = False
        except NestbedError:  # an underlay that goes at this very moment: news of that follow, and the next round looks again
            self._is_stale = True

    def _catch_up_with_peers(self) -> None:
        try:
            self._apply_all(held for held in self._held.values() if held.lan.peers)
        except NestbedError:
            self._is_stale = True

    def _refresh(self) -> None:
        """Look at the underlays and, if there is something new about them, tell everybody."""
        before, self._outlooks = self._outlooks, {name: look_out(name) for name in self._names}
        if before == self._outlooks and not self._is_stale:
            return
        for held in self._held.values():
            held.aside.clear()
        for name in self._names:
            was, now = before[name].is_usable, self._outlooks[name].is_usable
            if was != now:
                self._listener("lan.underlay-back" if now else "lan.underlay-lost", "", {"underlay": name})
        self._attach()
        self._apply_all(self._held.values())

    def _attach(self) -> None:
        """Have the program on every underlay that is there, as long as there is a LAN to carry."""
        if self._fast is None or not self._held:
            return
        present = [one for one in self._outlooks.values() if one.index]
        with translated("attaching to the underlays"):
            for one in present:
                self._attachments.attach(self._fast, one.name, one.index)

    def _make_segmenter(self, fast: FastPath) -> None:
        self._segmenter, far_end = self._uplinks.make_segmenter()
        with translated("attaching to the segmenter"):
            self._uplinks.rtnl.batch([fast.on_segmenter(far_end)])

    def _detach(self) -> None:
        """Take the program off everything that does not need it. Not before all LANs of an earlier daemon have been taken up."""
        needed = {one.name for one in self._outlooks.values() if one.index} if self._held and self._fast is not None else set()
        with translated("detaching from the underlays"):
            self._attachments.detach_all_but(needed)
        if not self._held or self._fast is None:
            self._uplinks.remove_segmenter()

    def _apply_all(self, some: Iterable[_Held]) -> None:
        for held in list(some):
            with translated(f"telling the fast path of LAN {held.lan.name}", lan=held.lan.name):
                self._apply(held)

    def _apply(self, held: _Held) -> None:
        lan = held.lan
        used = [one for one in self._outlooks.values() if one.is_usable and one.name not in held.aside and (one.has_multicast or lan.peers)]
        used = used[: fastpath.LEGS_MAX]
        held.membership.join(set() if lan.peers else {one.index for one in used})
        if self._is_relay_used:
            self._relay.set_lan(self._asked(held))
        if self._fast is None:
            return
        entry = Entry(
            lan_id=lan.id,
            group=lan.group,
            port=held.uplink.port,
            outer=held.uplink.outer,
            tap=held.uplink.tap if self._is_relay_used else 0,
            segmenter=self._segmenter,
            mtu=lan.mtu,
            ttl=lan.ttl,
            legs=tuple(Leg(one.index, one.mtu, one.mac, one.address) for one in used),
            peers=self._peers(lan, [one.index for one in used]),
            is_unicast=bool(lan.peers),
        )
        self._fast.put(entry)

    def _asked(self, held: _Held) -> RelayedLan:
        """What the relay process is to do for the LAN: it looks at the underlays itself."""
        lan = held.lan
        return RelayedLan(
            id=lan.id,
            tap=uplink.names(lan)[2],
            mtu=lan.mtu,
            group=lan.group_address,
            port=lan.group_port,
            underlays=tuple(name for name in self._names if name not in held.aside)[: fastpath.LEGS_MAX],
            peers=lan.peers,
            ttl=lan.ttl,
            is_fast=self._fast is not None,
        )

    def _peers(self, lan: Lan, indexes: list[int]) -> tuple[Peer, ...]:
        found = []
        for address in lan.peers:
            hop = neighbour.next_hop(self._uplinks.rtnl, address)
            if hop is None or hop.index not in indexes:
                found.append(Peer(address))
                continue
            mac = neighbour.hardware_address(self._uplinks.rtnl, hop)
            if not mac:
                self._uplinks.rtnl.batch([neighbour.use(hop)])
            found.append(Peer(address, mac, indexes.index(hop.index)))
        return tuple(found)

    def _path(self, lan: Lan, one: Outlook, held: _Held | None) -> LanPath:
        fault = one.fault(needs_multicast=not lan.peers)
        if held is None or fault:
            return LanPath(one.name, PathKind.DOWN, fault or "is not carried")
        if one.name in held.aside:
            return LanPath(one.name, PathKind.DOWN, "is one segment with another underlay of this LAN")
        if self._fast is None:
            return self._userspace_path(lan, one)
        room = one.mtu - fastpath.DATAGRAM_BYTES - 14
        if room >= lan.mtu:
            return LanPath(one.name, PathKind.KERNEL, "")
        if not self._is_relay_used:
            return LanPath(one.name, PathKind.KERNEL, f"packets above {room} bytes are lost: the underlay's MTU is {one.mtu}")
        fault = self._relay.fault(lan.id, one.name)
        how = f"are lost: {one.name} {fault}" if fault else "go by the relay process"
        return LanPath(one.name, PathKind.KERNEL, f"packets above {room} bytes {how}: the underlay's MTU is {one.mtu}")

    def _userspace_path(self, lan: Lan, one: Outlook) -> LanPath:
        fault = self._relay.fault(lan.id, one.name)
        if fault:
            return LanPath(one.name, PathKind.DOWN, fault)
        why = f"the kernel does not carry it: {self._why_not}" if self._is_fast_wanted else "as asked for by --relay"
        return LanPath(one.name, PathKind.USERSPACE, why)

    def _audit_underlays(self, *, has_lans: bool) -> list[Leftover]:
        report = []
        is_needed = has_lans and self._fast is not None
        if self._uplinks.has_segmenter() != is_needed:
            report.append(Leftover("missing" if is_needed else "extra", "link", "segmenter", "the pair that segments super-frames"))
        for name, index in self._attachments.recorded().items():
            if not has_lans or self._fast is None:
                report.append(Leftover("extra", "filter", name, "no LAN is carried by this underlay"))
            elif name in self._outlooks and index == self._outlooks[name].index and not fastpath.decap_is_on(self._uplinks.rtnl, index):
                report.append(Leftover("missing", "filter", name, "the filter of this underlay"))
        return report

    # ---- loops

    async def _go_round(self) -> None:
        while True:
            await asyncio.sleep(_ROUND_SECONDS)
            if self._is_stale:
                self._catch_up()
            if self._fast is None or not self._held:
                continue
            for refusal in self._loops.news(self._fast.refusals()):
                self._tell(refusal)
            self._set_aside(self._loops.grown(self._fast.echoes()))
            self._confirm_peers()

    def _tell(self, refusal: Refusal) -> None:
        held = next((held for held in self._held.values() if lan_key(held.lan.id) == refusal.lan_key), None)
        if held is not None:
            fields = {"mac": refusal.mac, "kept": refusal.kept or "local", "refused": refusal.refused or "local"}
            self._listener("lan.loop", held.lan.id, fields)

    def _set_aside(self, grown: Collection[tuple[int, int]]) -> None:
        """Of two underlays that are one segment, use the first alone."""
        for held in self._held.values():
            key = lan_key(held.lan.id)
            heard = [one.name for one in self._outlooks.values() if (key, one.index) in grown and one.name not in held.aside]
            used = [one.name for one in self._outlooks.values() if one.is_usable and one.name not in held.aside]
            # Each hears the other: the last one that does goes.
            if heard and len(used) > 1 and heard[-1] in used:
                held.aside.add(heard[-1])
                self._apply(held)
                self._listener("lan.loop", held.lan.id, {"underlay": heard[-1], "kept": used[0]})

    def _confirm_peers(self) -> None:
        """Have the kernel confirm the peers' hardware addresses: it only does so when something is sent, and that passes it by."""
        for held in self._held.values():
            hops = {neighbour.next_hop(self._uplinks.rtnl, address) for address in held.lan.peers}
            requests = [neighbour.use(hop) for hop in hops if hop is not None]
            if requests:
                with contextlib.suppress(OSError):  # an underlay that goes at this moment: the news of it follow
                    self._uplinks.rtnl.batch(requests)


def _load(run_dir: Path) -> tuple[FastPath | None, str]:
    try:
        return FastPath.load(pin_dir(run_dir)), ""
    except OSError as error:
        return None, f"the BPF programs cannot be loaded: {str(error).splitlines()[0]}"
