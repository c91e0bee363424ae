"""Who is on the control network, as the node decides it."""

from __future__ import annotations

import pytest

from nestbed.errors import HostLacks, InvalidArgument
from nestbed.lanmodel import LanRequest, NicSpec


async def test_a_process_is_on_it_only_if_asked(bench, node) -> None:
    plain = await node.create_container(bench.request(name="plain"), admin=True)
    assert plain.spec.control is None
    assert bench.kernel.control is None
    asked = await node.create_container(bench.request(name="asked", control=True), admin=True)
    assert asked.spec.control.addresses == ("172.31.240.2/20",)
    assert asked.spec.interfaces[-1] == asked.spec.control
    assert bench.kernel.control.subnet == "172.31.240.0/20"
    assert (await node.audit())[0] == []
    await node.delete("asked", force=False)
    assert bench.kernel.control is None
    assert (await node.audit())[0] == []


async def test_failed_create_leaves_no_control_network(bench, node) -> None:
    for method in ("control", "create"):
        bench.kernel.fail_next(method, HostLacks("it cannot be had", reason="LACKS"))
        with pytest.raises(HostLacks):
            await node.create_container(bench.request(name="web", control=True), admin=True)
    assert bench.kernel.control is None


async def test_members_are_known_to_the_next_daemon(bench, node) -> None:
    await bench.create(name="web", control=True)
    node = await bench.restart()
    assert bench.kernel.control.subnet == "172.31.240.0/20"
    view = await node.create_container(bench.request(name="other", control=True), admin=True)
    assert view.spec.control.addresses == ("172.31.240.3/20",)
    assert (await node.audit())[0] == []
    node = await bench.reboot()
    assert node.container("web").spec.control.addresses == ("172.31.240.2/20",)
    assert (await node.audit())[0] == []


async def test_lans_that_overlap_are_avoided_or_refused(bench, node) -> None:
    await node.create_lan(LanRequest("lan1", subnet="172.31.240.0/20"))
    view = await node.create_container(bench.request(name="web", control=True, nics=(NicSpec("lan1"),)), admin=True)
    assert view.spec.control.addresses == ("172.31.224.2/20",)
    await node.create_lan(LanRequest("lan2", subnet="172.31.225.0/24"))
    with pytest.raises(InvalidArgument, match="overlaps") as caught:
        await node.create_container(bench.request(name="other", control=True, nics=(NicSpec("lan2"),)), admin=True)
    assert caught.value.reason == "CONTROL_OVERLAP"
    with pytest.raises(InvalidArgument, match="is called control"):
        await node.create_container(bench.request(name="other", control=True, nics=(NicSpec("lan1", name="control"),)), admin=True)
    # Nothing was taken.
    view = await node.create_container(bench.request(name="other", control=True), admin=True)
    assert view.spec.control.addresses == ("172.31.224.3/20",)
