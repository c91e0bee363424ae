"""LANs through the API: identity, impairments, counters, captures, metrics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from grpc import StatusCode, aio

from nestbed import errors
from nestbed.client import Client
from nestbed.errors import NestbedError
from nestbed.lanmodel import LanRequest, Underlay
from nestbed.service.authorize import Role
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import lan_pb2, node_pb2
from nestbed.v1.lan_pb2_grpc import LanServiceStub
from nestbed.v1.node_pb2_grpc import NodeServiceStub
from nestbed.v1.traffic_pb2 import Impairment

Program = Callable[..., api.ContainerSpec]
GROUP = "239.1.2.3:5000"


@pytest.fixture(autouse=True)
def underlay(site) -> None:
    site.plane.found = (Underlay("u1", exists=True, is_up=True, has_multicast=True, address="192.0.2.1", mtu=1500),)


async def test_groups_and_peers(admin: Client) -> None:
    made = await admin.create_lan("lan0", group=GROUP, peers=["192.0.2.2"], ttl=3)
    assert (made.group, list(made.peers), made.ttl) == (GROUP, ["192.0.2.2"], 3)
    assert [(path.underlay, path.kind) for path in made.paths] == [("u1", lan_pb2.PATH_KIND_KERNEL)]
    alone = await admin.create_lan("alone", local=True)
    assert (alone.group, alone.ttl, list(alone.paths)) == ("", 0, [])
    assert (await admin.create_lan("lan1")).group.startswith("239.19")
    assert (await admin.info()).underlays == ["u1"]


@pytest.mark.parametrize(
    ("fields", "kind", "reason"),
    [
        ({"group": GROUP}, errors.AlreadyExists, "GROUP_IN_USE"),
        ({"group": "10.0.0.1:5000"}, errors.InvalidArgument, "BAD_GROUP"),
        ({"peers": ["192.0.2.1"]}, errors.InvalidArgument, "BAD_PEER"),
        ({"group": GROUP, "local": True}, errors.InvalidArgument, "CONFLICTING_OPTIONS"),
        ({"mtu": 65500}, errors.InvalidArgument, "BAD_MTU"),
    ],
)
async def test_identities_that_are_refused(admin: Client, fields: dict[str, object], kind: type[NestbedError], reason: str) -> None:
    await admin.create_lan("lan0", group=GROUP)
    with pytest.raises(kind) as caught:
        await admin.create_lan("lan1", **fields)  # type: ignore[arg-type]
    assert (caught.value.reason, bool(caught.value.remedy)) == (reason, True)


async def test_impairments(admin: Client, program: Program) -> None:
    await admin.create_lan("lan0")
    nic = api.NicSpec(lan="lan0", impair_to=Impairment(loss=0.25))
    made = await admin.create_container(program("true", name="web", nics=[nic]))
    assert made.nics[0].impair_to.loss == made.spec.nics[0].impair_to.loss == 0.25
    assert not made.nics[0].HasField("impair_from")
    told = await admin.set_impairment("lan0", Impairment(delay_us=3000))
    assert told.lan.impairment.delay_us == 3000
    assert (told.ports[0].in_force_to.loss, told.ports[0].in_force_from.delay_us) == (0.25, 1500)
    told = await admin.set_impairment("lan0", Impairment(loss=0.0), container="web", nic="eth0", direction=lan_pb2.DIRECTION_TO)
    assert (told.ports[0].in_force_to.loss, told.ports[0].in_force_to.delay_us) == (0, 1500)
    (told,) = await admin.impairments(container="web")
    assert told.ports[0].achieved_to.since.seconds == 1
    assert not told.ports[0].achieved_to.HasField("delay_mean_us")
    told = await admin.reset_impairment("lan0")
    assert not told.lan.HasField("impairment")
    assert not told.ports[0].HasField("achieved_to")


async def test_counters_once_and_as_a_stream(admin: Client, program: Program) -> None:
    await admin.create_lan("lan0")
    await admin.create_container(program("true", name="web", nics=[api.NicSpec(lan="lan0")]))
    (response,) = [response async for response in admin.lan_stats(["lan*"])]
    assert [(stats.name, [port.container for port in stats.ports]) for stats in response.stats] == [("lan0", ["web"])]
    seen = 0
    async for response in admin.lan_stats(interval_seconds=0.1):
        assert response.stats[0].time.seconds
        seen += 1
        if seen == 2:
            break
    with pytest.raises(errors.InvalidArgument):
        _ = [response async for response in admin.lan_stats(interval_seconds=0.05)]
    with pytest.raises(errors.NotFound):
        _ = [response async for response in admin.lan_stats(["lan9"])]


async def test_captures(admin: Client, operator: Client, program: Program) -> None:
    await admin.create_lan("lan0")
    await admin.create_container(program("true", name="web", nics=[api.NicSpec(lan="lan0")]))
    pieces = [piece async for piece in operator.capture(lan_pb2.CaptureRequest(lan="lan0", filter="arp", count=5))]
    assert b" lan0 " in pieces[0]
    assert b"filter='arp'" in pieces[0]
    pieces = [piece async for piece in admin.capture(lan_pb2.CaptureRequest(container="web"))]
    assert b" web:eth0 " in pieces[0]


@pytest.mark.parametrize(
    ("request_", "kind", "reason"),
    [
        (lan_pb2.CaptureRequest(), errors.InvalidArgument, "CONFLICTING_OPTIONS"),
        (lan_pb2.CaptureRequest(lan="lan0", container="web"), errors.InvalidArgument, "CONFLICTING_OPTIONS"),
        (lan_pb2.CaptureRequest(lan="lan0", nic="eth0"), errors.InvalidArgument, "CONFLICTING_OPTIONS"),
        (lan_pb2.CaptureRequest(lan="lan9"), errors.NotFound, "LAN_NOT_FOUND"),
        (lan_pb2.CaptureRequest(container="web"), errors.InvalidArgument, "AMBIGUOUS"),
        (lan_pb2.CaptureRequest(container="web", nic="eth9"), errors.NotFound, "NIC_NOT_FOUND"),
        (lan_pb2.CaptureRequest(lan="lan0", snap_bytes=1 << 20), errors.InvalidArgument, "BAD_LIMIT"),
        (lan_pb2.CaptureRequest(lan="lan0", filter="\0"), errors.InvalidArgument, "BAD_TEXT"),
    ],
)
async def test_captures_that_are_refused(
    admin: Client, program: Program, request_: lan_pb2.CaptureRequest, kind: type[NestbedError], reason: str
) -> None:
    await admin.create_lan("lan0")
    await admin.create_container(program("true", name="web", nics=[api.NicSpec(lan="lan0"), api.NicSpec(lan="lan0")]))
    with pytest.raises(kind) as caught:
        _ = [piece async for piece in admin.capture(request_)]
    assert (caught.value.reason, bool(caught.value.remedy)) == (reason, True)


async def test_metrics(admin: Client, program: Program) -> None:
    await admin.create_lan("lan0")
    await admin.create_container(program("sleep", "600", name="web", nics=[api.NicSpec(lan="lan0")]))
    await admin.start_container("web")
    lines = (await admin.metrics()).splitlines()
    assert 'nestbed_containers{state="running"} 1' in lines
    assert "nestbed_lans 1" in lines
    assert 'nestbed_nic_frames_total{container="web",nic="eth0",lan="lan0",direction="rx"} 0' in lines
    assert 'nestbed_lan_bytes_total{lan="lan0",direction="sent"} 0' in lines
    assert 'nestbed_port_frames_total{lan="lan0",container="web",nic="eth0",direction="tx"} 0' in lines


async def test_viewers_watch_and_operators_change(site, served, program: Program) -> None:
    await site.node.create_lan(LanRequest("lan0"))
    async with site.bare(role=Role.VIEWER) as channel:
        lans, node = LanServiceStub(channel), NodeServiceStub(channel)
        assert (await lans.ListImpairments(lan_pb2.ListImpairmentsRequest())).impairments[0].lan.name == "lan0"
        assert [response.stats[0].name async for response in lans.WatchLanStats(lan_pb2.WatchLanStatsRequest())] == ["lan0"]
        assert "nestbed_lans 1\n" in (await node.GetMetrics(node_pb2.GetMetricsRequest())).text
        with pytest.raises(aio.AioRpcError) as caught:
            await lans.SetImpairment(lan_pb2.SetImpairmentRequest(lan="lan0", impairment=Impairment(delay_us=1)))
        assert caught.value.code() is StatusCode.PERMISSION_DENIED
        with pytest.raises(aio.AioRpcError) as caught:
            await lans.ResetImpairment(lan_pb2.ResetImpairmentRequest(lan="lan0"))
        assert caught.value.code() is StatusCode.PERMISSION_DENIED
        with pytest.raises(aio.AioRpcError) as caught:
            _ = [response async for response in lans.Capture(lan_pb2.CaptureRequest(lan="lan0"))]
        assert caught.value.code() is StatusCode.PERMISSION_DENIED
    async with site.bare(role=Role.OPERATOR) as channel:
        lans = LanServiceStub(channel)
        request = lan_pb2.SetImpairmentRequest(lan="lan0", impairment=Impairment(delay_us=2))
        assert (await lans.SetImpairment(request)).impairment.lan.impairment.delay_us == 2
        assert [response async for response in lans.Capture(lan_pb2.CaptureRequest(lan="lan0"))]
