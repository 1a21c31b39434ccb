"""Cohort training: packing changes nothing, optimizers are torch's, a client that fails harms
nobody."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fedpgp.errors import FedPGPError
from fedpgp.methods import METHODS, Images
from fedpgp.seeding import generator
from fedpgp.training import TrainingSettings, batches, train_cohort
from fedpgp.training.optimizers import Adam

SIZES = [7, 20, 1, 12]


def world(task, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    features = F.normalize(
        torch.randn(sum(SIZES), 16, generator=rng, dtype=torch.float64), dim=-1
    ).to(dtype)
    labels = torch.randint(0, 5, (sum(SIZES),), generator=rng)
    ends = np.cumsum(SIZES)
    rows = [np.arange(end - size, end) for end, size in zip(ends, SIZES, strict=True)]
    return features, labels, rows, task.class_set(range(5))


def start(method, clients, dtype=torch.float64):
    shared = method.init_shared(generator(0, "shared"))
    states = [method.init_personal(generator(0, "personal", c)) for c in clients]
    params = {n: t.to(dtype).expand(len(clients), *t.shape) for n, t in shared.items()}
    return params | {n: torch.stack([s[n] for s in states]).to(dtype) for n in states[0]}


def train(task, name, clients, settings, state=None, **options):
    method = METHODS[name](METHODS[name].Settings(**options), task)
    features, labels, rows, classes = world(task)
    return train_cohort(
        method,
        start(method, clients),
        Images(features),
        labels,
        [rows[c] for c in clients],
        classes,
        settings,
        seed=5,
        clients=clients,
        server_round=2,
        optimizer_state=state,
    )


@pytest.mark.parametrize("name", ["fedpgp", "promptfl", "coop"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_client_does_not_depend_on_its_company(task, name, optimizer):
    settings = TrainingSettings(epochs=2, batch_size=5, lr=0.05, optimizer=optimizer)
    options = {"rank": 2} if name == "fedpgp" else {}
    together = train(task, name, [0, 1, 2, 3], settings, **options)
    for client in range(4):
        alone = train(task, name, [client], settings, **options)
        for key, tensor in alone.params.items():
            assert_close(together.params[key][client], tensor[0], rtol=1e-10, atol=1e-12)
        assert together.steps[client] == alone.steps[0]
        assert_close(together.loss[client], alone.loss[0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_equals_a_plain_loop_with_torchs_optimizer(task, optimizer):
    """One client after another, autograd and torch.optim, batch by batch."""
    settings = TrainingSettings(
        epochs=2,
        batch_size=5,
        lr=0.02,
        optimizer=optimizer,
        weight_decay=0.01,
        betas=(0.8, 0.98),
        eps=1e-6,
    )
    own = {"lr": 0.02, "weight_decay": 0.01, "betas": (0.8, 0.98), "eps": 1e-6}
    result = train(task, "fedpgp", [1, 3], settings, rank=2, mu=0.7)
    method = METHODS["fedpgp"](METHODS["fedpgp"].Settings(rank=2, mu=0.7), task)
    features, labels, rows, classes = world(task)
    encode = classes.encoder(3)
    for k, client in enumerate([1, 3]):
        params = {n: t[k].clone().requires_grad_() for n, t in start(method, [1, 3]).items()}
        torch_optimizer = {
            "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
            "adam": lambda p: torch.optim.Adam(p, **own),
            "adamw": lambda p: torch.optim.AdamW(p, **own),
        }[optimizer](list(params.values()))
        losses = []
        for positions in batches(SIZES[client], settings, 5, client, 2):
            chosen = rows[client][positions]
            z_G, z_i = encode(params["p_G"]), encode(params["p_G"] + params["U"] @ params["V"])
            loss = F.cross_entropy(task.logit_scale * features[chosen] @ z_i.T, labels[chosen])
            for c in range(5):
                pos, neg = (z_G[c] @ classes.template_features[c]) / 0.5, (z_G[c] @ z_i[c]) / 0.5
                loss = loss + 0.7 / 5 * -torch.log(pos.exp() / (pos.exp() + neg.exp()))
            torch_optimizer.zero_grad()
            loss.backward()
            torch_optimizer.step()
            losses.append(loss.item())
        for name, parameter in params.items():
            assert_close(result.params[name][k], parameter.detach(), rtol=1e-9, atol=1e-11)
        assert_close(result.loss[k], np.mean(losses), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"betas": 0.9},
        {"betas": None},
        {"betas": "ab"},
        {"betas": [0.9]},
        {"betas": [0.9, 1]},
        {"eps": None},
    ],
)
def test_numbers_of_adam_that_cannot_work_are_refused(wrong):
    with pytest.raises(FedPGPError, match=f"training.{next(iter(wrong))}=.*cannot work"):
        TrainingSettings(**wrong)


def test_adam_in_float32_is_adam_to_the_last_digits():
    """1 - beta^step by subtraction would be wrong by 1e-4 in the first step."""
    grad = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 4)))
    moved = []
    for dtype in (torch.float32, torch.float64):
        p = torch.zeros(2, 3, 4, dtype=dtype)
        state = {slot: torch.zeros_like(p) for slot in Adam.slots}
        for step in (1, 2):
            Adam().update(p, grad.to(dtype), state, 0.1, torch.full((2,), step))
        moved.append(p.double())
    assert_close(*moved, rtol=2e-6, atol=0)


def test_a_failing_client_is_named_and_harms_nobody(task):
    settings = TrainingSettings(epochs=2, batch_size=5, lr=0.05)
    method = METHODS["promptfl"](METHODS["promptfl"].Settings(), task)
    features, labels, rows, classes = world(task)
    features = features.clone()
    features[rows[1][0]] = float("nan")

    def run(features):
        return train_cohort(
            method,
            start_all(method),
            Images(features),
            labels,
            rows,
            classes,
            settings,
            seed=5,
            clients=[0, 1, 2, 3],
            server_round=2,
        )

    def start_all(method):
        shared = method.init_shared(generator(0, "shared"))
        return {n: t.expand(4, *t.shape) for n, t in shared.items()}

    healthy, result = run(world(task)[0]), run(features)
    assert [bool(f) for f in result.failure] == [False, True, False, False]
    assert "round 2, step" in result.failure[1]
    for client in (0, 2, 3):
        assert torch.equal(result.params["p_G"][client], healthy.params["p_G"][client])


def test_batches_cover_every_epoch_and_keep_the_last_partial_one():
    settings = TrainingSettings(epochs=2, batch_size=8)
    parts = batches(20, settings, seed=0, client=3, server_round=1)
    assert [len(p) for p in parts] == [8, 8, 4, 8, 8, 4]
    assert sorted(np.concatenate(parts[:3])) == sorted(np.concatenate(parts[3:])) == list(range(20))
    assert not np.array_equal(np.concatenate(parts[:3]), np.concatenate(parts[3:]))
    dropped = batches(20, TrainingSettings(epochs=1, batch_size=8, drop_last=True), 0, 3, 1)
    assert [len(p) for p in dropped] == [8, 8]
    assert [
        len(p)
        for p in batches(5, TrainingSettings(epochs=1, batch_size=8, drop_last=True), 0, 3, 1)
    ] == [5]


def test_learning_rate_schedules():
    cosine = TrainingSettings(lr=1.0, schedule="cosine", warmup_rounds=2, rounds=10)
    assert [round(cosine.learning_rate(r), 3) for r in (1, 2, 3)] == [0.333, 0.667, 1.0]
    assert cosine.learning_rate(7) == pytest.approx(0.5)
    step = TrainingSettings(lr=1.0, schedule="step", step_rounds=3, gamma=0.1)
    assert [step.learning_rate(r) for r in (3, 4)] == [1.0, pytest.approx(0.1)]
    with pytest.raises(FedPGPError, match="cosine"):
        TrainingSettings(schedule="cosin")


def test_kept_optimizer_state_equals_one_long_round(task):
    """Two rounds with kept momentum, unshuffled, are four epochs of one round."""
    settings = TrainingSettings(epochs=2, batch_size=5, lr=0.05, shuffle=False)
    first = train(task, "promptfl", [0, 1], settings)
    method = METHODS["promptfl"](METHODS["promptfl"].Settings(), task)
    features, labels, rows, classes = world(task)
    second = train_cohort(
        method,
        first.params,
        Images(features),
        labels,
        rows[:2],
        classes,
        settings,
        seed=5,
        clients=[0, 1],
        server_round=3,
        optimizer_state=first.optimizer_state,
    )
    whole = train(
        task, "promptfl", [0, 1], TrainingSettings(epochs=4, batch_size=5, lr=0.05, shuffle=False)
    )
    assert_close(second.params["p_G"], whole.params["p_G"], rtol=1e-12, atol=1e-14)


def test_training_on_views_equals_training_on_the_views_drawn(task):
    """A client's round on V views is a round on the images it drew."""
    from fedpgp.training import drawn_views

    settings = TrainingSettings(epochs=1, batch_size=5, lr=0.05, views=3)
    method = METHODS["promptfl"](METHODS["promptfl"].Settings(), task)
    features, labels, rows, classes = world(task)
    views = torch.stack([features, features.roll(1, 0), features.roll(2, 0)])
    seen = features.clone()
    for client, own in enumerate(rows):
        drawn = drawn_views(len(own), settings, 5, client, 2)[0]
        seen[own] = views[torch.from_numpy(drawn), torch.from_numpy(own)]

    def run(images, settings):
        params = start(method, range(4))
        options = {"seed": 5, "clients": [0, 1, 2, 3], "server_round": 2}
        return train_cohort(
            method, params, Images(images), labels, rows, classes, settings, **options
        )

    drawn = run(views.flatten(0, 1), settings)
    plain = run(seen, TrainingSettings(epochs=1, batch_size=5, lr=0.05))
    assert torch.equal(drawn.params["p_G"], plain.params["p_G"])


