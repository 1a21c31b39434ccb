"""pFedHN: loss and gradients, and what the server learns, against their equations written out."""

import json

import pytest
import torch
from torch.testing import assert_close

from fedpgp.methods import METHODS, StepContext
from fedpgp.seeding import generator
from tests.helpers.equations import classes, cosine_cross_entropy, feature, photo, prompted
from tests.helpers.gradients import C, K, check_gradients, parameters
from tests.helpers.server_rounds import server_round
from tests.helpers.small import small_config, small_federation


def loss_of(task, s, batch, k, p_G, p_i):
    """FedPGP's: cross-entropy, and mu times the contrastive loss."""
    total = 0.0
    for c in classes(task):
        z_G, z_i = feature(task, c, p_G), feature(task, c, p_i)
        pull, push = (z_G @ photo(task, c) / s.tau).exp(), (z_G @ z_i / s.tau).exp()
        total = total - torch.log(pull / (pull + push)) / len(classes(task))
    return cosine_cross_entropy(task, batch, k, prompted(task, p_i)) + s.mu * total


def pfedhn(task, s, batch, k, p, global_params):
    return loss_of(task, s, batch, k, p["p_G"], p["p_G"] + p["U"] @ p["V"])


@pytest.mark.parametrize("description", ["names", "features", "histogram", "learned"])
def test_loss_and_gradients(task, batch, description):
    check_gradients("pfedhn", {"rank": 2, "description": description}, pfedhn, task, batch)


def method_of(task, **options):
    return METHODS["pfedhn"](METHODS["pfedhn"].Settings(rank=2, hidden=6, **options), task)


def written_out(phi, x, shapes):
    """One client's h(x), number by number; the numbers of U before those of V."""
    a = list(x)
    for layer in ("h.0", "h.1"):
        w, b = phi[f"{layer}.weight"], phi[f"{layer}.bias"]
        a = [torch.relu(sum(w[j, i] * a[i] for i in range(len(a))) + b[j]) for j in range(len(b))]
    numbers = phi["h.out.weight"] @ torch.stack(a) + phi["h.out.bias"]
    (m, rank, d) = shapes
    return numbers[: m * rank].view(m, rank), numbers[m * rank :].view(rank, d)


@pytest.mark.parametrize("description", ["names", "learned"])
def test_the_server_descends_the_clients_own_losses(task, batch, description):
    """With one plain step of rate lr a client's change is -lr dL_i/d theta_i. Then the server's
    step is rate lr times the gradient of the mean of the losses, by the network's numbers."""
    method = method_of(task, description=description, layers=2, server_lr=0.3)
    class_set = task.class_set(range(C))
    params, shared = parameters(method, batch, class_set)
    rng, lr = torch.Generator().manual_seed(3), 0.1
    state = {
        n: 0.3 * torch.randn(t.shape, generator=rng).double()
        for n, t in method.init_server_state(K).items()
    } | {"known": torch.ones(K).double()}
    v = state["v"].clone() if description == "learned" else params["v"]
    state["v"] = v
    for n in ("h.U", "h.V", "known"):
        params[n] = torch.stack([method.download_for(k, state)[n] for k in range(K)])
    params |= method.precompute(params, lambda images=True: batch, class_set)
    step = StepContext(1, 0, range(K), {}, lr, 0)
    _, grads = method.gradients(params, batch, class_set, step)
    trained = params | {n: params[n] - lr * grads[n] for n in ("U", "V")}
    answers = method.finish_client(trained, step)
    sent = {n: params[n][0] for n in shared} | {"v": torch.zeros_like(v[0])}
    sent = {n: sent[n] for n in shared}
    after, new = server_round(method, sent, {n: answers[n] for n in shared}, state, lr=lr)
    assert_close(after["p_G"], params["p_G"].mean(0))
    assert all(torch.equal(after[n], sent[n]) for n in ("U_0", "V_0"))

    leaves = {n: t.clone().requires_grad_() for n, t in state.items() if n.startswith("h.")}
    own = v.clone().requires_grad_()
    x = own
    if description == "names":
        centre = own.detach().mean(0)
        x = (own - centre) / (own.detach() - centre).square().sum(1).mean().sqrt()
    total = 0.0
    for k in range(K):
        u, w = written_out(leaves, x[k], (task.n_ctx, 2, task.clip.width))
        p_G = params["p_G"][k]
        p_i = p_G + (params["U_0"][k] + u) @ (params["V_0"][k] + w)
        total = total + loss_of(task, method.settings, batch, k, p_G, p_i) / K
    wanted = torch.autograd.grad(total, list(leaves.values()) + [own])
    for (n, leaf), grad in zip(leaves.items(), wanted, strict=False):
        assert_close(new[n], leaf.detach() - 0.3 * lr * grad, rtol=1e-8, atol=1e-11, msg=n)
    moved = own.detach() - 0.3 * lr * wanted[-1] if description == "learned" else v
    assert_close(new["v"], moved, rtol=1e-8, atol=1e-11)


