"""Each method's loss and gradients against its equations written out for one client, one class, one
image at a time (:mod:`plain`)."""

import hashlib
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from plain import PLAIN
from torch.testing import assert_close

from fedpgp.clip import load_clip
from fedpgp.errors import FedPGPError
from fedpgp.methods import METHODS, Batch, Images, RoundContext, StepContext
from fedpgp.seeding import generator
from fedpgp.task import Task
from fedpgp.text.templates import SEVEN, SIXTY
from fedpgp.towers.image import ImageTower

K, B, C = 3, 5, 5


@pytest.fixture
def batch() -> Batch:
    rng = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(K, B, 16, generator=rng, dtype=torch.float64), dim=-1)
    labels = torch.randint(0, C, (K, B), generator=rng)
    patches = F.normalize(torch.randn(K, B, 4, 16, generator=rng, dtype=torch.float64), dim=-1)
    pixels = torch.randn(K, B, 3, 16, 16, generator=rng, dtype=torch.float64)
    weights = torch.full((K, B), 1 / B, dtype=torch.float64)
    weights[2] = torch.tensor([1 / 3, 1 / 3, 1 / 3, 0, 0], dtype=torch.float64)  # a shorter batch
    raw = images * (1 + torch.rand(K, B, 1, generator=rng, dtype=torch.float64))
    return Batch(Images(images, patches, pixels, images.roll(1, 1), raw), labels, weights)


def parameters(method, batch, classes):
    """Every tensor of K clients, moved away from its start, with what the server sends and
    the method precomputes."""
    noise = torch.Generator().manual_seed(7)
    shared = method.init_shared(generator(0, "shared"))
    states = [method.init_personal(generator(0, "personal", k)) for k in range(K)]
    server_state = {
        n: torch.ones_like(t).double()
        if n == "known"
        else 0.1 * torch.randn(t.shape, generator=noise).double()
        for n, t in method.init_server_state(K).items()
    }
    params = {n: t.double().repeat(K, *[1] * t.dim()) for n, t in shared.items()}
    params |= {n: torch.stack([s[n] for s in states]).double() for n in states[0]}
    if "switched" in params:
        params["switched"][1] = 1
    for n in method.trainable(params):
        params[n] = params[n] + 0.01 * torch.randn(params[n].shape, generator=noise)
    client_only = [method.download_for(k, server_state) for k in range(K)]
    params |= {n: torch.stack([o[n] for o in client_only]) for n in client_only[0]}
    return params | method.precompute(params, lambda images=True: batch, classes), set(shared)


def test_every_learning_method_is_written_out():
    assert {name for name, _, _ in PLAIN} == {
        name for name, method in METHODS.items() if method.learns
    }


@pytest.mark.parametrize(
    ("name", "options", "plain"), PLAIN, ids=[f"{n}-{list(o.values())}" for n, o, _ in PLAIN]
)
def test_loss_and_gradients(task, batch, name, options, plain):
    method, classes = (
        METHODS[name](METHODS[name].Settings(**options), task),
        task.class_set(range(C)),
    )
    params, shared = parameters(method, batch, classes)
    global_params = {n: params[n] + 0.1 for n in shared}
    before = {n: t.clone() for n, t in params.items()}
    step = StepContext(
        server_round=2, step=1, clients=range(K), global_params=global_params, lr=0.1, seed=0
    )
    loss, grads = method.gradients(params, batch, classes, step)
    assert loss.shape == (K,) and set(grads) == set(method.trainable(params))
    reached: set[str] = set()
    for k in range(K):
        leaves = {n: t[k].clone().requires_grad_(n in grads) for n, t in before.items()}
        answer = plain(
            task, method.settings, batch, k, leaves, {n: t[k] for n, t in global_params.items()}
        )
        expected, gradients = answer if isinstance(answer, tuple) else (answer, {})
        assert_close(loss[k], expected.detach(), rtol=1e-9, atol=1e-11)
        if not gradients:
            wanted = torch.autograd.grad(expected, [leaves[n] for n in grads], allow_unused=True)
            gradients = {
                n: torch.zeros_like(leaves[n]) if g is None else g
                for n, g in zip(grads, wanted, strict=True)
            }
        for n, grad in grads.items():
            if grad[k].abs().max() > 0:
                reached.add(n)
            assert_close(
                grad[k], gradients[n], rtol=1e-8, atol=1e-10, msg=lambda m, n=n: f"{name} {n}: {m}"
            )
    assert reached == set(grads), "a tensor that no client's loss depends on"


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


