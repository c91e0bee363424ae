"""LANs of a node, and the hosts files of their members."""

from __future__ import annotations

import asyncio
import json

import pytest

from nestbed.errors import AlreadyExists, HostLacks, InvalidArgument, NotFound, WrongState
from nestbed.lanmodel import NO_IMPAIRMENT, LanRequest, NicSpec, Underlay
from nestbed.model import Change


async def test_lan_is_completed(node) -> None:
    view = await node.create_lan(LanRequest("lan0", "10.5.0.0/24", "FD00:5::/64"))
    assert (view.lan.mtu, view.lan.subnet6, view.members) == (1500, "fd00:5::/64", ())
    assert view.lan.bridge.startswith("nbb")
    assert node.lan(view.lan.id) == node.lan("lan0") == view
    assert [one.lan.name for one in node.lans(names=("lan*",))] == ["lan0"]
    assert node.lans(labels=(("a", "b"),)) == []


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (LanRequest("a/b"), InvalidArgument),
        (LanRequest("lan1", "10.5.0.1/24"), InvalidArgument),
        (LanRequest("lan1", "fd00::/64"), InvalidArgument),
        (LanRequest("lan1", mtu=67), InvalidArgument),
        (LanRequest("lan1", subnet6="fd00::/64", mtu=1000), InvalidArgument),
        (LanRequest("lan1", labels=(("", ""),)), InvalidArgument),
        (LanRequest("lan0"), AlreadyExists),
    ],
)
async def test_lan_is_refused(bench, request_, error) -> None:
    await bench.node.create_lan(LanRequest("lan0"))
    with pytest.raises(error) as caught:
        await bench.node.create_lan(request_)
    assert caught.value.remedy
    assert len(bench.kernel.bridges) == len(list((bench.state_dir / "lans").iterdir())) == 1


async def test_failed_creation_leaves_nothing(bench) -> None:
    bench.kernel.fail_next("bridge", HostLacks("no bridges"))
    with pytest.raises(HostLacks):
        await bench.node.create_lan(LanRequest("lan0"))
    assert list((bench.state_dir / "lans").iterdir()) == []
    await bench.node.create_lan(LanRequest("lan0"))


async def test_lan_with_members_stays(bench) -> None:
    node = bench.node
    await node.create_lan(LanRequest("lan0"))
    await bench.create(name="web", nics=(NicSpec("lan0"),))
    with pytest.raises(WrongState) as caught:
        await node.delete_lan("lan0")
    assert caught.value.reason == "LAN_HAS_MEMBERS"
    await node.disconnect("web", "lan0", "eth0")
    bench.kernel.fail_next("bridge", HostLacks("not now"))
    with pytest.raises(HostLacks):
        await node.delete_lan("lan0")
    await node.delete_lan("lan0")
    with pytest.raises(NotFound):
        node.lan("lan0")
    assert bench.kernel.bridges == {}


async def test_connect_and_disconnect(bench) -> None:
    node = bench.node
    await node.create_lan(LanRequest("lan0", "10.5.0.0/24"))
    await bench.run(name="web", nics=(NicSpec("lan0"),))
    first = await node.connect("web", NicSpec("lan0", name="wan"))
    second = await node.connect("web", NicSpec("lan0"))
    assert (first.name, first.addresses, second.name) == ("wan", ("10.5.0.2/24",), "eth1")
    with pytest.raises(AlreadyExists):
        await node.connect("web", NicSpec("lan0", name="wan"))
    bench.kernel.fail_next("plug", HostLacks("no luck"))
    with pytest.raises(HostLacks):
        await node.connect("web", NicSpec("lan0"))
    assert len(node.lan("lan0").members) == 3
    await node.disconnect("web", "lan0", "wan")
    assert [nic.name for nic in node.container("web").spec.nics] == ["eth0", "eth1"]
    assert (await node.connect("web", NicSpec("lan0"))).addresses == ("10.5.0.2/24",)
    await node.disconnect("web", "lan0", "")
    assert node.container("web").spec.nics == ()
    assert (await node.audit())[0] == []
    assert (await bench.until("lan.connected"))["nic"] == "wan"


def hosts(bench, container_id: str) -> list[str]:
    return bench.kernel.containers[container_id].hosts.splitlines()[4:]


async def test_hosts_file_is_complete_before_start(bench) -> None:
    await bench.node.create_lan(LanRequest("lan0", "10.5.0.0/24"))
    await bench.run(name="web", nics=(NicSpec("lan0"),))
    created = await bench.create(name="irc", hostname="chat", nics=(NicSpec("lan0"),))
    await bench.create(name="late", nics=(NicSpec("lan0"),))
    await bench.node.start(created)
    assert hosts(bench, created) == ["10.5.0.2\tirc irc-lan0 chat", "10.5.0.3\tlate late-lan0", "10.5.0.1\tweb web-lan0"]


async def test_a_hosts_file_that_is_given_stays_as_it_is(bench) -> None:
    await bench.node.create_lan(LanRequest("lan0", subnet="10.5.0.0/24"))
    given = await bench.run(name="web", hosts="10.5.0.1\tweb\n10.9.0.1\tfar far-away\n", nics=(NicSpec("lan0"),))
    await bench.run(name="irc", nics=(NicSpec("lan0"),))
    assert hosts(bench, given) == ["10.5.0.1\tweb", "10.9.0.1\tfar far-away"]
    await bench.restart()
    assert hosts(bench, given) == ["10.5.0.1\tweb", "10.9.0.1\tfar far-away"]
    with pytest.raises(InvalidArgument, match="the hosts file"):
        await bench.create(hosts="10.5.0.1\tweb\x1b")


