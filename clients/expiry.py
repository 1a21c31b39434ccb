"""Certificates that are about to expire: server and nodes say so, a month before."""

import datetime
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

DAYS = 30
"""Days before the end of a certificate from which on it is spoken of."""

VARIABLE = "FEDPGP_CERTIFICATES"
"""Environment variable that tells a server's or node's apps its certificate files."""


def days_left(path: Path) -> float:
    """Return the days until a file's certificates expire: the first of a server's chain, the last
    one of several authorities.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no certificate in it.
    """
    from cryptography import x509  # for those who have a certificate to look at

    found = x509.load_pem_x509_certificates(path.read_bytes())
    authorities = [one for one in found if one.subject == one.issuer]
    end = max(one.not_valid_after_utc for one in authorities or found[:1])
    return (end - datetime.datetime.now(datetime.UTC)) / datetime.timedelta(days=1)


def expiring(paths: Iterable[Path | str] | None = None) -> Iterator[str]:
    """What a person has to be told of certificates.

    Args:
        paths: their files; None: those that the environment names. One that cannot be read is
            passed over: whoever needs it says so.
    """
    for path in os.environ.get(VARIABLE, "").split(os.pathsep) if paths is None else paths:
        try:
            left = days_left(Path(path))
        except (OSError, ValueError):
            continue
        if left < DAYS:
            when = (
                f"expires in {left:.0f} days"
                if left >= 1
                else "expires within a day"
                if left > 0
                else "has expired"
            )
            yield (
                f"the certificate {path} {when}; how to make new ones: docs/deployment.md, "
                '"Renewing"'
            )
