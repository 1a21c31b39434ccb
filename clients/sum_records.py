"""The steps of a secure sum as Flower's records, both ways. What is read came from somebody else:
its kinds and lengths are checked. Values of one length, as keys and shares are, are joined."""

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import ConfigRecord

from fedpgp.secure_sum import Inbox, Keys, Shares, Unmasking
from fedpgp.secure_sum.masks import KEY_BYTES
from fedpgp.secure_sum.shamir import SHARE_BYTES

SHARE, MASK, UNMASK = "sum_shares", "sum_masked", "sum_unmask"
"""What a query asks for, in the second, the third and the fourth step; the first is part of the
reply to training."""
SUM_STEPS = (SHARE, MASK, UNMASK)

DIGEST_BYTES, SEALED_BYTES = 32, 2 * SHARE_BYTES + 16


def keys_reply(keys: Keys) -> ConfigRecord:
    """Return a client's reply in the first step."""
    return ConfigRecord({"mask": keys.mask, "share": keys.share})


def read_keys(record: Mapping) -> Keys:
    """Return what :func:`keys_reply` holds.

    Raises:
        ValueError: it holds something else.
    """
    return Keys(_bytes(record, "mask", KEY_BYTES), _bytes(record, "share", KEY_BYTES))


def share_question(peers: Mapping[int, Keys], clients: int) -> ConfigRecord:
    """Return what a client is sent in the second step."""
    return ConfigRecord(
        {
            "clients": clients,
            "peers": list(peers),
            "mask": b"".join(keys.mask for keys in peers.values()),
            "share": b"".join(keys.share for keys in peers.values()),
        }
    )


def read_share_question(record: Mapping) -> tuple[dict[int, Keys], int]:
    """Return the peers' keys and how many take part.

    Raises:
        ValueError: the record holds something else.
    """
    peers = _numbers(record, "peers")
    masks, shares = (_list(record, n, len(peers), KEY_BYTES) for n in ("mask", "share"))
    keys = map(Keys, masks, shares)
    return dict(zip(peers, keys, strict=True)), int(record["clients"])


def shares_reply(shares: Shares) -> ConfigRecord:
    """Return a client's reply in the second step."""
    holders = sorted(shares.digests)
    return ConfigRecord(
        {
            "sealed": b"".join(shares.sealed[peer] for peer in sorted(shares.sealed)),
            "of_seed": b"".join(shares.digests[h][0] for h in holders),
            "of_key": b"".join(shares.digests[h][1] for h in holders),
            "seed": shares.seed,
        }
    )


def read_shares(record: Mapping, client: int, peers: Sequence[int]) -> Shares:
    """Return what :func:`shares_reply` holds.

    Args:
        record: of the client.
        client: its number.
        peers: its peers.

    Raises:
        ValueError: it holds something else.
    """
    peers, holders = sorted(peers), sorted([*peers, client])
    sealed = _list(record, "sealed", len(peers), SEALED_BYTES)
    seeds, keys = (_list(record, n, len(holders), DIGEST_BYTES) for n in ("of_seed", "of_key"))
    digests = zip(seeds, keys, strict=True)
    seed = _bytes(record, "seed", DIGEST_BYTES)
    return Shares(
        dict(zip(peers, sealed, strict=True)), dict(zip(holders, digests, strict=True)), seed
    )


def mask_question(inbox: Mapping[int, Inbox]) -> ConfigRecord:
    """Return what a client is sent in the third step."""
    return ConfigRecord(
        {
            "peers": list(inbox),
            "sealed": b"".join(sent.sealed for sent in inbox.values()),
            "of_seed": b"".join(sent.digests[0] for sent in inbox.values()),
            "of_key": b"".join(sent.digests[1] for sent in inbox.values()),
        }
    )


def read_mask_question(record: Mapping) -> dict[int, Inbox]:
    """Return the peers' shares.

    Raises:
        ValueError: the record holds something else.
    """
    peers = _numbers(record, "peers")
    lengths = {"sealed": SEALED_BYTES, "of_seed": DIGEST_BYTES, "of_key": DIGEST_BYTES}
    columns = [_list(record, name, len(peers), length) for name, length in lengths.items()]
    return {
        peer: Inbox(sealed, (seed, key))
        for peer, sealed, seed, key in zip(peers, *columns, strict=True)
    }


def masked_reply(vector: np.ndarray) -> ConfigRecord:
    """Return a client's reply in the third step."""
    return ConfigRecord({"masked": vector.astype("<u4").tobytes()})


def read_masked(record: Mapping, size: int) -> np.ndarray:
    """Return a masked vector, (size,) uint32.

    Raises:
        ValueError: the record holds something else.
    """
    return np.frombuffer(_bytes(record, "masked", 4 * size), "<u4").astype(np.uint32)


def unmask_question(survivors: Sequence[int], lost: Sequence[int]) -> ConfigRecord:
    """Return what a client is sent in the fourth step."""
    return ConfigRecord({"survivors": list(survivors), "lost": list(lost)})


def read_unmask_question(record: Mapping) -> tuple[list[int], list[int]]:
    """Return the survivors and the lost.

    Raises:
        ValueError: the record holds something else.
    """
    return _numbers(record, "survivors"), _numbers(record, "lost")


def unmask_reply(given: Unmasking) -> ConfigRecord:
    """Return a client's reply in the fourth step."""
    return ConfigRecord(
        {
            "seeds": b"".join(given.seeds[client] for client in sorted(given.seeds)),
            "keys": b"".join(given.keys[client] for client in sorted(given.keys)),
        }
    )


def read_unmasking(record: Mapping, survivors: Sequence[int], lost: Sequence[int]) -> Unmasking:
    """Return what :func:`unmask_reply` holds.

    Args:
        record: of a client.
        survivors, lost: that it was asked about.

    Raises:
        ValueError: it holds something else.
    """
    seeds = _list(record, "seeds", len(survivors), SHARE_BYTES)
    keys = _list(record, "keys", len(lost), SHARE_BYTES)
    return Unmasking(
        dict(zip(sorted(survivors), seeds, strict=True)), dict(zip(sorted(lost), keys, strict=True))
    )


def accusation(liars: Sequence[int]) -> ConfigRecord:
    """Return the answer of a client that got what no honest client sends."""
    return ConfigRecord({"accused": list(liars)})


def read_accusation(record: Mapping) -> list[int]:
    """Return whom a client accuses; empty: nobody.

    Raises:
        ValueError: the record holds something else.
    """
    return _numbers(record, "accused") if "accused" in record else []


def _bytes(record: Mapping, name: str, length: int) -> bytes:
    value = record.get(name)
    if not isinstance(value, bytes) or len(value) != length:
        raise ValueError(f"{name} is not of {length:,} bytes")
    return value


def _list(record: Mapping, name: str, count: int, length: int) -> list[bytes]:
    """What was joined to one value: Flower looks at each entry of a list."""
    joined = _bytes(record, name, count * length)
    return [joined[at : at + length] for at in range(0, len(joined), length)]


def _numbers(record: Mapping, name: str) -> list[int]:
    values = record.get(name)
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError(f"{name} is no list of numbers")
    if len(set(values)) < len(values) or min(values, default=0) < 0:
        raise ValueError(f"{name} has a number twice, or one below zero")
    return values
