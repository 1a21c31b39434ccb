"""What noise guarantees: epsilon of a number of noised sums, by Google's dp-accounting.

The mechanism: in every round each client takes part by a draw of its own (Poisson sampling with a
rate; all of them at rate 1), each contribution has an L2 norm of at most ``clip``, and the sum gets
Gaussian noise of the deviation ``noise_multiplier * clip``. Two federations are neighbours when
one has one client more than the other (add or remove one). With ``privacy=image`` images of one
client take the place of clients, and its steps that of rounds.

Nothing is accounted here by code of our own: RDP (Mironov, CSF 2017; Mironov et al.,
arXiv 1908.10530) and PLD (Koskela et al., AISTATS 2020; Doroshenko et al., PoPETs 2022) are
dp-accounting's, with its default orders and its default grid.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from fedpgp.errors import FedPGPError, check_choice, check_number
from fedpgp.quiet_log import errors_alone

ACCOUNTANTS = ("rdp", "pld")
"""``rdp``: Renyi differential privacy, fast; ``pld``: privacy loss distributions, tighter by some
percent, and some seconds slower."""


Spent = Sequence[tuple[float, float, int]]
"""Noised sums: noise multiplier, rate, how many of them."""


def epsilon(
    noise_multiplier: float, rate: float, rounds: int, delta: float, accountant: str = "rdp"
) -> float:
    """Return epsilon after so many rounds; infinite without noise.

    Args:
        noise_multiplier: deviation of the noise on the sum over the clipping norm.
        rate: chance of a client to take part in a round; 1: all do.
        rounds: number of noised sums.
        delta: above 0, below 1.
        accountant: one of :data:`ACCOUNTANTS`.

    Raises:
        FedPGPError: dp-accounting is not installed, or there is no such accountant.
    """
    return composed_epsilon([(noise_multiplier, rate, rounds)], delta, accountant)


def composed_epsilon(spent: Spent, delta: float, accountant: str = "rdp") -> float:
    """Return epsilon of noised sums of several kinds; raises and the rest as :func:`epsilon`."""
    check_choice("privacy.accountant", accountant, ACCOUNTANTS)
    spent = [(noise, rate, count) for noise, rate, count in spent if count]
    if not spent:
        return 0.0
    if any(noise == 0 for noise, _, _ in spent):
        return math.inf
    if accountant == "pld":
        return _pld_epsilon(tuple(sorted(spent)), delta)
    total: np.ndarray | float = 0.0
    for noise, rate, count in spent:
        orders, one_round = _rdp_of_a_round(noise, rate)
        total = total + count * one_round
    return float(_dp_accounting().rdp.compute_epsilon(orders, total, delta)[0])


def calibrate(
    target: float, rate: float, rounds: int, delta: float, accountant: str = "rdp"
) -> float:
    """Return the least noise multiplier (to 1e-6) whose epsilon after so many rounds is at most the
    target.

    Args:
        target: epsilon, above 0.
        rate, rounds, delta, accountant: as in :func:`epsilon`.

    Raises:
        FedPGPError: as :func:`epsilon`, or no noise is enough.
    """
    return calibrate_composed(target, [(rate, rounds)], delta, accountant)


def calibrate_composed(
    target: float, plan: Sequence[tuple[float, int]], delta: float, accountant: str = "rdp"
) -> float:
    """Return the least noise multiplier of sums of several rates, as :func:`calibrate`.

    Args:
        target, delta, accountant: as there.
        plan: rates, and how many sums have each.
    """
    check_choice("privacy.accountant", accountant, ACCOUNTANTS)
    plan = [(rate, count) for rate, count in plan if count]
    if not plan:
        return 0.0

    def gap(noise: float) -> float:
        spent = [(noise, rate, count) for rate, count in plan]
        return composed_epsilon(spent, delta, accountant) - target

    def event(noise: float):
        kinds = [dp.SelfComposedDpEvent(_event(noise, rate), count) for rate, count in plan]
        return kinds[0] if len(kinds) == 1 else dp.ComposedDpEvent(kinds)

    # A bracket with finite ends. PLD is heavy where the noise is small: it begins at RDP's answer.
    guess = 1.0 if accountant == "rdp" else calibrate_composed(target, plan, delta)
    step = 2.0 if accountant == "rdp" else 1.1
    low = high = guess
    while gap(high) > 0:
        low, high = high, high * step
        if high > 1e6:
            raise FedPGPError(
                f"privacy.epsilon={target:g} cannot be reached with delta={delta:g}; take a larger "
                "privacy.epsilon or privacy.delta"
            )
    while gap(low) <= 0:
        low, high = low / step, low
        if low < 1e-3:  # so little noise that it does not matter how little
            return high
    dp = _dp_accounting()
    accountants = {"rdp": dp.rdp.RdpAccountant, "pld": dp.pld.PLDAccountant}
    # It warns of orders that did not converge. They are left out of the minimum; what remains is
    # still an upper bound.
    with errors_alone("absl"):
        return float(
            dp.calibrate_dp_mechanism(
                accountants[accountant],
                event,
                target,
                delta,
                dp.ExplicitBracketInterval(low, high),
            )
        )


def sum_noise(noise_multiplier: float, count_noise: float) -> float:
    """Return the noise multiplier on the sum of updates which, together with the noise on a count,
    is as private as ``noise_multiplier`` on the sum alone: (z^-2 - (2 s)^-2)^(-1/2) (Andrew et al.,
    NeurIPS 2021, Theorem 1).

    Args:
        noise_multiplier: z; 0: no noise at all.
        count_noise: s, deviation of the noise on the count; each client adds +-1/2 to it.

    Raises:
        FedPGPError: so little noise on the count that no noise on the sum makes up for it.
    """
    if noise_multiplier == 0:
        return 0.0
    if 2 * count_noise <= noise_multiplier:
        raise FedPGPError(
            f"privacy.count_noise={count_noise:g}: the noise on the count has to be more than half "
            f"of the noise multiplier, {noise_multiplier:g}; take more, or null"
        )
    return (noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5


def resolve_delta(delta: float | None, count: int, unit: str = "client") -> float:
    """Return the delta of a run: what is set, or a tenth of 1/count.

    Args:
        delta: None takes the default.
        count: of what is protected: the clients that can take part, or a client's images.
        unit: whether it is a client or an image.

    Raises:
        FedPGPError: it is no number above 0, or 1/count or more: then a mechanism that publishes
            one of them whole would count as private.
    """
    if delta is None:
        return 1 / (10 * count)
    check_number("privacy.delta", delta, above=0, below=1)
    if delta >= 1 / count:
        raise FedPGPError(
            f"privacy.delta={delta:g} guarantees nothing to {count} {unit}s: at 1/{count} or "
            f"more, publishing a whole {unit} would count as private; take much less, or null for "
            f"{1 / (10 * count):g}"
        )
    return delta


def _event(noise_multiplier: float, rate: float):
    dp = _dp_accounting()
    gaussian = dp.GaussianDpEvent(noise_multiplier)
    return gaussian if rate == 1 else dp.PoissonSampledDpEvent(rate, gaussian)


@lru_cache(maxsize=4096)
def _rdp_of_a_round(noise_multiplier: float, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Orders, and the RDP of one round at each; that of several is as many times it."""
    with errors_alone("absl"):
        accountant = _dp_accounting().rdp.RdpAccountant()
        accountant.compose(_event(noise_multiplier, rate))
    return accountant.orders, accountant.rdp


@lru_cache(maxsize=4096)
def _pld_epsilon(spent: Spent, delta: float) -> float:
    accountant = _dp_accounting().pld.PLDAccountant()
    for noise, rate, count in spent:
        accountant.compose(_event(noise, rate), count)
    return float(accountant.get_epsilon(delta))


def _dp_accounting():
    """The package, which takes seconds to import: only runs with privacy pay for it."""
    try:
        import dp_accounting
    except ImportError as error:
        raise FedPGPError(
            f"privacy needs the package dp-accounting ({error}): pip install 'fedpgp[privacy]'"
        ) from None
    return dp_accounting
