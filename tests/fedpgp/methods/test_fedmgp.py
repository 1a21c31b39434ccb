"""FedMGP: which groups travel, where the averages go, and its loss and gradients."""

import json

import pytest
import torch
from torch.testing import assert_close

from fedpgp.methods import METHODS, StepContext
from tests.helpers.equations import (
    classes,
    cross_entropy_of,
    pictured,
    prompted,
    real,
)
from tests.helpers.gradients import check_gradients
from tests.helpers.small import small_config, small_federation

KINDS = (("T", "t"), ("V", "v"))


def federation(*overrides: str):
    config = small_config("/nowhere", "method=fedmgp", "clients=3", "lr=0.1", *overrides)
    return small_federation(json.dumps(config))


def a_round(fed, server_round, clients, shared, server_state, states):
    client_only = {c: fed.server.download_for(c, server_state) for c in clients}
    results = list(fed.train(shared, clients, server_round, states.get, client_only))
    states |= {r.client: r.state for r in results}
    averaged = {n: sum(r.update[n] / len(results) for r in results) for n in shared}
    updates, weights = {r.client: r.update for r in results}, dict.fromkeys(clients, 1.0)
    return fed.server.update(
        averaged,
        server_round=server_round,
        num_rounds=9,
        global_params=shared,
        updates=updates,
        weights=weights,
        server_state=server_state,
    )


def groups(fed, client, shared, server_state, states) -> dict:
    """What the client answers with now."""
    client_only = {client: fed.server.download_for(client, server_state)}
    params = fed.models.params(shared, [client], [states[client]], client_only, server_round=1)
    return {kind: params[kind][0] for kind, _ in KINDS}


def test_a_client_keeps_its_groups_in_rounds_without_it():
    """Only those who took part are given the averages, each in the places of what it sent, rank by
    rank (weihao-bo/FedMGP, 3a026970df7bf409a29c342ed4d1635882c79f99,
    federated_core/trainers/fedmgp_learner.py 73-81 and 552-592)."""
    fed, states = federation("method.groups=4"), {}
    shared, server_state = fed.models.initial_shared(), fed.server.initial_state()
    shared, server_state = a_round(fed, 1, [0, 1], shared, server_state, states)
    first = {n: torch.from_numpy(a) for n, a in shared.items()}
    now = {c: groups(fed, c, shared, server_state, states) for c in (0, 1)}
    for client in (0, 1):
        for kind, average in KINDS:
            places = states[client][f"sent_{kind}"].long().tolist()
            assert len(set(places)) == 2
            assert torch.equal(now[client][kind][places], first[average])
            for other in set(range(4)) - set(places):
                assert torch.equal(now[client][kind][other], states[client][kind][other])
    shared, server_state = a_round(fed, 2, [1, 2], shared, server_state, states)
    assert not torch.equal(torch.from_numpy(shared["t"]), first["t"])
    later = groups(fed, 0, shared, server_state, states)
    assert all(
        torch.equal(later[kind], now[0][kind]) for kind, _ in KINDS
    )  # the first was not there
    assert not torch.equal(groups(fed, 1, shared, server_state, states)["T"], now[1]["T"])


def test_nothing_is_replaced_before_the_first_round():
    fed = federation()
    states = {0: fed.models.initial_state(0)}
    now = groups(fed, 0, fed.models.initial_shared(), fed.server.initial_state(), states)
    assert all(torch.equal(now[kind], states[0][kind].double()) for kind, _ in KINDS)


def test_text_and_image_groups_are_drawn_with_the_same_random_numbers():
    """In round 1 that is the same groups for both (fedmgp_learner.py 150-172: one
    seed a client for both)."""
    fed, states = federation("method.groups=5", "clients=6"), {}
    a_round(fed, 1, range(6), fed.models.initial_shared(), fed.server.initial_state(), states)
    drawn = [tuple(states[c]["sent_T"].long().tolist()) for c in range(6)]
    assert drawn == [tuple(states[c]["sent_V"].long().tolist()) for c in range(6)]
    assert len(set(drawn)) > 1


def test_groups_like_the_averages_are_drawn_more_often(task):
    method = METHODS["fedmgp"](METHODS["fedmgp"].Settings(groups=3, sent=1, tau=0.5), task)
    groups, averages = torch.eye(3).view(3, 1, 3), torch.tensor([[[1.0, 1.0, 0.0]]])
    counts = torch.zeros(3)
    for client in range(600):
        step = StepContext(
            server_round=2, step=0, clients=[client], global_params={}, lr=0.1, seed=0
        )
        counts[method.draw(groups, averages, step, client)] += 1
    expected = torch.softmax(torch.tensor([0.5, 0.5, 0.0]).sqrt() / 0.5, 0)
    assert_close(counts / 600, expected, atol=0.06, rtol=0)


def test_the_draw_is_one_without_replacement(task):
    """Pairs in order: p_i p_j / (1 - p_i), as drawing one by one from what is left
    (fedmgp_learner.py 332-345)."""
    method = METHODS["fedmgp"](METHODS["fedmgp"].Settings(groups=3, sent=2), task)
    groups, averages = torch.eye(3).view(3, 1, 3), torch.tensor([[[1.0, 0.0, 0.0]]])
    p = torch.softmax(torch.tensor([1.0, 0.0, 0.0]), 0)
    counts = torch.zeros(3, 3)
    for client in range(1500):
        i, j = method.draw(
            groups, averages, StepContext(2, 0, [client], {}, 0.1, 0), client
        ).tolist()
        counts[i, j] += 1
    expected = p[:, None] * p / (1 - p[:, None]) * (1 - torch.eye(3))
    assert_close(counts / 1500, expected, atol=0.04, rtol=0)


def fedmgp(task, s, batch, k, p, global_params):
    texts = [prompted(task, t) for t in p["T"]]
    images = [
        {b: pictured(task, batch.images.pixels[k, b], v[None]) for b, _, _ in real(batch, k)}
        for v in p["V"]
    ]
    total = 0.0
    for text, image in zip(texts, images, strict=True):

        def logits(b, text=text, image=image):
            return [task.logit_scale * (image[b] @ t) for t in text]

        total = total + cross_entropy_of(batch, k, logits) / s.groups
    pairs = [(g, h) for g in range(s.groups) for h in range(g)]
    for g, h in pairs:
        if s.penalty == "l1":
            text = sum((texts[g][c] - texts[h][c]).abs().mean() for c in classes(task)) / len(
                texts[g]
            )
            image = sum(
                w * (images[g][b] - images[h][b]).abs().mean() for b, _, w in real(batch, k)
            )
            total = total + s.weight * (text + image) / 2 / len(pairs)
            continue
        text = sum(texts[g][c] @ texts[h][c] for c in classes(task)) / len(texts[g])
        image = sum(w * (images[g][b] @ images[h][b]) for b, _, w in real(batch, k))
        total = total + s.weight * (text + image) / 2 / len(pairs)
    return total


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 3, "weight": 0.7},
        {"groups": 3, "weight": 0.7, "penalty": "l1"},
        {"groups": 1, "sent": 1},
    ],
    ids=str,
)
def test_loss_and_gradients(task, batch, options):
    check_gradients("fedmgp", options, fedmgp, task, batch)
