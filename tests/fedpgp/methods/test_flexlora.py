"""FlexLoRA: loss and gradients against its equations, written out; ranks by client."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fedpgp.errors import FedPGPError
from fedpgp.methods import METHODS
from fedpgp.methods.base import RoundContext
from fedpgp.seeding import generator
from tests.helpers.equations import adapters_of, classes, cosine_cross_entropy, merged_feature
from tests.helpers.gradients import check_gradients, parameters


def flexlora(task, s, batch, k, p, global_params):
    """Client k has the first rows and columns alone."""
    rank = s.ranks[k % len(s.ranks)] if s.ranks else s.rank
    mine = {
        n: t[:, :rank] if n.endswith("A") else t[:, :, :rank]
        for n, t in p.items()
        if n.startswith("text.")
    }
    texts = [merged_feature(task, c, [adapters_of(mine, s)]) for c in classes(task)]
    return cosine_cross_entropy(task, batch, k, texts)


@pytest.mark.parametrize(
    "options", [{"rank": 2}, {"rank": 4, "ranks": [4, 1], "targets": ["q", "mlp"]}], ids=str
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("flexlora", options, flexlora, task, batch)


def test_a_round_of_clients_of_different_ranks(task):
    """The next shared adapters are the best of the largest rank for the weighted mean of the
    clients' dense products; a client starts at the best of its own rank."""
    settings = METHODS["flexlora"].Settings(rank=3, ranks=[3, 1, 2])
    method = METHODS["flexlora"](settings, task)
    start, rng = method.init_shared(generator(0, "shared")), torch.Generator().manual_seed(0)
    updates = {n: torch.randn(3, *t.shape, generator=rng).double() for n, t in start.items()}
    for name, tensor in updates.items():
        for client, rank in enumerate((3, 1, 2)):
            part = tensor[client].mT if name.endswith("B") else tensor[client]
            part[:, rank:] = 0
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    state = method.init_server_state(3)
    shared, after = method.update_server(
        {}, RoundContext(1, 2, [0, 1, 2], 3, weights, start, updates, state, 0.1, 0)
    )
    assert after is state and shared.keys() == start.keys()
    for layer in ("q", "v"):
        A, B = updates[f"text.{layer}.A"], updates[f"text.{layer}.B"]
        for block in range(2):
            mean = sum(w * b[block] @ a[block] for w, a, b in zip(weights, A, B, strict=True))
            U, sigma, Vh = torch.linalg.svd(mean)
            for client, rank in enumerate((3, 1, 2)):
                sent = {n: t[None] for n, t in (shared | method.download_for(client, {})).items()}
                mine = method.precompute(sent, None, None)
                product = mine[f"text.{layer}.B"][0, block] @ mine[f"text.{layer}.A"][0, block]
                nearest = U[:, :rank] * sigma[:rank] @ Vh[:rank]
                assert_close(product, nearest, rtol=0, atol=1e-9)


def test_ranks_by_the_number_of_images(task, batch):
    """One for every two images of 5, 5 and 3; at most as many as there are."""
    settings = METHODS["flexlora"].Settings(rank=4, rank_by="images", images_a_rank=2)
    params, _ = parameters(METHODS["flexlora"](settings, task), batch, task.class_set(range(5)))
    assert params["kept"].sum(-1).tolist() == [3, 3, 2]
    for k, rank in enumerate((3, 3, 2)):
        A, B = params["text.v.A"][k], params["text.v.B"][k].mT
        assert A[:, :rank].all() and not A[:, rank:].any() and not B[:, rank:].any()
    most = METHODS["flexlora"](replace(settings, images_a_rank=1), task)
    params, _ = parameters(most, batch, task.class_set(range(5)))
    assert params["kept"].sum(-1).tolist() == [4, 4, 3]
    assert "method.rank_by=images" in most.why_not_per_image()
    with pytest.raises(FedPGPError, match="method.ranks and method.rank_by=images both say"):
        METHODS["flexlora"].Settings(ranks=[8, 4], rank_by="images")


@pytest.mark.parametrize(
    ("ranks", "why"),
    [
        ([4], r"method.ranks=\[4\] cannot work; it is a list of two ranks or more"),
        (4, r"method.ranks=4 cannot work"),
        ([4, 0], r"method.ranks=0"),
        ([9, 4], r"method.ranks=9"),
    ],
    ids=str,
)
def test_ranks_that_cannot_work(ranks, why):
    with pytest.raises(FedPGPError, match=why):
        METHODS["flexlora"].Settings(rank=8, ranks=ranks)
