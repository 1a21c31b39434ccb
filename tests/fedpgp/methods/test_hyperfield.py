"""Hypernetwork field: loss and gradients, and what the server learns, against their equations
written out."""

import torch
from torch.testing import assert_close

from fedpgp.methods import METHODS, StepContext
from tests.fedpgp.methods.test_pfedhn import loss_of, pfedhn, written_out
from tests.helpers.gradients import C, K, check_gradients, parameters
from tests.helpers.server_rounds import server_round


def test_loss_and_gradients(task, batch):
    check_gradients("hyperfield", {"rank": 2, "horizon": 7}, pfedhn, task, batch)


def test_the_field_is_pulled_to_where_one_training_step_leads(task, batch):
    """From theta_i(t_i) a client makes one plain step; the server's step is down the gradient of
    |theta_i(t_i + 1) - (theta_i(t_i) - lr dL_i/d theta_i(t_i))|^2 / 2, everything by hand."""
    options = dict(rank=2, hidden=6, layers=2, horizon=10, server_lr=0.3, description="names")
    method, class_set = (
        METHODS["hyperfield"](METHODS["hyperfield"].Settings(**options), task),
        task.class_set(range(C)),
    )
    params, shared = parameters(method, batch, class_set)
    rng, lr = torch.Generator().manual_seed(3), 0.1
    state = {
        n: 0.3 * torch.randn(t.shape, generator=rng).double()
        for n, t in method.init_server_state(K).items()
    }
    times, v = [0, 4, 9], params["v"]
    state |= {"v": v, "known": torch.ones(K).double(), "t": torch.tensor(times).double()}
    for n in ("h.U", "h.V", "known"):
        params[n] = torch.stack([method.download_for(k, state)[n] for k in range(K)])
    params |= method.precompute(params, lambda images=True: batch, class_set)
    params["steps"] = torch.zeros(K, 1, 1).double()
    step = StepContext(1, 0, range(K), {}, lr, 0)
    _, grads = method.gradients(params, batch, class_set, step)
    assert params["steps"].flatten().tolist() == [1, 1, 1]
    trained = params | {n: params[n] - lr * grads[n] for n in ("U", "V")}
    answers = method.finish_client(trained, step)
    sent = {n: torch.zeros_like(params[n][0]) if n == "steps" else params[n][0] for n in shared}
    _, new = server_round(method, sent, {n: answers[n] for n in shared}, state, lr=lr)

    leaves = {n: t.clone().requires_grad_() for n, t in state.items() if n.startswith("h.")}
    x = (v - v.mean(0)) / (v - v.mean(0)).square().sum(1).mean().sqrt()

    def theta(k, t):
        read = torch.cat([x[k], torch.tensor([2 * t / 10 - 1], dtype=torch.float64)])
        u, w = written_out(leaves, read, (task.n_ctx, 2, task.clip.width))
        return params["U_0"][k] + t / 10 * u, params["V_0"][k] + t / 10 * w

    total = 0.0
    for k, t in enumerate(times):
        here = [each.detach().requires_grad_() for each in theta(k, t)]
        p_G = params["p_G"][k].detach()
        loss = loss_of(task, method.settings, batch, k, p_G, p_G + here[0] @ here[1])
        slopes = torch.autograd.grad(loss, here)
        for reached, begun, slope in zip(theta(k, t + 1), here, slopes, strict=True):
            total = total + (reached - (begun.detach() - lr * slope)).square().sum() / (2 * K)
    for (n, leaf), grad in zip(
        leaves.items(), torch.autograd.grad(total, list(leaves.values())), strict=True
    ):
        assert_close(new[n], leaf.detach() - 0.3 * grad, rtol=1e-8, atol=1e-11, msg=n)
    assert all(0 <= t < 10 and t == int(t) for t in new["t"].tolist())


def test_the_field_begins_where_every_term_does(task):
    method = METHODS["hyperfield"](METHODS["hyperfield"].Settings(rank=2, hidden=6), task)
    state = {n: torch.ones_like(t) for n, t in method.init_server_state(K).items()}
    v = torch.randn(K, task.clip.embed, generator=torch.Generator().manual_seed(0))
    at = [method.field(state, v, torch.full((K,), t)) for t in (0.0, 25.0, 50.0)]
    assert at[0].abs().max() == 0 and (at[1] - at[2]).abs().max() > 0
