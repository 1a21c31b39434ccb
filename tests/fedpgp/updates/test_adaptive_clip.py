"""The clipping norm that follows a quantile, against the paper's Algorithm 1 (Andrew et al.,
NeurIPS 2021) written out in numpy."""

import math

import numpy as np
import pytest
import torch

from fedpgp.errors import FedPGPError
from fedpgp.updates.base import ClientContext, RoundStart, ServerContext
from fedpgp.updates.client_privacy import ClientPrivacy, ClientPrivacySettings

CLIENTS, RATE = 10, 0.5
SHARED = {"a": torch.zeros(3, 4), "b": torch.zeros(5)}
RUN = {"num_rounds": 8, "num_clients": CLIENTS, "participation": RATE, "seed": 3}
ABOUT = {"delta_params": (), "global_params": SHARED, "server_round": 1}


def prepared(**settings) -> tuple[ClientPrivacy, dict]:
    step = ClientPrivacy(ClientPrivacySettings(adaptive_clip=True, **settings))
    start = RoundStart(server_round=1, num_trainers=CLIENTS, state={}, **RUN)
    step.prepare(start)
    return step, start.state


def sent(step, state, update: np.ndarray) -> dict:
    """What a client sends of this change."""
    about = {"client": 0, "num_examples": 3, "broadcast": step.broadcast(state)}
    context = ClientContext(**about, **ABOUT, **RUN)
    change = {"a": torch.from_numpy(update[:12].reshape(3, 4)), "b": torch.from_numpy(update[12:])}
    return step.on_client(change, context)[0]


def released(step, state, updates: dict) -> tuple[np.ndarray, dict]:
    about = {"num_trainers": CLIENTS, "clients": sorted(updates), "metrics": {}, "lr": 0.1}
    weights = dict.fromkeys(updates, 1 / max(1, len(updates)))
    context = ServerContext(weights=weights, state=state, **about, **ABOUT, **RUN)
    change, said = step.combine(updates, context)
    assert set(change) == set(SHARED)
    return np.concatenate([change[name].numpy().ravel() for name in SHARED]), said


def test_rounds_without_noise_are_the_papers():
    step, state = prepared(noise=0.0, clip=0.7, target_quantile=0.6, clip_rate=0.3)
    rng, clip = np.random.default_rng(0), 0.7
    for _ in range(5):
        changes = [scale * rng.normal(size=17) for scale in (0.05, 0.1, 0.2, 0.4)]
        total, unclipped = np.zeros(17), 0.0
        for change in changes:
            norm = np.sqrt((change**2).sum())
            total += change * min(1.0, clip / norm)
            unclipped += (norm <= clip) - 0.5
        got, said = released(step, state, {c: sent(step, state, u) for c, u in enumerate(changes)})
        np.testing.assert_allclose(got, total / (RATE * CLIENTS), rtol=1e-12)
        assert said["clip"] == pytest.approx(clip, rel=1e-12)
        clip *= math.exp(-0.3 * (unclipped / (RATE * CLIENTS) + 0.5 - 0.6))
        assert state["clip"] == pytest.approx(clip, rel=1e-12)


@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.9])
def test_the_norm_finds_the_quantile(quantile):
    step, state = prepared(noise=0.0, clip=0.01, target_quantile=quantile)
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(20, 17))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for _ in range(200):
        lengths = rng.permutation(20)[:5] / 20 + 0.025  # even from 0 to 1
        updates = {c: sent(step, state, x * directions[c]) for c, x in enumerate(lengths)}
        released(step, state, updates)
    assert state["clip"] == pytest.approx(quantile, abs=0.12)


def test_the_noise_of_sum_and_count_has_the_papers_deviations():
    """z_sum C on the sum, s on the count; together they are worth z (Theorem 1)."""
    step, state = prepared(noise=1.5, clip=0.4, count_noise=2.0)
    draws, changes = [], []
    for _ in range(500):
        before = state["clip"]
        change, said = released(step, state, {})
        assert "clipped" not in said
        draws.append(change / before)
        changes.append(-(math.log(state["clip"] / before)) / 0.2)  # f - quantile
    z_sum = 1 / math.sqrt(1 / 1.5**2 - 1 / (2 * 2.0) ** 2)
    assert np.std(draws) * RATE * CLIENTS == pytest.approx(z_sum, rel=0.05)
    assert np.std(changes) * RATE * CLIENTS == pytest.approx(2.0, rel=0.12)
    assert abs(np.mean(changes)) < 0.1  # nobody is half, as the quantile
    told = step.privacy(state, 500)
    assert told["noise_multiplier"] == 1.5 and told["clip"] == state["clip"]
    assert told["adaptive_clip"]["sum_noise_multiplier"] == pytest.approx(z_sum)


def test_the_count_s_noise_is_a_twentieth_of_the_round_and_never_too_little():
    assert prepared(noise=0.1)[1]["count_noise"] == RATE * CLIENTS / 20
    state = prepared(noise=3.0)[1]
    assert state["count_noise"] == 3.0 and state["sum_noise"] == pytest.approx(3 * 2 / math.sqrt(3))
    with pytest.raises(FedPGPError, match="privacy.count_noise=1"):
        prepared(noise=2.0, count_noise=1.0)


def test_a_lie_moves_the_count_by_a_half():
    step, state = prepared(noise=0.0, clip=1.0)
    lie = {**sent(step, state, np.full(17, 1e-3)), "unclipped": torch.tensor([1e6]).double()}
    released(step, state, {0: lie})
    assert state["clip"] == pytest.approx(math.exp(-0.2 * 0.5 / (RATE * CLIENTS)))


@pytest.mark.parametrize(
    "settings", [{"target_quantile": 1.0}, {"clip_rate": 0.0}, {"count_noise": 0.0}]
)
def test_a_setting_that_cannot_work_is_named(settings):
    with pytest.raises(FedPGPError, match=f"privacy.{next(iter(settings))}"):
        ClientPrivacySettings(**settings)
