"""The one place every call passes: who is it, may it, is there room, and what became of it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode, aio

from nestbed.errors import InvalidArgument, Unavailable
from nestbed.log import bound, fields
from nestbed.nesting import naming
from nestbed.nesting.forward import CALL_SECONDS, Forward, Route, route
from nestbed.service.admission import MACHINE_SECONDS, Admission
from nestbed.service.authorize import LEAST_ROLES, Caller, Role, authorize, caller, calling
from nestbed.service.identity import Identify
from nestbed.service.status import cause, refusal
from nestbed.service.streams import closing

logger = logging.getLogger(__name__)

LONG_CALLS = frozenset(
    {
        "/nestbed.v1.ContainerService/WaitContainer",
        "/nestbed.v1.ContainerService/StopContainer",
        "/nestbed.v1.ExperimentService/WaitExperiment",
        # These call nodes in turn, this one too: they must not hold a place that such a call waits for.
        "/nestbed.v1.ExperimentService/GetExperiment",
        "/nestbed.v1.ExperimentService/DiffExperiment",
        "/nestbed.v1.ExperimentService/VerifyExperiment",
    }
)
"""Calls with one answer that wait for something outside nestbed; every stream is a long call too."""

MACHINE_CALLS = frozenset({"/nestbed.v1.ContainerService/CreateContainer", "/nestbed.v1.ContainerService/StartContainer"})
"""Calls that may boot a virtual machine, which takes what it takes: minutes for an emulated one inside another."""

if TYPE_CHECKING:
    Context = aio.ServicerContext[Any, Any]
    Interceptor = aio.ServerInterceptor[Any, Any]
else:  # generic for type checkers only
    Context = aio.ServicerContext
    Interceptor = aio.ServerInterceptor

Serve = Callable[[Any, Context], Awaitable[Any]]


class _Malformed:
    """Stands for bytes that are no request, until they can be refused properly."""


_MALFORMED = _Malformed()


class Guard(Interceptor):
    """Around every method: log fields, authorisation, admission, errors -> statuses; and calls for nodes inside are passed on.

    Methods without a rule are refused. A client that goes away, or whose deadline passes, cancels the task of its call.
    """

    def __init__(self, identify: Identify, admission: Admission, forward: Forward) -> None:
        self._identify = identify
        self._admission = admission
        self._forward = forward
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._long_tasks: set[asyncio.Task[Any]] = set()
        self._is_draining = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The guarded handler of the method, made once; methods that do not exist are left to gRPC (UNIMPLEMENTED)."""
        method = handler_call_details.method
        guarded = self._guarded.get(method)
        if guarded is None:
            handler: Any = await continuation(handler_call_details)
            guarded = handler and self._guarded.setdefault(method, self._guard(method, handler))
        return guarded

    def drain(self) -> None:
        """Refuse calls from now on and end the long ones, so that a stop waits for short ones only. Idempotent."""
        self._is_draining = True
        for task in self._long_tasks:
            task.cancel()

    def _guard(self, method: str, handler: Any) -> Any:
        behaviour: Any = handler.stream_stream or handler.unary_stream or handler.stream_unary or handler.unary_unary
        serve = _writing(behaviour) if inspect.isasyncgenfunction(behaviour) else behaviour
        is_long = handler.request_streaming or handler.response_streaming or method in LONG_CALLS
        limit = MACHINE_SECONDS if method in MACHINE_CALLS else None
        short = partial(self._short, limit)
        passed = route(method)
        if passed is not None:
            serve = _passing(self._forward, passed, serve, None if method in LONG_CALLS else limit or CALL_SECONDS)
        level = logging.INFO if LEAST_ROLES.get(method, Role.ADMIN) > Role.VIEWER else logging.DEBUG

        async def guarded(request: Any, context: Context) -> Any:
            began = time.monotonic()
            with bound(rpc=method):
                try:
                    who = self._identify(context)
                    with bound(caller=who.name, pid=who.pid), calling(who):
                        authorize(method, who)
                        is_elsewhere = passed is not None and not is_long and bool(_head_of(request))
                        admit = self._long if is_long or is_elsewhere else short
                        answer = await admit(serve, _checked(request), context, who)
                        # Written once the answer is on its way: whoever reads the log may be slow.
                        told = partial(logger.log, level, "call answered", extra=fields(ms=_ms_since(began)))
                        asyncio.get_running_loop().call_soon(told)
                        return answer
                except asyncio.CancelledError:
                    if not self._is_draining:
                        logger.log(level, "call abandoned by its caller", extra=fields(ms=_ms_since(began)))
                        raise
                    await _refuse(context, _going_down())
                except Exception as error:  # the one place that may: all of it becomes a status
                    found = cause(error)
                    if isinstance(found, aio.BaseError):  # gRPC's own: the call was ended, or its caller has gone
                        raise found from error
                    await _refuse(context, error)

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[bool(handler.request_streaming), bool(handler.response_streaming)]
        return make(guarded, _tolerant(handler.request_deserializer), handler.response_serializer)

    async def _short(self, limit: float | None, serve: Serve, request: Any, context: Context, who: Caller) -> Any:
        if self._is_draining:
            raise _going_down()
        async with self._admission.short(request.ByteSize, limit):
            return await serve(request, context)

    async def _long(self, serve: Serve, request: Any, context: Context, who: Caller) -> Any:
        if self._is_draining:
            raise _going_down()
        with self._admission.long(who.name), self._drainable():
            return await serve(request, context)

    @contextmanager
    def _drainable(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._long_tasks.add(task)
        try:
            yield
        finally:
            self._long_tasks.discard(task)


async def _refuse(context: Context, error: Exception) -> NoReturn:
    """End the call with the status of ``error``."""
    end = refusal(error)
    level = logging.WARNING if end.code in (StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED) else logging.DEBUG
    logger.log(level, "call refused", extra=fields(code=end.code.name, cause=end.message))
    await context.abort(end.code, end.message, end.trailer)


def _writing(behaviour: Callable[[Any, Context], AsyncIterator[Any]]) -> Serve:
    """Serve by a generator of responses: each is written before the next is asked for, and it is closed however the call ends."""

    async def serve(request: Any, context: Context) -> None:
        async with closing(behaviour(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return serve


def _passing(forward: Forward, passed: Route, serve: Serve, seconds: float | None) -> Serve:
    """Serve what is for the node itself, and pass on what is for a node inside: at most for ``seconds``, if it has one answer."""

    async def serve_or_pass(request: Any, context: Context) -> Any:
        head, role = "", caller().role.label
        if passed.has_request_stream:
            first = await anext(request, None)
            head = naming.head_of(first) if first is not None else ""
            request = _with_first(first, request)
        else:
            head = naming.head_of(request)
        if not head:
            return await serve(request, context)
        if not passed.has_response_stream:
            return await forward.unary(passed, head, request, role, seconds)
        async with closing(forward.stream(passed, head, request, role)) as responses:
            async for response in responses:
                await context.write(response)
        return None

    return serve_or_pass


async def _with_first(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    if first is not None:
        yield first
    async for request in rest:
        yield request


def _head_of(request: Any) -> str:
    return "" if isinstance(request, _Malformed) else naming.head_of(request)


def _tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """As ``parse``, but let the guard refuse what cannot be parsed: gRPC itself would log it as a defect."""

    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _MALFORMED

    return deserialize


def _checked(request: Any) -> Any:
    """The request or the stream of requests, refusing what could not be parsed."""
    if isinstance(request, _Malformed):
        raise InvalidArgument("the request is no message of the API", reason="MALFORMED", remedy="use a client of the node's version")
    return _checked_stream(request) if hasattr(request, "__aiter__") else request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)


def _going_down() -> Unavailable:
    return Unavailable("nestbedd is stopping; containers run on", reason="STOPPING", remedy="try again when it has been started again")


def _ms_since(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 2)
