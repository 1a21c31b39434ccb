"""DP-FPL's noise: how much, from where, and what is said of it; its loss and gradients."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from experiments.runner import resume, start
from fedpgp.errors import FedPGPError
from fedpgp.methods import METHODS, Batch, StepContext
from fedpgp.seeding import generator, secret_normal
from fedpgp.updates.pipeline import UpdatePipeline
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.helpers.equations import (
    cosine_cross_entropy,
    prompted,
)
from tests.helpers.gradients import check_gradients
from tests.helpers.small import small_config, small_federation

NOISY = (
    "method=dp_fpl",
    "participation=1",
    "rounds=2",
    "evaluate_every=0",
    "runtime.min_clients=6",
)
STEP = StepContext(server_round=2, step=0, clients=[0, 1], global_params={}, lr=0.1, seed=0)


def federation(*overrides: str):
    return small_federation(json.dumps(small_config("/nowhere", *NOISY, *overrides)))


def gradients(fed) -> dict:
    """Two clients' gradients of one batch."""
    shared = fed.models.initial_shared()
    states = [fed.models.initial_state(client) for client in (0, 1)]
    params = fed.models.params(shared, [0, 1], states, None, server_round=1)
    images, labels = (
        fed.inputs.images("train")[torch.arange(6).view(2, 3)],
        torch.arange(6).view(2, 3),
    )
    batch = Batch(images, labels, torch.full((2, 3), 1 / 3).double())
    return fed.method.gradients(params, batch, fed.base, STEP)[1]


def update_server(method, clients: int = 4):
    """What the server makes of an average of zeros."""
    zeros = {"p_G": np.zeros((method.task.n_ctx, method.task.clip.width))}
    config = {"rounds": 9, "participation": 1.0, "seed": 0}
    after, said, state = UpdatePipeline(config, method, 9).on_server(
        zeros,
        zeros,
        {},
        server_round=2,
        weights=dict.fromkeys(range(clients), 3),
        metrics={},
        lr=0.1,
    )
    assert not said and not state
    return torch.from_numpy(after["p_G"])


def test_secret_numbers_are_standard_normal():
    """Moments, the tails, and no draw like another."""
    x = torch.from_numpy(secret_normal((100_001, 3)))
    assert x.shape == (100_001, 3) and x.isfinite().all()
    assert_close(x.mean(0), torch.zeros(3).double(), atol=0.02, rtol=0)
    assert_close(x.std(0), torch.ones(3).double(), atol=0.02, rtol=0)
    assert_close((x.abs() > 2).double().mean(), torch.tensor(0.0455).double(), atol=0.002, rtol=0)
    assert abs(torch.corrcoef(x.T)[0, 1]) < 0.02 and len(x.flatten().unique()) == x.numel()


def test_noise_is_secret_unless_told():
    fed = federation("method.epsilon=1")
    first, second = gradients(fed), gradients(fed)
    assert torch.equal(first["p_G"], second["p_G"]) and not torch.equal(first["p_L"], second["p_L"])
    assert not torch.equal(update_server(fed.method), update_server(fed.method))
    seeded = federation("method.epsilon=1", "method.seeded_noise=true")
    assert torch.equal(gradients(seeded)["p_L"], gradients(seeded)["p_L"])
    assert torch.equal(update_server(seeded.method), update_server(seeded.method))
    # Who knows the seed takes the seeded noise off, and not the secret one.
    known = torch.from_numpy(
        generator(0, "dp_fpl server", 2).normal(size=update_server(seeded.method).shape)
    )
    deviation = 0.1 * seeded.method.settings.std / 4
    assert update_server(seeded.method).sub(deviation * known).abs().max() < 1e-12
    assert update_server(fed.method).sub(deviation * known).std() > deviation


def test_the_server_s_noise_has_the_paper_s_deviation():
    """(C/B) sqrt(T ln(1/delta)) / epsilon / |S| on the averaged gradient: linhhtran/DP-FPL,
    cce74b479525, trainers/DP_FPL.py 256-262, federated_main.py 128-129 and 163-166."""
    method = federation(
        "method.epsilon=0.5", "method.clip=3", "method.steps=50", "method.batch=16"
    ).method
    drawn = torch.cat([update_server(method).flatten() for _ in range(40)])
    expected = 0.1 * 3 / 16 * (50 * torch.tensor(1e5).log()).sqrt() / 0.5 / 4
    assert_close(drawn.std(), expected.double(), rtol=0.05, atol=0)