def test_fedamp_server(task):
    """u_i written out; a client that never sent is in nobody's mixture."""
    method = METHODS["fedamp"](METHODS["fedamp"].Settings(sigma=0.5, alpha=0.6), task)
    models = 0.1 * torch.randn(
        4, task.n_ctx, task.clip.width, generator=torch.Generator().manual_seed(3)
    )
    known = torch.tensor([1.0, 1.0, 0.0, 1.0])
    sent = method.download_for(0, {"models": models, "known": known})
    share = {j: 0.6 / 2 * torch.exp(-((models[0] - models[j]).norm() ** 2) / 0.5) for j in (1, 3)}
    expected = (1 - sum(share.values())) * models[0] + sum(a * models[j] for j, a in share.items())
    assert_close(sent["u"], expected)
    assert (
        sent["known"] == 1
        and method.download_for(2, {"models": models, "known": known})["known"] == 0
    )


def test_pfedmoap_takes_the_nearest_experts_but_itself(task):
    method = METHODS["pfedmoap"](METHODS["pfedmoap"].Settings(experts=4), task)
    places = torch.tensor([0.0, 5.0, 1.0, 3.0, 0.5, 2.0])
    pool = places.view(-1, 1, 1).expand(-1, task.n_ctx, task.clip.width)
    sent = method.download_for(0, {"pool": pool, "known": torch.tensor([1.0, 1, 1, 1, 0, 1])})
    assert sent["experts"][:, 0, 0].tolist() == [1.0, 2.0, 3.0] and sent["real"].tolist() == [
        1,
        1,
        1,
    ]
    few = method.download_for(0, {"pool": pool, "known": torch.tensor([1.0, 1, 0, 0, 0, 0])})
    assert few["experts"][0, 0, 0] == 5.0 and few["real"].tolist() == [1, 0, 0]


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


def test_promptsrc_ends_with_the_gaussian_sum_of_its_rounds(task):
    method = METHODS["promptsrc"](METHODS["promptsrc"].Settings(depth=2, mean=0.6, std=0.3), task)
    server_state, last = method.init_server_state(3), 5
    rounds = [
        {n: torch.full_like(t, float(r)) for n, t in server_state.items()}
        for r in range(1, last + 1)
    ]
    weights = torch.exp(-((torch.arange(1, last + 1) / last - 0.6) ** 2) / (2 * 0.3**2)).double()
    for r, averaged in enumerate(rounds, 1):
        shared, server_state = method.update_server(
            averaged,
            RoundContext(
                r, last, [0], 3, torch.ones(1), averaged, averaged, server_state, lr=0.1, seed=0
            ),
        )
        if r < last:
            assert all(torch.equal(shared[n], averaged[n]) for n in averaged)
    expected = sum(w * (r + 1) for r, w in enumerate(weights)) / weights.sum()
    for tensor in shared.values():
        assert_close(tensor, torch.full_like(tensor, float(expected)))


def test_promptsrc_takes_the_templates_of_its_public_code():
    """IMAGENET_TEMPLATES of trainers/imagenet_templates.py, muzairkhattak/PromptSRC at bb95c77."""
    digest = hashlib.sha256("\n".join(sorted(SIXTY)).encode()).hexdigest()
    assert digest == "8f771e15e049b36e398434aa16bf33a1da2a6b4ac682961301fb4c0f9d5d58c5"
    digest = hashlib.sha256(
        "\n".join(sorted(SEVEN)).encode()
    ).hexdigest()  # IMAGENET_TEMPLATES_SELECT
    assert digest == "bc451a8621e7d0e6d1e53c4b4f190df07538ed5a604ae6cfc3637b4a1de4c03b"


