"""What a federation's machines need to trust each other: an authority, the server's
certificate, a key for each node.

The nodes know the server by its certificate (TLS); the server knows a node by its public key, which
has to be registered (``flwr supernode register``).
"""

import contextlib
import datetime
import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from fedpgp.atomic_files import write_atomically
from fedpgp.errors import FedPGPError

DAYS = 3650
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts by which the server's own processes reach it."""

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.IGNORECASE)


def make_certificates(folder: Path, hosts: Sequence[str]) -> None:
    """Write ``ca.crt``, ``server.pem`` and ``server.key`` for a server that is reached by
    ``hosts`` (names or addresses), and on its own machine by the loopback.

    The authority's own key is thrown away: no further certificate can be made in its name.

    Raises:
        FedPGPError: a host that is no name or address.
    """
    names = [_alternative(host) for host in dict.fromkeys([*hosts, *LOOPBACK])]
    authority_key, server_key = (
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP384R1()),
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedpgp federation")])
    authority = (
        _builder(name, name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA384())
    )
    # Who it is stands in the alternative names alone: a common name has at most 64 characters.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedpgp server")])
    server = (
        _builder(subject, name, server_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA384())
    )
    write_atomically(folder / "ca.crt", authority.public_bytes(Encoding.PEM))
    write_atomically(folder / "server.pem", server.public_bytes(Encoding.PEM))
    _write_secret(folder / "server.key", server_key, PrivateFormat.PKCS8)


def make_node_key(path: Path) -> None:
    """Write a node's private key to ``path`` and its public key to ``path.pub``, both in OpenSSH's
    format (Flower reads no other).
    """
    key = ec.generate_private_key(ec.SECP384R1())
    _write_secret(path, key, PrivateFormat.OpenSSH)
    write_atomically(
        path.with_name(f"{path.name}.pub"),
        key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n",
    )


def _write_secret(path: Path, key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> None:
    write_atomically(path, key.private_bytes(Encoding.PEM, form, NoEncryption()), private=True)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
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
    """Return a host as a certificate names it.

    Raises:
        FedPGPError: it is no name or address.
    """
    address = None
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    if why := _no_name(host) if address is None else _no_machine(address):
        raise FedPGPError(
            f"--host {host!r} cannot work: {why}. It is a name or an address alone, as in "
            "fed.example.org"
        )
    return x509.DNSName(host) if address is None else x509.IPAddress(address)


def _no_machine(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return why no node reaches a server by an address; empty where one may."""
    if address.is_unspecified:
        return "a server listens on it, and nobody reaches it by it: name what nodes connect to"
    if address.is_multicast or str(address) == "255.255.255.255":
        return "it is of many machines"
    if getattr(address, "scope_id", None):
        return "what follows % is of one machine"
    return ""


def _no_name(host: str) -> str:
    """Return what is wrong with the name of a host; empty when nothing is."""
    if not host.strip():
        return "it is empty"
    if "://" in host or "/" in host:
        return "it has a scheme or a path"
    if re.search(r":\d*$", host):
        return "it has a port"
    if not host.isascii():
        try:
            return f"it has letters that are not ASCII; write {host.encode('idna').decode()}"
        except UnicodeError:
            return "it has letters that are not ASCII"
    if len(host) > 253 or any(len(label) > 63 for label in host.split(".")):
        return "it is too long: at most 253 characters, and 63 between two dots"
    if not all(_LABEL.fullmatch(label) for label in host.removeprefix("*.").split(".")):
        return "a name has letters, digits and hyphens between dots"
    return ""
