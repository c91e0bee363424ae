"""LANs of this node on the nodes inside its virtual machines: extended to a node inside when a container there is to be on one, with
addresses that this node hands out, and kept up to date.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

from nestbed.errors import NestbedError
from nestbed.lanmodel import LanMember, LanView, Nic
from nestbed.log import fields
from nestbed.nesting.branches import Branch, Branches, nic_of
from nestbed.nesting.naming import SEPARATOR
from nestbed.node.node import Node
from nestbed.service import convert, present
from nestbed.v1 import lan_pb2 as api
from nestbed.v1.container_pb2 import CONTAINER_KIND_PROCESS, CONTAINER_KIND_QEMU

CREATE = "/nestbed.v1.ContainerService/CreateContainer"
CONNECT = "/nestbed.v1.LanService/ConnectLan"

_EXTEND = "/nestbed.v1.LanService/ExtendLan"
_DELETE = "/nestbed.v1.LanService/DeleteLan"
_LIST = "/nestbed.v1.LanService/ListLans"
_GATHER_SECONDS = 0.05
_ADMIN = "admin"
_KINDS = {CONTAINER_KIND_PROCESS: "process", CONTAINER_KIND_QEMU: "qemu"}

_logger = logging.getLogger(__name__)
Settle = Callable[[Any], None]


class Extensions:
    """See the module. ``open`` before use."""

    def __init__(self, node: Node, branches: Branches) -> None:
        self._node = node
        self._branches = branches
        self._lans: dict[str, set[str]] = {}
        """By machine: the LANs that the node inside has of this one."""
        self._changed: set[str] = set()
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Keep LANs inside up to date from now on."""
        self._node.when_lans_change(self._on_change)
        self._branches.when_ready(self._take_up)
        self._tasks = [asyncio.create_task(self._push_changed()), asyncio.create_task(self._watch())]

    async def aclose(self) -> None:
        """Leave off; the next daemon goes on. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- calls that put a container inside on LANs

    @contextlib.asynccontextmanager
    async def around(self, path: str, branch: Branch, request: Any) -> AsyncIterator[Settle]:
        """Complete a request that is for a node inside, in place, and do what has to be done before it is passed on; what is given is told
        the answer. What was handed out is given back after an error.

        Raises:
            as ``MembersElsewhere.open_lan`` and ``assign``; what the node inside says of the LAN.
        """
        if path not in (CREATE, CONNECT):
            yield _nothing
            return
        name, nics, request_id = _asked(path, request)
        own = [nic for nic in nics if await self._extend(branch, nic.lan)]
        if not own:
            with branch.making() as made:
                yield made if path == CREATE else _nothing
            return
        elsewhere = self._node.elsewhere
        assigned = elsewhere.assign(branch.id, name, [convert.nic_spec(nic) for nic in own], request_id)
        for nic, given in zip(own, assigned, strict=False):
            nic.mac = given.mac
            del nic.addresses[:]
            nic.addresses.extend(given.addresses)

        def settle(answer: Any) -> None:
            if path == CREATE:
                container = answer.container
                elsewhere.settle(branch.id, container.name, container.id, [nic_of(nic) for nic in container.nics])
                made(answer)
            else:
                branch.look_at(request.container.partition(SEPARATOR)[2])
                elsewhere.release(branch.id, name)

        try:
            with branch.making() as made:
                yield settle
        except BaseException:
            elsewhere.release(branch.id, name)
            raise

    async def _extend(self, branch: Branch, name: str) -> bool:
        """Have a LAN of this node on a node inside; whether there is one of that name here."""
        lan = await self._node.elsewhere.open_lan(name)
        if lan is None:
            return False
        if lan.id not in self._lans.get(branch.id, ()):
            await self._push(branch, lan.id)
        return True

    # ---- keeping them up to date

    def _on_change(self, lan_ids: set[str]) -> None:
        self._changed |= lan_ids
        self._news.set()

    async def _watch(self) -> None:
        async for event, _ in self._node.watch(types=("lan.deleted", "lan.impaired", "lan.link-*")):
            if SEPARATOR not in event.id:
                self._on_change({event.id})

    async def _push_changed(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            self._news.clear()
            changed, self._changed = self._changed, set()
            for branch in self._branches.all():
                for lan_id in changed & self._lans.get(branch.id, set()):
                    if branch.is_ready:
                        await self._push_quietly(branch, lan_id)

    async def _take_up(self, branch: Branch) -> None:
        """A node inside answers, for the first time or again: find out which LANs it has of this one, and tell it how they are now."""
        request = api.ListLansRequest(page_size=1000, names=["*"])
        answer = await branch.ask(_LIST, request, _ADMIN)
        self._lans[branch.id] = {lan.id for lan in answer.lans if lan.outside}
        for lan_id in tuple(self._lans[branch.id]):
            await self._push_quietly(branch, lan_id)

    async def _push_quietly(self, branch: Branch, lan_id: str) -> None:
        try:
            await self._push(branch, lan_id)
        except NestbedError as error:
            _logger.warning("LAN not brought up to date inside", extra=fields(container=branch.id, lan=lan_id, cause=error.message))

    async def _push(self, branch: Branch, lan_id: str) -> None:
        told = self._node.elsewhere.members(lan_id, branch.id)
        known = self._lans.setdefault(branch.id, set())
        if told is None:
            await branch.ask(_DELETE, api.DeleteLanRequest(lan=lan_id), _ADMIN)
            known.discard(lan_id)
            return
        lan, members = told
        view = LanView(lan, tuple(map(_by_leaf, members)), ())
        await branch.ask(_EXTEND, api.ExtendLanRequest(lan=present.lan(view)), _ADMIN)
        known.add(lan_id)


def _nothing(answer: Any) -> None:
    """There is nothing to do with an answer."""


def _asked(path: str, request: Any) -> tuple[str, list[Any], str]:
    """The name inside, the NICs, and the request's id. A container that is not named gets a name here, of which MACs are made."""
    if path == CONNECT:
        name = f"{request.container.partition(SEPARATOR)[2]}+{secrets.token_hex(4)}"  # until it is told what became of it
        return name, [request.nic], ""
    head, _, name = request.spec.name.partition(SEPARATOR)
    if not name or name.endswith(SEPARATOR):
        seed = request.request_id or secrets.token_hex(8)
        name += f"{_KINDS.get(request.spec.kind, 'container')}-{hashlib.sha256(seed.encode(errors='replace')).hexdigest()[:6]}"
        request.spec.name = f"{head}{SEPARATOR}{name}"
    return name, list(request.spec.nics), request.request_id


def _by_leaf(member: LanMember) -> LanMember:
    """A member as other nodes are told of it: by the name that it has inside, with nothing that is of this node alone."""
    nic: Nic = dataclasses.replace(member.nic, port="", bridge="")
    return LanMember("", member.container.rpartition(SEPARATOR)[2], nic)
