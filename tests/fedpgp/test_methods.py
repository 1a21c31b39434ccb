"""Each method's loss and gradients against its equations written out for one client, one class, one image at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fedpgp.methods import METHODS, Batch, Images, Step
from fedpgp.seeding import generator
from fedpgp.text import PromptedTextEncoder

K, B, C = 3, 5, 5


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(K, B, 16, generator=rng, dtype=torch.float64), dim=-1)
    weights = torch.full((K, B), 1 / B, dtype=torch.float64)
    weights[2] = torch.tensor([1 / 3, 1 / 3, 1 / 3, 0, 0], dtype=torch.float64)  # a shorter batch
    return Batch(Images(images), torch.randint(0, C, (K, B), generator=rng), weights)


def parameters(method):
    shared = method.init_shared(generator(0, "shared"))
    states = [method.init_personal(generator(0, "personal", k)) for k in range(K)]
    params = {n: t.double().repeat(K, *[1] * t.dim()) for n, t in shared.items()}
    params |= {n: torch.stack([s[n] for s in states]).double() for n in states[0]}
    return {n: t + 0.01 * torch.randn(t.shape, generator=torch.Generator().manual_seed(7)) for n, t in params.items()}


def feature(task, c, context):
    return PromptedTextEncoder(task.clip, [task.class_names[c]], task.n_ctx)(context)[0]


def plain_cross_entropy(task, batch, k, context):
    text = [feature(task, c, context) for c in range(C)]
    total = 0.0
    for b in range(B):
        if batch.weights[k, b]:
            logits = torch.stack([task.logit_scale * (batch.images.features[k, b] @ t) for t in text])
            total = total + batch.weights[k, b] * -torch.log(logits.exp()[batch.labels[k, b]] / logits.exp().sum())
    return total


def promptfl(task, settings, batch, k, p, received):
    return plain_cross_entropy(task, batch, k, p["p_G"])


def coop(task, settings, batch, k, p, received):
    return plain_cross_entropy(task, batch, k, p["p"])


def fedprox(task, settings, batch, k, p, received):
    pull = sum((a - b) ** 2 for a, b in zip(p["p_G"].flatten(), received["p_G"].flatten(), strict=True))
    return plain_cross_entropy(task, batch, k, p["p_G"]) + settings.mu / 2 * pull


def fedpgp(task, settings, batch, k, p, received):
    own = p["p_G"] + p["U"] @ p["V"]
    total = 0.0
    for c in range(C):
        z_G, z_i = feature(task, c, p["p_G"]), feature(task, c, own)
        z_C = task.clip.encode_texts([f"a photo of a {task.class_names[c]}."])[0]
        pull, push = z_G @ z_C / settings.tau, z_G @ z_i / settings.tau
        total = total - torch.log(pull.exp() / (pull.exp() + push.exp())) / C
    return plain_cross_entropy(task, batch, k, own) + settings.mu * total


SLOW = {"promptfl": (promptfl, {}), "coop": (coop, {}), "fedprox": (fedprox, {"mu": 0.7})}
SLOW["fedpgp"] = (fedpgp, {"rank": 2, "mu": 0.6, "tau": 0.4, "personal_init": "normal"})


def test_every_learning_method_has_a_slow_version():
    assert set(SLOW) == {name for name, method in METHODS.items() if method.learns}


@pytest.mark.parametrize("name", SLOW)
def test_loss_and_gradients(task, batch, name):
    slow, options = SLOW[name]
    method = METHODS[name](METHODS[name].Settings(**options), task)
    params = parameters(method)
    received = {n: t + 0.1 for n, t in params.items() if n in method.init_shared(generator(0, "shared"))}
    step = Step(round=2, step=1, clients=range(K), received=received, lr=0.1, seed=0)
    loss, grads = method.gradients(params, batch, task.candidates(range(C)), step)
    assert loss.shape == (K,)
    for k in range(K):
        leaves = {n: t[k].clone().requires_grad_() for n, t in params.items()}
        expected = slow(task, method.settings, batch, k, leaves, {n: t[k] for n, t in received.items()})
        assert_close(loss[k], expected.detach(), rtol=1e-9, atol=1e-11)
        for n, grad in zip(leaves, torch.autograd.grad(expected, list(leaves.values())), strict=True):
            assert_close(grads[n][k], grad, rtol=1e-8, atol=1e-10)