async def until_hosts(bench, container_id: str, lines: list[str]) -> None:
    container = bench.kernel.containers[container_id]
    news = asyncio.Event()
    write = container.update_hosts

    async def update_hosts(text: str) -> None:
        await write(text)
        news.set()

    container.update_hosts = update_hosts
    async with asyncio.timeout(5):
        while hosts(bench, container_id) != lines:
            news.clear()
            await news.wait()


async def test_hosts_files_follow_members(bench) -> None:
    node = bench.node
    await node.create_lan(LanRequest("lan0", "10.5.0.0/24"))
    web = await bench.run(name="web", nics=(NicSpec("lan0"),))
    await bench.run(name="irc", nics=(NicSpec("lan0"),))
    await until_hosts(bench, web, ["10.5.0.1\tweb web-lan0", "10.5.0.2\tirc irc-lan0"])
    await node.update("irc", Change(name="chat"), admin=True)
    await until_hosts(bench, web, ["10.5.0.1\tweb web-lan0", "10.5.0.2\tchat chat-lan0"])
    await node.connect("chat", NicSpec("lan0"))
    await until_hosts(bench, web, ["10.5.0.1\tweb web-lan0", "10.5.0.2\tchat chat-lan0", "10.5.0.3\tchat chat-lan0"])
    await node.delete("chat", force=True)
    await until_hosts(bench, web, ["10.5.0.1\tweb web-lan0"])


async def test_failed_hosts_file_does_no_harm(bench) -> None:
    await bench.node.create_lan(LanRequest("lan0", "10.5.0.0/24"))
    web = await bench.run(name="web", nics=(NicSpec("lan0"),))
    irc = await bench.create(name="irc", nics=(NicSpec("lan0"),))
    bench.kernel.fail_next("update_hosts", HostLacks("disk full"))
    with pytest.raises(HostLacks):
        await bench.node.start(irc)
    await bench.node.start(irc)
    await until_hosts(bench, web, ["10.5.0.1\tweb web-lan0", "10.5.0.2\tirc irc-lan0"])


async def test_identity_outlives_the_daemon(bench) -> None:
    bench.plane.found = (Underlay("u1", exists=True, is_up=True, has_multicast=True, address="192.0.2.1", mtu=1500),)
    made = await bench.node.create_lan(LanRequest("lan0", group="239.1.2.3:5000", peers=("192.0.2.2",), ttl=4))
    derived = await bench.node.create_lan(LanRequest("lan1"))
    await bench.restart()
    assert bench.node.lan("lan0").lan == made.lan
    assert bench.node.lan("lan1").lan.group == derived.lan.group != ""
    bench.plane.found = (Underlay("u1", exists=True, has_multicast=True, address="192.0.2.1", mtu=1500),)
    assert [path.kind for path in bench.node.lan("lan0").paths] == ["down"]
    with pytest.raises(AlreadyExists) as caught:
        await bench.node.create_lan(LanRequest("lan2", group="239.1.2.3:5000"))
    assert caught.value.reason == "GROUP_IN_USE"


async def test_what_happens_to_the_plane_is_told(bench) -> None:
    made = await bench.node.create_lan(LanRequest("lan0"))
    assert bench.plane.listener is not None
    bench.plane.listener("lan.loop", made.lan.id, {"mac": "02:00:00:00:00:01"})
    bench.plane.listener("relay.lost", "", {"pid": "7"})
    assert await bench.until("lan.loop", made.lan.id) == {"mac": "02:00:00:00:00:01"}
    assert await bench.until("relay.lost") == {"pid": "7"}


async def test_port_that_was_cut_is_called_by_its_container_and_shown(bench) -> None:
    made = await bench.node.create_lan(LanRequest("lan0"))
    for name in ("web", "irc"):
        await bench.create(name=name, nics=(NicSpec("lan0"),))
    web, irc = (member.nic.port for member in bench.node.lan("lan0").members)
    assert bench.node.lan("lan0").cut == set()
    assert bench.plane.listener is not None
    bench.plane.listener("lan.loop", made.lan.id, {"mac": "02:00:00:00:00:01", "kept": web, "refused": irc})
    assert await bench.until("lan.loop", made.lan.id) == {"mac": "02:00:00:00:00:01", "kept": "web:eth0", "refused": "irc:eth0"}
    bench.plane.looped = [irc]
    assert bench.node.lan("lan0").cut == {irc}


async def test_nic_of_an_old_record_has_no_impairment(bench) -> None:
    await bench.node.create_lan(LanRequest("lan0"))
    container_id = await bench.create(name="web", nics=(NicSpec("lan0"),))
    path = bench.state_dir / "containers" / container_id / "record.json"
    record = json.loads(path.read_text())
    for nic in record["spec"]["nics"]:
        del nic["impair_to"], nic["impair_from"]
    path.write_text(json.dumps(record))
    await bench.restart()
    assert bench.node.container("web").spec.nics[0].impair_to == NO_IMPAIRMENT
