"""MaPLe: loss and gradients against its equations, written out."""

import pytest
import torch

from fedpgp.clip import load_clip
from fedpgp.methods import METHODS
from fedpgp.seeding import generator
from fedpgp.task import Task
from tests.helpers.equations import both_towers, classes, deep_feature
from tests.helpers.gradients import check_gradients


def maple(task, s, batch, k, p, global_params):
    v = torch.stack(
        [torch.stack([p["W"][i] @ t + p["b"][i] for t in p["t"][i]]) for i in range(s.depth)]
    )
    return both_towers(task, batch, k, [deep_feature(task, c, p["t"]) for c in classes(task)], v)


@pytest.mark.parametrize("options", [{"depth": 1}, {"depth": 2}], ids=str)
def test_loss_and_gradients(task, batch, options):
    check_gradients("maple", options, maple, task, batch)


def test_maple_couplings_of_deeper_blocks_start_alike(task):
    """``compound_prompt_projections`` are deep copies of one layer, ``proj`` is a layer of its
    own: trainers/maple.py, muzairkhattak/multimodal-prompt-learning at 69bce21; each as torch
    starts a linear layer."""
    clip = load_clip("tiny_vit")
    deeper = Task(clip, task.class_names, n_ctx=4)
    start = METHODS["maple"](METHODS["maple"].Settings(depth=4), deeper).init_shared(
        generator(0, "shared")
    )
    for what in ("W", "b"):
        assert torch.equal(start[what][1], start[what][2]) and torch.equal(
            start[what][1], start[what][3]
        )
        assert not torch.isclose(start[what][0], start[what][1]).any()
        assert start[what].abs().max() <= clip.width**-0.5
