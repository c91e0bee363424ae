"""What a node finds again after its daemon, or its machine, was restarted."""

from __future__ import annotations

import fcntl
import json
import os

import pytest

from nestbed.errors import CorruptState, HostLacks, NotFound, WrongState
from nestbed.lanmodel import LanRequest, NicSpec
from nestbed.model import RestartMode, RestartPolicy, Route, State
from nestbed.node.rundir import RunDirectory


async def test_everything_is_there_after_a_restart(bench) -> None:
    await bench.node.create_lan(LanRequest("lan0", "10.5.0.0/24", labels=(("a", "b"),)))
    await bench.run(
        name="web", nics=(NicSpec("lan0", addresses=("10.5.0.9",)),), routes=(Route("default", "10.5.0.1"),), labels=(("c", "d"),)
    )
    await bench.create(name="irc", nics=(NicSpec("lan0"),))
    before, lans = bench.node.containers(), bench.node.lans()
    node = await bench.restart()
    assert node.containers() == before
    assert node.lans() == lans
    assert (await node.audit())[0] == []
    later = await node.create_container(bench.request(nics=(NicSpec("lan0"),) * 3), admin=True)
    assert [nic.addresses for nic in later.spec.nics] == [("10.5.0.3/24",), ("10.5.0.4/24",), ("10.5.0.5/24",)]


async def test_end_while_the_daemon_was_away_is_known(bench) -> None:
    await bench.run(name="web")
    await bench.node.aclose()
    await next(iter(bench.kernel.containers.values())).kill(9)
    node = await bench.open()
    assert (await node.wait("web")).signal == 9


async def test_reboot(bench) -> None:
    await bench.node.create_lan(LanRequest("lan0", "10.5.0.0/24"))
    await bench.run(name="once", nics=(NicSpec("lan0"),))
    await bench.run(name="always", nics=(NicSpec("lan0"),), restart=RestartPolicy(RestartMode.ALWAYS))
    await bench.run(name="gone", auto_remove=True)
    node = await bench.reboot()
    await bench.until("container.deleted")
    states = {view.spec.name: view.status.state for view in node.containers()}
    assert states == {"once": State.STOPPED, "always": State.RUNNING}
    assert (await node.wait("once")).reason == "unknown"
    assert node.container("once").status.exit.shell_code == 255
    assert (await node.audit())[0] == []


def record_of(bench, container_id: str) -> dict:
    return json.loads((bench.state_dir / "containers" / container_id / "record.json").read_text())


async def test_half_made_and_half_removed_are_removed(bench) -> None:
    container_id = await bench.create(name="web")
    await bench.node.aclose()
    (bench.state_dir / "containers" / container_id / "made").unlink()
    node = await bench.open()
    assert node.containers() == []
    assert bench.bundles() == []
    assert bench.kernel.containers == {}
    assert (await node.audit())[0] == []


async def test_mark_goes_before_anything_is_removed(bench) -> None:
    marked = []
    bench.kernel.check = lambda method: marked.extend(is_made(bench, name) for name in bench.bundles()) if method == "destroy" else None
    await bench.create(name="web")
    await bench.node.delete("web", force=False)
    assert marked == [False]


def is_made(bench, container_id: str) -> bool:
    return (bench.state_dir / "containers" / container_id / "made").exists()


async def test_record_stands_before_anything_is_made(bench) -> None:
    seen = []

    def watch(method: str) -> None:
        if method == "create":
            seen.extend((record_of(bench, container_id)["spec"]["name"], is_made(bench, container_id)) for container_id in bench.bundles())

    bench.kernel.check = watch
    await bench.create(name="web")
    assert seen == [("web", False)]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"version": 1}', '{"version": 2}', '{"version": 1, "spec": {}}', "\x00" * 500])
async def test_corrupt_record_is_removed_and_told(bench, content) -> None:
    container_id = await bench.run(name="web")
    await bench.create(name="irc")
    await bench.node.aclose()
    (bench.state_dir / "containers" / container_id / "record.json").write_text(content)
    node = await bench.open()
    assert [view.spec.name for view in node.containers()] == ["irc"]
    assert list(bench.kernel.containers) == bench.bundles()
    assert (await node.audit())[0] == []


async def test_record_with_nonsense_in_it_is_removed(bench) -> None:
    await bench.node.create_lan(LanRequest("lan0", "10.5.0.0/24"))
    container_id = await bench.create(name="web", nics=(NicSpec("lan0"), NicSpec("lan0")))
    record = record_of(bench, container_id)
    record["spec"]["nics"][1]["addresses"] = ["junk"]
    await bench.node.aclose()
    (bench.state_dir / "containers" / container_id / "record.json").write_text(json.dumps(record))
    node = await bench.open()
    assert node.containers() == []
    assert node.lan("lan0").members == ()
    assert await bench.until("container.lost", container_id)
    await bench.create(name="web", nics=(NicSpec("lan0", addresses=("10.5.0.1",)),))


async def test_bundle_without_a_record_is_removed(bench) -> None:
    await bench.node.aclose()
    stray = bench.state_dir / "containers" / "0123456789ab"
    stray.mkdir()
    (stray / "log").write_text("x")
    await bench.open()
    assert bench.bundles() == []


