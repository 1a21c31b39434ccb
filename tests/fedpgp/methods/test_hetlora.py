"""HetLoRA: loss and gradients against its equations, written out; pruning; the server's mean."""

import pytest
import torch
from torch.testing import assert_close

from fedpgp.methods import METHODS
from fedpgp.methods.base import RoundContext, StepContext
from fedpgp.seeding import generator
from tests.helpers.equations import adapters_of, classes, cosine_cross_entropy, merged_feature
from tests.helpers.gradients import K, check_gradients

RANKS = (4, 3, 1)


def tail(s, p, rank):
    """PabloE-KAIST/FedLoRA-public at 6628deae03b6, federatedscope/contrib/common/
    heterolora_utils.py, ``tail_score``: from floor(rank * decay) on."""
    total, first = 0.0, int(rank * s.decay)
    for name in p:
        if name.startswith("text.") and name.endswith(".A"):
            for A, B in zip(p[name], p[f"{name[:-1]}B"], strict=True):
                total = total + torch.norm(A[first:rank]) * torch.norm(B[:, first:rank])
    return total


def hetlora(task, s, batch, k, p, global_params):
    mine = {
        n: t[:, : RANKS[k]] if n.endswith("A") else t[:, :, : RANKS[k]]
        for n, t in p.items()
        if n.startswith("text.")
    }
    texts = [merged_feature(task, c, [adapters_of(mine, s)]) for c in classes(task)]
    return cosine_cross_entropy(task, batch, k, texts) + s.penalty * tail(s, p, RANKS[k])


def ranked(method):
    return {"ranks": torch.tensor(RANKS).double()}


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 4, "decay": 0.6, "penalty": 0.7},
        {"rank": 4, "targets": ["mlp"], "blocks": "last_1", "penalty": 3.0},
    ],
    ids=str,
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("hetlora", options, hetlora, task, batch, state_of=ranked)


def test_a_client_lowers_its_rank_when_its_tail_fades(task):
    """hetlora_client.py of the same code, ``_hetlora_prune_and_send_rank``."""
    method = METHODS["hetlora"](METHODS["hetlora"].Settings(rank=4, decay=0.6), task)
    shared = method.init_shared(generator(0, "shared"))
    rng = torch.Generator().manual_seed(0)
    sent = {n: torch.randn(K, *t.shape, generator=rng).double() for n, t in shared.items()}
    kept = torch.stack([method.download_for(k, ranked(method))["kept"] for k in range(K)])
    assert kept.sum(-1).tolist() == list(RANKS)
    begun = {**sent, "kept": kept, **method.precompute({**sent, "kept": kept}, None, None)}
    factor = torch.tensor([0.9, 1.1, 0.9]).double().view(-1, 1, 1, 1)  # the second grows
    params = begun | {n: begun[n] * factor for n in shared}
    step = StepContext(2, 3, range(K), sent, 0.1, 0)
    found = method.finish_client(params, step)
    left = (2, 3, 1)  # max(1, int(4 * 0.6)); ; max(1, int(0.6))
    for k, rank in enumerate(left):
        for n in shared:
            rows = found[n][k] if n.endswith("A") else found[n][k].mT
            own = params[n][k] if n.endswith("A") else params[n][k].mT
            assert torch.equal(rows[:, :rank], own[:, :rank]) and not rows[:, rank:].any()
    before = {n: t[0] for n, t in sent.items()}
    about = (torch.full((K,), 1 / K).double(), before, {n: found[n] for n in shared})
    state = method.update_server(
        {}, RoundContext(2, 3, range(K), K, *about, ranked(method), 0.1, 0)
    )[1]
    assert state["ranks"].tolist() == list(left)


def test_clients_count_by_the_size_of_their_products(task):
    """hetlora_aggregator.py of the same code; the next ranks are what is left of the
    clients' adapters."""
    method = METHODS["hetlora"](METHODS["hetlora"].Settings(rank=2, ranks=[2, 1, 1, 2]), task)
    shared, rng = method.init_shared(generator(0, "shared")), torch.Generator().manual_seed(0)
    updates = {n: torch.randn(2, *t.shape, generator=rng).double() for n, t in shared.items()}
    for name, tensor in updates.items():  # both have one direction left
        (tensor if name.endswith("A") else tensor.mT)[:, :, 1:] = 0
    norms = []
    for k in range(2):
        square = 0.0
        for layer in ("q", "v"):
            A, B = (updates[f"text.{layer}.{part}"][k] for part in "AB")
            square += sum(float(torch.norm(b @ a)) ** 2 for a, b in zip(A, B, strict=True))
        norms.append(square**0.5)
    weights = torch.tensor([0.9, 0.1]).double()
    state = method.init_server_state(4)
    about = (weights, shared, updates, state, 0.1, 0)
    after, state = method.update_server({}, RoundContext(1, 2, [0, 2], 4, *about))
    for name in shared:
        mean = sum(n * t for n, t in zip(norms, updates[name], strict=True)) / sum(norms)
        assert_close(after[name], mean)
    assert state["ranks"].tolist() == [1, 1, 1, 2] and after.keys() == shared.keys()
    still = {n: torch.zeros_like(t) if n.endswith("B") else t for n, t in updates.items()}
    about = (weights, shared, still, state, 0.1, 0)
    after, _ = method.update_server({}, RoundContext(1, 2, [0, 2], 4, *about))
    A = updates["text.q.A"]
    assert_close(after["text.q.A"], 0.9 * A[0] + 0.1 * A[1])


def test_directions_that_no_client_has_lower_no_rank(task):
    """Client 0 of rank 2 is sent one direction, and sends it back."""
    method = METHODS["hetlora"](METHODS["hetlora"].Settings(rank=2, ranks=[2, 1]), task)
    shared = method.init_shared(generator(0, "shared"))
    sent = {
        n: torch.randn(t.shape, generator=torch.Generator()).double() for n, t in shared.items()
    }
    for name, tensor in sent.items():
        (tensor if name.endswith("A") else tensor.mT)[:, 1:] = 0
    updates = {n: torch.stack([t, 2 * t]) for n, t in sent.items()}
    about = (torch.tensor([0.5, 0.5]).double(), sent, updates, method.init_server_state(2), 0.1, 0)
    state = method.update_server({}, RoundContext(1, 2, [0, 1], 2, *about))[1]
    assert state["ranks"].tolist() == [2, 1]
