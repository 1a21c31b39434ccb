"""The noised sum of ``privacy=client`` against plain numpy, its noise, its draws."""

import math

import numpy as np
import pytest
import torch

from fedpgp.errors import FedPGPError
from fedpgp.updates.accounting import epsilon
from fedpgp.updates.base import ClientContext, RoundStart, ServerContext, StopTraining
from fedpgp.updates.client_privacy import ClientPrivacy, ClientPrivacySettings

CLIENTS, TRAINERS, RATE = 12, 10, 0.4
SHARED = {"a": torch.zeros(3, 4), "b": torch.zeros(5)}
RUN = {"num_rounds": 8, "num_clients": CLIENTS, "participation": RATE, "seed": 3}


def started(server_round: int = 1, state: dict | None = None) -> RoundStart:
    state = {} if state is None else state
    return RoundStart(server_round=server_round, num_trainers=TRAINERS, state=state, **RUN)


def prepared(**settings) -> tuple[ClientPrivacy, dict]:
    step, start = ClientPrivacy(ClientPrivacySettings(**settings)), started()
    step.prepare(start)
    return step, start.state


def of_client(**broadcast) -> ClientContext:
    return ClientContext(
        client=0,
        server_round=1,
        num_examples=3,
        global_params=SHARED,
        delta_params=(),
        broadcast=broadcast,
        **RUN,
    )


def combined(step, state, updates, server_round: int = 1):
    context = ServerContext(
        server_round=server_round,
        num_trainers=TRAINERS,
        clients=sorted(updates),
        weights=dict.fromkeys(updates, 1 / max(1, len(updates))),
        metrics={client: {} for client in updates},
        global_params=SHARED,
        delta_params=(),
        lr=0.1,
        state=state,
        **RUN,
    )
    return step.combine(updates, context)


def drawn_updates(scale: float) -> dict[int, dict]:
    rng = np.random.default_rng(5)
    return {
        client: {
            name: torch.from_numpy(scale * (client + 1) * rng.normal(size=tuple(t.shape)))
            for name, t in SHARED.items()
        }
        for client in range(4)
    }


def test_the_sum_of_clipped_updates_over_a_fixed_denominator():
    step, state = prepared(noise=0.0, clip=0.8)
    updates = drawn_updates(0.1)
    change, said = combined(step, state, updates)
    total = np.zeros(17)
    for update in updates.values():
        flat = np.concatenate([update["a"].numpy().ravel(), update["b"].numpy().ravel()])
        length = np.sqrt((flat**2).sum())
        total += flat * (0.8 / length if length > 0.8 else 1.0)
    expected = total / (RATE * TRAINERS)
    got = np.concatenate([change["a"].numpy().ravel(), change["b"].numpy().ravel()])
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    lengths = [
        sum(float(t.square().sum()) for t in update.values()) ** 0.5 for update in updates.values()
    ]
    assert 0 < sum(length > 0.8 for length in lengths) < 4
    assert said == {"clipped": sum(length > 0.8 for length in lengths) / 4}


def test_no_client_moves_the_sum_farther_than_the_clipping_norm():
    step, state = prepared(noise=0.0, clip=0.5)
    updates = drawn_updates(100.0)
    whole, _ = combined(step, dict(state), updates)
    rest, _ = combined(step, dict(state), {c: u for c, u in updates.items() if c != 2})
    moved = sum(float((whole[n] - rest[n]).square().sum()) for n in SHARED) ** 0.5
    assert moved * RATE * TRAINERS == pytest.approx(0.5)


def test_an_update_without_a_finite_norm_counts_as_zero():
    step, state = prepared(noise=0.0)
    broken = {0: {n: torch.full_like(t, np.inf).double() for n, t in SHARED.items()}}
    change, _ = combined(step, state, broken)
    assert all((t == 0).all() for t in change.values())


def test_nobody_is_a_round_of_noise_alone_of_the_right_deviation():
    step, state = prepared(noise=2.0, clip=0.5)
    draws = []
    for server_round in range(1, 400):
        change, said = combined(step, state, {}, server_round)
        draws.append(np.concatenate([t.numpy().ravel() for t in change.values()]))
    assert "clipped" not in said and state["spent"] == 399
    draws = np.array(draws) * RATE * TRAINERS
    assert draws.std() == pytest.approx(2.0 * 0.5, rel=0.05)
    assert abs(draws.mean()) < 0.05 and abs(np.corrcoef(draws[:, 0], draws[:, 16])[0, 1]) < 0.2


def test_a_client_sends_a_clipped_update_and_nothing_else():
    step, _ = prepared(noise=1.0, clip=0.5)
    context = of_client()
    long, short = ({n: torch.full_like(t, v).double() for n, t in SHARED.items()} for v in (1, 0.1))
    sent, said = step.on_client(long, context)
    assert said == {}
    assert sum(t.square().sum() for t in sent.values()) == pytest.approx(0.25)
    sent, said = step.on_client(short, context)
    assert said == {} and sent is short


