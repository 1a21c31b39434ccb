"""The published algorithm's numbers (tests/golden), reproduced in float64 to 1e-9."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fedpgp.losses import cross_entropy, prompt_contrastive_loss
from fedpgp.methods import METHODS, Batch, Images
from fedpgp.task import Task
from fedpgp.text import PromptedTextEncoder
from fedpgp.training import TrainingSettings, train_cohort
from tests.helpers.golden import STEP, golden, golden_class_names, golden_clip

GUIDANCE = {"x": "context", "photo": "photo"}
TIGHT = {"rtol": 0, "atol": 1e-9}


def fedpgp(rank: int, mu: float, mode: str):
    task = Task(golden_clip(), golden_class_names(), n_ctx=16, dtype=torch.float64)
    method = METHODS["fedpgp"]
    return method(
        method.Settings(rank=rank, mu=mu, tau=0.5, guidance=GUIDANCE[mode]), task
    ), task.class_set(range(5))


def start(rank: int) -> dict[str, torch.Tensor]:
    inputs = golden("inputs")
    return {
        "p_G": inputs["n16/p_G"].double()[None],
        "U": inputs[f"n16_r{rank}/U"].double()[None],
        "V": inputs[f"n16_r{rank}/V"].double()[None],
    }


def batch() -> Batch:
    inputs = golden("inputs")
    return Batch(
        Images(inputs["image_features_unit"][None]),
        inputs["labels"][None],
        torch.full((1, 6), 1 / 6, dtype=torch.float64),
    )


@pytest.mark.parametrize("rank", [4, 8])
def test_features(rank):
    expected, params = golden("expected"), start(rank)
    encoder = PromptedTextEncoder(golden_clip(), golden_class_names(), 16)
    for name, context in {
        "z_G": params["p_G"],
        "z_i": params["p_G"] + params["U"] @ params["V"],
        "z_UV": params["U"] @ params["V"],
    }.items():
        assert_close(encoder(context)[0], expected[f"n16_r{rank}/{name}"], **TIGHT)


@pytest.mark.parametrize("mode", ["x", "photo"])
def test_guidance(mode):
    method, classes = fedpgp(4, 1.0, mode)
    assert_close(method.guidance(classes), golden("expected")[f"n16_r4/{mode}/z_C"], **TIGHT)


@pytest.mark.parametrize("rank", [4, 8])
@pytest.mark.parametrize("mode", ["x", "photo"])
def test_losses_and_logits(rank, mode):
    expected, params = golden("expected"), start(rank)
    method, classes = fedpgp(rank, 1.0, mode)
    z_i = method.personal_classifier(params, classes)
    logits = method.logits(z_i, batch().images, classes)
    assert_close(logits[0], expected[f"n16_r{rank}/logits"], **TIGHT)
    assert_close(
        cross_entropy(logits, batch().labels, batch().weights)[0],
        expected[f"n16_r{rank}/ce"],
        **TIGHT,
    )
    z_G = method.global_classifier({"p_G": params["p_G"]}, classes)
    contrastive = prompt_contrastive_loss(z_G, method.guidance(classes), z_i, 0.5)
    assert_close(contrastive[0], expected[f"n16_r{rank}/{mode}/contrastive"], **TIGHT)


@pytest.mark.parametrize("rank", [4, 8])
@pytest.mark.parametrize("mode", ["x", "photo"])
@pytest.mark.parametrize("mu", [0.0, 0.5, 1.0])
def test_gradients(rank, mode, mu):
    method, classes = fedpgp(rank, mu, mode)
    loss, grads = method.gradients(start(rank), batch(), classes, STEP)
    assert_close(loss[0], golden("expected")[f"n16_r{rank}/{mode}/mu{mu}/total"], **TIGHT)
    for name, grad in grads.items():
        assert_close(grad[0], golden("expected")[f"n16_r{rank}/{mode}/mu{mu}/grad/{name}"], **TIGHT)


@pytest.mark.parametrize("mode", ["x", "photo"])
def test_gradient_of_the_contrastive_loss_alone(mode):
    """It is a few per cent of the whole; a test of the whole would miss a mistake in it."""
    grads = {
        mu: fedpgp(8, mu, mode)[0].gradients(start(8), batch(), fedpgp(8, mu, mode)[1], STEP)[1]
        for mu in (0.0, 1.0)
    }
    expected = golden("expected")
    for name in grads[0.0]:
        ours = (grads[1.0][name] - grads[0.0][name])[0]
        theirs = (
            expected[f"n16_r8/{mode}/mu1.0/grad/{name}"]
            - expected[f"n16_r8/{mode}/mu0.0/grad/{name}"]
        )
        assert theirs.abs().max() > 1e-4
        assert_close(ours, theirs, **TIGHT)


@pytest.mark.parametrize("rank", [4, 8])
@pytest.mark.parametrize("mode", ["x", "photo"])
@pytest.mark.parametrize("mu", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("lr", [0.05, 0.001])
def test_sgd_steps(rank, mode, mu, lr):
    """Steps 1, 2, 3 on one batch: one, two and three epochs over six images."""
    inputs, expected = golden("inputs"), golden("expected")
    method, classes = fedpgp(rank, mu, mode)
    key = f"n16_r{rank}/{mode}/mu{mu}/sgd_lr{lr}"
    for steps in (1, 2, 3):
        settings = TrainingSettings(
            epochs=steps, batch_size=6, lr=lr, momentum=0.9, weight_decay=5e-4, shuffle=False
        )
        result = train_cohort(
            method,
            start(rank),
            Images(inputs["image_features_unit"]),
            inputs["labels"],
            [np.arange(6)],
            classes,
            settings,
            seed=0,
            clients=[0],
            server_round=1,
        )
        for name in ("p_G", "U", "V"):
            assert_close(result.params[name][0], expected[f"{key}/{name}"][steps - 1], **TIGHT)
        assert_close(result.loss[0], expected[f"{key}/total"][:steps].mean().item(), **TIGHT)
