"""What noise guarantees: epsilon of a number of noised sums, by Google's dp-accounting.

The mechanism: in every round each client takes part by a draw of its own (Poisson sampling with a
rate; all of them at rate 1), each contribution has an L2 norm of at most ``clip``, and the sum gets
Gaussian noise of the deviation ``noise_multiplier * clip``. Two federations are neighbours when
one has one client more than the other (add or remove one).

Nothing is accounted here by code of our own: RDP (Mironov, CSF 2017; Mironov et al.,
arXiv 1908.10530) and PLD (Koskela et al., AISTATS 2020; Doroshenko et al., PoPETs 2022) are
dp-accounting's, with its default orders and its default grid.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

from fedpgp.errors import FedPGPError, check_choice, check_number

ACCOUNTANTS = ("rdp", "pld")
"""``rdp``: Renyi differential privacy, fast; ``pld``: privacy loss distributions, tighter by some
percent, and some seconds slower."""


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
    check_choice("privacy.accountant", accountant, ACCOUNTANTS)
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    if accountant == "pld":
        return _pld_epsilon(noise_multiplier, rate, rounds, delta)
    orders, one_round = _rdp_of_a_round(noise_multiplier, rate)
    return float(_dp_accounting().rdp.compute_epsilon(orders, rounds * one_round, delta)[0])


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
    check_choice("privacy.accountant", accountant, ACCOUNTANTS)
    if rounds == 0:
        return 0.0

    def gap(noise: float) -> float:
        return epsilon(noise, rate, rounds, delta, accountant) - target

    # A bracket with finite ends. PLD is heavy where the noise is small: it begins at RDP's answer.
    guess = 1.0 if accountant == "rdp" else calibrate(target, rate, rounds, delta)
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
    with _quiet():
        return float(
            dp.calibrate_dp_mechanism(
                accountants[accountant],
                lambda noise: dp.SelfComposedDpEvent(_event(noise, rate), rounds),
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


def resolve_delta(delta: float | None, clients: int) -> float:
    """Return the delta of a run: what is set, or a tenth of 1/clients.

    Args:
        delta: None takes the default.
        clients: that can take part.

    Raises:
        FedPGPError: it is no number above 0, or 1/clients or more: then a mechanism that publishes
            one client's data whole would count as private.
    """
    if delta is None:
        return 1 / (10 * clients)
    check_number("privacy.delta", delta, above=0, below=1)
    if delta >= 1 / clients:
        raise FedPGPError(
            f"privacy.delta={delta:g} guarantees nothing to {clients} clients: at 1/{clients} or "
            "more, publishing a whole client would count as private; take much less, or null for "
            f"{1 / (10 * clients):g}"
        )
    return delta


def _event(noise_multiplier: float, rate: float):
    dp = _dp_accounting()
    gaussian = dp.GaussianDpEvent(noise_multiplier)
    return gaussian if rate == 1 else dp.PoissonSampledDpEvent(rate, gaussian)


@lru_cache(maxsize=64)
def _rdp_of_a_round(noise_multiplier: float, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Orders, and the RDP of one round at each; that of several is as many times it."""
    with _quiet():
        accountant = _dp_accounting().rdp.RdpAccountant()
        accountant.compose(_event(noise_multiplier, rate))
    return accountant.orders, accountant.rdp


@lru_cache(maxsize=4096)
def _pld_epsilon(noise_multiplier: float, rate: float, rounds: int, delta: float) -> float:
    accountant = _dp_accounting().pld.PLDAccountant()
    accountant.compose(_event(noise_multiplier, rate), rounds)
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warnings of orders that did not converge; they are left out of the minimum, and
    what remains is still an upper bound."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
