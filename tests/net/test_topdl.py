"""A topdl file as that testbed's users wrote them: imported, brought up, verified, whatever its start commands do."""

from __future__ import annotations

from pathlib import Path

from nestbed.testing.machine import Machine

CLIENTS = 3


def topdl() -> str:
    """Clients, each on a link of its own with a server that has an interface on each, partitions, and a script that does not exist."""

    def computer(name: str, kind: str, partition: int, links: range) -> str:
        given = {"node_type": kind, "partition": str(partition)}
        attributes = {f"containers:{key}": value for key, value in given.items()} | {"startup": "python3 /share/nowhere/bootstrap.py"}
        return (
            f"<elements><computer><name>{name}</name>"
            + "".join(f"<interface><substrate>link{link}</substrate><name>inf{at:03}</name></interface>" for at, link in enumerate(links))
            + "".join(
                f"<attribute><attribute>{key}</attribute><value>{value}</value></attribute>" for key, value in sorted(attributes.items())
            )
            + "</computer></elements>"
        )

    return (
        "<experiment><version>1.0</version>"
        + "".join(
            f"<substrates><name>link{link}</name><capacity><rate>100000.000000</rate><kind>avg</kind></capacity></substrates>"
            for link in range(CLIENTS)
        )
        + "".join(computer(f"client{link}", "openvz", 0, range(link, link + 1)) for link in range(CLIENTS))
        + computer("server", "embedded_pnode", 2, range(CLIENTS))
        + "</experiment>"
    )


def nbctl(machine: Machine, *args: str, status: int = 0) -> str:
    result = machine.nbctl(*args)
    assert result.returncode == status, f"{args}: {result.stderr}{result.stdout}{machine.daemon.log[-5:]}"
    return result.stdout + result.stderr


def test_what_it_describes_comes_up_although_its_scripts_are_missing(machine, daemon, tmp_path: Path) -> None:
    (tmp_path / "clients.xml").write_text(topdl())
    vtopo = str(tmp_path / "vtopo.yaml")
    Path(vtopo).write_text(nbctl(machine, "import", "topdl", str(tmp_path / "clients.xml")))
    assert "    server: partition2\n" in nbctl(machine, "import", "topdl", "--ptopo", str(tmp_path / "clients.xml"))
    said = nbctl(machine, "up", "-f", vtopo, status=1)
    assert "client2 startup ended with status 2\n" in said
    assert "can't open file '/share/nowhere/bootstrap.py'" in said
    assert nbctl(machine, "ps", "-a", "-q") == ""
    nbctl(machine, "up", "-f", vtopo, "--keep", status=1)
    assert "clients is failed" in nbctl(machine, "status", "clients")
    assert nbctl(machine, "verify", "clients") == "clients: 18 calls answered, no deviation\n"
    Path(vtopo).write_text(nbctl(machine, "import", "topdl", "--skip", "startup", str(tmp_path / "clients.xml")))
    assert "4 elements, 3 LANs up" in nbctl(machine, "up", "-f", vtopo)
    nbctl(machine, "down", "clients")
    nbctl(machine, "audit")