async def test_corrupt_bundle_is_lost(bench) -> None:
    container_id = await bench.create(name="web")
    await bench.node.aclose()
    (bench.state_dir / "containers" / container_id / "fake.json").write_text("?")
    node = await bench.open()
    assert await bench.until("container.lost", container_id)
    assert node.containers() == []
    assert bench.bundles() == []


async def test_lost_record_of_a_lan_is_rebuilt_from_its_members(bench) -> None:
    lan = (await bench.node.create_lan(LanRequest("lan0", "10.5.0.0/24"))).lan
    await bench.run(name="web", nics=(NicSpec("lan0"),))
    await bench.node.aclose()
    (bench.state_dir / "lans" / f"{lan.id}.json").write_text("{")
    node = await bench.open()
    again = node.lan("lan0")
    assert (again.lan.id, again.lan.bridge, again.lan.subnet) == (lan.id, lan.bridge, "")
    assert [member.container for member in again.members] == ["web"]
    node = await bench.restart()
    assert (await node.audit())[0] == []


async def test_record_being_written_is_forgotten(bench) -> None:
    await bench.node.aclose()
    (bench.state_dir / "lans" / "0123456789ab.json.new").write_text("{")
    await bench.open()
    assert list((bench.state_dir / "lans").iterdir()) == []


@pytest.mark.slow
async def test_strangers_are_told_and_left(bench) -> None:
    (bench.state_dir / "containers" / "notes").write_text("mine")
    found, _ = await bench.node.audit()
    assert [(left.problem, left.kind) for left in found] == [("extra", "file")]
    await bench.restart()
    assert (bench.state_dir / "containers" / "notes").read_text() == "mine"


async def test_bridges_of_no_lan_are_swept(bench) -> None:
    await bench.node.aclose()
    bench.kernel.bridges["nbbffff"] = "ffff"
    await bench.open()
    assert bench.kernel.bridges == {}


async def test_container_that_cannot_be_taken_up_is_kept_and_tried_again(bench) -> None:
    container_id = await bench.run(name="web")
    await bench.node.aclose()
    bench.kernel.fail_next("recover", HostLacks("not now"))
    node = await bench.open()
    view = node.container("web")
    assert view.status.state is State.STOPPED
    assert "not now" in view.status.exit.message
    with pytest.raises(WrongState) as caught:
        await node.wait("web")
    assert caught.value.reason == "BROKEN"
    await node.kill("web", 9)
    assert (await node.wait(container_id)).signal == 9


async def test_broken_container_can_be_removed(bench) -> None:
    await bench.run(name="web")
    await bench.node.aclose()
    bench.kernel.fail_next("recover", HostLacks("not now"))
    node = await bench.open()
    await node.delete("web", force=False)
    assert bench.bundles() == []
    assert bench.kernel.containers == {}


async def test_failed_removal_can_be_tried_again(bench) -> None:
    container_id = await bench.create(name="web")
    bench.kernel.fail_next("destroy", HostLacks("not now"))
    with pytest.raises(HostLacks):
        await bench.node.delete("web", force=False)
    assert is_made(bench, container_id)
    await bench.node.delete("web", force=False)
    assert bench.bundles() == []


async def test_connected_nics_are_recorded(bench) -> None:
    node = bench.node
    await node.create_lan(LanRequest("lan0", "10.5.0.0/24"))
    await bench.run(name="web")
    nic = await node.connect("web", NicSpec("lan0"))
    node = await bench.restart()
    assert node.container("web").spec.nics == (nic,)
    await node.disconnect("web", "lan0", "")
    node = await bench.restart()
    assert node.container("web").spec.nics == ()
    with pytest.raises(NotFound):
        await node.disconnect("web", "lan0", "eth0")


def test_second_daemon_is_refused(tmp_path) -> None:
    with RunDirectory.claim(tmp_path / "run", tmp_path / "state") as claim:
        for run_dir, state_dir in (("run", "state"), ("other", "state"), ("run", "other")):
            with pytest.raises(WrongState) as caught:
                RunDirectory.claim(tmp_path / run_dir, tmp_path / state_dir)
            assert caught.value.reason == "ALREADY_RUNNING"
            assert str(os.getpid()) in caught.value.message
        node_id = claim.node_id
    with RunDirectory.claim(tmp_path / "run", tmp_path / "state") as claim:
        assert claim.node_id == node_id
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o711
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_refused_claim_holds_nothing(tmp_path) -> None:
    (tmp_path / "state").mkdir()
    fd = os.open(tmp_path / "state" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(WrongState):
        RunDirectory.claim(tmp_path / "run", tmp_path / "state")
    os.close(fd)
    RunDirectory.claim(tmp_path / "run", tmp_path / "state").close()


@pytest.mark.parametrize("content", ["", "{}", '{"id": 7}', '{"id": "../../etc"}', "[]"])
def test_foreign_node_id_is_refused(tmp_path, content) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "node.json").write_text(content)
    with pytest.raises(CorruptState):
        RunDirectory.claim(tmp_path / "run", tmp_path / "state")
