"""The control network of a real daemon, with processes on it: there when it is needed, gone when it is not, no way between containers."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from nestbed.lan.control import BRIDGE
from nestbed.linux.rtnl import Rtnl
from nestbed.testing.machine import Daemon, Machine


class Site:
    """A machine whose daemon runs."""

    def __init__(self, machine: Machine, daemon: Daemon) -> None:
        self.machine = machine
        self.daemon = daemon

    def nbctl(self, *args: str) -> str:
        result = self.machine.nbctl(*args)
        assert result.returncode == 0, f"{args}: {result.stderr}{self.daemon.log[-5:]}"
        return result.stdout

    def run(self, name: str, *options: str) -> str:
        """A container on the control network; its address there."""
        self.nbctl("run", "process", "-d", "--control", "--name", name, *options, "--", "sleep", "1000")
        return self.address_of(name)

    def address_of(self, name: str) -> str:
        return str(self.inspect(name)["control"]["addresses"][0].partition("/")[0])

    def inspect(self, name: str) -> Any:
        return json.loads(self.nbctl("-o", "json", "inspect", name))

    def pings(self, address: str, *, of: str = "") -> bool:
        """Whether the machine, or a container of it, gets an answer."""
        words = ("ping", "-c", "1", "-W", "1", address)
        result = self.machine.nbctl("exec", of, "--", *words) if of else self.machine.run(*words)
        return result.returncode == 0

    def links(self) -> dict[str, str]:
        """Interfaces of the machine with their aliases."""
        with self.machine.entered():
            rtnl = Rtnl()
        try:
            return {link.name: link.alias for link in rtnl.links()}
        finally:
            rtnl.close()

    def own_addresses(self) -> str:
        return self.machine.run("ip", "-o", "address", "show", "dev", BRIDGE).stdout


@pytest.fixture
def site(machine: Machine, daemon: Daemon) -> Iterator[Site]:
    return Site(machine, daemon)


def test_the_machine_reaches_what_is_on_it_and_nobody_else_does(site) -> None:
    first, second = site.run("first"), site.run("second")
    assert site.pings(first)
    assert site.pings(second)
    assert "inet6 fe80:" in site.own_addresses()
    own = site.own_addresses().split("inet ")[1].partition("/")[0]
    assert site.pings(own, of="first")
    assert not site.pings(second, of="first")
    site.nbctl("run", "process", "-d", "--name", "other", "--", "sleep", "1000")
    assert "control" not in site.nbctl("exec", "other", "--", "ip", "link")
    assert "control" not in site.inspect("other")


def test_it_is_there_as_long_as_somebody_is_on_it(site) -> None:
    assert BRIDGE not in site.links()
    site.run("first")
    site.run("second")
    site.nbctl("rm", "-f", "first")
    assert BRIDGE in site.links()
    site.nbctl("audit")
    site.nbctl("rm", "-f", "second")
    assert BRIDGE not in site.links()
    site.nbctl("audit")


def test_it_is_no_part_of_an_experiment(site) -> None:
    site.nbctl("lan", "create", "lan0", "--subnet", "10.5.0.0/24")
    address = site.run("web", "--lan", "lan0")
    assert address not in site.nbctl("exec", "web", "--", "cat", "/etc/hosts")
    assert site.nbctl("exec", "web", "--", "ip", "route", "show", "default") == ""
    assert [nic["lan"] for nic in site.inspect("web")["nics"]] == ["lan0"]
    assert BRIDGE not in site.nbctl("lan", "ls")
    result = site.machine.nbctl("disconnect", "web", BRIDGE)
    assert result.returncode != 0
    # The machine is no router into it, nor out of it.
    for family in ("ipv4", "ipv6"):
        forwarding = site.machine.run("cat", f"/proc/sys/net/{family}/conf/{BRIDGE}/forwarding")
        assert forwarding.stdout == "0\n"


def test_address_stays_with_the_container(site) -> None:
    address = site.run("web")
    site.run("other")
    mac = site.inspect("web")["control"]["mac"]
    site.nbctl("stop", "-t", "0", "web")
    site.daemon.kill()
    site.daemon.start()
    site.nbctl("start", "web")
    assert (site.address_of("web"), site.inspect("web")["control"]["mac"]) == (address, mac)
    assert site.pings(address)
    site.nbctl("audit")


def test_a_daemon_makes_what_is_missing_and_removes_what_is_too_much(site) -> None:
    address = site.run("web")
    site.daemon.kill()
    site.machine.run("ip", "address", "flush", "dev", BRIDGE)
    site.daemon.start()
    assert site.pings(address)
    site.nbctl("rm", "-f", "web")
    node = site.machine.node_id
    site.daemon.kill()
    site.machine.run("ip", "link", "add", BRIDGE, "type", "bridge")
    site.machine.run("ip", "link", "set", BRIDGE, "alias", f"nestbed:{node}:control")
    site.daemon.start()
    assert BRIDGE not in site.links()


def test_audit_tells_what_is_not_as_it_should_be(site) -> None:
    site.run("web")
    site.machine.run("ip", "address", "flush", "dev", BRIDGE)
    assert BRIDGE in site.machine.nbctl("audit").stdout
    site.machine.run("ip", "link", "delete", BRIDGE)
    assert BRIDGE in site.machine.nbctl("audit").stdout


def test_an_interface_of_somebody_else_is_left_alone(site) -> None:
    site.machine.run("ip", "link", "add", BRIDGE, "type", "bridge")
    result = site.machine.nbctl("run", "process", "-d", "--control", "--", "true")
    assert result.returncode != 0
    assert f"{BRIDGE} that is not this daemon's" in result.stderr
    assert "remedy: remove or rename" in result.stderr
    assert site.links()[BRIDGE] == ""
    site.nbctl("audit")
    site.machine.run("ip", "link", "delete", BRIDGE)


def test_subnet_is_free_or_the_one_that_is_set(machine, daemon) -> None:
    site = Site(machine, daemon)
    machine.run("ip", "link", "set", "lo", "up")
    machine.run("ip", "address", "add", "172.31.241.7/24", "dev", "lo")
    machine.run("ip", "route", "add", "172.31.224.0/24", "dev", "lo")
    assert site.run("web").startswith("172.31.208.")
    site.nbctl("rm", "-f", "web")
    daemon.stop()
    daemon.start("--control-subnet", "10.99.0.0/29")
    assert site.run("web") == "10.99.0.2"
    result = machine.nbctl("run", "process", "-d", "--control", "--lan", "lan0,ip=10.99.0.200/24", "--", "true")
    assert result.returncode != 0
    site.nbctl("lan", "create", "lan0")
    result = machine.nbctl("run", "process", "-d", "--control", "--lan", "lan0,ip=10.99.0.200/24", "--", "true")
    assert "overlaps the control network's" in result.stderr
    assert "--no-control" in result.stderr
    for number in range(4):
        site.run(f"web{number}")
    assert "has no free address" in machine.nbctl("run", "process", "-d", "--control", "--", "true").stderr


_SENDER = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as end:
    end.bind(("control", 0))
    for text in sys.argv[1:]:
        end.send(bytes.fromhex(text))
"""


