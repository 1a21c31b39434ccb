"""HiLoRA: loss and gradients against its equations, written out; what its server makes of the
adapters, clusters and stages. (The equations are the paper's; no code by its authors exists.)"""

import json

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch.testing import assert_close

from clients.private_state import PrivateStore
from experiments.runner import start
from fedpgp.errors import FedPGPError
from fedpgp.methods import METHODS
from fedpgp.methods.base import RoundContext
from fedpgp.methods.hilora import CLUSTER_STAGE, LEAF_STAGE
from fedpgp.methods.lora_subspaces import affinities, distances
from fedpgp.seeding import generator
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.helpers.equations import adapters_of, classes, cosine_cross_entropy, merged_feature
from tests.helpers.gradients import K, check_gradients
from tests.helpers.small import small_config, small_federation


def hilora(task, s, batch, k, p, global_params):
    tiers = [adapters_of(p, s, prefix) for prefix in ("", "cluster.", "leaf.")]
    texts = [merged_feature(task, c, tiers) for c in classes(task)]
    loss = cosine_cross_entropy(task, batch, k, texts)
    root, cluster, leaf = (tensors for _, tensors in tiers)
    for name in root:
        if name.endswith(".B"):
            for B_r, B_c, B_l in zip(root[name], cluster[name], leaf[name], strict=True):
                if p["stage"] == CLUSTER_STAGE:
                    loss = loss + s.gamma_cluster * torch.linalg.norm(B_r.T @ B_c) ** 2
                if p["stage"] == LEAF_STAGE:
                    loss = loss + s.gamma_cluster * torch.linalg.norm(B_r.T @ B_l) ** 2
                    loss = loss + s.gamma_leaf * torch.linalg.norm(B_c.T @ B_l) ** 2
    return loss


def clustered(stage):
    """A server state in which clients 0 and 2 are in clusters, and 1 in none."""

    def state_of(method):
        rng, start = torch.Generator().manual_seed(3), method.init_shared(generator(0, "shared"))
        state = {n: t.double() for n, t in method.init_server_state(K).items()}
        state |= {"cluster": torch.tensor([2.0, 0, 1]), "stage": torch.tensor([float(stage)])}
        for name, tensor in start.items():
            state[f"clusters.{name}"] = 0.1 * torch.randn(3, *tensor.shape, generator=rng).double()
        return state

    return state_of


@pytest.mark.parametrize("stage", ["root", "cluster", "leaf"])
@pytest.mark.parametrize(
    "options",
    [
        {"rank": 2, "gamma_cluster": 0.7, "gamma_leaf": 0.3},
        {"rank": 1, "targets": ["out", "mlp"], "blocks": "last_1"},
    ],
    ids=str,
)
def test_loss_and_gradients(task, batch, options, stage):
    state_of = clustered(("root", "cluster", "leaf").index(stage))
    check_gradients("hilora", options, hilora, task, batch, state_of=state_of)


def made(task, **options):
    return METHODS["hilora"](METHODS["hilora"].Settings(rank=2, **options), task)


def a_round(method, state, updates, shared, server_round=1, num_rounds=10, clients=None):
    clients = range(len(next(iter(updates.values())))) if clients is None else clients
    weights = torch.arange(1, len(clients) + 1).double()
    about = (weights / weights.sum(), shared, updates, state, 0.1, 0)
    context = RoundContext(server_round, num_rounds, list(clients), len(state["known"]), *about)
    return method.update_server({}, context)


