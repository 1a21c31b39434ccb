"""Epsilon against dp-accounting's own composition of events, written out here."""

import math
import subprocess
import sys

import dp_accounting as dp
import pytest

from fedpgp.errors import FedPGPError
from fedpgp.updates.accounting import calibrate, epsilon, resolve_delta, sum_noise

ACCOUNTANTS = {"rdp": dp.rdp.RdpAccountant, "pld": dp.pld.PLDAccountant}


@pytest.mark.parametrize("name", ["rdp", "pld"])
@pytest.mark.parametrize(("noise", "rate", "rounds"), [(1.0, 0.1, 30), (2.5, 1.0, 10)])
def test_it_is_the_composition_of_the_rounds_events(name, noise, rate, rounds):
    event = dp.GaussianDpEvent(noise)
    if rate < 1:
        event = dp.PoissonSampledDpEvent(rate, event)
    whole = dp.SelfComposedDpEvent(event, rounds)
    expected = ACCOUNTANTS[name]().compose(whole).get_epsilon(1e-3)
    assert epsilon(noise, rate, rounds, 1e-3, name) == pytest.approx(expected, rel=1e-9)


def test_rounds_composed_one_by_one_are_the_same():
    accountant = dp.rdp.RdpAccountant()
    for rounds in range(1, 6):
        accountant.compose(dp.PoissonSampledDpEvent(0.2, dp.GaussianDpEvent(1.2)))
        expected = accountant.get_epsilon(1e-4)
        assert epsilon(1.2, 0.2, rounds, 1e-4) == pytest.approx(expected, rel=1e-9)


def test_full_participation_is_the_gaussian_mechanism():
    """Balle & Wang, ICML 2018: the exact epsilon of k noises z is that of one of z / sqrt(k)."""
    exact = dp.get_epsilon_gaussian(2.0 / math.sqrt(4), 1e-3)
    assert epsilon(2.0, 1.0, 4, 1e-3, "pld") == pytest.approx(exact, rel=1e-3)
    assert exact < epsilon(2.0, 1.0, 4, 1e-3, "rdp") < 1.25 * exact


def test_more_rounds_a_higher_rate_and_less_noise_cost_more():
    def of(noise=1.0, rate=0.2, rounds=10, delta=1e-3):
        return epsilon(noise, rate, rounds, delta)

    base = of()
    assert of(rounds=11) > base and of(rate=0.3) > base and of(rate=1.0) > of(rate=0.99)
    assert of(noise=0.9) > base and of(delta=1e-4) > base


def test_the_ends():
    assert epsilon(1.0, 0.2, 0, 1e-3) == 0
    assert epsilon(0.0, 0.2, 1, 1e-3) == math.inf
    assert calibrate(1.0, 0.2, 0, 1e-3) == 0


@pytest.mark.parametrize(
    ("name", "target", "rate", "rounds"),
    [
        ("rdp", 2.0, 0.1, 10),
        ("rdp", 8.0, 1.0, 10),
        pytest.param("pld", 2.0, 0.5, 2, marks=pytest.mark.slow),
    ],
)
def test_calibrating_is_the_inverse_from_below(name, target, rate, rounds):
    noise = calibrate(target, rate, rounds, 1e-3, name)
    assert epsilon(noise, rate, rounds, 1e-3, name) <= target
    assert epsilon(noise - 1e-3, rate, rounds, 1e-3, name) > target


def test_an_epsilon_that_no_noise_reaches_is_said():
    with pytest.raises(FedPGPError, match="privacy.epsilon=1e-09 cannot be reached"):
        calibrate(1e-9, 1.0, 10, 1e-12)


def test_delta_has_a_default_and_a_bound():
    assert resolve_delta(None, 24) == 1 / 240
    assert resolve_delta(1e-3, 24) == 1e-3
    for delta in (1 / 24, 0.5):
        with pytest.raises(FedPGPError, match="privacy.delta=.* guarantees nothing to 24 clients"):
            resolve_delta(delta, 24)
    with pytest.raises(FedPGPError, match="privacy.delta"):
        resolve_delta(0, 24)


def test_the_package_is_imported_when_it_is_needed_and_missed_by_name():
    code = """
import sys
sys.modules["dp_accounting"] = None
from fedpgp.errors import FedPGPError
from fedpgp.updates.accounting import epsilon
try:
    epsilon(1.0, 1.0, 1, 1e-3)
except FedPGPError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "dp-accounting" in said and "pip install 'fedpgp[privacy]'" in said


@pytest.mark.parametrize("name", ["rdp", "pld"])
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_a_noised_count_beside_the_sum_costs_what_the_sum_alone_did(name, rate):
    """The count's clients add +-1/2, so that its multiplier is twice its noise; dp-accounting
    composes the two Gaussians of a round itself."""
    noise, count_noise, rounds = 1.3, 0.9, 7
    both = [sum_noise(noise, count_noise), 2 * count_noise]
    event = dp.ComposedDpEvent([dp.GaussianDpEvent(multiplier) for multiplier in both])
    if name == "pld" and rate < 1:  # it takes one Gaussian in a sample: both as one
        event = dp.GaussianDpEvent(sum(multiplier**-2 for multiplier in both) ** -0.5)
    if rate < 1:
        event = dp.PoissonSampledDpEvent(rate, event)
    accountant = ACCOUNTANTS[name]()
    expected = accountant.compose(dp.SelfComposedDpEvent(event, rounds)).get_epsilon(1e-3)
    assert epsilon(noise, rate, rounds, 1e-3, name) == pytest.approx(expected, rel=1e-9)


def test_no_noise_on_the_sum_makes_up_for_too_little_on_the_count():
    assert sum_noise(1.0, 1.0) == pytest.approx(2 / math.sqrt(3)) and sum_noise(0.0, 0.0) == 0
    with pytest.raises(FedPGPError, match="privacy.count_noise=0.5: .*, 1; take more, or null"):
        sum_noise(1.0, 0.5)
