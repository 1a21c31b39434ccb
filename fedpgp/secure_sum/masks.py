"""Keys that two clients agree on, and masks made of them: X25519 (RFC 7748), HKDF with SHA-256 (RFC
5869), ChaCha20 (RFC 8439), all of the package ``cryptography``."""

import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
ONCE = bytes(16)
"""Counter and nonce of ChaCha20: every key encrypts or expands one thing alone."""


def new_seed() -> bytes:
    """Return a key for :func:`expanded`, from the operating system's cryptographic source."""
    return secrets.token_bytes(KEY_BYTES)


class KeyPair(NamedTuple):
    """A private key, and the bytes of its public one."""

    private: X25519PrivateKey
    public: bytes


def key_pair(private: bytes) -> KeyPair:
    """Return the pair of a private key's bytes."""
    key = X25519PrivateKey.from_private_bytes(private)
    return KeyPair(key, key.public_key().public_bytes_raw())


def public_key(private: bytes) -> bytes:
    """Return the public key of a private one."""
    return key_pair(private).public


@dataclass
class Agreements:
    """Keys that one of two clients of a process (a simulation) has agreed on, until the other asks:
    so each pair costs one X25519 and one HKDF there.

    Attributes:
        known: both public keys, ascending, and the purpose, joined -> the key.
    """

    known: dict[bytes, bytes] = field(default_factory=dict, repr=False)
    _public: dict[bytes, X25519PublicKey] = field(default_factory=dict, repr=False)

    def of(self, own: KeyPair, other: bytes, purpose: bytes, size: int = KEY_BYTES) -> bytes:
        """Return the key of so many bytes that the two agree on for one purpose.

        Args:
            own: one's keys.
            other: public key.
            purpose, size: of the key.

        Raises:
            ValueError: the other is no key.
        """
        pair = own.public + other if own.public < other else other + own.public
        pair += purpose
        if (known := self.known.pop(pair, None)) is not None:
            return known
        if other not in self._public:
            self._public[other] = X25519PublicKey.from_public_bytes(other)
        agreed = derived(own.private.exchange(self._public[other]), purpose, size)
        self.known[pair] = agreed
        return agreed


_SHA256 = hashes.SHA256()


def derived(agreed: bytes, purpose: bytes, size: int = KEY_BYTES) -> bytes:
    """Return a key of so many bytes for one purpose, by HKDF."""
    return HKDF(_SHA256, size, None, purpose).derive(agreed)


@lru_cache(maxsize=2)
def _zeros(size: int) -> bytes:
    return bytes(size)


def expanded(key: bytes, size: int) -> np.ndarray:
    """Return so many numbers that look uniform to whoever does not know the key: (size,) uint32.

    Args:
        key: of :data:`KEY_BYTES`, used for this alone.
        size: how many.
    """
    stream = Cipher(algorithms.ChaCha20(key, ONCE), None).encryptor().update(_zeros(4 * size))
    return np.frombuffer(stream, dtype="<u4")
