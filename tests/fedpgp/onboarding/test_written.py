"""Terms that a network on the server writes for newcomers, against their equations in loops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fedpgp.errors import FedPGPError
from fedpgp.methods import Batch, Images
from fedpgp.methods.base import StepContext
from fedpgp.onboarding import Trained, make_onboarding
from fedpgp.onboarding.budget import make_newcomer
from fedpgp.onboarding.descriptions import describe
from fedpgp.onboarding.fine_tune import plan
from fedpgp.onboarding.measure import cells, measure
from fedpgp.protocols.onboarding_options import OnboardingOptions
from tests.helpers.newcomers import NEWCOMERS, federation_with_newcomers
from tests.helpers.small import small_config


def trained_with(method: str, **settings):
    """The small federation after two rounds, its server's part done too."""
    config = small_config(Path("nowhere"), "lr=0.3", f"method={method}")
    config["method"] |= {"hidden": 5, "layers": 1, "server_steps": 3, **settings}
    federation = federation_with_newcomers(json.dumps(config))
    server = federation.server
    shared, states = federation.models.initial_shared(), {}
    server_state = server.initial_state()
    able = [c for c in range(federation.num_clients) if c not in NEWCOMERS]
    for server_round in (1, 2):
        only = {c: server.download_for(c, server_state) for c in able}
        results = list(federation.train(shared, able, server_round, states.get, only))
        states |= {r.client: r.state for r in results}
        averaged = {n: np.mean([r.update[n] for r in results], axis=0) for n in shared}
        shared, server_state = server.update(
            averaged,
            server_round=server_round,
            num_rounds=2,
            global_params=shared,
            weights=dict.fromkeys(able, 1.0),
            server_state=server_state,
            updates={r.client: r.update for r in results},
        )
    return federation, Trained(shared, server_state)


@pytest.fixture(scope="module")
def pfedhn():
    return trained_with("pfedhn", description="histogram")


def way_of(trained, name, **options):
    return make_onboarding(name, OnboardingOptions(onboard=name, **options), *trained)


def written(trained, read, factor=1.0):
    """The term of what the network reads, number by number."""
    phi, shared = trained[1].server_state, trained[1].shared
    hidden = [
        max(0.0, float(w @ read + b))
        for w, b in zip(phi["h.0.weight"], phi["h.0.bias"], strict=True)
    ]
    numbers = np.array(
        [w @ hidden + b for w, b in zip(phi["h.out.weight"], phi["h.out.bias"], strict=True)]
    )
    (m, rank), (_, d) = shared["U_0"].shape, shared["V_0"].shape
    u, v = numbers[: m * rank].reshape(m, rank), numbers[m * rank :].reshape(rank, d)
    return shared["U_0"] + factor * u, shared["V_0"] + factor * v


def standardised(trained, v):
    state = trained[1].server_state
    known = [state["v"][c] for c in range(6) if state["known"][c]]
    assert len(known) == 4
    centre = sum(known) / 4
    return (v - centre) / np.sqrt(sum(((each - centre) ** 2).sum() for each in known) / 4)


@pytest.mark.parametrize("description", ["names", "features", "histogram"])
def test_trained_clients_are_described_as_newcomers_are(description):
    federation, trained = trained_with("pfedhn", description=description)
    for client in (0, 3):
        rows = federation.federated_split.clients[client].train
        labels = sorted(set(federation.dataset.train.labels[rows].tolist()))
        expected = describe(description, federation, rows, labels)
        np.testing.assert_allclose(trained.server_state["v"][client], expected, atol=1e-12)


@pytest.mark.parametrize("budget", [0, None])
def test_hyper_is_the_term_that_the_network_writes(pfedhn, budget):
    federation, _ = pfedhn
    mine = make_newcomer(federation, NEWCOMERS[0], budget, 0)
    labels = federation.dataset.train.labels[mine.rows].tolist() or list(mine.labels)
    v = np.array([labels.count(c) / len(labels) for c in range(6)])
    u, w = written(pfedhn, standardised(pfedhn, v))
    (found,) = way_of(pfedhn, "hyper").onboard([mine])
    np.testing.assert_allclose(found.state["U"], u, atol=1e-12)
    np.testing.assert_allclose(found.state["V"], w, atol=1e-12)
    assert np.abs(u - pfedhn[1].shared["U_0"]).max() > 1e-4
    assert found.bytes_up == 6 * 8 and found.bytes_down == (u.size + w.size) * 8


def test_a_newcomers_own_steps_begin_there(pfedhn):
    way = way_of(pfedhn, "hyper")
    begun, gone_on = (
        way.onboard([make_newcomer(pfedhn[0], NEWCOMERS[1], None, steps)])[0].state
        for steps in (0, 1)
    )
    moved = (gone_on["U"] - begun["U"]).abs().max()
    assert 0 < moved < 0.1