def random_updates(shared, count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {n: torch.randn(count, *t.shape, generator=rng).double() for n, t in shared.items()}


def nearest(matrices, weights, rank=2):
    """The best matrix of a rank for a weighted mean."""
    mean = sum(w * m.numpy() for w, m in zip(weights, matrices, strict=True))
    U, sigma, Vh = np.linalg.svd(mean)
    return torch.from_numpy(U[:, :rank] * sigma[:rank] @ Vh[:rank])


def test_the_root_is_the_best_for_the_mean_of_the_products(task):
    method = made(task, decay=0.25)
    shared = method.init_shared(generator(0, "shared"))
    state, before = method.init_server_state(3), None
    for server_round in (1, 2):
        updates = random_updates(shared, 3, server_round)
        state, given = {n: t.double() for n, t in state.items()}, shared
        shared, state = a_round(method, state, updates, given, server_round)
        for layer in ("q", "v"):
            A, B = (updates[f"text.{layer}.{part}"] for part in "AB")
            for block in range(2):
                products = [b[block] @ a[block] for a, b in zip(A, B, strict=True)]
                found = shared[f"text.{layer}.B"][block]
                expected = nearest(products, (1 / 6, 2 / 6, 3 / 6))
                assert_close(found @ shared[f"text.{layer}.A"][block], expected)
                assert_close(found.T @ found, torch.eye(2).double())
        unit = [b[1] / torch.linalg.norm(b[1]) for b in updates["text.v.B"]]
        kept = (
            unit
            if before is None
            else [0.25 * m + 0.75 * now for m, now in zip(before, unit, strict=True)]
        )
        assert_close(state["seen.text.v"][:, 1], torch.stack(kept))
        before = kept
    assert state["stage"] == 0 and "clusters.text.q.A" not in state


def grouped(method, truth, apart):
    """B of clients whose columns are near those of their group in every layer."""
    rng, shape = np.random.default_rng(0), method.start_B()["text.q.B"].shape
    sent = {}
    for name in method.start_B():
        centres = rng.normal(size=(3, *shape))
        noisy = [centres[g] + apart * rng.normal(size=shape) for g in truth]
        sent[name] = torch.from_numpy(np.stack(noisy))
    return sent


def test_clusters_of_the_nearest_subspaces(task):
    method = made(task, root=0.1, cluster=0.5)
    truth = [0, 1, 0, 2, 1, 2, 0, 1, 2]
    shared = method.init_shared(generator(0, "shared"))
    updates = {**random_updates(shared, 9), **grouped(method, truth, 0.1)}
    state = method.init_server_state(11)
    shared, state = a_round(method, state, updates, shared)
    assert state["stage"] == CLUSTER_STAGE
    found = state["cluster"].int().tolist()
    assert len(set(zip(found[:9], truth, strict=True))) == len(set(truth)) == max(found)
    assert found[9:] == [0, 0]  # of which nothing was seen
    told = [method.download_for(client, state) for client in range(11)]
    assert not any(t[n].any() for t in told for n in t if n.endswith(".B"))  # the frozen model

    # A round of a cluster: the mean of its own clients' products; one that was not seen joins it.
    changes = random_updates(shared, 4, seed=5)
    changes |= {n: torch.cat([t[:3], updates[n][1:2]]) for n, t in changes.items() if n[-1] == "B"}
    clients = [0, 2, 3, 9]
    sent = {n: shared[n] + changes[n] for n in shared}
    same, after = a_round(method, state, sent, shared, 2, clients=clients)
    assert all(torch.equal(same[n], shared[n]) for n in shared)
    own = method.download_for(2, after)
    for layer in ("q", "v"):
        start_A = told[0][f"given.text.{layer}.A"]
        for block in range(2):
            products = [
                changes[f"text.{layer}.B"][k, block]
                @ (start_A[block] + changes[f"text.{layer}.A"][k, block])
                for k in (0, 1)
            ]
            product = own[f"given.text.{layer}.B"][block] @ own[f"given.text.{layer}.A"][block]
            assert_close(product, nearest(products, (1 / 3, 2 / 3)))
    assert after["cluster"][9] == after["cluster"][1] and after["cluster"][10] == 0
    for part in "AB":  # what the newcomer sent does not count yet
        name = f"clusters.text.q.{part}"
        at = int(after["cluster"][1])
        assert torch.equal(after[name][at], state[name][at])


def test_distances_are_of_principal_angles():
    rng = torch.Generator().manual_seed(0)
    of_layers = [torch.randn(4, 2, size, 3, generator=rng).double() for size in (9, 12)]
    d = distances(of_layers, of_layers)
    for i in range(4):
        for j in range(4):
            cosines = [
                np.cos(subspace_angles(B[i, block].numpy(), B[j, block].numpy())) ** 2
                for B in of_layers
                for block in range(2)
            ]
            assert d[i, j] == pytest.approx(1 - np.mean(cosines), abs=1e-12)
    a, others = affinities(d), np.sort(d[np.triu_indices(4, 1)].numpy())
    sigma = others[2]  # of the six, the lower median
    assert_close(a[0, 1], torch.exp(-(d[0, 1] ** 2) / (2 * sigma**2)))
    assert affinities(torch.zeros(2, 2)).tolist() == [[1, 1], [1, 1]]


def test_stages(task):
    """Root, cluster, leaf by fractions of the rounds; the last round is the leaf's."""
    method = made(task)
    for rounds, expected in [
        (50, "r" * 20 + "c" * 20 + "l" * 10),
        (10, "rrrrccccll"),
        (3, "rcl"),
        (2, "rl"),
        (1, "r"),
    ]:
        stages = [method.stage_of(r, rounds) for r in range(1, rounds + 1)]
        assert "".join("rcl"[stage] for stage in stages) == expected
    shared = method.init_shared(generator(0, "shared"))
    updates = random_updates(shared, 3)
    state = method.init_server_state(3)
    early = made(task, tolerance=1e-3)
    shared, state = a_round(early, state, updates, shared)
    assert state["stage"] == 0
    _, state = a_round(early, state, {n: t.repeat(3, 1, 1, 1) for n, t in shared.items()}, shared)
    assert state["stage"] == CLUSTER_STAGE  # nothing moved


def test_fractions_that_cannot_work():
    with pytest.raises(FedPGPError, match=r"method.root=0.7 and method.cluster=0.4 .* more than 1"):
        METHODS["hilora"].Settings(root=0.7)


def test_a_run_through_all_stages(tmp_path):
    config = small_config(tmp_path / "run", "method=hilora", "participation=1", "lr=0.1")
    summary = start(config, federation_of=small_federation)
    assert summary["status"] == "finished" and summary["accuracy"]["personal"]
    files = checkpoints(tmp_path / "run" / "checkpoint")
    server, info = read_checkpoint(files[-1])
    assert server["memory/stage"] == LEAF_STAGE and (server["memory/cluster"] > 0).all()
    B = torch.from_numpy(server["shared/text.q.B"].copy())
    assert_close(B.mT @ B, torch.eye(2).expand(2, 2, 2).to(B))
    assert np.abs(server["memory/clusters.text.q.B"][1:]).max() > 0
    store = PrivateStore(tmp_path / "run" / "private", info["run"], 99)
    leaves = [store.load(client, 3) for client in range(2)]
    assert set(leaves[0]) == set(small_federation(json.dumps(config)).models.personal_names)
    assert all(leaf["leaf.text.q.B"].any() for leaf in leaves)
