"""Which attention a packed sequence gets, and that an encoder's features do not depend on it."""

import pytest
import torch
from torch.testing import assert_close

from fedpgp.errors import FedPGPError
from fedpgp.text import PromptedTextEncoder
from fedpgp.towers import attention
from fedpgp.towers.attention import attention_of
from fedpgp.towers.packed_attention import Group, Packing
from fedpgp.towers.padded_attention import PaddedAttention
from fedpgp.towers.text import TextTower
from fedpgp.towers.triton_attention import TritonAttention, why_not
from tests.helpers.golden import golden_clip

CPU = torch.device("cpu")
SHORT = [Group(3, 4, 0, 0), Group(4, 2, 12, 4)]
WHY_NOT = why_not(CPU)


def kind_of(kind: str | None, groups: list[Group]) -> type:
    return type(attention_of(kind, 5, 2, 32, groups, torch.float32, CPU))


def test_the_kind_that_is_asked_for_else_the_devices(monkeypatch):
    one_long = [*SHORT, Group(40, 1, 20, 6)]
    assert kind_of(None, SHORT) == kind_of("packed", SHORT) == Packing
    assert kind_of("padded", SHORT) == kind_of("padded", one_long) == PaddedAttention
    monkeypatch.setattr(attention, "PADS", ("cpu",))
    assert kind_of(None, SHORT) == PaddedAttention
    assert kind_of(None, one_long) == kind_of("packed", SHORT) == Packing


@pytest.mark.skipif(WHY_NOT is None, reason="triton's kernels can run here")
def test_triton_is_refused_where_it_cannot_run():
    with pytest.raises(FedPGPError, match="attention=triton: .*; use padded or packed"):
        kind_of("triton", SHORT)


@pytest.mark.parametrize(
    "kind",
    [
        "padded",
        pytest.param("triton", marks=pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))),
    ],
)
def test_an_encoders_features_do_not_depend_on_it(kind, monkeypatch):
    clip = golden_clip()
    context = torch.randn(2, 4, 32).requires_grad_()
    found = []
    for asked in ("packed", kind):
        monkeypatch.setattr(TextTower, "attention", asked)
        names = ["cat", "golden retriever", "swimming pool", "dog"]
        encoder = PromptedTextEncoder(clip, names, 4, dtype=torch.float32)
        features = encoder(context)
        weights = torch.linspace(-1, 1, features.numel()).view_as(features)
        found.append((features, torch.autograd.grad((features * weights).sum(), context)[0]))
    assert isinstance(encoder._attention, PaddedAttention if kind == "padded" else TritonAttention)
    for packed, ours in zip(*found, strict=True):
        assert_close(ours, packed, rtol=0, atol=1e-5)
