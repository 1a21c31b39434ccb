"""What a client answers with that never trained, trained once, or trained twice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fedpgp.client_models import NeedsImages
from fedpgp.methods import METHODS, cosine_logits
from fedpgp.training import TrainingSettings, train_cohort
from tests.helpers.small import small_config, small_federation

LEARNING = [name for name, method in METHODS.items() if method.learns]


def federation(name: str, *overrides: str):
    config = small_config("/nowhere", f"method={name}", "clients=3", "lr=0.1", *overrides)
    return small_federation(json.dumps(config))


def a_round(fed, server_round: int, clients, shared, server_state, states):
    """Train these clients and average; return shared tensors and server state, and put the
    clients' states in place."""
    client_only = {c: fed.server.download_for(c, server_state) for c in clients}
    results = list(fed.train(shared, clients, server_round, states.get, client_only))
    states |= {r.client: r.state for r in results}
    weight = 1 / len(results)
    averaged = {n: sum(weight * r.update[n] for r in results) for n in shared}
    return fed.server.update(
        averaged,
        server_round=server_round,
        num_rounds=9,
        global_params=shared,
        updates={r.client: r.update for r in results},
        weights=dict.fromkeys(clients, 1.0),
        server_state=server_state,
    )


@torch.no_grad()
def answers(fed, client: int, shared, server_state, states) -> torch.Tensor:
    client_only = {client: fed.server.download_for(client, server_state)}
    (classifier,) = fed.models.personal_classifier(
        shared, [client], states.get, [fed.base], client_only, server_round=1
    )
    return fed.method.logits(
        classifier, fed.inputs.images("test")[torch.arange(4)[None]], fed.base
    )[0]


def plain(fed, context) -> torch.Tensor:
    """CLIP's logits with this context."""
    text = fed.base.encoder(fed.method.task.n_ctx)(torch.as_tensor(context)[None])[0]
    return cosine_logits(text, fed.inputs.features("test")[:4], fed.method.task.logit_scale)


def test_pfedmoap_answers_through_its_gate_once_the_gate_was_trained():
    """Official: a gate is stored after a round in which the client had a local prompt already
    (ljaiverson/pFedMoAP, a481de35edc7c83244709f540f5fe573df4455dc, federated_main.py 357-361); a
    client without one answers with its own prompt (372-379), or the average where it has none
    (380-381), through lambda-free logits (trainers/pfedmoap.py 228-237)."""
    fed = federation("pfedmoap")
    shared, server_state, states = fed.models.initial_shared(), fed.server.initial_state(), {}
    shared, server_state = a_round(fed, 1, [0, 1], shared, server_state, states)
    for client in (0, 1):
        assert server_state["known"][client] == 1
        assert_close(
            answers(fed, client, shared, server_state, states), plain(fed, states[client]["p"])
        )
    assert_close(answers(fed, 2, shared, server_state, states), plain(fed, shared["p_G"]))
    start = fed.models.initial_state(0)
    assert all(torch.equal(states[0][n], start[n].double()) for n in start if n.startswith("gate."))
    # The first client's second round, the third's first.
    shared, server_state = a_round(fed, 2, [0, 2], shared, server_state, states)
    gate = [n for n in start if n.startswith("gate.")]
    assert all(
        not torch.equal(states[0][n], start[n].double()) for n in gate if n.endswith("weight")
    )
    gated, text = answers(fed, 0, shared, server_state, states), plain(fed, states[0]["p"])
    assert (gated - text).abs().max() > 0.1
    for client in (1, 2):
        assert_close(
            answers(fed, client, shared, server_state, states), plain(fed, states[client]["p"])
        )


