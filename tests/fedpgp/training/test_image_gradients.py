"""Each image's own gradient against a loop over images, for every method that says it has one."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fedpgp.methods import METHODS, Batch, StepContext
from fedpgp.methods.promptfl import PromptFL
from fedpgp.towers import attention
from fedpgp.towers.padded_attention import PaddedAttention
from fedpgp.training.image_gradients import image_gradients, why_not
from tests.helpers.gradients import C, K, made_batch, parameters

OPTIONS = {
    "fedclip": {"loss": "cross_entropy"},
    "fedmgp": {"groups": 2, "sent": 1},
    "proda": {"prompts": 3, "a_step": 2},
    "plot": {"prompts": 2, "pooled": True},
    "pfedmoap": {"experts": 3},
}
DECLARED = sorted(name for name, method in METHODS.items() if method.__dict__.get("per_image"))
REFUSED = {"fedmvp", "fedtpg", "pfedprompt", "zero_shot", "pfedhn", "hyperfield"}
REFUSED |= {"prototype", "ridge", "fedpgp_lifelong", "fed_cprompt", "fedmap", "pilora"}


def made(name, task, **options):
    cls = METHODS[name]
    return cls(cls.Settings(**{**cls.small, **OPTIONS.get(name, {}), **options}), task)


def placed(method, task):
    """Tensors, batch, classes and step of three clients, of which the last has fewer images."""
    classes, batch = task.class_set(range(C)), made_batch()
    params, shared = parameters(method, batch, classes)
    global_params = {n: params[n] + 0.1 for n in shared}
    return params, batch, classes, StepContext(2, 1, range(K), global_params, 0.1, 0)


def of_client(k, params, batch, step):
    own = {n: t[k : k + 1] for n, t in params.items()}
    sent = {n: t[k : k + 1] for n, t in step.global_params.items()}
    return own, batch[k : k + 1], replace(step, clients=[k], global_params=sent)


def test_every_method_says_something():
    assert set(DECLARED) | REFUSED == set(METHODS)


@pytest.mark.parametrize("name", DECLARED)
def test_each_image_has_the_gradient_that_a_loop_finds(task, name):
    method = made(name, task)
    params, batch, classes, step = placed(method, task)
    for k in (0, 2):
        own, images, about = of_client(k, params, batch, step)
        real = int((images.weights > 0).sum())
        found = list(image_gradients(method, own, images[:, :real], classes, about))
        losses = torch.cat([part[0] for part in found])
        assert len(losses) == real
        leaves = {n: own[n].clone().requires_grad_() for n in method.trainable(own)}
        for b in range(real):
            alone = images[:, b : b + 1]
            whole = method.loss(
                {**own, **leaves}, replace(alone, weights=torch.ones(1, 1).double()), classes, about
            )
            free = method.free_term({**own, **leaves}, classes, about)
            term = whole if free is None else whole - free
            wanted = torch.autograd.grad(
                term.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
            )
            for n, gradient in zip(leaves, wanted, strict=True):
                grads = torch.cat([part[1][n] for part in found])
                assert_close(grads[b], gradient[0], rtol=1e-9, atol=1e-11, msg=f"{name} {n}")


@pytest.mark.parametrize("name", DECLARED)
def test_the_loss_is_a_sum_over_images_and_a_term_of_none(task, name):
    """Terms of one image do not change with the others; the rest reads no image."""
    method = made(name, task)
    params, batch, classes, step = placed(method, task)
    loss = method.loss(params, batch, classes, step)
    free = method.free_term(params, classes, step)
    free = torch.zeros(K).double() if free is None else free
    assert_close(loss, method.image_term(params, batch, classes, step) + free)
    for k in (0, 2):
        own, images, about = of_client(k, params, batch, step)
        real = int((images.weights > 0).sum())
        images = images[:, :real]
        losses = torch.cat([p[0] for p in image_gradients(method, own, images, classes, about)])
        weights = images.weights * torch.arange(1, real + 1)
        weights = weights / weights.sum()
        again = method.loss(own, replace(images, weights=weights), classes, about)
        assert_close(again[0], (losses * weights[0]).sum() + free[k], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_others_say_why_not(task, name):
    assert name in why_not(made(name, task))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("fedclip", {"loss": "contrastive"}, "each other's negatives"),
        ("dp_fpl", {"epsilon": 1.0}, "method.epsilon"),
        ("fedpgp", {"personal": "lora_sb"}, "without noise"),
    ],
)
def test_settings_under_which_there_is_none(task, name, options, reason):
    assert reason in why_not(made(name, task, **options))


def test_a_subclass_has_to_say_it_again(task):
    class Mine(PromptFL):
        name = "mine"

    assert "does not say that its loss is a sum over images" in why_not(Mine(None, task))
    assert why_not(made("promptfl", task)) is None


def test_no_image_has_no_gradient(task):
    method = made("promptfl", task)
    params, batch, classes, step = placed(method, task)
    own, images, about = of_client(0, params, batch, step)
    empty = Batch(images.images[:, :0], images.labels[:, :0], images.weights[:, :0])
    assert list(image_gradients(method, own, empty, classes, about)) == []


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_gpus_attention_gives_the_same(task, monkeypatch):
    method = made("promptfl", task)
    params, batch, classes, step = placed(method, task)
    own, images, about = of_client(0, params, batch, step)
    (_, found), *_ = image_gradients(method, own, images, classes, about)
    monkeypatch.setattr(attention, "PADS", ("cpu",))
    monkeypatch.setattr(classes, "_encoders", {})
    (_, padded), *_ = image_gradients(method, own, images, classes, about)
    assert isinstance(classes.encoder(task.n_ctx)._attention, PaddedAttention)
    assert_close(padded["p_G"], found["p_G"], rtol=1e-9, atol=1e-11)


def test_a_tower_that_computes_twice_gives_the_same(task, monkeypatch):
    """Gradient checkpointing, where one client's activations do not fit."""
    method = made("promptfl", task)
    params, batch, classes, step = placed(method, task)
    own, images, about = of_client(0, params, batch, step)
    (_, found), *_ = image_gradients(method, own, images, classes, about)
    monkeypatch.setattr(task, "checkpointing", True)
    (_, again), *_ = image_gradients(method, own, images, classes, about)
    assert_close(again["p_G"], found["p_G"], rtol=1e-9, atol=1e-11)