def test_a_learned_description_is_fitted_with_the_network_frozen():
    """By automatic differentiation through the whole, with momentum and weight decay by hand."""
    trained = trained_with("pfedhn", description="learned")
    federation, known = trained
    method, task = federation.method, federation.method.task
    mine = make_newcomer(federation, NEWCOMERS[0], None, 3)
    phi = {n: torch.from_numpy(t) for n, t in known.server_state.items()}
    v = phi["v"][phi["known"] > 0].mean(0)
    velocity = torch.zeros_like(v)
    features, labels = federation.inputs.features("train"), federation.dataset.train.labels
    shared = {n: torch.from_numpy(t)[None] for n, t in known.shared.items()}

    def term(v):
        a = torch.relu(phi["h.0.weight"] @ v + phi["h.0.bias"])
        numbers = phi["h.out.weight"] @ a + phi["h.out.bias"]
        size = shared["U_0"].numel()
        u = shared["U_0"] + numbers[:size].view_as(shared["U_0"])
        return u, shared["V_0"] + numbers[size:].view_as(shared["V_0"])

    for step, places in enumerate(plan(mine, federation.training.batch_size, federation.seed)):
        rows = mine.rows[places]
        batch = Batch(
            Images(features=features[rows][None]),
            torch.from_numpy(labels[rows])[None],
            torch.full((1, len(rows)), 1 / len(rows), dtype=task.dtype),
        )
        leaf = v.clone().requires_grad_()
        u, w = term(leaf)
        context = StepContext(3, step, [mine.client], shared, 0.2, federation.seed)
        loss = method.loss({**shared, "U": u, "V": w}, batch, federation.base, context)
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
        velocity = 0.9 * velocity + slope + 5e-4 * v
        v = v - 0.2 * velocity
    (found,) = way_of(trained, "hyper", onboard_lr=0.2).onboard([mine])
    for name, expected in zip(("U", "V"), term(v), strict=True):
        assert_close(found.state[name], expected[0], rtol=1e-9, atol=1e-12)
    size = sum(t.nbytes for n, t in known.server_state.items() if n.startswith("h.")) + v.nbytes
    assert found.bytes_up == 0 and found.bytes_down == size


def test_nothing_is_fitted_to_no_images_or_to_a_loss_that_is_not_finite():
    trained = trained_with("pfedhn", description="learned")
    without = make_newcomer(trained[0], NEWCOMERS[0], 0, 3)
    with pytest.raises(FedPGPError, match="newcomer's images, and it has none"):
        way_of(trained, "hyper").onboard([without])
    mine = make_newcomer(trained[0], NEWCOMERS[0], None, 9)
    with pytest.raises(FedPGPError, match=r"newcomer 2: the loss is not finite .*onboard_lr"):
        way_of(trained, "hyper", onboard_lr=1e300).onboard([mine])


def test_hyperfield_is_the_field_after_so_many_steps():
    trained = trained_with("hyperfield", description="names", horizon=8)
    federation, _ = trained
    way = way_of(trained, "hyperfield", steps=[0, 3, 8])
    mine = make_newcomer(federation, NEWCOMERS[0], 0, 3)
    v = describe("names", federation, mine.rows, mine.labels)
    read = np.append(standardised(trained, v), 2 * 3 / 8 - 1)
    u, w = written(trained, read, factor=3 / 8)
    (found,) = way.onboard([mine])
    np.testing.assert_allclose(found.state["U"], u, atol=1e-12)
    np.testing.assert_allclose(found.state["V"], w, atol=1e-12)
    assert cells(way, way.options) == [(0, 0), (0, 3), (0, 8)]
    rows = list(measure(federation, trained[1], way.options))
    assert [(r.way, r.steps) for r in rows] == [
        ("global", 0),
        *(("hyperfield", t) for t in (0, 3, 8)),
    ]
    assert not trained[1].shared["U_0"].any()  # after no step: the global prompt
    assert rows[1].accuracies == rows[0].accuracies


@pytest.mark.parametrize(
    ("method", "settings", "way", "options", "why"),
    [
        ("fedpgp", {}, "hyper", {}, "method=fedpgp has no network.*method=pfedhn"),
        ("pfedhn", {"description": "learned"}, "hyper", {"budget": [0, 4]}, "budget=0 has none"),
        ("pfedhn", {"description": "features"}, "hyper", {"budget": 0}, "budget=0 has none"),
        ("pfedhn", {}, "hyperfield", {}, "no field of terms: take method=hyperfield"),
        ("hyperfield", {"description": "learned"}, "hyperfield", {}, "needs a description"),
    ],
)
def test_what_cannot_be_written_is_refused_with_a_reason(method, settings, way, options, why):
    config = small_config(Path("nowhere"), f"method={method}")
    config["method"] |= settings
    federation = federation_with_newcomers(json.dumps(config))
    with pytest.raises(FedPGPError, match=f"protocol.onboard={way}: .*{why}"):
        way_of((federation, Trained({})), way, **options)
