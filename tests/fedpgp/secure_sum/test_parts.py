"""Parts of a secure sum: shares, masks, integers, neighbours."""

import math
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedpgp.errors import FedPGPError
from fedpgp.secure_sum import Graph, Layout, Quantiser, degree, fewest_survivors
from fedpgp.secure_sum.graph import shares_needed
from fedpgp.secure_sum.masks import Agreements, derived, expanded, key_pair, new_seed, public_key
from fedpgp.secure_sum.shamir import PRIME, join, split


def test_any_shares_as_many_as_the_threshold_give_the_secret_and_fewer_another_one():
    secret = new_seed()
    shares = split(secret, [0, 3, 4, 11, 500], 3)
    for some in combinations(shares, 3):
        assert join({holder: shares[holder] for holder in some}) == secret
    for some in combinations(shares, 2):
        assert join({holder: shares[holder] for holder in some}) != secret


def test_the_field_is_one_and_has_room_for_every_secret():
    assert PRIME > 2**256 and all(pow(base, PRIME - 1, PRIME) == 1 for base in (2, 3, 5, 7, 11))
    assert join(split(b"\xff" * 32, [7], 1)) == b"\xff" * 32
    assert join({0: (2**256 + 5).to_bytes(33)}) is None


def test_one_share_less_than_the_threshold_is_uniform():
    """The upper four bits of a share, of the same secret many times."""
    some = [int.from_bytes(split(bytes(32), [0, 1], 2)[1]) * 16 // PRIME for _ in range(1600)]
    counts = np.bincount(some, minlength=16)
    assert ((counts - 100) ** 2 / 100).sum() < 80  # 15 degrees of freedom: once in 10**10


def test_two_clients_agree_and_masks_are_chacha20():
    """RFC 8439, appendix A.1, test vector 1."""
    one, other = new_seed(), new_seed()
    ours = Agreements().of(key_pair(one), public_key(other), b"a")
    theirs = Agreements().of(key_pair(other), public_key(one), b"a")
    assert ours == theirs == derived(_key(one).exchange(_key(other).public_key()), b"a")
    assert ours != Agreements().of(key_pair(one), public_key(other), b"b")
    stream = expanded(bytes(32), 16).tobytes().hex()
    assert stream.startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")


def test_what_two_clients_of_a_process_agree_on_is_computed_once():
    one, other = new_seed(), new_seed()
    known = Agreements()
    ours = known.of(key_pair(one), public_key(other), b"a")
    assert list(known.known.values()) == [ours]
    known.of(key_pair(other), public_key(one), b"b")  # for something else
    assert len(known.known) == 2
    known.known = dict.fromkeys(known.known, b"known")
    assert known.of(key_pair(other), public_key(one), b"a") == b"known"
    assert len(known.known) == 1  # nobody else asks


def _key(private: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(private)


@pytest.mark.parametrize("clients", [1, 3, 24, 1000])
def test_a_sum_of_integers_is_the_plain_sum_within_a_step_a_client(clients):
    quantiser = Quantiser(clients, largest=2.0)
    values = np.random.default_rng(0).uniform(-2, 2, size=(clients, 200))
    values[:, :2] = 2.0, -2.0  # the largest sums do not wrap around
    total = np.zeros(200, np.uint32)
    for each in values:
        total += quantiser.encoded(each)
    error = np.abs(quantiser.decoded(total) - values.sum(axis=0))
    assert error.max() <= clients * quantiser.step / 2 and quantiser.step < clients * 2.0 / 2**30
    noised = Quantiser(clients, largest=2.0, noise=1.0)
    encoded = noised.decoded(noised.encoded(values[0]))
    assert (np.abs(encoded) <= np.abs(values[0])).all()
    assert np.abs(encoded - values[0]).max() < noised.step


def test_a_mean_by_weights_comes_of_the_sums_and_a_weight_has_a_bound():
    rng, layout = np.random.default_rng(0), Layout({"a": (2, 3), "b": (4,)}, most=50)
    quantiser, weights = Quantiser(3, largest=1.0), [7, 50, 80]
    updates = [{"b": rng.uniform(-1, 1, 4), "a": rng.uniform(-1, 1, (2, 3))} for _ in weights]
    encoded = [layout.encoded(u, w, quantiser) for u, w in zip(updates, weights, strict=True)]
    tensors, weight = layout.decoded(sum(encoded), 3, quantiser)
    for name in "ab":
        expected = np.average([u[name] for u in updates], axis=0, weights=[7, 50, 50])
        error = np.abs(tensors[name] / weight - expected)
        assert error.max() < 3 * quantiser.step / 2 / weight
    with pytest.raises(FedPGPError, match="room for 1 "):  # before it is weighed
        layout.encoded({"a": np.full((2, 3), 1.5), "b": np.zeros(4)}, 1, quantiser)


@pytest.mark.parametrize("value", [2.1, -2.1, math.nan, math.inf])
def test_what_there_is_no_room_for_is_an_error(value):
    with pytest.raises(FedPGPError, match=r"room for 2 \(privacy.secure_sum_range\)"):
        Quantiser(5, largest=2.0).encoded(np.array([0.0, value]))


def test_noise_of_as_few_as_stay_adds_up_to_that_of_the_sum():
    quantiser, rng = Quantiser(5, largest=1.0, noise=0.7), np.random.default_rng(0)
    one = quantiser.deviation_of_one(4)
    total = sum(quantiser.noise_of_one(rng.normal(size=20_000), one) for _ in range(4))
    assert quantiser.decoded(total).std() == pytest.approx(0.7, rel=0.03)
    with pytest.raises(FedPGPError, match="take more privacy.noise"):
        Quantiser(5, largest=1.0, noise=1e-9).deviation_of_one(4)


def test_a_graph_gives_each_client_as_many_neighbours_both_ways():
    for count in (1, 2, 33, 34, 200):
        clients = [3 * number for number in range(count)]
        graph = Graph(clients, 2 / 3)
        neighbours = {client: graph.neighbours(client) for client in clients}
        for client, near in neighbours.items():
            assert len(set(near)) == degree(count, 2 / 3) and client not in near
            assert all(client in neighbours[other] for other in near)
    assert degree(33, 2 / 3) == 32 and degree(34, 2 / 3) == 32


def test_the_degree_is_enough_by_a_count_of_all_cases():
    """Tails of the hypergeometric distribution at 1,000 clients, from logarithms of gamma."""

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    def tail(marked: int, drawn: int, least: int) -> float:
        return sum(
            math.exp(
                log_choose(marked, i) + log_choose(999 - marked, drawn - i) - log_choose(999, drawn)
            )
            for i in range(least, drawn + 1)
        )

    def enough(k: int) -> bool:
        needed = shares_needed(2 / 3, k + 1)
        return 1000 * tail(49, k, k - needed + 1) < 2**-20 and 1000 * tail(100, k, needed) < 2**-40

    k = degree(1000, 2 / 3)
    assert k == 46 and enough(k) and not enough(k - 2)
    assert fewest_survivors(1000, 2 / 3) == math.ceil(1000 * shares_needed(2 / 3, 47) / 47)


@pytest.mark.parametrize(
    ("clients", "threshold", "fewest"), [(3, 0.5, 2), (4, 0.5, 3), (20, 2 / 3, 14), (1, 0.5, 1)]
)
def test_how_many_have_to_stay(clients, threshold, fewest):
    assert fewest_survivors(clients, threshold) == fewest
