"""PromptSRC: loss and gradients against its equations, written out."""

import hashlib

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fedpgp.methods import METHODS, RoundContext
from fedpgp.text.templates import SEVEN, SIXTY
from tests.helpers.equations import (
    both_towers,
    classes,
    deep_feature,
    pictured,
    real,
)
from tests.helpers.gradients import check_gradients


def promptsrc(task, s, batch, k, p, global_params):
    """Repository muzairkhattak/PromptSRC at bb95c77, trainers/promptsrc.py: ``fixed_embeddings`` is
    the mean over templates of what ``encode_text`` gives, and brought to unit norm behind it
    (CustomCLIP.forward)."""
    texts = [deep_feature(task, c, p["t"]) for c in classes(task)]
    fixed = []
    for c in classes(task):
        tokens = task.clip.tokenizer(
            [template.replace("{}", task.class_names[c]) for template in SIXTY]
        )
        fixed.append(F.normalize(task.clip.model.encode_text(tokens).mean(0), dim=0).detach())
    loss = both_towers(task, batch, k, texts, p["v"])
    for t, z in zip(texts, fixed, strict=True):
        loss = loss + s.text_weight * (t - z).abs().mean() / len(texts)
    for b, _, w in real(batch, k):
        x, known = pictured(task, batch.images.pixels[k, b], p["v"]), batch.images.features[k, b]
        loss = loss + w * s.image_weight * (x - known).abs().mean()
        q = torch.softmax(torch.stack([task.logit_scale * (x @ t) for t in texts]), 0)
        q_C = torch.softmax(torch.stack([task.logit_scale * (known @ z) for z in fixed]), 0)
        loss = loss + w * sum(q_C[c] * torch.log(q_C[c] / q[c]) for c in classes(task)) / len(texts)
    return loss


def test_loss_and_gradients(task, batch):
    check_gradients(
        "promptsrc", {"depth": 2, "text_weight": 3.0, "image_weight": 2.0}, promptsrc, task, batch
    )


def test_promptsrc_ends_with_the_gaussian_sum_of_its_rounds(task):
    method = METHODS["promptsrc"](METHODS["promptsrc"].Settings(depth=2, mean=0.6, std=0.3), task)
    server_state, last = method.init_server_state(3), 5
    rounds = [
        {n: torch.full_like(t, float(r)) for n, t in server_state.items()}
        for r in range(1, last + 1)
    ]
    weights = torch.exp(-((torch.arange(1, last + 1) / last - 0.6) ** 2) / (2 * 0.3**2)).double()
    for r, averaged in enumerate(rounds, 1):
        shared, server_state = method.update_server(
            averaged,
            RoundContext(
                r, last, [0], 3, torch.ones(1), averaged, averaged, server_state, lr=0.1, seed=0
            ),
        )
        if r < last:
            assert all(torch.equal(shared[n], averaged[n]) for n in averaged)
    expected = sum(w * (r + 1) for r, w in enumerate(weights)) / weights.sum()
    for tensor in shared.values():
        assert_close(tensor, torch.full_like(tensor, float(expected)))


def test_promptsrc_takes_the_templates_of_its_public_code():
    """IMAGENET_TEMPLATES of trainers/imagenet_templates.py, muzairkhattak/PromptSRC at bb95c77."""
    digest = hashlib.sha256("\n".join(sorted(SIXTY)).encode()).hexdigest()
    assert digest == "8f771e15e049b36e398434aa16bf33a1da2a6b4ac682961301fb4c0f9d5d58c5"
    digest = hashlib.sha256(
        "\n".join(sorted(SEVEN)).encode()
    ).hexdigest()  # IMAGENET_TEMPLATES_SELECT
    assert digest == "bc451a8621e7d0e6d1e53c4b4f190df07538ed5a604ae6cfc3637b4a1de4c03b"
