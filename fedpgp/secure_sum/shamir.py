"""Shamir's secret sharing (Communications of the ACM 22, 1979): any ``threshold`` shares give the
secret, fewer say nothing of it.

Secrets have 32 bytes; the field is that of the integers modulo the smallest prime above 2**256.
Holder h has the value of a random polynomial at h + 1; the secret is the value at 0.
"""

import secrets
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod
from operator import mul

PRIME = 2**256 + 297
SECRET_BYTES, SHARE_BYTES = 32, 33


def split(secret: bytes, holders: Sequence[int], threshold: int) -> dict[int, bytes]:
    """Return a share for each holder.

    Args:
        secret: of :data:`SECRET_BYTES`.
        holders: different numbers, 0 or more.
        threshold: shares that give the secret back, 1 to the number of holders.

    Example:
        >>> shares = split(bytes(32), [0, 1, 2], 2)
        >>> join({1: shares[1], 2: shares[2]}) == bytes(32)
        True
    """
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"a threshold of {threshold} among {len(holders)} holders")
    polynomial = [*_random(threshold - 1), int.from_bytes(secret)]
    shares = {}
    for holder in holders:
        value, x = 0, holder + 1
        for coefficient in polynomial:  # Horner; x is small, so that one remainder at the end does
            value = value * x + coefficient
        shares[holder] = (value % PRIME).to_bytes(SHARE_BYTES)
    return shares


def _random(count: int) -> list[int]:
    """Numbers of the field: the remainders of 48 random bytes, uniform but for 2**-127."""
    drawn = secrets.token_bytes(48 * count)
    return [int.from_bytes(drawn[48 * i : 48 * i + 48]) % PRIME for i in range(count)]


def join(shares: Mapping[int, bytes]) -> bytes | None:
    """Return the secret that as many shares as the threshold stand for; None: they are of no
    32 bytes, so that one of them is wrong.

    Args:
        shares: holder -> share, as many as the threshold.
    """
    points = [(holder + 1, int.from_bytes(share)) for holder, share in sorted(shares.items())]
    places = [x for x, _ in points]
    # Lagrange's polynomials at 0: the product of all places but x, over that of all (other - x).
    bottoms = [prod([other - x for other in places if other != x]) * x % PRIME for x in places]
    top = prod(places)
    total = top * sum(
        y * inverse for (_, y), inverse in zip(points, _inverses(bottoms), strict=True)
    )
    secret = total % PRIME
    return secret.to_bytes(SECRET_BYTES) if secret < 2**256 else None


def _inverses(numbers: Sequence[int]) -> list[int]:
    """Inverses in the field by one inversion (Montgomery 1987)."""
    products = list(accumulate(numbers, lambda a, b: mul(a, b) % PRIME, initial=1))
    inverse, found = pow(products[-1], -1, PRIME), []
    for number, before in zip(reversed(numbers), reversed(products[:-1]), strict=True):
        found.append(inverse * before % PRIME)
        inverse = inverse * number % PRIME
    return found[::-1]
