"""FedMVP: loss and gradients against its equations, written out."""

import pytest
import torch

from fedpgp.methods import METHODS, StepContext
from fedpgp.seeding import generator
from tests.helpers.equations import (
    attended,
    classes,
    cross_entropy_of,
    gated,
    layer,
    normed,
    pictured,
    real,
    sentence,
)
from tests.helpers.gradients import C, K, check_gradients, parameters


def fedmvp(task, s, batch, k, p, global_params):
    """Repository mainaksingha01/FedMVP at 246800e. model/FedMVP.py: ``apply_lora`` (x + x A B)
    stands around the arguments of ``crossattn`` in ImageEncoder.forward, so before the layer norms
    of PreNorm, which leaves the values alone; ``flip_transform`` gets a whole batch.
    """
    own = sorted({y for _, y, _ in real(batch, k)})
    many = ("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.")
    many = (*many, "a {} in a video game.", "art of the {}.", "a photo of the small {}.")
    described = [
        [sentence(task, words.format(task.class_names[c])) for words in many] for c in classes(task)
    ]
    projected = [layer(p, "project", d) for c in own for d in described[c]]
    tower = task.clip.model.visual
    use_lora = bool(p["switched"])

    def apply_lora(part, x):
        return x + x @ p[f"lora.{part}.A"] @ p[f"lora.{part}.B"] if use_lora else x

    keys = [normed(p, "norm_k", apply_lora("k", a)) for a in projected]
    values = [apply_lora("v", a) for a in projected]

    def seen(pixels):
        x = tower.conv1(pixels[None])[0].flatten(1).T
        x = torch.cat([tower.class_embedding[None], x]) + tower.positional_embedding
        mixed = []
        for patch in x[1:]:
            out = attended(
                p, "attention", normed(p, "norm_q", apply_lora("q", patch)), keys, s.heads, values
            )
            mixed.append(out + gated(p, "ff", out))
        # 4 patches are pooled to 4 tokens: each is its own.
        return pictured(task, pixels, torch.stack(mixed)[None])

    images = {b: seen(batch.images.pixels[k, b]) for b, _, _ in real(batch, k)}
    asked = own if s.loss_classes == "own" else classes(task)

    def logits(b):
        for c in classes(task):
            mean = sum(task.logit_scale * (images[b] @ d) for d in described[c]) / len(many)
            yield mean if c in asked else torch.tensor(-torch.inf).double()

    loss = cross_entropy_of(batch, k, logits)
    flipped = generator(0, "fedmvp", k, 2, 1).random() < 0.5
    for b, _, w in real(batch, k):
        known = (batch.images.mirrored if flipped else batch.images.features)[k, b]
        loss = loss + w * s.weight * (1 - images[b] @ known)
    return loss


@pytest.mark.parametrize(
    "options", [{"heads": 2, "rank": 3}, {"heads": 2, "rank": 3, "loss_classes": "own"}], ids=str
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("fedmvp", options, fedmvp, task, batch)


def test_fedmvp_goes_over_to_the_low_rank_part_for_good(task, batch):
    """Below the threshold once, and whatever the loss is afterwards. Then ``crossattn`` is frozen,
    the low-rank matrices and the projection train: federated/client.py, ``train``,
    mainaksingha01/FedMVP at 246800e. The answers leave the low-rank part out: ``use_lora`` is no
    part of the state that the server's model loads."""
    settings, classes = METHODS["fedmvp"].Settings(heads=2, switch=20.0), task.class_set(range(C))
    method = METHODS["fedmvp"](settings, task)
    params, _ = parameters(method, batch, classes)
    step = StepContext(server_round=1, step=0, clients=range(K), global_params={}, lr=0.1, seed=0)
    loss, _ = method.gradients(params, batch, classes, step)
    expected = [
        1.0 if k == 1 or loss[k] < 20 else 0.0 for k in range(K)
    ]  # the second one had gone over before
    assert params["switched"].flatten().tolist() == expected and 0 in expected
    never = METHODS["fedmvp"](METHODS["fedmvp"].Settings(heads=2, switch=0.0), task)
    never.gradients(params, batch, classes, step)
    assert params["switched"].flatten().tolist() == expected
    rates = method.rates(params, step)
    assert "project.weight" not in rates and set(rates) == {
        n for n in method.trainable(params) if "project" not in n
    }
    for name, rate in rates.items():
        trained = expected if name.startswith("lora.") else [1 - e for e in expected]
        assert rate.flatten().tolist() == trained and rate.dim() == params[name].dim(), name
    classes = task.class_set([3, 1])
    changed = params | {n: t + 1 for n, t in params.items() if n.startswith("lora.")}
    for settings, same in (({}, True), ({"low_rank_answers": True}, False)):
        model = METHODS["fedmvp"](METHODS["fedmvp"].Settings(heads=2, **settings), task)
        answers = [
            model.logits(model.global_classifier(p, classes), batch.images, classes)
            for p in (params, changed)
        ]
        assert torch.equal(*answers) is same
