"""The packed, prefix-shared encoder against open_clip's own transformer on full 77-token
sequences, one class at a time."""

from unittest import mock

import ftfy
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import fedpgp.towers.attention
import fedpgp.towers.folded
from fedpgp.clip import FrozenCLIP
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.errors import FedPGPError
from fedpgp.text import PromptedTextEncoder
from tests.helpers.golden import golden_clip


def slow_features(clip: FrozenCLIP, names: list[str], context: torch.Tensor) -> torch.Tensor:
    """(n, d) -> (classes, e): every class alone, all 77 positions, the whole model's own
    forward."""
    model, rows = clip.model, []
    for name in names:
        tokens = clip.tokenizer(["X " * len(context) + name.replace("_", " ") + "."])
        x = model.token_embedding(tokens)
        x = (
            torch.cat([x[:, :1], context[None], x[:, 1 + len(context) :]], dim=1)
            + model.positional_embedding
        )
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        rows.append(x[0, tokens[0].argmax()] @ model.text_projection)
    return F.normalize(torch.stack(rows), dim=-1)


def random_clip(quick_gelu: bool, layers: int = 2) -> FrozenCLIP:
    CLIP = import_open_clip().model.CLIP

    torch.manual_seed(3)
    model = CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
        text_cfg={
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 4,
            "layers": layers,
        },
        quick_gelu=quick_gelu,
    )
    for parameter in model.parameters():  # biases and norms too, so that folding them is tested
        torch.nn.init.normal_(parameter, std=0.3)
    return FrozenCLIP(model.double())


NAMES = [
    "cat",
    "golden retriever",
    "a_very long_class name with many words",
    "x",
    "four-leaf clover",
    "cat",
]


@pytest.mark.parametrize("pads", [(), ("cpu",)], ids=["packed", "padded"])
@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_equals_the_full_computation(quick_gelu, layers, pads, monkeypatch):
    monkeypatch.setattr(fedpgp.towers.attention, "PADS", pads)
    clip = random_clip(quick_gelu, layers)
    contexts = torch.randn(2, 3, 5, 32, dtype=torch.float64, requires_grad=True)
    fast = PromptedTextEncoder(clip, NAMES, 5)(contexts)
    assert fast.shape == (2, 3, len(NAMES), 24)
    slow = torch.stack(
        [torch.stack([slow_features(clip, NAMES, c) for c in row]) for row in contexts]
    )
    assert_close(fast, slow, rtol=0, atol=1e-11)
    weights = torch.randn_like(fast)
    (fast_grad,) = torch.autograd.grad((fast * weights).sum(), contexts)
    (slow_grad,) = torch.autograd.grad((slow * weights).sum(), contexts)
    assert_close(fast_grad, slow_grad, rtol=1e-9, atol=1e-11)


words = st.text(
    alphabet=st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=24
)


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(words, min_size=1, max_size=6),
    n_ctx=st.integers(1, 20),
    leading=st.sampled_from([(), (1,), (2, 1)]),
    pads=st.sampled_from([(), ("cpu",)]),
)
def test_any_names_lengths_and_axes(names, n_ctx, leading, pads):
    # ftfy reads a few names, such as "Ć¢", by the words beside them: they have no tokens of
    # their own.
    assume(all(ftfy.fix_text(f"X {name}.") == f"X {ftfy.fix_text(name)}." for name in names))
    clip = golden_clip()
    context = torch.randn(*leading, n_ctx, 32, dtype=torch.float64)
    with mock.patch.object(fedpgp.towers.attention, "PADS", pads):
        fast = PromptedTextEncoder(clip, names, n_ctx)(context)
    assert fast.shape == (*leading, len(names), 16)
    slow = slow_features(clip, names, context.reshape(-1, n_ctx, 32)[0])
    assert_close(fast.reshape(-1, len(names), 16)[0], slow, rtol=0, atol=1e-10)


def test_one_long_name_does_not_make_all_long(monkeypatch):
    monkeypatch.setattr(fedpgp.towers.attention, "PADS", ("cpu",))
    short = ["cat", "dog", "clover", "airplane"] * 5
    assert PromptedTextEncoder(golden_clip(), short, 4).padding > 0
    assert PromptedTextEncoder(golden_clip(), [*short, " ".join(["word"] * 20)], 4).padding == 0


