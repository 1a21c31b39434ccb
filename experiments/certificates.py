"""What a federation's machines need to trust each other: an authority, the server's certificate, a key for each node.

The nodes know the server by its certificate (TLS); the server knows a node by its public key, which has to be
registered (``flwr supernode register``).
"""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from fedpgp.files import write_atomically

DAYS = 3650


def make_certificates(folder: Path, hosts: Sequence[str]) -> None:
    """Writes ``ca.crt``, ``server.pem`` and ``server.key`` for a server that is reached by ``hosts`` (names or
    addresses).

    The authority's own key is thrown away: no further certificate can be made in its name.
    """
    authority_key, server_key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedpgp federation")])
    authority = (
        _builder(name, name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    server = (
        _builder(subject, name, server_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    write_atomically(folder / "ca.crt", authority.public_bytes(Encoding.PEM))
    write_atomically(folder / "server.pem", server.public_bytes(Encoding.PEM))
    _write_secret(folder / "server.key", server_key, PrivateFormat.PKCS8)


def make_node_key(path: Path) -> None:
    """Writes a node's private key to ``path`` and its public key to ``path.pub``, both in OpenSSH's format (Flower
    reads no other).
    """
    key = ec.generate_private_key(ec.SECP384R1())
    _write_secret(path, key, PrivateFormat.OpenSSH)
    write_atomically(
        path.with_name(f"{path.name}.pub"),
        key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n",
    )


def _write_secret(path: Path, key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> None:
    before = os.umask(0o077)
    try:
        write_atomically(path, key.private_bytes(Encoding.PEM, form, NoEncryption()))
    finally:
        os.umask(before)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # machines whose clocks differ
        .not_valid_after(now + datetime.timedelta(days=DAYS))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
