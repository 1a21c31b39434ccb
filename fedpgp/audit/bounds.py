"""A lower bound of epsilon from guesses who was there (Steinke, Nasr and Jagielski, NeurIPS 2023,
arXiv 2305.08846).

Each of m canaries is there by a fair coin of its own. An attacker sees what comes out, and guesses
the coin of r of them. If the mechanism is (epsilon, delta)-differentially private with regard to
adding or removing one of them, v or more right guesses have at most the probability
(Theorem 5.2)

    beta + 2 m delta alpha,   beta = P[B >= v],   alpha = max_(1 <= i <= v) P[v > B >= v - i] / i,
    B ~ Binomial(r, e^epsilon / (1 + e^epsilon)).

The largest epsilon for which that is below 1 - confidence is refuted: epsilon is above it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

from fedpgp.errors import check_number

MOST_EPSILON = 60.0
"""No bound is looked for above it: no number of guesses that a machine can make refutes more."""


@dataclass(frozen=True)
class EpsilonBound:
    """A lower bound of epsilon.

    Attributes:
        epsilon: at least so much, with that confidence; 0 where the guesses show nothing.
        confidence: chance that a mechanism with a smaller epsilon is not accused wrongly.
        delta: for which the bound holds.
        canaries: m.
        guesses: r.
        right: v.
        limit: the largest bound that so many guesses can give, all of them right.
    """

    epsilon: float
    confidence: float
    delta: float
    canaries: int
    guesses: int
    right: int
    limit: float


def epsilon_bound(
    scores: Sequence[float],
    included: Sequence[bool],
    *,
    delta: float = 0.0,
    confidence: float = 0.95,
    guessed: float = 0.5,
) -> EpsilonBound:
    """Return the lower bound of epsilon from scores of canaries.

    The highest scores are guessed to be there, and as many of the lowest not to be; the others are
    passed over. How many are guessed must not depend on the coins.

    Args:
        scores: (m,), higher for a canary that seems to be there.
        included: (m,), whether it was: fair coins, independent of each other.
        delta: of the guarantee that is tested.
        confidence: of the bound.
        guessed: fraction of the canaries that are guessed.

    Example:
        >>> found = epsilon_bound([0, 0, 1, 1] * 50, [False, False, True, True] * 50)
        >>> found.right, found.guesses, round(found.epsilon, 2)
        (100, 100, 3.49)

    Raises:
        FedPGPError: a delta, confidence or fraction that cannot be.
    """
    check_number("delta", delta, least=0, below=1)
    check_number("confidence", confidence, above=0, below=1)
    check_number("guessed", guessed, above=0, most=1)
    there = np.asarray(included, dtype=bool)
    order = np.argsort(np.asarray(scores, dtype=float), kind="stable")
    half = int(guessed * len(order) / 2)
    low, high = order[:half], order[len(order) - half :]
    right = int(np.count_nonzero(there[high]) + np.count_nonzero(~there[low]))
    about = (len(order), 2 * half)
    return EpsilonBound(
        largest_refuted(*about, right, delta, confidence),
        confidence,
        delta,
        *about,
        right,
        largest_refuted(*about, 2 * half, delta, confidence),
    )


def largest_refuted(
    canaries: int, guesses: int, right: int, delta: float, confidence: float
) -> float:
    """Return the largest epsilon that so many right guesses refute; 0 where they refute none."""

    def left(epsilon: float) -> float:
        return chance(canaries, guesses, right, epsilon, delta) - (1 - confidence)

    if guesses == 0 or left(0.0) >= 0:
        return 0.0
    if left(MOST_EPSILON) < 0:
        return MOST_EPSILON
    return float(brentq(left, 0.0, MOST_EPSILON, xtol=1e-9))


def chance(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return the largest chance of so many right guesses, or more, under (epsilon, delta)."""
    correct = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(right - 1, guesses, correct))
    if delta == 0 or right == 0:
        return min(1.0, beta)
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, correct))
    alpha = float(np.max(below / np.arange(1, right + 1)))
    return min(1.0, beta + 2 * canaries * delta * alpha)