def test_an_update_that_a_client_clipped_counts_as_clipped_in_the_runs_precision():
    step, state = prepared(noise=0.0, clip=0.5)
    update = {n: torch.full_like(t, 1.0).double() for n, t in SHARED.items()}
    sent, _ = step.on_client(update, of_client())
    rounded = {n: t.float().double() for n, t in sent.items()}
    assert combined(step, state, {0: rounded, 1: {n: t / 2 for n, t in rounded.items()}})[1] == {
        "clipped": 0.5
    }


def test_each_client_is_in_a_round_by_its_own_draw():
    step, state = prepared(noise=1.0, seeded_noise=True)
    counts, sizes = np.zeros(CLIENTS), []
    for server_round in range(1, 600):
        drawn = step.draw(range(CLIENTS), started(server_round, state))
        counts[drawn] += 1
        sizes.append(len(drawn))
        combined(step, state, {}, server_round)
    assert np.allclose(counts / 599, RATE, atol=0.08)
    assert np.var(sizes) == pytest.approx(CLIENTS * RATE * (1 - RATE), rel=0.25)


def test_the_next_draw_is_in_the_state_and_is_not_drawn_again():
    step, state = prepared(noise=1.0)
    again = ClientPrivacy(ClientPrivacySettings(noise=1.0))
    before = dict(state)
    again.prepare(started(1, state))
    assert state == before
    assert again.draw([1, 2, 3], started(1, state)) == sorted({1, 2, 3} & set(state["drawn"]))
    with pytest.raises(FedPGPError, match="drawn for round 1"):
        again.draw([1], started(2, state))


def test_all_take_part_at_full_participation():
    step = ClientPrivacy(ClientPrivacySettings(noise=1.0))
    start = RoundStart(
        server_round=1, num_trainers=TRAINERS, state={}, **{**RUN, "participation": 1.0}
    )
    step.prepare(start)
    assert step.draw(range(CLIENTS), start) == list(range(CLIENTS))
    assert step.privacy(start.state, 0)["sampling"] == "full"


def test_the_budget_is_never_passed():
    most = epsilon(1.0, RATE, 3, 1 / (10 * TRAINERS))
    step, state = prepared(noise=1.0, max_epsilon=most)
    for server_round in range(1, 4):
        step.before_round(started(server_round, state))
        combined(step, state, {}, server_round)
    with pytest.raises(StopTraining, match="above privacy.max_epsilon"):
        step.before_round(started(4, state))
    assert step.privacy(state, 3)["epsilon"] == pytest.approx(most)


def test_the_noise_is_calibrated_for_all_rounds():
    _, state = prepared(epsilon=4.0)
    whole = epsilon(state["noise"], RATE, 8, state["delta"])
    assert 3.99 < whole <= 4.0


@pytest.mark.parametrize(
    "settings",
    [{"clip": 0}, {"noise": -1}, {"noise": 1e308}, {"clip": 10**30}, {"epsilon": 0}, {"delta": 1}],
)
def test_a_setting_that_cannot_work_is_named(settings):
    with pytest.raises(FedPGPError, match=f"privacy.{next(iter(settings))}"):
        ClientPrivacySettings(**settings)


def test_noise_beside_an_epsilon_is_refused():
    with pytest.raises(FedPGPError, match="give one of them"):
        ClientPrivacySettings(noise=2.0, epsilon=4.0)


def test_an_infinite_epsilon_is_no_noise():
    step, state = prepared(epsilon=math.inf, clip=2.0)
    state["spent"] = 1
    assert state["noise"] == 0 and step.privacy(state, 1)["epsilon"] is None
    with pytest.raises(FedPGPError, match="privacy.epsilon"):
        prepared(epsilon=-math.inf)


@pytest.mark.parametrize("settings", [{}, {"adaptive_clip": True}])
def test_a_client_adds_nothing_to_a_sum_with_less_noise_or_another_clip(settings):
    step, state = prepared(noise=0.5, clip=2.0, **settings)
    limits, update = step.sum_limits(state), {n: t.double() for n, t in SHARED.items()}
    update |= {n: torch.zeros(s).double() for n, s in step.extra_tensors().items()}
    assert set(step.in_sum(update, limits)) == set(update)
    start = RoundStart(
        server_round=1, num_rounds=3, num_clients=9, participation=1.0, num_trainers=9,
        state={}, seed=0,
    )  # fmt: skip
    step.check_sum(limits, start)
    with pytest.raises(FedPGPError, match=r"noise of .*e-09 times the clip .* asks for 0.5"):
        step.check_sum(limits | {"noise": 1e-8}, start)
    with pytest.raises(FedPGPError, match=r"noise of nan"):
        step.check_sum(limits | {"noise": math.nan}, start)
    if not settings:
        with pytest.raises(FedPGPError, match=r"a clip of 9; privacy.clip=2"):
            step.check_sum(limits | {"clip": 9.0, "noise": 9.0}, start)
