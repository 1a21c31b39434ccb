"""Which updates are out of proportion, and what a client that counts its own images may weigh."""

import numpy as np
import pytest

from strategies.screening import capped, norm, too_large, update_norms

SENT = {"p_G": np.ones((2, 3)), "c": np.full(2, 5.0)}


def update(change: float, c: float = 0.1) -> dict[str, np.ndarray]:
    """A change of this norm, and a difference of that one."""
    return {"p_G": SENT["p_G"] + np.full((2, 3), change / np.sqrt(6)), "c": np.array([c, 0.0])}


def refused(updates: dict, most: float = 20.0, spare: int = 10) -> dict[int, str]:
    return too_large(updates, SENT, ("c",), most, spare)


def test_norms_are_of_the_change_and_of_the_difference_as_it_is():
    np.testing.assert_allclose(
        update_norms(update(3.0, -0.7), SENT, ("c",)), (3.0, 0.7), rtol=1e-12
    )


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1.0, 1e30, 1e200])
def test_a_norm_does_not_overflow(scale):
    np.testing.assert_allclose(
        norm([np.array([3.0, 0.0]) * scale, np.array([[4.0]]) * scale]), 5 * scale, rtol=1e-12
    )
    assert norm([]) == 0.0 and norm([np.empty(0)]) == 0.0


@pytest.mark.parametrize("wrong", [1e30, -1e3, 1e308])
def test_one_of_many_is_refused_and_named(wrong):
    updates = {client: update(1 + client / 10) for client in range(24)} | {7: update(wrong)}
    reasons = refused(updates)
    assert (
        set(reasons) == {7}
        and "times as large as the round's median (strategy.max_update_norm=20)" in reasons[7]
    )
    assert refused(updates, most=float("inf")) == {}


def test_clients_that_move_differently_are_not():
    assert (
        refused({client: update(0.5 * 2.0**client) for client in range(8)}) == {}
    )  # 0.5 to 64, median 4
    assert set(refused({client: update(0.5 * 2.0**client) for client in range(8)}, most=10)) == {7}


def test_a_control_variate_is_measured_by_itself():
    """Against the server's own variate of 5, a lie of 5 would be nothing; against the
    others' it is fifty times."""
    updates = {client: update(1.0, 0.1) for client in range(5)} | {3: update(1.0, 5.0)}
    assert set(refused(updates)) == {3}
    assert refused(updates, most=60) == {}


def test_nobody_moved():
    assert refused({client: update(0.0, 0.0) for client in range(5)}) == {}


def test_most_did_not_move():
    """The measure is that of those who did; one that moved alone has no measure."""
    still = {client: update(0.0, 0.0) for client in range(10)}
    assert refused(still | {1: update(1.0), 2: update(3.0)}) == {}
    assert set(refused(still | {1: update(1.0), 2: update(3.0), 3: update(1e6)})) == {3}
    assert refused(still | {1: update(1.0)}) == {}


def test_one_and_two_clients():
    assert refused({4: update(1e30)}) == {}
    assert set(refused({4: update(1e30), 5: update(1.0)})) == {4}


def test_of_two_honest_clients_none_is_left_out_because_the_other_has_learned_its_images():
    assert refused({4: update(1.0), 5: update(1e-3)}) == {}
    assert set(refused({4: update(1.0), 5: update(1e-3), 6: update(1e-3)})) == {4}


def test_a_strategy_keeps_as_many_as_it_needs():
    """The largest go first; a strategy that needs seven of eight has to bear with one liar
    itself."""
    updates = {client: update(1.0) for client in range(8)} | {2: update(1e3), 5: update(1e6)}
    assert set(refused(updates)) == {2, 5}
    assert set(refused(updates, spare=1)) == {5}
    assert refused(updates, spare=0) == {} == refused(updates, spare=-1)


def test_a_claim_of_many_images_is_capped():
    assert capped({0: 40, 1: 50, 2: 10**15, 3: 60}, 10) == {2: 500}
    assert capped({0: 40, 1: 50}, 10) == {} == capped({3: 10**9}, 10)
    assert capped({0: 1, 1: 10**9}, 1.5) == {1: 1}