def _arp(mac: str, sender_mac: str, address: str) -> str:
    body = "0001080006040001" + sender_mac + _ipv4(address) + "000000000000" + _ipv4("172.31.240.1")
    return "ff" * 6 + mac + "0806" + body + "00" * 18


def _ipv4(address: str) -> str:
    return ipaddress.IPv4Address(address).packed.hex()


def _udp(mac: str, source: str) -> str:
    return "ff" * 6 + mac + "0800" + "4500001c000000004011" + "0000" + _ipv4(source) + _ipv4("255.255.255.255") + "0007000700080000"


def _icmpv6(mac: str, source: str, kind: int, target: str, next_header: int = 58) -> str:
    payload = bytes([kind, 0, 0, 0, 0, 0, 0, 0]).hex() + ipaddress.IPv6Address(target).packed.hex()
    header = "60000000" + "0018" + f"{next_header:02x}" + "ff" + ipaddress.IPv6Address(source).packed.hex()
    return "333300000001" + mac + "86dd" + header + ipaddress.IPv6Address("ff02::1").packed.hex() + payload


def test_a_container_speaks_in_its_own_name_alone(site) -> None:
    address = site.run("web")
    mac = site.inspect("web")["control"]["mac"].replace(":", "")
    other, router = "02aabbccddee", "fe80::1"
    own = str(ipaddress.IPv6Address(bytes.fromhex("fe80" + "00" * 6 + f"{int(mac[:2], 16) ^ 2:02x}" + mac[2:6] + "fffe" + mac[6:])))
    own_frames = [
        _arp(mac, mac, address),
        _udp(mac, address),
        _icmpv6(mac, own, 136, own),
        _icmpv6(mac, "::", 135, own),
    ]
    foreign = [
        _arp(mac, mac, "172.31.240.1"),
        _arp(mac, other, address),
        _arp(other, other, address),
        _udp(mac, "10.5.0.7"),
        _udp(other, address),
        _icmpv6(mac, router, 136, router),
        _icmpv6(mac, own, 136, router),
        _icmpv6(mac, own, 134, router),
        _icmpv6(mac, own, 137, router),
        _icmpv6(mac, own, 134, router, next_header=60),
        "ff" * 6 + mac + "8100" + "0005" + _udp(mac, address)[24:],
        "0180c200000e" + mac + "88cc" + "00" * 46,
    ]
    for times in (1, 2):  # the next daemon guards the port as this one does
        with site.machine.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as end:
            end.bind((BRIDGE, 0))
            end.settimeout(5)
            site.nbctl("exec", "web", "--", "python3", "-c", _SENDER, *foreign, *own_frames)
            sent, seen = {*foreign, *own_frames}, []
            while own_frames[-1] not in seen:
                frame = end.recv(2000).hex()
                seen += [text for text in sent if frame.startswith(text.rstrip("0"))]
        assert seen == own_frames
        shown = json.loads(site.nbctl("-o", "json", "stats", "--no-stream", "web"))
        assert {"reason": "foreign", "frames": times * len(foreign)} in shown[0]["nics"][0]["tx_drop_reasons"]
        site.daemon.kill()
        site.daemon.start()