class Frozen(METHODS["promptfl"]):
    """The first of two clients does not train its prompt in round 2."""

    def rates(self, params, step):
        trains = torch.tensor([client > 0 or step.server_round > 2 for client in step.clients])
        return {"p_G": trains.to(params["p_G"]).view(-1, 1, 1)}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_what_is_not_trained_gathers_no_optimizer_state(task, optimizer):
    """A tensor that torch has no gradient of keeps momentum, means and step count."""
    settings = TrainingSettings(epochs=2, batch_size=5, optimizer=optimizer, weight_decay=0.3)
    method = Frozen(METHODS["promptfl"].Settings(), task)
    features, labels, rows, classes = world(task)

    def train_round(params, server_round, state):
        return train_cohort(
            method,
            params,
            Images(features),
            labels,
            rows[:2],
            classes,
            settings,
            seed=5,
            clients=[0, 1],
            server_round=server_round,
            optimizer_state=state,
        )

    params = start(method, [0, 1])
    first = train_round(params, 2, None)
    assert torch.equal(first.params["p_G"][0], params["p_G"][0])
    assert not torch.equal(first.params["p_G"][1], params["p_G"][1])
    assert first.optimizer_state["step/p_G"].tolist() == [0, 8]
    for name, tensor in first.optimizer_state.items():
        assert not tensor[0].any() and tensor[1].any(), name
    kept, fresh = (
        train_round(first.params, 3, state).params["p_G"] for state in (first.optimizer_state, None)
    )
    assert torch.equal(kept[0], fresh[0]) and not torch.equal(kept[1], fresh[1])
