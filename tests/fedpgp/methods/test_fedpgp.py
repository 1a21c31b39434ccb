"""FedPGP: loss and gradients against its equations, written out."""

import pytest
import torch
from torch.testing import assert_close

from fedpgp.methods import METHODS, StepContext
from tests.helpers.equations import classes, cosine_cross_entropy, feature, photo, prompted, real
from tests.helpers.gradients import C, K, check_gradients, parameters


def fedpgp_of(task, s, batch, k, p_G, own):
    total = 0.0
    for c in classes(task):
        z_G, z_i = feature(task, c, p_G), feature(task, c, own)
        pull, push = (z_G @ photo(task, c) / s.tau).exp(), (z_G @ z_i / s.tau).exp()
        pull, push = {"both": (pull, push), "positive": (pull, 1), "negative": (1, push)}[
            s.contrast
        ]
        total = total - torch.log(pull / (pull + push)) / len(classes(task))
    return cosine_cross_entropy(task, batch, k, prompted(task, own)) + s.mu * total


def fedpgp(task, s, batch, k, p, global_params):
    return fedpgp_of(task, s, batch, k, p["p_G"], p["p_G"] + p["U"] @ p["V"])


def fedpgp_ranks(task, s, batch, k, p, global_params):
    rank = 3 if len(real(batch, k)) == 5 else 2  # ceil(5/2), ceil(3/2)
    return fedpgp_of(task, s, batch, k, p["p_G"], p["p_G"] + p["U"][:, :rank] @ p["V"][:rank])


def fedpgp_none(task, s, batch, k, p, global_params):
    return fedpgp_of(task, s, batch, k, p["p_G"], p["p_G"])


def fedpgp_full(task, s, batch, k, p, global_params):
    return fedpgp_of(task, s, batch, k, p["p_G"], p["p_G"] + p["D"])


def fedpgp_lora_pro(task, s, batch, k, p, global_params):
    """The step moves U V as the projected gradient says; of all such steps it is the
    nearest to the plain one."""
    loss = fedpgp(task, s, batch, k, p, global_params)
    names = ("p_G", "U", "V")
    plain_ = dict(zip(names, torch.autograd.grad(loss, [p[n] for n in names]), strict=True))
    u, v, b = p["U"].detach(), p["V"].detach(), 2
    a, c = torch.linalg.inv(u.T @ u), torch.linalg.inv(v @ v.T)
    fixed_v, fixed_u = a @ plain_["V"], (plain_["U"] - u @ a @ u.T @ plain_["U"]) @ c
    # |h - g|^2 is quadratic in X: its minimum by least squares over the b*b unit matrices.
    units = torch.eye(b * b, dtype=u.dtype).view(-1, b, b)
    columns = torch.stack([torch.cat([(-u @ x).flatten(), (x @ v).flatten()]) for x in units], 1)
    target = torch.cat([(plain_["U"] - fixed_u).flatten(), (plain_["V"] - fixed_v).flatten()])
    x = torch.linalg.lstsq(columns, target[:, None]).solution.view(b, b)
    return loss, {"p_G": plain_["p_G"], "U": fixed_u - u @ x, "V": fixed_v + x @ v}


def fedpgp_lora_sb(task, s, batch, k, p, global_params):
    return fedpgp_of(task, s, batch, k, p["p_G"], p["p_G"] + p["U"] @ p["R"] @ p["V"])


def fedpgp_experts(task, s, batch, k, p, global_params):
    own = p["p_G"]
    for e in range(3):
        share = p["gate"][e].exp() / p["gate"].exp().sum()
        own = own + share * p["experts.U"][e] @ p["experts.V"][e]
    return fedpgp_of(task, s, batch, k, p["p_G"], own)


def fedpgp_masked(task, s, batch, k, p, global_params):
    term = p["U"] @ p["V"]
    rows = [p["p_G"][i] + term[i] / (1 + torch.exp(-p["s"][i])) for i in range(len(term))]
    return fedpgp_of(task, s, batch, k, p["p_G"], torch.stack(rows))


def fedpgp_rank_one(task, s, batch, k, p, global_params):
    values, vectors = torch.linalg.eigh(p["p_G"].detach().T @ p["p_G"].detach())
    v = vectors[:, -1] * vectors[:, -1][vectors[:, -1].abs().argmax()].sign()
    return fedpgp_of(task, s, batch, k, p["p_G"], p["p_G"] + torch.outer(p["U"][:, 0], v))


