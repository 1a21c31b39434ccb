"""The prototype head: its loss, and that it is the class means of all images, however they come."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fedpgp.methods import METHODS
from tests.helpers.equations import classes, cosine_cross_entropy, photo
from tests.helpers.gradients import check_gradients
from tests.helpers.tasks import Rounds, federation

FIRST = [[0, 1, 2, 3], [6, 7], [12, 13, 14]]
"""Rows of each client in the first task."""
SECOND = [[4, 5], [8, 9, 10], [15, 16]]


def prototype(task, s, batch, k, p, global_params):
    rows = [
        p["sums"][c] / p["sums"][c].norm() if p["counts"][c] > 0 else photo(task, c)
        for c in classes(task)
    ]
    return cosine_cross_entropy(task, batch, k, rows), {}


def some_counts(method, rng):
    return {
        "sums": torch.from_numpy(rng.normal(size=(5, 16))),
        "counts": torch.tensor([[3.0], [1.0], [0.0], [2.0], [0.0]]),
    }


def test_loss_and_gradients(task, batch, monkeypatch):
    monkeypatch.setattr(METHODS["prototype"], "init_shared", some_counts)
    check_gradients("prototype", {}, prototype, task, batch)


def class_means(fed, rows):
    """GwenLegate/GuidingLastLayerFLPretrain at 54b5d1ee2460, src/federated_main.py, lines 103 to
    118: sums and counts image by image, their quotients brought to unit norm. A class without an
    image has the hand-written template."""
    sums, counts = torch.zeros(6, 16).double(), torch.zeros(6)
    for row in rows:
        label = fed.dataset.train.labels[row]
        sums[label] += fed.inputs.features("train")[row]
        counts[label] += 1
    means = F.normalize(sums / counts.reshape(-1, 1))
    return torch.where(counts.reshape(-1, 1) > 0, means, fed.base.template_features)


def head(rounds):
    fed = rounds.federation
    return fed.models.global_classifier(rounds.shared, fed.base)[0]


@pytest.fixture(scope="module")
def after_tasks():
    """Three clients, two tasks; one is away in the first round of the second."""
    rounds = Rounds(federation("prototype", [FIRST, SECOND]))
    heads = [head(rounds)]
    for server_round, clients in ((1, [0, 1, 2]), (2, [0, 2]), (3, [0, 1, 2]), (4, [1])):
        rounds.play(server_round, clients)
        heads.append(head(rounds))
    return rounds, heads


def test_the_head_is_that_of_all_images_that_came(after_tasks):
    rounds, heads = after_tasks
    fed, first = rounds.federation, sum(FIRST, [])
    for found, rows in zip(
        heads,
        ([], first, first + SECOND[0] + SECOND[2], first + sum(SECOND, [])),
        strict=False,
    ):
        assert_close(found, class_means(fed, rows))
    assert (heads[1] - heads[3]).abs().max() > 0.1


def test_images_are_sent_once(after_tasks):
    rounds, heads = after_tasks
    assert torch.equal(heads[3], heads[4])
    assert not rounds.updates[1]["sums"].any() and not rounds.updates[1]["counts"].any()


def test_images_that_are_added_count_once():
    """As of a node whose folder grows: no phase begins."""
    fed = federation("prototype", [FIRST])
    rounds = Rounds(fed)
    rounds.play(1, [0, 1, 2])
    grown = Rounds(federation("prototype", [[[0, 1, 2, 3, 17], *FIRST[1:]]]))
    grown.shared, grown.states = rounds.shared, rounds.states
    grown.play(2, [0, 2])
    assert grown.updates[0]["counts"].sum() == 1
    assert_close(head(grown), class_means(fed, sum(FIRST, [17])))


def test_everybody_answers_with_the_head(after_tasks):
    rounds, heads = after_tasks
    fed = rounds.federation
    (found,) = fed.models.personal_classifier(
        rounds.shared, [1], rounds.states.get, [fed.class_set([4, 0])], server_round=4
    )
    assert_close(found[0], heads[4][[4, 0]])