@pytest.mark.parametrize("setting", ["gate_rate=8", "gate_lr=0.1"])
def test_pfedmoap_gate_has_an_optimizer_of_its_own(setting):
    """Rate and weight decay, as two torch optimizers (ljaiverson/pFedMoAP, a481de35,
    trainers/pfedmoap.py 277-283); the gate's rate may be constant under a schedule
    (configs/trainers/PFEDMOAP/vit_b16.yaml)."""
    fed = federation("pfedmoap", f"method.{setting}")
    method, classes, rng = fed.method, fed.base, np.random.default_rng(0)
    shared, server_state, states = fed.models.initial_shared(), fed.server.initial_state(), {}
    shared, server_state = a_round(fed, 1, [0, 1], shared, server_state, states)
    client_only = {0: fed.server.download_for(0, server_state)}
    params = fed.models.params(shared, [0], [states[0]], client_only, server_round=1)
    rows, schedule = np.arange(4), {"schedule": "cosine", "rounds": 3}  # 0.75 of lr in round 2
    settings = TrainingSettings(
        epochs=3, batch_size=4, lr=0.02, momentum=0.9, weight_decay=0.3, **schedule
    )
    labels = torch.from_numpy(rng.integers(0, len(classes.ids), len(fed.dataset.train)))
    result = train_cohort(
        method,
        params,
        fed.inputs.images("train"),
        labels,
        [rows],
        classes,
        settings,
        seed=0,
        clients=[0],
        server_round=2,
    )
    trainable = {n: params[n][0].clone().requires_grad_() for n in method.trainable(params)}
    gate = [t for n, t in trainable.items() if n.startswith("gate.")]
    optimizers = [
        torch.optim.SGD([trainable["p_G"]], lr=0.015, momentum=0.9, weight_decay=0.3),
        torch.optim.SGD(gate, lr=0.1 if "lr" in setting else 0.12, momentum=0.9, weight_decay=0.3),
    ]
    for _ in range(3):
        now = {**params, **{n: t[None] for n, t in trainable.items()}}
        classifier = method.mixture(
            now, method.global_classifier(now, classes), now["pooled"], now["known"]
        )
        logits = method.logits(
            classifier, fed.inputs.images("train")[torch.from_numpy(rows)[None]], classes
        )[0]
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels[:4]).backward()
        for optimizer in optimizers:
            optimizer.step()
    for name, tensor in trainable.items():
        assert_close(
            result.params[name][0],
            tensor.detach(),
            rtol=1e-8,
            atol=1e-10,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("name", LEARNING)
def test_no_answer_depends_on_what_never_trained_or_on_training_images(name):
    """After a client's first round, a personal tensor that is still as it was drawn has no say in
    its answers, and nor have its training images: predict and export do without (but for
    pFedPrompt, whose model is a memory of them)."""
    fed = federation(name)
    shared, server_state, states = fed.models.initial_shared(), fed.server.initial_state(), {}
    shared, server_state = a_round(fed, 1, [0, 1], shared, server_state, states)
    expected, start = answers(fed, 0, shared, server_state, states), fed.models.initial_state(0)
    rng = torch.Generator().manual_seed(0)
    for n, tensor in start.items():
        drawn = tensor.numel() > 1 and tensor.to(states[0][n]).abs().max() > 0
        if drawn and torch.equal(states[0][n], tensor.to(states[0][n])):
            states[0][n] = states[0][n] + torch.randn(
                tensor.shape, generator=rng, dtype=states[0][n].dtype
            )
    assert_close(answers(fed, 0, shared, server_state, states), expected)
    fed.inputs.dataset = replace(fed.dataset, train=None)
    if name == "pfedprompt":
        with pytest.raises(NeedsImages, match="needs the client's own training images"):
            answers(fed, 0, shared, server_state, states)
    else:
        assert_close(answers(fed, 0, shared, server_state, states), expected)


@pytest.mark.parametrize("name", ["fedpgp", "promptfl_ft", "pfedmoap"])
def test_a_client_that_never_trained_answers_with_the_newest_shared_prompt(name):
    """Where the personal part is nothing at the start."""
    fed = federation(name)
    shared, server_state, states = fed.models.initial_shared(), fed.server.initial_state(), {}
    first = answers(fed, 2, shared, server_state, states)
    shared, server_state = a_round(fed, 1, [0, 1], shared, server_state, states)
    alone = answers(fed, 2, shared, server_state, states)
    assert_close(alone, plain(fed, shared["p_G"]))
    assert (alone - first).abs().max() > 1e-3
