"""Keys that two clients agree on, and masks made of them: X25519 (RFC 7748), HKDF with SHA-256 (RFC
5869), ChaCha20 (RFC 8439), all of the package ``cryptography``."""

import secrets
from dataclasses import dataclass, field
from functools import lru_cache

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


def public_key(private: bytes) -> bytes:
    """Return the public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


@dataclass
class Agreements:
    """Keys that pairs of clients have agreed on. Two clients of one process (a simulation) agree on
    the same, so each pair costs one X25519 and one HKDF there.

    Attributes:
        known: both public keys, ascending, and the purpose -> the key.
    """

    known: dict[tuple[bytes, bytes, str], bytes] = field(default_factory=dict)
    _public: dict[bytes, X25519PublicKey] = field(default_factory=dict, repr=False)

    def of(
        self,
        private: X25519PrivateKey,
        own: bytes,
        other: bytes,
        purpose: str,
        size: int = KEY_BYTES,
    ) -> bytes:
        """Return the key of so many bytes that the two agree on for one purpose.

        Args:
            private: one's own.
            own, other: public keys.
            purpose, size: of the key.

        Raises:
            ValueError: the other is no key.
        """
        pair = (own, other, purpose) if own < other else (other, own, purpose)
        if pair not in self.known:
            if other not in self._public:
                self._public[other] = X25519PublicKey.from_public_bytes(other)
            agreed = private.exchange(self._public[other])
            self.known[pair] = derived(agreed, purpose, size)
        return self.known[pair]


def derived(agreed: bytes, purpose: str, size: int = KEY_BYTES) -> bytes:
    """Return a key of so many bytes for one purpose, by HKDF."""
    return HKDF(hashes.SHA256(), size, None, purpose.encode()).derive(agreed)


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
