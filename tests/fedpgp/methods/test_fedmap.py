"""FedMAP: loss, gradients and prototypes against its equations, written out."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fedpgp.methods import METHODS, StepContext
from fedpgp.text.templates import SEVEN
from tests.helpers.equations import classes, cross_entropy_of, pictured, real
from tests.helpers.gradients import C, K, check_gradients, parameters


def anchors(task, s):
    found = []
    for c in classes(task):
        templates = SEVEN if s.anchors == "seven" else [task.templates[c]]
        texts = [template.format(task.class_names[c]) for template in templates]
        tokens = task.clip.tokenizer(texts, context_length=task.clip.context_length)
        with torch.no_grad():
            found.append(F.normalize(task.clip.model.encode_text(tokens).mean(0), dim=0))
    return found


def moved(batch, k, images, s, prototypes, seen):
    """YipanWei/FedMAP at 12e05f1, trainers/FedMAP.py, ``update_visual_prototypes``: a class at a
    time; the first mean takes the place of what was there."""
    prototypes, seen = list(prototypes), [bool(v) for v in seen]
    for c in sorted({y for _, y, _ in real(batch, k)}):
        mean = torch.stack([images[b].detach() for b, y, _ in real(batch, k) if y == c]).mean(0)
        mean = mean / mean.norm()
        new = s.momentum * prototypes[c] + (1 - s.momentum) * mean if seen[c] else mean
        prototypes[c], seen[c] = new / new.norm(), True
    return prototypes, seen


def fedmap(task, s, batch, k, p, global_params):
    """The same file, ``forward``: prototypes move first; the squared differences are averaged over
    images and active classes. ``forward_backward``: CE + lambda_struct times that."""
    a = anchors(task, s)
    images = {b: pictured(task, batch.images.pixels[k, b], p["v"]) for b, _, _ in real(batch, k)}
    prototypes, seen = moved(batch, k, images, s, p["prototypes"], p["seen"])
    apart = [
        (images[b] @ prototypes[c] - a[y] @ a[c]) ** 2
        for b, y, _ in real(batch, k)
        for c in classes(task)
        if seen[c]
    ]
    loss = cross_entropy_of(batch, k, lambda b: [task.logit_scale * (images[b] @ t) for t in a])
    return loss + s.weight * torch.stack(apart).mean()


@pytest.mark.parametrize(
    "options", [{"depth": 1}, {"depth": 2, "tokens": 2, "anchors": "template"}], ids=str
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("fedmap", options, fedmap, task, batch)


def test_prototypes_start_at_the_anchors_and_move_with_every_batch(task, batch):
    method = METHODS["fedmap"](METHODS["fedmap"].Settings(depth=2), task)
    trained = task.class_set(range(C))
    params, _ = parameters(method, batch, trained)
    a = torch.stack(anchors(task, method.settings))
    assert_close(params["prototypes"][0], a.to(params["prototypes"]))
    assert not params["seen"].any()
    step = StepContext(server_round=1, step=0, clients=range(K), global_params={}, lr=0.1, seed=0)
    wanted = [(params["prototypes"][k].clone(), params["seen"][k].clone()) for k in range(K)]
    for _ in range(2):  # the second batch moves what the first put there
        method.gradients(params, batch, trained, step)
        for k in range(K):
            images = {
                b: pictured(task, batch.images.pixels[k, b], params["v"][k])
                for b, _, _ in real(batch, k)
            }
            prototypes, seen = moved(batch, k, images, method.settings, *wanted[k])
            wanted[k] = torch.stack(list(prototypes)), torch.tensor(seen).double()
            assert_close(params["prototypes"][k], wanted[k][0])
            assert torch.equal(params["seen"][k], wanted[k][1])
    unseen = params["seen"][2] == 0  # the third client has three images
    assert unseen.any()
    assert_close(params["prototypes"][2][unseen], a.to(params["prototypes"])[unseen])


def test_a_class_that_one_client_saw_counts_for_all(task, batch):
    """YipanWei/FedMAP at 12e05f1, utils/fed_utils.py, ``average_weights``: all buffers are
    averaged, and a part of one that is above zero is True where it is loaded."""
    method = METHODS["fedmap"](METHODS["fedmap"].Settings(depth=2), task)
    trained = task.class_set(range(C))
    params, _ = parameters(method, batch, trained)
    step = StepContext(server_round=2, step=0, clients=range(K), global_params={}, lr=0.1, seed=0)
    halves = {**params, "seen": torch.full_like(params["seen"], 0.25)}
    ones = {**params, "seen": torch.ones_like(params["seen"])}
    copies = [{n: t.clone() for n, t in each.items()} for each in (halves, ones)]
    losses = [method.gradients(each, batch, trained, step)[0] for each in copies]
    assert_close(*losses)
    assert torch.equal(copies[0]["seen"], copies[1]["seen"])
