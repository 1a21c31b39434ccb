"""The public keys that clients have sent for secure sums: who sends one again may have it from
somebody else. They are in the checkpoint, so that a resume does not forget them."""

from collections.abc import Mapping
from hashlib import sha256

import numpy as np

from fedpgp.secure_sum import Keys, SumFailed

DIGEST_BYTES = 16
"""Of a key's SHA-256: so many keys of one run do not meet by chance."""

Saved = tuple[np.ndarray, np.ndarray]


class UsedKeys:
    """The keys of a run so far; a run that goes back to an earlier round keeps them."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, int]] = {}  # digest -> whose, of which round

    def add(self, keys: Mapping[int, Keys], server_round: int, saved: Saved | None) -> Saved:
        """Add the keys of a round; return all as the run's state has them.

        Args:
            keys: client -> its public keys.
            server_round: the round.
            saved: what the run's state has.

        Raises:
            SumFailed: naming who sent a key of an earlier round.
        """
        if saved is not None and not self._known:  # the run is resumed
            digests, owners = saved
            self._known = {
                row.tobytes(): (client, when)
                for row, (client, when) in zip(digests, owners.tolist(), strict=True)
            }
        for client, pair in keys.items():
            for key in (pair.mask, pair.share):
                known = sha256(key).digest()[:DIGEST_BYTES]
                whose, when = self._known.setdefault(known, (client, server_round))
                if when != server_round:
                    raise SumFailed(
                        f"client {client} sent a key that client {whose} sent in round {when}",
                        [client],
                    )
        digests = np.frombuffer(b"".join(self._known), np.uint8).reshape(-1, DIGEST_BYTES)
        return digests.copy(), np.array(list(self._known.values()), np.int64)
