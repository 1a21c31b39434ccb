"""Certificates that are about to expire."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from clients.expiry import VARIABLE, days_left, expiring


def certificate(days: float, issuer: str = "federation", subject: str = "federation") -> bytes:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (subject, issuer)
    ]
    builder = x509.CertificateBuilder(
        name[1], name[0], key.public_key(), x509.random_serial_number()
    )
    builder = builder.not_valid_before(now - datetime.timedelta(days=400))
    return (
        builder.not_valid_after(now + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


@pytest.mark.parametrize(
    ("days", "said"),
    [(31.0, None), (29.5, "expires in 29 days"), (0.5, "within a day"), (-0.1, "has expired")],
)
def test_a_month_before_it_is_spoken_of(tmp_path, monkeypatch, days, said):
    path = tmp_path / "server.pem"
    path.write_bytes(certificate(days, subject="server"))
    told = list(expiring([path]))
    assert bool(told) is (said is not None) and all(
        said in text and str(path) in text for text in told
    )
    monkeypatch.setenv(VARIABLE, f"{path}:/nowhere/ca.crt")
    assert list(expiring()) == told
    monkeypatch.delenv(VARIABLE)
    assert not list(expiring())


def test_of_several_authorities_the_newest_counts_and_of_a_chain_the_first(tmp_path):
    """While a new authority is being introduced, the old one is still in the file."""
    (tmp_path / "ca.crt").write_bytes(certificate(3) + certificate(300))
    assert days_left(tmp_path / "ca.crt") == pytest.approx(300, abs=0.1)
    (tmp_path / "server.pem").write_bytes(
        certificate(3, subject="server") + certificate(300, "root", "between")
    )
    assert days_left(tmp_path / "server.pem") == pytest.approx(3, abs=0.1)
