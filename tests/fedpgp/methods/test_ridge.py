"""The ridge head: its loss, and that it is AFL's solution, however the images come."""

import torch
from torch.testing import assert_close

from fedpgp.methods import METHODS
from tests.fedpgp.methods.test_prototype import FIRST, SECOND, head
from tests.helpers.equations import classes, cosine_cross_entropy, photo
from tests.helpers.gradients import check_gradients
from tests.helpers.tasks import Rounds, federation


def ridge(task, s, batch, k, p, global_params):
    """W (C, e), the minimum of sum |x W - y|^2 + penalty |W|^2 in terms of its sums."""
    inverse = torch.linalg.inv(p["gram"] + s.penalty * torch.eye(16).double())
    rows = [inverse @ p["sums"][c] if p["counts"][c] > 0 else photo(task, c) for c in classes(task)]
    return cosine_cross_entropy(task, batch, k, rows), {}


def some_counts(method, rng):
    x, y = torch.from_numpy(rng.normal(size=(9, 16))), torch.tensor([0, 1, 1, 3, 3, 3, 0, 0, 1])
    sums = torch.stack([x[y == c].sum(0) for c in range(5)])
    counts = torch.tensor([[3.0], [3.0], [0.0], [3.0], [0.0]])
    return {"sums": sums, "counts": counts, "gram": x.T @ x}


def test_loss_and_gradients(task, batch, monkeypatch):
    monkeypatch.setattr(METHODS["ridge"], "init_shared", some_counts)
    check_gradients("ridge", {"penalty": 0.3}, ridge, task, batch)


def local_update(x, y, gamma):
    """ZHUANGHP/Analytic-federated-learning at 1e7c2d997843, afl.py, ``local_update``."""
    auto = x.T @ x + gamma * torch.eye(16).double()
    inverse = torch.linalg.inv(auto)
    one_hot = torch.nn.functional.one_hot(y, 6).double()
    return inverse @ (x.T @ one_hot), inverse, auto


def aggregation(locals_):
    """The same file, ``aggregation``: the absolute aggregation law, client after client."""
    eye = torch.eye(16).double()
    (w, r, c), *rest = locals_
    for w_i, r_i, c_i in rest:
        both = torch.linalg.inv(c + c_i)
        w = (eye - r @ c_i + r @ c_i @ both @ c_i) @ w + (eye - r_i @ c + r_i @ c @ both @ c) @ w_i
        c = c + c_i
        r = torch.linalg.inv(c)
    return w


def test_the_head_is_afls_of_all_images_that_came():
    """Three clients, two tasks: as six clients of AFL, of gamma each."""
    gamma = 0.1
    rounds = Rounds(federation("ridge", [FIRST, SECOND], f"method.penalty={6 * gamma}"))
    fed = rounds.federation
    rounds.play(1, [0, 1, 2])
    rounds.play(2, [2, 0])
    rounds.play(3, [0, 1])
    locals_ = []
    for rows in (*FIRST, *SECOND):
        x = fed.inputs.features("train")[rows]
        locals_.append(local_update(x, torch.from_numpy(fed.dataset.train.labels[rows]), gamma))
    w = aggregation(locals_)
    labels = set(fed.dataset.train.labels[sum(FIRST + SECOND, [])].tolist())
    assert len(labels) > 3
    for c in range(6):
        expected = w[:, c] if c in labels else fed.base.template_features[c]
        assert_close(head(rounds)[c], expected, rtol=1e-8, atol=1e-9)
