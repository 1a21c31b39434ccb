"""Low-rank adapters in the text tower against open_clip's own tower with merged weights."""

import pytest
import torch
from torch.testing import assert_close

from fedpgp.errors import FedPGPError
from fedpgp.text import AdaptedTextEncoder, adapted, prefix_shared
from fedpgp.towers import attention
from fedpgp.towers.adapters import TARGETS, Placement
from fedpgp.towers.folded import FoldedTower
from fedpgp.towers.packed_attention import Packing
from fedpgp.towers.padded_attention import PaddedAttention
from tests.helpers.equations import merged_feature

K, RANK = 3, 2


def drawn(task, layers, first):
    """Adapters of K clients that are far from zero."""
    clip, rng = task.clip, torch.Generator().manual_seed(1)
    place = Placement(layers, first, clip.text_blocks, clip.width, 4 * clip.width)
    tensors, count = {}, clip.text_blocks - first
    for layer in layers:
        inputs, outputs = place.sizes(layer)
        for part, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
            made = 0.3 * torch.randn(K, count, *shape, generator=rng, dtype=torch.float64)
            tensors[f"{layer}.{part}"] = made
    return tensors


def gradients(features, leaves, weight):
    return torch.autograd.grad((features * weight).sum(), list(leaves.values()))


ALL = tuple(layer for layers in TARGETS.values() for layer in layers)
CASES = [(ALL, 0), (("q", "v"), 0), (("out",), 0), (("fc", "proj"), 0), (("proj",), 1)]
CASES += [(("k",), 1), (("q",), 1), (ALL, 1)]


@pytest.mark.parametrize(("layers", "first"), CASES, ids=str)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_features_and_gradients_of_merged_weights(task, monkeypatch, layers, first, device):
    """In both kinds of attention, K clients together against each alone and the model's own
    forward with W + B A."""
    monkeypatch.setattr(attention, "PADS", ("cpu",) if device == "cuda" else ())
    encoder = AdaptedTextEncoder(
        task.clip, task.class_names, "a photo of a", first, dtype=torch.float64
    )
    assert isinstance(encoder._attention, PaddedAttention if device == "cuda" else Packing)
    leaves = {n: t.requires_grad_() for n, t in drawn(task, layers, first).items()}
    together = encoder.encode_adapted(leaves)
    weight = torch.randn(together.shape, generator=torch.Generator().manual_seed(2)).double()
    found = gradients(together, leaves, weight)
    for k in range(K):
        mine = {n: t[k : k + 1].detach().requires_grad_() for n, t in leaves.items()}
        alone = encoder.encode_adapted(mine)
        own = {n: t[0].detach().requires_grad_() for n, t in mine.items()}
        merged = torch.stack([merged_feature(task, c, [(1.0, own)]) for c in range(5)])
        assert_close(together[k], merged, rtol=1e-9, atol=1e-11)
        assert_close(alone[0], merged, rtol=1e-9, atol=1e-11)
        wanted = gradients(merged, own, weight[k])
        for name, grad, lone, want in zip(
            leaves, found, gradients(alone[0], mine, weight[k]), wanted, strict=True
        ):
            assert want.abs().max() > 1e-4, name
            assert_close(grad[k], want, rtol=1e-8, atol=1e-10)
            assert_close(lone[0], want, rtol=1e-8, atol=1e-10)


def test_chunks_and_checkpoints_change_nothing(task, monkeypatch):
    encoder = AdaptedTextEncoder(task.clip, task.class_names, "a photo of a", 0)
    leaves = {n: t.requires_grad_() for n, t in drawn(task, ALL, 0).items()}
    expected = encoder.encode_adapted(leaves)
    wanted = gradients(expected, leaves, torch.ones_like(expected))
    runs = []

    def counted(run, *args, **options):
        runs.append(run)
        return prefix_shared.checkpoint(run, *args, **options)

    monkeypatch.setattr(FoldedTower, "chunk_size", lambda self, sequences, tokens: 2)
    monkeypatch.setattr(adapted, "checkpoint", counted)
    encoder.checkpointing = True
    features = encoder.encode_adapted(leaves)
    assert_close(features, expected, rtol=1e-12, atol=1e-14)
    for grad, want in zip(
        gradients(features, leaves, torch.ones_like(features)), wanted, strict=True
    ):
        assert_close(grad, want, rtol=1e-10, atol=1e-12)
    assert len(runs) == 2 * task.clip.text_blocks


def test_without_adapters_it_is_the_frozen_template(task):
    classes = task.class_set(range(5))
    encoder = classes.adapted_encoder("a photo of a", 1)
    assert encoder is classes.adapted_encoder("a photo of a", 1)
    tensors = {n: torch.zeros_like(t) for n, t in drawn(task, ("q", "fc"), 1).items()}
    expected = classes.features_of("a photo of a {}.").expand(K, -1, -1)
    assert_close(encoder.encode_adapted(tensors), expected, rtol=1e-9, atol=1e-11)


def test_a_tower_of_full_sequences_is_refused(task, monkeypatch):
    monkeypatch.setattr(prefix_shared, "_why_not_shared", lambda clip: "it is not causal")
    with pytest.raises(FedPGPError, match=r"need a shared prefix.*it is not causal"):
        AdaptedTextEncoder(task.clip, task.class_names, "a photo of a", 0)