@pytest.mark.parametrize(
    ("options", "equations"),
    [
        ({"rank": 2, "mu": 0.6, "tau": 0.4, "personal_init": "normal"}, fedpgp),
        ({"rank": 2, "mu": 0.6, "contrast": "positive", "personal_init": "normal"}, fedpgp),
        ({"rank": 2, "mu": 0.6, "contrast": "negative", "personal_init": "normal"}, fedpgp),
        ({"rank": 3, "images_a_rank": 2, "personal_init": "normal"}, fedpgp_ranks),
        ({"personal": "none"}, fedpgp_none),
        ({"personal": "full"}, fedpgp_full),
        ({"rank": 2, "personal": "lora_pro", "personal_init": "normal"}, fedpgp_lora_pro),
        ({"rank": 2, "personal": "lora_sb"}, fedpgp_lora_sb),
        (
            {"rank": 2, "personal": "experts", "experts": 3, "personal_init": "normal"},
            fedpgp_experts,
        ),
        ({"rank": 2, "personal": "masked", "personal_init": "normal"}, fedpgp_masked),
        ({"personal": "rank_one", "personal_init": "normal"}, fedpgp_rank_one),
    ],
)
def test_loss_and_gradients(task, batch, options, equations):
    check_gradients("fedpgp", options, equations, task, batch)


@pytest.mark.parametrize("init", ["normal", "zero"])
def test_lora_pro_moves_the_context_along_the_projected_gradient(task, batch, init):
    """U h_V + h_U V = P_U g + g P_V - P_U g P_V; with U = 0 that is g P_V."""
    settings = METHODS["fedpgp"].Settings(rank=2, personal="lora_pro", personal_init=init)
    method, classes = METHODS["fedpgp"](settings, task), task.class_set(range(C))
    params, _ = parameters(method, batch, classes)
    if init == "zero":
        params["U"] = torch.zeros_like(params["U"])
    step = StepContext(server_round=1, step=1, clients=range(K), global_params={}, lr=0.1, seed=0)
    _, h = method.gradients(params, batch, classes, step)
    g = method._gradient_at_p_i(params, batch, classes)
    for k in range(K):
        u, v = params["U"][k], params["V"][k]
        p_u, p_v = u @ torch.linalg.pinv(u), torch.linalg.pinv(v) @ v
        moved = u @ h["V"][k] + h["U"][k] @ v
        assert_close(moved, p_u @ g[k] + g[k] @ p_v - p_u @ g[k] @ p_v, rtol=1e-7, atol=1e-12)


def test_lora_sb_starts_from_the_best_low_rank_first_step(task, batch):
    settings = METHODS["fedpgp"].Settings(rank=2, personal="lora_sb")
    method, classes = METHODS["fedpgp"](settings, task), task.class_set(range(C))
    params, _ = parameters(method, batch, classes)
    params["R"] = torch.zeros_like(params["R"])
    full = -0.1 * method._gradient_at_p_i(params, batch, classes)
    step = StepContext(server_round=1, step=0, clients=range(K), global_params={}, lr=0.1, seed=0)
    params["fitted"][1] = 1  # this one continues with what it has
    before = {n: t.clone() for n, t in params.items()}
    method.gradients(params, batch, classes, step)
    for k in (0, 2):
        left, values, right = torch.linalg.svd(full[k], full_matrices=False)
        assert_close(
            params["U"][k] @ params["R"][k] @ params["V"][k], left[:, :2] * values[:2] @ right[:2]
        )
        assert params["fitted"][k] == 1
    for n, tensor in before.items():
        assert torch.equal(params[n][1], tensor[1])


def test_lora_pro_with_a_rank_a_client_is_lora_pro_of_that_rank(task, batch):
    """Columns that do not count change nothing."""
    steps = []
    for rank, images in ((3, 2), (2, 0)):  # the third client has ceil(3 / 2) = 2 of 3
        settings = METHODS["fedpgp"].Settings(
            rank=rank, images_a_rank=images, personal="lora_pro", personal_init="normal"
        )
        method, classes = METHODS["fedpgp"](settings, task), task.class_set(range(C))
        if not steps:
            params, _ = parameters(method, batch, classes)
        else:
            params = {"p_G": params["p_G"], "U": params["U"][..., :2], "V": params["V"][..., :2, :]}
        step = StepContext(
            server_round=1, step=1, clients=range(K), global_params={}, lr=0.1, seed=0
        )
        steps.append(method.gradients(params, batch, classes, step)[1])
    assert_close(steps[0]["U"][2][:, :2], steps[1]["U"][2], rtol=1e-7, atol=1e-12)
    assert_close(steps[0]["V"][2][:2], steps[1]["V"][2], rtol=1e-7, atol=1e-12)
