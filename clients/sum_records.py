"""The steps of a secure sum as Flower's records, both ways. What is read came from somebody else:
its kinds and lengths are checked. Values of one length, as keys and shares are, are joined."""

from collections.abc import Iterable, Mapping, Sequence

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
            "peers": _joined(peers),
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
    peers, holders = sorted(shares.sealed), sorted(shares.of_seed)
    return ConfigRecord(
        {
            "sealed": b"".join(map(shares.sealed.__getitem__, peers)),
            "of_seed": b"".join(map(shares.of_seed.__getitem__, holders)),
            "of_key": b"".join(map(shares.of_key.__getitem__, holders)),
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
    return Shares(
        dict(zip(peers, sealed, strict=True)),
        dict(zip(holders, seeds, strict=True)),
        dict(zip(holders, keys, strict=True)),
        _bytes(record, "seed", DIGEST_BYTES),
    )


def mask_question(inbox: Mapping[int, Inbox]) -> ConfigRecord:
    """Return what a client is sent in the third step."""
    return ConfigRecord(
        {
            "peers": _joined(inbox),
            "sealed": b"".join([sent.sealed for sent in inbox.values()]),
            "of_seed": b"".join([sent.of_seed for sent in inbox.values()]),
            "of_key": b"".join([sent.of_key for sent in inbox.values()]),
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
    return dict(zip(peers, map(Inbox, *columns), strict=True))


def masked_reply(vector: bytes) -> ConfigRecord:
    """Return a client's reply in the third step.

    Args:
        vector: under masks, 4 bytes a number, little-endian.
    """
    return ConfigRecord({"masked": vector})


def read_masked(record: Mapping, size: int) -> np.ndarray:
    """Return a masked vector, (size,) uint32.

    Raises:
        ValueError: the record holds something else.
    """
    return np.frombuffer(_bytes(record, "masked", 4 * size), "<u4").astype(np.uint32, copy=False)


def unmask_question(survivors: Sequence[int], lost: Sequence[int]) -> ConfigRecord:
    """Return what a client is sent in the fourth step."""
    return ConfigRecord({"survivors": _joined(survivors), "lost": _joined(lost)})


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
    return ConfigRecord({"accused": _joined(liars)})


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


def _joined(numbers: Iterable[int]) -> bytes:
    """Numbers of clients as one value."""
    return np.fromiter(numbers, "<u4").tobytes()


def _numbers(record: Mapping, name: str) -> list[int]:
    joined = record.get(name)
    if not isinstance(joined, bytes) or len(joined) % 4:
        raise ValueError(f"{name} is no list of numbers")
    numbers = np.frombuffer(joined, "<u4").tolist()
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{name} has a number twice")
    return numbers
