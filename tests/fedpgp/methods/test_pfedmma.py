"""pFedMMA: loss and gradients against its equations, written out."""

import pytest
import torch

from fedpgp.clip import load_clip
from fedpgp.methods import METHODS
from fedpgp.seeding import generator
from fedpgp.task import Task
from tests.helpers.equations import classes, cross_entropy_of, deep_feature, pictured
from tests.helpers.gradients import check_gradients


def pfedmma(task, s, batch, k, p, global_params):
    def adapter(tower):
        def output(i, block, token):
            if not s.first <= i + 1 <= s.last:
                return torch.zeros_like(token)
            at, x = i + 1 - s.first, block.ln_1(token)
            x = torch.relu(p[f"{tower}.down.weight"][at] @ x + p[f"{tower}.down.bias"][at])
            x = torch.relu(p["middle.weight"][at] @ x + p["middle.bias"][at])
            return s.alpha * (p[f"{tower}.up.weight"][at] @ x + p[f"{tower}.up.bias"][at])

        return output

    phrase = task.clip.embed_phrase("a photo of a")[None].double()
    texts = [deep_feature(task, c, phrase, adapter("text")) for c in classes(task)]
    nothing = torch.zeros(1, 0, 64, dtype=torch.float64)

    def logits(b):
        x = pictured(task, batch.images.pixels[k, b], nothing, adapter("image"))
        return [task.logit_scale * (x @ t) for t in texts]

    loss = cross_entropy_of(batch, k, logits)
    trainable = {n: t for n, t in p.items() if t.requires_grad}
    grads = torch.autograd.grad(loss, list(trainable.values()))
    return loss, {n: g / s.alpha for n, g in zip(trainable, grads, strict=True)}


@pytest.mark.parametrize(
    "options",
    [
        {"size": 6, "first": 1, "last": 2, "alpha": 0.1},
        {"size": 6, "first": 2, "last": 2, "alpha": 0.01},
    ],
    ids=str,
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("pfedmma", options, pfedmma, task, batch)


def test_pfedmma_adapters_start_as_its_public_code_starts_them():
    """``nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")`` and no bias:
    AdapterLearner._build_adapter in trainers/pFedMMA.py, sajjad-ucsb/pFedMMA at 84197bb."""
    clip = load_clip("tiny_vit")
    method = METHODS["pfedmma"](
        METHODS["pfedmma"].Settings(first=2, last=3), Task(clip, ["cat", "dog"], n_ctx=4)
    )
    start = method.init_shared(generator(0, "shared")) | method.init_personal(
        generator(0, "personal", 0)
    )
    torch.manual_seed(0)
    for name, ours in start.items():
        if name.endswith("bias"):
            assert not ours.any(), name
            continue
        theirs = torch.empty(ours.shape[1:])
        torch.nn.init.kaiming_normal_(theirs, mode="fan_out", nonlinearity="relu")
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1), name
        assert abs(ours.mean().item()) < 0.1 * ours.std().item(), name
