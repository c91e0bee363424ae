"""TCP: mutual TLS, and roles by certificate."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from nestbed import errors
from nestbed.client import Client
from nestbed.errors import NestbedError
from nestbed.service.server import Listen, Tls, serving

# ---------------------------------------------------------------- TCP


def certificate(folder: Path, name: str, subject: str, extension: str = "") -> Path:
    """A certificate by the authority in ``folder``, made as docs/operations.md says; its key stands beside it."""

    def openssl(*argv: str) -> None:
        subprocess.run(["openssl", *argv], cwd=folder, check=True, capture_output=True, timeout=10)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"]
    if name == "ca":
        openssl("req", "-x509", *key, "-subj", f"/CN={subject}", "-out", "ca.pem")
    else:
        (folder / "extension").write_text(extension)
        openssl("req", *key, "-subj", f"/CN={subject}", "-out", "request")
        openssl(
            "x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extension",
            "-out", f"{name}.pem",
        )  # fmt: skip
    return folder / f"{name}.pem"


async def test_tcp_takes_the_role_from_the_certificate(site: Any, tmp_path: Path) -> None:
    authority = certificate(tmp_path, "ca", "nestbed CA")
    node = certificate(tmp_path, "node", "node1", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    tls = Tls(cert=node, key=node.with_suffix(".key"), client_ca=authority)
    async with serving(site.node, site.folder, listen=[Listen("127.0.0.1", 0)], tls=tls) as addresses:

        def connect(name: str, subject: str, extension: str = "") -> Client:
            cert = certificate(tmp_path, name, subject, extension)
            return Client.connect(addresses[-1], tls_ca=authority, tls_cert=cert, tls_key=cert.with_suffix(".key"))

        async with connect("admin", "admin") as client:
            assert (await client.info()).role == "admin"
        async with connect("bob", "bob", "subjectAltName=email:bob@viewer") as client:
            assert (await client.info()).role == "viewer"
            with pytest.raises(errors.PermissionDenied) as caught:
                await client.create_lan("lan0")
            assert caught.value.metadata["caller"] == "certificate bob@viewer"
        async with connect("eve", "eve") as client:
            with pytest.raises(errors.PermissionDenied):
                await client.info()
        with pytest.raises(errors.AlreadyExists) as taken:
            async with serving(site.node, tmp_path, listen=[Listen("127.0.0.1", int(addresses[-1].rpartition(":")[2]))], tls=tls):
                pass
        assert taken.value.reason == "PORT_IN_USE"
        assert not [name for name in os.listdir(tmp_path) if name.endswith(".sock")]
        plain = grpc.ssl_channel_credentials(authority.read_bytes())
        async with aio.secure_channel(addresses[-1].removeprefix("tcp://"), plain) as channel:
            with pytest.raises(aio.AioRpcError):
                await channel.unary_unary("/nestbed.v1.NodeService/GetInfo")(b"")


async def test_tcp_without_tls_is_refused(site: Any, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        async with serving(site.node, site.folder, listen=[Listen("127.0.0.1", 0)]):
            pass
    assert caught.value.reason == "TLS_REQUIRED"
    for make in _wrong_tls():
        with pytest.raises(NestbedError):
            async with serving(site.node, site.folder, listen=[Listen("127.0.0.1", 0)], tls=make(tmp_path)):
                pass
    assert not list(site.folder.glob("*.sock"))


def _wrong_tls() -> list[Callable[[Path], Tls]]:
    def absent(folder: Path) -> Tls:
        return Tls(folder / "a", folder / "b", folder / "c")

    def garbage(folder: Path) -> Tls:
        (folder / "a").write_text("no PEM")
        return Tls(folder / "a", folder / "a", folder / "a")

    return [absent, garbage]
