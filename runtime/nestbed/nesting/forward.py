"""Passing calls on to nodes inside: one mechanism for all methods, by what the fields of their messages name.

A call whose request holds a path goes, without the path's first part, to the node that part leads to, with the caller's role, and its
answers come back with that part. A call about everything a node has is put to all nodes inside as well.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from grpc import aio

from nestbed.client.status import from_call, from_rpc
from nestbed.errors import Deadline, NestbedError, Unavailable
from nestbed.nesting import naming
from nestbed.nesting.branches import ASK_SECONDS, Branch, Branches, Phase
from nestbed.v1 import node_pb2

CALL_SECONDS = 120.0
"""How long a node inside may take for a call that should be answered at once."""

Response = TypeVar("Response", bound=Any)

_STATES = {
    Phase.STOPPED: node_pb2.NODE_STATE_STOPPED,
    Phase.BOOTING: node_pb2.NODE_STATE_BOOTING,
    Phase.READY: node_pb2.NODE_STATE_READY,
    Phase.SILENT: node_pb2.NODE_STATE_SILENT,
}


def state_of(phase: Phase) -> node_pb2.NodeState.ValueType:
    """As the API has it."""
    return _STATES[phase]


@dataclass(frozen=True, slots=True)
class Route:
    """One method whose requests may hold paths."""

    path: str
    """As gRPC has it: ``/package.Service/Method``."""
    method: MethodDescriptor
    make: Callable[[aio.Channel], Any]

    @property
    def has_request_stream(self) -> bool:
        """Whether the request is a stream, whose first message names what it is for."""
        return bool(self.method.client_streaming)

    @property
    def has_response_stream(self) -> bool:
        """Whether the answer is a stream."""
        return bool(self.method.server_streaming)


def route(path: str) -> Route | None:
    """How calls of a method are passed on; None if its requests name nothing."""
    try:
        found = _route_of(path)
    except KeyError:
        return None
    return found if naming.is_concerned(found.method.input_type) else None


@functools.cache
def _route_of(path: str) -> Route:
    method: Any = descriptor_pool.Default().FindMethodByName(path.strip("/").replace("/", "."))
    factory = "_".join("stream" if streaming else "unary" for streaming in (method.client_streaming, method.server_streaming))
    request, response = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))

    def make(channel: aio.Channel) -> Any:
        return getattr(channel, factory)(path, request_serializer=request.SerializeToString, response_deserializer=response.FromString)

    return Route(path, method, make)


class Around(Protocol):
    """What is done around a call that is passed on; see ``Forward``."""

    def __call__(self, path: str, branch: Branch, request: Any) -> AbstractAsyncContextManager[Callable[[Any], None]]: ...


@asynccontextmanager
async def _as_it_is(path: str, branch: Branch, request: Any) -> AsyncIterator[Callable[[Any], None]]:  # noqa: ARG001 - an Around
    yield lambda _: None


class Forward:
    """Passes calls on to the branches of a node."""

    def __init__(self, branches: Branches, around: Around | None = None) -> None:
        """``around`` completes a request for a node inside while it is passed on, and is told the answer as that node gives it."""
        self._branches = branches
        self._around = around or _as_it_is

    # ---- a call for one node

    async def unary(self, route: Route, head: str, request: Any, role: str, seconds: float | None) -> Any:
        """The answer of the node that ``head`` leads to; ``request`` is a message, or the messages of a stream.

        Raises:
            what that node says, with paths for names; as ``Branches.reach``.
        """
        branch = await self._branches.reach(head)
        call: Any = None
        try:
            async with self._around(route.path, branch, request) as settle:
                call = route.make(branch.channel(role))(_sent(request), timeout=seconds)
                answer = await call
                settle(answer)
            return naming.prefix(answer, branch.name, branch.id)
        except aio.AioRpcError as error:
            raise await _told(branch, call, error) from error
        finally:
            if call is not None:
                call.cancel()

    async def stream(self, route: Route, head: str, request: Any, role: str) -> AsyncIterator[Any]:
        """The answers of a stream, as they come. Raises as :meth:`unary`."""
        branch = await self._branches.reach(head)
        call = route.make(branch.channel(role))(_sent(request))
        try:
            async for response in call:
                yield naming.prefix(response, branch.name, branch.id)
        except aio.AioRpcError as error:
            raise await _told(branch, call, error) from error
        finally:
            call.cancel()

    # ---- a call for all nodes

    async def gather(
        self, path: str, make_request: Callable[[Branch], Any], role: str, *, must_answer: bool = False
    ) -> tuple[list[tuple[Branch, Any]], list[Any]]:
        """The answers of all nodes inside that answer in time, names as that node gives them, and for the others a NodeFault each.

        ``make_request`` gives the request for a node; None leaves it out.

        Raises:
            what a node answers with. Unavailable: one ``must_answer`` and does not (reason NODE_SILENT).
        """
        found: list[tuple[Branch, Any]] = []
        faults: list[Any] = []

        async def ask(branch: Branch, request: Any) -> None:
            answer = await self._ask(path, branch, request, role)
            if isinstance(answer, node_pb2.NodeFault):
                if must_answer:
                    raise branch.silent()
                faults.append(answer)
            else:
                found.append((branch, answer))

        wanted = [(branch, request) for branch in self._branches.all() if (request := make_request(branch)) is not None]
        await asyncio.gather(*(ask(branch, request) for branch, request in wanted))
        return found, faults

    async def _ask(self, path: str, branch: Branch, request: Any, role: str) -> Any:
        """The answer of one node, or a NodeFault if it gives none."""
        if branch.phase is not Phase.READY:
            return node_pb2.NodeFault(node=branch.name, state=state_of(branch.phase), detail=branch.phase.value)
        made = _route_of(path)
        try:
            call = made.make(branch.channel(role))(request, timeout=ASK_SECONDS)
            if made.has_response_stream:
                async for response in call:
                    return response
            return await call
        except aio.AioRpcError as error:
            told = await from_rpc(error, branch.silent)
            if not isinstance(told, (Unavailable, Deadline)):
                raise naming.outside(told, branch.name) from error
            return node_pb2.NodeFault(node=branch.name, state=node_pb2.NODE_STATE_SILENT, detail=told.message)

    # ---- lists

    def next_page(self, names: Sequence[str], after: str = "") -> str:
        """The token of the first page of the node inside that comes after the one with the id ``after``; empty if none does."""
        branches = self._branches.all()
        ids = [branch.id for branch in branches if naming.share_of(names, branch.name, branch.id) is not None]
        later = ids[ids.index(after) + 1 :] if after in ids else ids if not after else []
        return f"{later[0]}{naming.SEPARATOR}" if later else ""

    async def page(self, path: str, request: Any, response: Response, role: str) -> Response:
        """The page of a node inside that ``request.page_token`` stands for: into ``response``, which has ``unreachable``."""
        machine_id, _, token = request.page_token.partition(naming.SEPARATOR)
        branch = next((branch for branch in self._branches.all() if branch.id == machine_id), None)
        if branch is None:  # it went meanwhile, and those behind it are not known any more
            return response
        inner = type(request)()
        inner.CopyFrom(request)
        inner.page_token = token
        share = naming.share_of(request.names, branch.name, branch.id)
        inner.ClearField("names")
        inner.names.extend(share or ())
        answer = await self._ask(path, branch, inner, role)
        if isinstance(answer, node_pb2.NodeFault):
            response.unreachable.append(answer)
            response.next_page_token = self.next_page(request.names, machine_id)
            return response
        more = answer.next_page_token
        response.CopyFrom(naming.prefix(answer, branch.name, branch.id))
        response.next_page_token = naming.joined(machine_id, more) if more else self.next_page(request.names, machine_id)
        return response


def _sent(request: Any) -> Any:
    """What is sent of a request: without the first parts of its paths."""
    return _stripped(request) if hasattr(request, "__aiter__") else naming.strip(request)


async def _stripped(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield naming.strip(request)


async def _told(branch: Branch, call: Any, error: aio.AioRpcError) -> NestbedError:
    found = await from_call(call, error, branch.silent) if call is not None else await from_rpc(error, branch.silent)
    return found if found.reason == "NODE_SILENT" and found.metadata.get("node") == branch.name else naming.outside(found, branch.name)
