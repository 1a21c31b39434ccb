"""pFedPrompt: loss and gradients against its equations, written out."""

import torch
from torch.testing import assert_close

from fedpgp.methods import METHODS
from tests.helpers.equations import promptfl
from tests.helpers.gradients import B, C, K, check_gradients, parameters


def pfedprompt(task, s, batch, k, p, global_params):
    assert torch.equal(p["keys"], batch.images.features[k])
    return promptfl(task, s, batch, k, p, global_params)


def test_loss_and_gradients(task, batch):
    check_gradients("pfedprompt", {}, pfedprompt, task, batch)


def test_pfedprompt_answers_from_its_memory(task, batch):
    """An image like the client's own ones of a class is drawn to that class; other
    classes are untouched."""
    method, classes = (
        METHODS["pfedprompt"](METHODS["pfedprompt"].Settings(alpha=2.0, beta=3.0), task),
        [4, 1, 2],
    )
    trained, asked = task.class_set(range(C)), task.class_set(classes)
    params, _ = parameters(method, batch, trained)
    logits = method.logits(method.personal_classifier(params, asked), batch.images, asked)
    text = method.logits(method.global_classifier(params, asked), batch.images, asked)
    for k in range(K):
        for b in range(B):
            for column, c in enumerate(classes):
                memory = 0.0
                for i in range(B):
                    if batch.weights[k, i] and batch.labels[k, i] == c:
                        cosine = batch.images.features[k, b] @ batch.images.features[k, i]
                        memory += 2.0 * torch.exp(-3.0 * (1 - cosine))
                assert_close(logits[k, b, column], text[k, b, column] + memory)
