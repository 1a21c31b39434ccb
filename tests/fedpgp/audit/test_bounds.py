"""The lower bound of epsilon: against the theorem's own sums, and a mechanism whose epsilon is
known."""

import math
from math import comb

import numpy as np
import pytest

from fedpgp.audit.bounds import chance, epsilon_bound, largest_refuted
from fedpgp.errors import FedPGPError


def theorem(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Theorem 5.2 of arXiv 2305.08846, term by term."""
    q = math.exp(epsilon) / (math.exp(epsilon) + 1)

    def mass(k: int) -> float:
        return comb(guesses, k) * q**k * (1 - q) ** (guesses - k)

    beta = sum(mass(k) for k in range(right, guesses + 1))
    alpha = max(
        sum(mass(k) for k in range(max(0, right - i), right)) / i for i in range(1, canaries + 1)
    )
    return min(1.0, beta + 2 * canaries * delta * alpha)


@pytest.mark.parametrize(
    ("right", "epsilon", "delta"), [(9, 0.3, 0.0), (12, 1.0, 1e-2), (6, 2.0, 1e-3), (12, 0.0, 0.05)]
)
def test_the_chance_is_the_theorem_s(right, epsilon, delta):
    assert chance(20, 12, right, epsilon, delta) == pytest.approx(
        theorem(20, 12, right, epsilon, delta), rel=1e-9
    )


def test_the_bound_is_where_the_chance_is_one_less_the_confidence():
    found = largest_refuted(200, 100, 90, 1e-4, 0.95)
    assert found > 1
    assert theorem(200, 100, 90, found, 1e-4) == pytest.approx(0.05, abs=1e-7)


def test_all_right_without_noise_is_limited_by_the_number_of_guesses():
    coins = np.random.default_rng(0).random(400) < 0.5
    found = epsilon_bound(coins.astype(float), coins)
    assert found.right == found.guesses == 200 and found.epsilon == found.limit
    q = 0.05 ** (1 / 200)  # q^200 = 5 %
    assert found.epsilon == pytest.approx(math.log(q / (1 - q)), abs=1e-6)


def test_coins_that_nobody_sees_give_nothing():
    rng = np.random.default_rng(1)
    found = [epsilon_bound(rng.random(100), rng.random(100) < 0.5) for _ in range(200)]
    assert sum(f.epsilon > 0 for f in found) <= 20  # of 200 at 95 %: 10 are expected


def test_randomized_response_is_accused_of_more_than_it_has_as_seldom_as_is_said():
    """It tells the truth with probability e^eps / (1 + e^eps), and has exactly that epsilon."""
    rng, epsilon, accused, nearest = np.random.default_rng(2), 1.0, 0, 0.0
    for _ in range(200):
        coins = rng.random(1000) < 0.5
        truthful = rng.random(1000) < 1 / (1 + math.exp(-epsilon))
        found = epsilon_bound(np.where(truthful, coins, ~coins) + 1e-3 * rng.random(1000), coins)
        accused += found.epsilon > epsilon
        nearest = max(nearest, found.epsilon)
    assert accused <= 20 and nearest > 0.8


@pytest.mark.parametrize(
    "wrong", [{"delta": 1.0}, {"delta": -0.1}, {"confidence": 1.0}, {"guessed": 0.0}]
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(FedPGPError, match=next(iter(wrong))):
        epsilon_bound([0, 1], [False, True], **wrong)
