"""grpc.health.v1 for a node: serving until it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthServicer

from nestbed.errors import NotFound

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(HealthServicer):  # type: ignore[misc]
    """The health of the whole ("") and of each of ``services``, which is the same: they stop together."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(("", *services))
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Not serving from now on. Idempotent."""
        self._stopping.set()

    async def Check(self, request: Any, context: Any) -> Any:
        if request.service not in self._services:
            raise NotFound(
                f"there is no service {request.service!r}", reason="NO_SERVICE", remedy='ask for the health of ""', service=request.service
            )
        return health_pb2.HealthCheckResponse(status=self._status())

    async def List(self, request: Any, context: Any) -> Any:
        status = health_pb2.HealthCheckResponse(status=self._status())
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(sorted(self._services), status))

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        is_known = request.service in self._services
        yield health_pb2.HealthCheckResponse(status=self._status() if is_known else _UNKNOWN)
        await self._stopping.wait()
        if is_known:
            yield health_pb2.HealthCheckResponse(status=_NOT_SERVING)

    def _status(self) -> int:
        return int(_NOT_SERVING if self._stopping.is_set() else _SERVING)
