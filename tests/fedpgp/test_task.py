"""Which hand-written text stands for CLIP: the data set's own template, or "a photo of a
{class}." everywhere."""

import pytest
import torch

from experiments.settings import composed
from fedpgp.build import build_federation
from fedpgp.errors import FedPGPError
from fedpgp.methods import METHODS
from fedpgp.task import Task
from tests.helpers.golden import golden_class_names, golden_clip

TEMPLATE = "a blurry photo of {}, a type of pet."


@pytest.mark.parametrize("plain", [False, True])
def test_zero_shot_and_guidance_have_a_template_of_their_own(plain):
    clip, names = golden_clip(), golden_class_names()
    task = Task(clip, names, template=TEMPLATE, plain_zero_shot=plain, n_ctx=4, dtype=torch.float64)
    classes = task.class_set([3, 1])
    texts = {
        t: clip.encode_texts([t.format(names[c]) for c in (3, 1)])
        for t in (TEMPLATE, "a photo of a {}.")
    }
    answers = METHODS["zero_shot"](METHODS["zero_shot"].Settings(), task).global_classifier(
        {}, classes
    )[0]
    assert torch.equal(answers, texts["a photo of a {}." if plain else TEMPLATE])
    for guidance, template in (("photo", TEMPLATE), ("plain", "a photo of a {}.")):
        method = METHODS["fedpgp"](METHODS["fedpgp"].Settings(guidance=guidance, rank=2), task)
        assert torch.equal(method.guidance(classes), texts[template])


def test_the_protocol_says_which():
    configs = [composed(["protocol=personal", *more]) for more in ([], ["protocol.template=plain"])]
    tasks = [build_federation(config).method.task for config in configs]
    assert [task.plain_zero_shot for task in tasks] == [False, True]
    assert composed(["recipe=paper", "protocol=dirichlet"])["protocol"]["template"] == "plain"
    with pytest.raises(FedPGPError, match="protocol.template"):
        build_federation(composed(["protocol=personal", "protocol.template=plane"]))
