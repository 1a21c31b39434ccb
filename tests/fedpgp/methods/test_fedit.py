"""FedIT: loss and gradients against its equations, written out; settings of every method with
low-rank adapters."""

import pytest

from fedpgp.errors import FedPGPError
from fedpgp.methods import METHODS
from fedpgp.seeding import generator
from tests.helpers.equations import (
    adapted_cross_entropy,
    adapters_of,
    classes,
    cosine_cross_entropy,
    merged_feature,
)
from tests.helpers.gradients import check_gradients


def fedit(task, s, batch, k, p, global_params):
    if s.where != "text":
        texts = [adapters_of(p, s)] if s.where == "both" else []
        return adapted_cross_entropy(task, batch, k, texts, [adapters_of(p, s, tower="image")])
    texts = [merged_feature(task, c, [adapters_of(p, s)]) for c in classes(task)]
    return cosine_cross_entropy(task, batch, k, texts)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 2},
        {"rank": 3, "targets": ["v", "q", "k", "out", "mlp"], "alpha": 5.0},
        {"rank": 2, "blocks": "last_1", "targets": ["mlp"]},
        {"rank": 2, "where": "image", "targets": ["k", "v", "q", "out", "mlp"]},
        {"rank": 3, "where": "both", "blocks": "last_1"},
    ],
    ids=str,
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("fedit", options, fedit, task, batch)


def test_training_starts_at_the_frozen_model(task):
    """B is zero, A uniform in ±1/sqrt(in)."""
    method, classes = METHODS["fedit"](METHODS["fedit"].Settings(), task), task.class_set(range(5))
    shared = method.init_shared(generator(0, "shared"))
    assert {n: tuple(t.shape) for n, t in shared.items()} == {
        **{f"text.{layer}.A": (2, 8, 32) for layer in "qv"},
        **{f"text.{layer}.B": (2, 32, 8) for layer in "qv"},
    }
    assert not any(t.any() for n, t in shared.items() if n.endswith("B"))
    largest = max(t.abs().max() for n, t in shared.items() if n.endswith("A"))
    assert 0.95 * 32**-0.5 < largest <= 32**-0.5
    texts = method.global_classifier({n: t[None] for n, t in shared.items()}, classes)
    assert (texts[0] - classes.features_of("a photo of a {}.")).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ({"where": "txt"}, r"'txt'.*text"),
        ({"targets": []}, r"method.targets=\[\] cannot work; it is a list such as \[q,v\]"),
        ({"targets": "q"}, r"method.targets=q cannot work"),
        ({"targets": ["q", "w"]}, r"value of method.targets 'w'.*q, k, v, out, mlp"),
        ({"blocks": "last_0"}, r"method.blocks=last_0 cannot work; it is all, or last_N"),
        ({"rank": 0}, r"method.rank=0"),
        ({"alpha": 0}, r"method.alpha=0"),
    ],
    ids=str,
)
def test_settings_that_cannot_work(option, why):
    with pytest.raises(FedPGPError, match=why):
        METHODS["fedit"].Settings(**option)


def test_more_blocks_than_the_tower_has(task):
    method = METHODS["fedit"](METHODS["fedit"].Settings(blocks="last_3"), task)
    with pytest.raises(FedPGPError, match=r"method.blocks=last_3: .* has 2 blocks"):
        method.init_shared(generator(0, "shared"))
