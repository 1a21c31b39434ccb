"""FedALT: loss and gradients against its public code, written out for one client; what its server
gives each client."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fedpgp.methods import METHODS
from fedpgp.methods.base import RoundContext
from fedpgp.seeding import generator
from tests.helpers.equations import classes, cross_entropy_of
from tests.helpers.gradients import check_gradients


def linear(W, bias, x, p, name, block, s):
    """jmbian/FedALT at ff9b4862a9b4, peft/tuners/lora.py, ``Linear.forward`` (asymmetric: False):
    number 0 is the rest of the world's, 1 the client's own."""
    result = x @ W.T + bias
    if f"gate.{name}.G" not in p or -block > len(p[f"gate.{name}.G"]):
        return result
    route = torch.softmax(x @ p[f"gate.{name}.G"][block].T, dim=-1)
    for i, prefix in enumerate(("others.", "own.")):
        A, B = (p[f"{prefix}{name}.{part}"][block] for part in "AB")
        result = result + route[:, i, None] * (x @ A.T @ B.T) * (s.alpha / s.rank)
    return result


def through(tower, transformer, x, mask, p, s):
    """Tokens (t, width) through open_clip's blocks, head by head."""
    for block, weights in enumerate(transformer.resblocks, -len(transformer.resblocks)):
        attention, width = weights.attn, x.shape[-1]
        size, normal, parts = width // attention.num_heads, weights.ln_1(x), {}
        for i, layer in enumerate("qkv"):
            rows = slice(i * width, (i + 1) * width)
            W, bias = attention.in_proj_weight[rows], attention.in_proj_bias[rows]
            name = f"{tower}.{layer}"
            parts[layer] = linear(W, bias, normal, p, name, block, s)
        heads = []
        for h in range(attention.num_heads):
            q, k, v = (parts[layer][:, h * size : (h + 1) * size] for layer in "qkv")
            scores = q @ k.T / size**0.5 + (0 if mask is None else mask[: len(x), : len(x)])
            heads.append(scores.softmax(-1) @ v)

        def each(module, tokens, layer, block=block):
            W, bias, name = module.weight, module.bias, f"{tower}.{layer}"
            return linear(W, bias, tokens, p, name, block, s)

        x = x + each(attention.out_proj, torch.cat(heads, dim=-1), "out")
        hidden = weights.mlp.gelu(each(weights.mlp.c_fc, weights.ln_2(x), "fc"))
        x = x + each(weights.mlp.c_proj, hidden, "proj")
    return x


def text(task, c, p, s):
    model = task.clip.text_model
    tokens = task.clip.tokenizer([f"a photo of a {task.class_names[c]}."])[0]
    tokens = tokens[: int(tokens.argmax()) + 1]
    x = model.token_embedding(tokens) + model.positional_embedding[: len(tokens)]
    x = model.ln_final(through("text", model.transformer, x, model.attn_mask, p, s))
    return F.normalize(x[-1] @ model.text_projection, dim=0)


def picture(task, pixels, p, s):
    tower = task.clip.model.visual
    x = tower.conv1(pixels[None])[0].flatten(1).T
    x = torch.cat([tower.class_embedding[None], x]) + tower.positional_embedding
    x = through("image", tower.transformer, tower.ln_pre(x), None, p, s)
    return F.normalize(tower.ln_post(x[0]) @ tower.proj, dim=0)


def fedalt(task, s, batch, k, p, global_params):
    texts = [text(task, c, p, s) for c in classes(task)]

    def logits(b):
        inside = s.where == "both"
        x = (
            picture(task, batch.images.pixels[k, b], p, s)
            if inside
            else batch.images.features[k, b]
        )
        return [task.logit_scale * (x @ t) for t in texts]

    return cross_entropy_of(batch, k, logits)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 2},
        {"rank": 1, "targets": ["k", "out", "mlp"], "blocks": "last_1"},
        {"rank": 2, "where": "both", "targets": ["q", "mlp"]},
    ],
    ids=str,
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("fedalt", options, fedalt, task, batch)


def test_a_client_gets_the_mean_of_all_others(task):
    """The same code, server.py, ``aggregation``: of clients that have sent one, the newest."""
    method = METHODS["fedalt"](METHODS["fedalt"].Settings(rank=2), task)
    shared, rng = method.init_shared(generator(0, "shared")), torch.Generator().manual_seed(0)
    state, sent = {n: t.double() for n, t in method.init_server_state(4).items()}, {}
    for clients in ([0, 2], [1, 2]):
        updates = {n: torch.randn(2, *t.shape, generator=rng).double() for n, t in shared.items()}
        sent |= {c: {n: t[k] for n, t in updates.items()} for k, c in enumerate(clients)}
        weights = torch.tensor([0.5, 0.5])
        context = RoundContext(1, 2, clients, 4, weights, shared, updates, state, 0.1, 0)
        averaged = {n: t.mean(0) for n, t in updates.items()}
        same, state = method.update_server(averaged, context)
        assert same is averaged
    for client in range(4):
        others = [sent[c] for c in sent if c != client]
        told = method.download_for(client, state)
        assert set(told) == {f"others.{n}" for n in shared}
        for name in shared:
            mean = torch.stack([each[name] for each in others]).mean(0)
            assert_close(told[f"others.{name}"], mean)
    before = method.download_for(1, method.init_server_state(4))
    assert not any(tensor.any() for tensor in before.values())
