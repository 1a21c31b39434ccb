"""FedSA-LoRA: loss and gradients against its equations, written out."""

import pytest

from tests.helpers.equations import adapters_of, classes, cosine_cross_entropy, merged_feature
from tests.helpers.gradients import check_gradients


def fedsa_lora(task, s, batch, k, p, global_params):
    """``local_param: ['lora_B', ...]``: what stays with the client (Pengxin-Guo/FedSA-LoRA at
    fc276b5, federatedscope/glue/yamls/fedsa-lora.yaml); A is in ``global_params``."""
    assert {n[-1] for n in global_params} == {"A"}
    texts = [merged_feature(task, c, [adapters_of(p, s)]) for c in classes(task)]
    return cosine_cross_entropy(task, batch, k, texts)


@pytest.mark.parametrize("options", [{"rank": 2}, {"rank": 2, "targets": ["mlp", "v"]}], ids=str)
def test_loss_and_gradients(task, batch, options):
    check_gradients("fedsa_lora", options, fedsa_lora, task, batch)
