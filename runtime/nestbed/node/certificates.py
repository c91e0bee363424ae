"""X.509 certificates for the nodes inside virtual machines. Pure but for the clock and randomness.

Keys are on P-256. Importing this costs 50 ms: :mod:`nestbed.node.authority` does when it has to make something.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = dt.timedelta(days=3650)
_EARLIER = dt.timedelta(days=2)
"""A guest's clock may be behind."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, PEM."""

    cert: bytes
    key: bytes


def authority(name: str) -> Pair:
    """An authority that signs certificates of nodes and callers, and no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, key).issuer_name(_name(name)).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return _pair(builder.sign(key, hashes.SHA256()), key)


def server(issuer: Pair, host: str) -> Pair:
    """Of a server that is known as ``host``. It is no caller's."""
    return _issued(issuer, host, x509.DNSName(host), ExtendedKeyUsageOID.SERVER_AUTH)


def caller(issuer: Pair, name: str, role: str) -> Pair:
    """Of a caller ``NAME@ROLE``, as the service reads it. It is no server's."""
    return _issued(issuer, "nestbedd", x509.RFC822Name(f"{name}@{role}"), ExtendedKeyUsageOID.CLIENT_AUTH)


def _issued(issuer: Pair, name: str, known_as: x509.GeneralName, use: x509.ObjectIdentifier) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    signer = serialization.load_pem_private_key(issuer.key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    builder = (
        _builder(name, key)
        .issuer_name(x509.load_pem_x509_certificate(issuer.cert).subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([known_as]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=True)
    )
    return _pair(builder.sign(signer, hashes.SHA256()), key)


def _builder(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + _VALID)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    encoded = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), encoded)