def test_without_epsilon_nothing_is_clipped_and_all_is_repeatable():
    """linhhtran/DP-FPL, cce74b479525, trainers/DP_FPL.py 275: clipping stands under
    ``NOISE > 0``."""
    tight, wide = federation("method.clip=1e-6"), federation("method.clip=1e6")
    for name, gradient in gradients(tight).items():
        assert gradient.norm() > 1e-3 and torch.equal(gradient, gradients(wide)[name])
    clipped = gradients(federation("method.clip=1e-6", "method.epsilon=1e9"))
    assert_close(clipped["p_G"].flatten(1).norm(dim=1), torch.full((2,), 1e-6).double())
    assert update_server(tight.method).abs().max() == 0


@pytest.mark.parametrize("seeded", [False, True])
def test_a_run_says_what_its_noise_is_worth_and_a_resume_draws_new_noise(tmp_path, capsys, seeded):
    config = small_config(
        tmp_path / "run", *NOISY, "method.epsilon=1", f"method.seeded_noise={str(seeded).lower()}"
    )
    summary = start(config, federation_of=small_federation)
    assert summary["privacy"] == {
        **dict.fromkeys(("epsilon", "delta", "sampling", "rate", "accountant")),
        "unit": "none",
        "noise_multiplier": pytest.approx((100 * 11.512925464970229) ** 0.5 / 32),
        "clip": 10.0,
        "rounds": 2,
        "seeded": seeded,
    }
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: method=dp_fpl: the noise" in said and ("run's seed" in said) == seeded
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Privacy" in page and "no guarantee" in page
    newest = checkpoints(tmp_path / "run" / "checkpoint")[-1]
    before = read_checkpoint(newest)[0]["shared/p_G"]
    newest.unlink()
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been killed in its last round
    resume(tmp_path / "run", federation_of=small_federation)
    again = read_checkpoint(newest)[0]["shared/p_G"]
    assert (abs(again - before).max() == 0) == seeded


def test_other_methods_promise_nothing(tmp_path):
    config = small_config(tmp_path / "run", "method=dp_fpl", "rounds=1", "evaluate_every=0")
    assert start(config, federation_of=small_federation)["privacy"] is None
    with pytest.raises(FedPGPError, match="seeded_noise"):
        replace(METHODS["dp_fpl"].Settings(), seeded_noise="yes")


def dp_fpl(task, s, batch, k, p, global_params):
    loss = cosine_cross_entropy(task, batch, k, prompted(task, p["p_G"] + p["p_L"]))
    (g,) = torch.autograd.grad(loss, p["p_G"])
    rng = generator(0, "dp_fpl", k, 2, 1)
    std = 0.0
    if s.epsilon:
        std = s.clip / s.batch * (s.steps * math.log(1 / s.delta)) ** 0.5 / s.epsilon

    def orthonormal(columns):  # Gram-Schmidt
        found = []
        for column in columns.T:
            for other in found:
                column = column - (column @ other) * other
            found.append(column / column.norm())
        return torch.stack(found, 1)

    def clip(gradient):
        return gradient * min(1.0, s.clip / gradient.norm()) if s.epsilon else gradient

    m, d = g.shape
    p_L = p["p_L"].detach()
    u = orthonormal(p_L @ torch.from_numpy(rng.normal(size=(d, s.rank))))
    v = orthonormal(p_L.T @ u).T
    # A factor's signs are free, and decide where the noise goes: the ones of torch's QR are taken.
    omega = torch.from_numpy(generator(0, "dp_fpl", k, 2, 1).normal(size=(d, s.rank)))
    signed_u = torch.linalg.qr(p_L @ omega)[0]
    signed_v = torch.linalg.qr(p_L.T @ signed_u)[0].T
    assert torch.allclose(u.abs(), signed_u.abs()) and torch.allclose(v.abs(), signed_v.abs())
    u, v = signed_u, signed_v
    g_u = clip(g @ v.T) + std * torch.from_numpy(rng.normal(size=(m, s.rank)))
    g_v = clip(u.T @ g) + std * torch.from_numpy(rng.normal(size=(s.rank, d)))
    return loss, {"p_G": clip(g), "p_L": g_u @ v + u @ g_v - u @ u.T @ g_u @ v}


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 2, "clip": 0.5, "epsilon": 40.0, "seeded_noise": True},
        {"rank": 3, "clip": 0.001, "epsilon": 0.0},
    ],
    ids=str,
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("dp_fpl", options, dp_fpl, task, batch)
