"""What is too much is refused, and starves nobody."""

import asyncio
from typing import Any

import pytest
from grpc import StatusCode, aio

from nestbed.service.admission import Admission
from nestbed.v1 import node_pb2

# ---------------------------------------------------------------- load


@pytest.mark.slow
@pytest.mark.parametrize("queued", [8192, 100])
async def test_of_3000_calls_at_once_each_is_answered(site: Any, queued: int) -> None:
    request = node_pb2.GetInfoRequest().SerializeToString()
    async with site.bare(admission=Admission(running=8, queued=queued)) as channel:
        ask = channel.unary_unary("/nestbed.v1.NodeService/GetInfo")
        results = await asyncio.gather(*(ask(request) for _ in range(3000)), return_exceptions=True)
    failed = [result.code() for result in results if isinstance(result, aio.AioRpcError)]
    assert len([result for result in results if isinstance(result, bytes)]) + len(failed) == 3000
    assert set(failed) <= {StatusCode.RESOURCE_EXHAUSTED}
    if queued > 3000:
        assert failed == []


async def test_streams_and_waits_starve_nobody(site: Any) -> None:
    async with site.bare(admission=Admission(running=1, long_per_caller=20)) as channel:
        watches = [channel.unary_stream("/nestbed.v1.NodeService/WatchEvents")(b"") for _ in range(20)]
        reads = [asyncio.create_task(watch.read()) for watch in watches]
        await channel.unary_unary("/nestbed.v1.NodeService/GetInfo")(b"")
        with pytest.raises(aio.AioRpcError) as caught:
            await channel.unary_stream("/nestbed.v1.NodeService/WatchEvents")(b"").read()
        assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