def test_more_steps_of_the_server_come_nearer_to_where_clients_came(task):
    left = {}
    for steps in (1, 50):
        method = method_of(task, layers=1, server_lr=0.1, server_steps=steps)
        shared = {n: t.double() for n, t in method.init_shared(generator(0, "shared")).items()}
        rng = torch.Generator().manual_seed(0)
        updates = {
            n: t + 0.1 * torch.randn((K, *t.shape), generator=rng).double()
            for n, t in shared.items()
        }
        empty = {n: t.double() for n, t in method.init_server_state(K).items()}
        _, state = server_round(method, shared, updates, empty, lr=0.1, seed=5)
        assert state["known"].all()
        written = torch.stack([method.download_for(k, state)["h.U"] for k in range(K)])
        left[steps] = (updates["U_0"] - shared["U_0"] - written).norm()
    assert left[50] < 0.7 * left[1]


def test_where_a_client_came_is_counted_from_where_it_began(task):
    """In its first round a client begins at (U_0, V_0), whatever the network writes for it."""
    method = method_of(task, layers=0, server_lr=1.0, server_steps=400)
    shared = {n: t.double() for n, t in method.init_shared(generator(0, "shared")).items()}
    rng = torch.Generator().manual_seed(0)
    state = {n: t.double() for n, t in method.init_server_state(K).items()}
    state["v"] = torch.eye(*state["v"].shape).double()
    state["known"] = torch.tensor([1.0, 0.0, *[0.0] * (K - 2)]).double()
    state["h.out.bias"] = 0.5 + 0 * state["h.out.bias"]  # what it writes for everybody
    changes = {
        n: 0.1 * torch.randn((2, *shared[n].shape), generator=rng).double() for n in ("U_0", "V_0")
    }
    updates = {n: t.repeat(2, *[1] * t.dim()) for n, t in shared.items()}
    updates |= {n: shared[n] + change for n, change in changes.items()} | {"v": state["v"][:2]}
    _, new = server_round(method, shared, updates, state, lr=0.1, num_clients=K)
    for client, begun in ((0, 0.5), (1, 0.0)):
        found = method.download_for(client, new)
        for name, change in changes.items():
            near = begun + change[client]
            written = found[f"h.{name[0]}"]
            assert (written - near).abs().max() < 0.05, (client, name)


def test_a_client_begins_at_what_the_server_writes_once_it_is_known():
    """In its first round at (U_0, V_0), as every other; then at (U_0, V_0) + h(v)."""
    config = small_config("/nowhere", "method=pfedhn", "clients=3", "lr=0.1")
    fed = small_federation(json.dumps(config))
    shared, server_state = fed.models.initial_shared(), fed.server.initial_state()
    start = fed.models.initial_state(1)
    assert_close(start["U"].double(), torch.from_numpy(shared["U_0"]))
    begun = fed.models.params(
        shared, [1], [start], {1: fed.server.download_for(1, server_state)}, server_round=1
    )
    assert torch.equal(begun["U"][0], start["U"].double()) and begun["v"].sum() == 1
    server_state["known"][1] = 1
    server_state["h.out.bias"][:] = 0.5
    begun = fed.models.params(
        shared, [1], [start], {1: fed.server.download_for(1, server_state)}, server_round=2
    )
    assert_close(begun["V"][0], torch.from_numpy(shared["V_0"]) + 0.5)