def test_classes_do_not_influence_each_other():
    clip = golden_clip()
    context = torch.randn(4, 32, dtype=torch.float64)
    together = PromptedTextEncoder(clip, NAMES, 4)(context)
    for i, name in enumerate(NAMES):
        assert_close(
            together[i], PromptedTextEncoder(clip, [name], 4)(context)[0], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("deep", [False, True])
def test_a_few_contexts_at_a_time_are_the_same(checkpointing, deep, monkeypatch):
    clip = golden_clip()
    encoder = PromptedTextEncoder(clip, NAMES, 4)
    encoder.checkpointing = checkpointing
    contexts = torch.randn(7, 2, 4, 32, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(7, len(NAMES), 1, dtype=torch.float64)

    def run():
        features = encoder.encode_deep(contexts) if deep else encoder(contexts[:, 0])
        return features, torch.autograd.grad((features * weights).sin().sum(), contexts)[0]

    together, grad = run()
    monkeypatch.setattr(fedpgp.towers.folded, "HIDDEN_BYTES", 3 * encoder.tokens * 4 * 32 * 8)
    sizes, shared = [], encoder._shared
    monkeypatch.setattr(
        encoder, "_shared", lambda *some: sizes.append(len(some[0])) or shared(*some)
    )
    few, same = run()
    assert sizes == [3, 3, 1]
    assert_close(few, together, rtol=0, atol=1e-12)
    assert_close(same, grad, rtol=1e-10, atol=1e-12)


def test_no_pass_is_larger_than_it_may_be():
    tower = PromptedTextEncoder(golden_clip(), NAMES, 4).tower
    token = len(tower.blocks[0].fc_weight) * 8
    for tokens in (1, 300, 1000, 15_000, 40_000):
        for sequences in range(1, 60):
            size = tower.chunk_size(sequences, tokens)
            assert 1 <= size <= sequences
            assert size == 1 or size * tokens * token <= fedpgp.towers.folded.HIDDEN_BYTES
            fits = fedpgp.towers.folded.HIDDEN_BYTES // (tokens * token)
            assert -(-sequences // size) == -(-sequences // max(1, fits)), (
                "more passes than need be"
            )


def test_tokens_after_the_end_cannot_matter():
    """Whatever padding is (its embedding is changed), the full computation still equals
    ours, which has none."""
    clip = random_clip(True)
    context = torch.randn(4, 32, dtype=torch.float64)
    ours = PromptedTextEncoder(clip, NAMES, 4)(context)
    clip.model.token_embedding.weight[0] += 5.0
    assert_close(slow_features(clip, NAMES, context), ours, rtol=0, atol=1e-11)
    assert_close(PromptedTextEncoder(clip, NAMES, 4)(context), ours, rtol=0, atol=1e-12)


def test_longest_name_fits_and_one_more_token_is_refused():
    clip = golden_clip()
    context = torch.randn(16, 32, dtype=torch.float64)
    longest = " ".join(["cat"] * (77 - 16 - 3))
    fast = PromptedTextEncoder(clip, [longest], 16)(context)
    assert_close(fast, slow_features(clip, [longest], context), rtol=0, atol=1e-10)
    with pytest.raises(FedPGPError, match="59 tokens.*at most 58"):
        PromptedTextEncoder(clip, [longest + " cat"], 16)


def test_float32_is_close_to_float64():
    clip = golden_clip()
    context = torch.randn(16, 32, dtype=torch.float64)
    single = PromptedTextEncoder(clip, NAMES, 16, dtype=torch.float32)(context)
    assert single.dtype == torch.float32
    assert_close(single.double(), PromptedTextEncoder(clip, NAMES, 16)(context), rtol=0, atol=5e-6)


def test_a_tower_that_is_not_causal_takes_the_full_path():
    """With a phrase's own embeddings as context, the prompted features are those of the whole
    sentence."""
    CustomTextCLIP = import_open_clip().model.CustomTextCLIP

    torch.manual_seed(0)
    model = CustomTextCLIP(
        embed_dim=16,
        vision_cfg={"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
        text_cfg={
            "context_length": 77,
            "width": 32,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
        },
    ).double()
    clip = FrozenCLIP(model)
    encoder = PromptedTextEncoder(clip, NAMES, 4)
    assert encoder.path == "full sequences (it is not causal)"
    sentences = clip.encode_texts([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    context = clip.embed_phrase("a photo of a").expand(2, 1, 4, 32).clone().requires_grad_()
    features = encoder(context)
    assert features.shape == (2, 1, len(NAMES), 16)
    assert_close(features[1, 0], sentences, rtol=0, atol=1e-12)
    assert (
        torch.autograd.grad(features.square().sum(-1).sum() + features.sum(), context)[0]
        .abs()
        .max()
        > 0
    )


@pytest.mark.parametrize(
    ("position", "sentence"), [("middle", "a photo {} of a."), ("front", "{} a photo of a.")]
)
def test_class_name_in_the_middle_or_front(position, sentence):
    clip = golden_clip()
    encoder = PromptedTextEncoder(clip, NAMES, 4, position=position)
    assert encoder.path.startswith("full sequences")
    expected = clip.encode_texts([sentence.format(name.replace("_", " ")) for name in NAMES])
    assert_close(encoder(clip.embed_phrase("a photo of a")), expected, rtol=0, atol=1e-10)


def test_class_specific_context_equals_one_encoder_a_class():
    clip = golden_clip()
    contexts = torch.randn(2, len(NAMES), 4, 32, dtype=torch.float64)
    features = PromptedTextEncoder(clip, NAMES, 4, class_specific=True)(contexts)
    for c, name in enumerate(NAMES):
        assert_close(
            features[:, c],
            PromptedTextEncoder(clip, [name], 4)(contexts[:, c])[:, 0],
            rtol=0,
            atol=1e-10,
        )


def test_full_path_refuses_what_does_not_fit():
    with pytest.raises(FedPGPError, match="does not fit"):
        PromptedTextEncoder(golden_clip(), [" ".join(["cat"] * 70)], 16, position="front")
    with pytest.raises(FedPGPError, match="did you mean"):
        PromptedTextEncoder(golden_clip(), ["cat"], 4, position="centre front")


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_subset_of_classes(data):
    """Features of the classes a context asks for equal the full computation's; the others are
    zero."""
    clip = golden_clip()
    wanted = torch.tensor(
        data.draw(
            st.lists(
                st.lists(st.booleans(), min_size=6, max_size=6).filter(any), min_size=3, max_size=3
            )
        )
    )
    context = torch.randn(2, 3, 4, 32, dtype=torch.float64)
    features = PromptedTextEncoder(clip, NAMES, 4)(
        context, subset=wanted
    )  # the same for both of the first axis
    assert features.shape == (2, 3, len(NAMES), 16)
    for i in range(2):
        for k in range(3):
            slow = slow_features(clip, NAMES, context[i, k])
            assert_close(features[i, k], slow * wanted[k].unsqueeze(-1), rtol=0, atol=1e-10)


def test_a_subset_costs_only_its_own_classes():
    clip = golden_clip()
    encoder = PromptedTextEncoder(clip, NAMES, 4)
    encoder(
        torch.randn(4, 32, dtype=torch.float64),
        subset=torch.tensor([True, False, False, False, False, True]),
    )
    (part,) = encoder._parts.values()
    assert part.class_names == ["cat", "cat"] and part.tokens == 1 + 4 + 2 * 3
    with pytest.raises(FedPGPError, match="no class to choose"):
        encoder(torch.randn(4, 32, dtype=torch.float64), subset=torch.zeros(6, dtype=torch.bool))


def test_checkpointing_changes_memory_only():
    clip = random_clip(True, layers=3)
    context = torch.randn(3, 5, 32, dtype=torch.float64, requires_grad=True)
    encoder = PromptedTextEncoder(clip, NAMES, 5)
    weights = torch.randn(3, len(NAMES), 24, dtype=torch.float64)
    (plain,) = torch.autograd.grad((encoder(context) * weights).sum(), context)
    encoder.checkpointing = True
    (again,) = torch.autograd.grad((encoder(context) * weights).sum(), context)
    assert torch.equal(plain, again)


def test_bfloat16_products_are_near_the_full_computation():
    """To the rounding of bfloat16, 2^-9 of each number, which adds up over 3 blocks."""
    clip = random_clip(True, layers=3)
    fast = PromptedTextEncoder(clip, NAMES, 5, dtype=torch.float32, compute=torch.bfloat16)
    assert fast.tower.blocks[0].fc_weight.dtype == torch.bfloat16
    context = torch.randn(5, 32, requires_grad=True)
    exact = context.detach().double().requires_grad_()
    features, true = fast(context), slow_features(clip, NAMES, exact)
    weights = torch.randn(true.shape)
    (grad,) = torch.autograd.grad((features * weights).sum(), context)
    (true_grad,) = torch.autograd.grad((true * weights).sum(), exact)
    assert features.dtype == grad.dtype == torch.float32
    assert (features - true).norm() < 1e-2 * true.norm()
    assert (grad - true_grad).norm() < 2e-2 * true_grad.norm()
