"""Links, addresses and routes made through nestbed.linux.rtnl in network namespaces of the test's own."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from nestbed.linux import devices, rtnl
from nestbed.linux.rtnews import LinkDeletions

pytestmark = pytest.mark.net

CLONE_NEWNET = 0x40000000


def new_netns() -> tuple[int, socket.socket, LinkDeletions]:
    """A new namespace made by a thread that then ends: its descriptor, and two sockets inside it."""
    made: list[tuple[int, socket.socket, LinkDeletions]] = []

    def make() -> None:
        assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        made.append((os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), sock, LinkDeletions()))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


@pytest.fixture
def node() -> Iterator[tuple[rtnl.Rtnl, LinkDeletions]]:
    fd, sock, deletions = new_netns()
    node = rtnl.Rtnl(sock)
    yield node, deletions
    node.close()
    deletions.close()
    os.close(fd)


@pytest.fixture
def inside() -> Iterator[tuple[rtnl.Rtnl, int]]:
    fd, sock, deletions = new_netns()
    deletions.close()
    inside = rtnl.Rtnl(sock)
    yield inside, fd
    inside.close()
    os.close(fd)


def test_container_is_joined_to_a_bridge_and_goes_away(node, inside) -> None:
    outer, deletions = node
    inner, netns = inside
    outer.add_bridge("nbbtest", mtu=1400)
    outer.batch([devices.link_owned_up("nbbtest", "nestbed:lan")])
    index = outer.link_index("nbbtest")
    outer.add_veth(
        "nbptest0",
        bridge_index=index,
        mtu=1400,
        peer_name="eth0",
        peer_mac="02:00:00:00:00:07",
        peer_netns_fd=netns,
    )
    outer.batch([devices.link_owned_up("nbptest0", "nestbed:container")])
    inner.configure("eth0", addresses=["10.5.0.7/24", "fd00::7/64"], routes=[("10.9.0.0/16", "10.5.0.1"), ("default", "fd00::1")])

    links = {link.name: link for link in outer.links()}
    assert links["nbbtest"].kind == "bridge"
    assert links["nbptest0"] == rtnl.Link(
        index=links["nbptest0"].index, name="nbptest0", alias="nestbed:container", kind="veth", master=index,
        mac=links["nbptest0"].mac, mtu=1400, up=True,
    )  # fmt: skip
    eth0 = next(link for link in inner.links() if link.name == "eth0")
    assert (eth0.mac, eth0.mtu, eth0.up, eth0.master) == ("02:00:00:00:00:07", 1400, True, 0)
    assert {counted.name for counted in inner.counters()} >= {"lo", "eth0"}

    outer.delete_link("nbptest0")
    assert select.select([deletions], [], [], 2)[0]
    gone = deletions.read()
    assert gone is not None
    assert "nbptest0" in gone
    with pytest.raises(OSError, match="No such device") as caught:
        inner.link_index("eth0")
    assert caught.value.errno == errno.ENODEV


def test_a_port_that_loses_its_bridge_is_not_gone(node, inside) -> None:
    outer, deletions = node
    outer.add_bridge("nbbtest", mtu=1500)
    index, netns = outer.link_index("nbbtest"), inside[1]
    outer.add_veth("nbptest0", bridge_index=index, mtu=1500, peer_name="eth0", peer_mac="02:00:00:00:00:07", peer_netns_fd=netns)
    outer.delete_link("nbbtest")
    assert select.select([deletions], [], [], 2)[0]
    gone = deletions.read()
    assert gone is not None
    assert gone == {"nbbtest"}
    assert outer.link_index("nbptest0")


def test_first_refusal_of_a_batch_is_raised_with_the_kernels_words(node) -> None:
    outer, _ = node
    outer.add_bridge("nbbtest", mtu=1500)
    with pytest.raises(OSError, match="File exists") as caught:
        outer.batch([devices.bridge("nbbtest", mtu=1500), devices.bridge("nbbother", mtu=1500)])
    assert caught.value.errno == errno.EEXIST
    assert outer.link_index("nbbother")
    with pytest.raises(OSError, match=r"Network is unreachable|gateway") as unreachable:
        outer.batch([devices.route("10.0.0.0/8", "192.0.2.1", outer.link_index("nbbother"))])
    assert unreachable.value.errno in (errno.ENETUNREACH, errno.EINVAL, errno.ENETDOWN)


def test_many_requests_fit_one_batch(node) -> None:
    outer, _ = node
    outer.add_bridge("nbbtest", mtu=1500)
    index = outer.link_index("nbbtest")
    outer.batch([devices.link_up(index), *(devices.address(index, f"10.5.{n // 200}.{n % 200 + 1}/16") for n in range(400))])