def test_maple_couplings_of_deeper_blocks_start_alike(task):
    """``compound_prompt_projections`` are deep copies of one layer, ``proj`` is a layer of its
    own: trainers/maple.py, muzairkhattak/multimodal-prompt-learning at 69bce21; each as torch
    starts a linear layer."""
    clip = load_clip("tiny_vit")
    deeper = Task(clip, task.class_names, n_ctx=4)
    start = METHODS["maple"](METHODS["maple"].Settings(depth=4), deeper).init_shared(
        generator(0, "shared")
    )
    for what in ("W", "b"):
        assert torch.equal(start[what][1], start[what][2]) and torch.equal(
            start[what][1], start[what][3]
        )
        assert not torch.isclose(start[what][0], start[what][1]).any()
        assert start[what].abs().max() <= clip.width**-0.5


def test_pfedmma_adapters_start_as_its_public_code_starts_them():
    """``nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")`` and no bias:
    AdapterLearner._build_adapter in trainers/pFedMMA.py, sajjad-ucsb/pFedMMA at 84197bb."""
    clip = load_clip("tiny_vit")
    method = METHODS["pfedmma"](
        METHODS["pfedmma"].Settings(first=2, last=3), Task(clip, ["cat", "dog"], n_ctx=4)
    )
    start = method.init_shared(generator(0, "shared")) | method.init_personal(
        generator(0, "personal", 0)
    )
    torch.manual_seed(0)
    for name, ours in start.items():
        if name.endswith("bias"):
            assert not ours.any(), name
            continue
        theirs = torch.empty(ours.shape[1:])
        torch.nn.init.kaiming_normal_(theirs, mode="fan_out", nonlinearity="relu")
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1), name
        assert abs(ours.mean().item()) < 0.1 * ours.std().item(), name


def test_methods_inside_the_image_tower_refuse_a_convolutional_one():
    with pytest.raises(FedPGPError, match="method=vpt.*model=tiny_vit"):
        ImageTower(load_clip("tiny"), torch.float32, "vpt")


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_another_kind_are_refused(name):
    for field in fields(METHODS[name].Settings):
        for wrong in ("perhaps", [1]):
            with pytest.raises(FedPGPError, match=f"method.{field.name}"):
                METHODS[name].Settings(**{field.name: wrong})


def test_fedmvp_goes_over_to_the_low_rank_part_for_good(task, batch):
    """Below the threshold once, and whatever the loss is afterwards. Then ``crossattn`` is frozen,
    the low-rank matrices and the projection train: federated/client.py, ``train``,
    mainaksingha01/FedMVP at 246800e. The answers leave the low-rank part out: ``use_lora`` is no
    part of the state that the server's model loads."""
    settings, classes = METHODS["fedmvp"].Settings(heads=2, switch=20.0), task.class_set(range(C))
    method = METHODS["fedmvp"](settings, task)
    params, _ = parameters(method, batch, classes)
    step = StepContext(server_round=1, step=0, clients=range(K), global_params={}, lr=0.1, seed=0)
    loss, _ = method.gradients(params, batch, classes, step)
    expected = [
        1.0 if k == 1 or loss[k] < 20 else 0.0 for k in range(K)
    ]  # the second one had gone over before
    assert params["switched"].flatten().tolist() == expected and 0 in expected
    never = METHODS["fedmvp"](METHODS["fedmvp"].Settings(heads=2, switch=0.0), task)
    never.gradients(params, batch, classes, step)
    assert params["switched"].flatten().tolist() == expected
    rates = method.rates(params, step)
    assert "project.weight" not in rates and set(rates) == {
        n for n in method.trainable(params) if "project" not in n
    }
    for name, rate in rates.items():
        trained = expected if name.startswith("lora.") else [1 - e for e in expected]
        assert rate.flatten().tolist() == trained and rate.dim() == params[name].dim(), name
    classes = task.class_set([3, 1])
    changed = params | {n: t + 1 for n, t in params.items() if n.startswith("lora.")}
    for settings, same in (({}, True), ({"low_rank_answers": True}, False)):
        model = METHODS["fedmvp"](METHODS["fedmvp"].Settings(heads=2, **settings), task)
        answers = [
            model.logits(model.global_classifier(p, classes), batch.images, classes)
            for p in (params, changed)
        ]
        assert torch.equal(*answers) is same


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
