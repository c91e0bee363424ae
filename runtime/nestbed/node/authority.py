"""The node's authority over the nodes inside its virtual machines: it signs their certificates, and its own by which it calls them.

::

    STATE_DIR/authority/ca.pem, ca.key          made when first needed, kept
    STATE_DIR/authority/ROLE.pem, ROLE.key      by which this node calls the nodes inside as ``admin``, ``operator``, ``viewer``
    BUNDLE/node/ca.pem, node.pem, node.key      of the node inside one machine, for a server alone: it gives no role anywhere

Everything is 0600 in directories of root's. A certificate is written after its key, so what was cut short is made again. The node inside
trusts this authority and no other: whoever calls it from outside of its machine comes by way of this node.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nestbed.errors import translated
from nestbed.runtime import NODE_CREDENTIALS

if TYPE_CHECKING:
    from nestbed.node.certificates import Pair


def server_name(container_id: str) -> str:
    """The name in the certificate of the node inside the machine of this id."""
    return f"{container_id}.node.nestbed"


class Authority:
    """See the module. Files are made when they are first asked for, which takes some 50 ms then."""

    def __init__(self, directory: Path, name: str) -> None:
        """``name`` is the node's, by which the nodes inside know who calls."""
        self._directory = directory
        self._name = name
        self._pairs: dict[str, Pair] = {}

    def certificate(self) -> bytes:
        """The authority's own, by which all others are known."""
        return self._ca().cert

    def caller(self, role: str) -> Pair:
        """By what this node calls nodes inside in a role: admin, operator or viewer."""
        from nestbed.node import certificates  # noqa: PLC0415 - slow to import, and most nodes never need it

        return self._kept(role, lambda: certificates.caller(self._ca(), self._name, role))

    def issue(self, bundle: Path, container_id: str) -> None:
        """Write what the node inside a machine needs into its bundle, unless it is there."""
        from nestbed.node import certificates  # noqa: PLC0415 - see above

        directory = bundle / NODE_CREDENTIALS
        with translated(f"making {directory}", path=directory):
            directory.mkdir(mode=0o700, exist_ok=True)
            if not (directory / "node.pem").exists():
                made = certificates.server(self._ca(), server_name(container_id))
                _write(directory / "ca.pem", self.certificate())
                _write(directory / "node.key", made.key)
                _write(directory / "node.pem", made.cert)

    def _ca(self) -> Pair:
        from nestbed.node import certificates  # noqa: PLC0415 - see above

        return self._kept("ca", lambda: certificates.authority(f"nestbed node {self._name}"[:64]))

    def _kept(self, name: str, make: Callable[[], Pair]) -> Pair:
        from nestbed.node.certificates import Pair  # noqa: PLC0415 - see above

        if name not in self._pairs:
            cert, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
            with translated(f"making {cert}", path=cert):
                self._directory.mkdir(mode=0o700, exist_ok=True)
                if not cert.exists():
                    made = make()
                    _write(key, made.key)
                    _write(cert, made.cert)
                self._pairs[name] = Pair(cert.read_bytes(), key.read_bytes())
        return self._pairs[name]


def _write(path: Path, content: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
    new.rename(path)
