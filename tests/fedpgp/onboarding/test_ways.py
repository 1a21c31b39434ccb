"""Each way of onboarding against a slow reference of its equations, in numpy and loops."""

import math
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from fedpgp.errors import FedPGPError
from fedpgp.methods import Batch, Images
from fedpgp.methods.base import StepContext
from fedpgp.onboarding import ONBOARDINGS, Onboarded, blend, describe, make_onboarding
from fedpgp.onboarding.budget import make_newcomer
from fedpgp.onboarding.fine_tune import plan
from fedpgp.onboarding.measure import accuracies, cells, logits, measure
from fedpgp.protocols.onboarding_options import OnboardingOptions
from tests.docs.pages import block
from tests.helpers.equations import sentence
from tests.helpers.newcomers import NEWCOMERS, trained_federation
from tests.helpers.small import CLASSES

WRITTEN = ["hyper", "hyperfield", "semantic"]
"""Ways of test_written.py and test_semantic.py."""

EVERY = ["cluster", "finetune", "global", "memory", "nearest", "prior", "topk"]


@pytest.fixture(scope="module")
def trained():
    return trained_federation()


def way_of(trained, name, **options):
    return make_onboarding(name, OnboardingOptions(onboard=name, **options), *trained)


def newcomer(trained, budget=None, steps=0, client=NEWCOMERS[0]):
    return make_newcomer(trained[0], client, budget, steps)


def term(state):
    return state["U"].double().numpy() @ state["V"].double().numpy()


def cut(matrix, rank):
    """The nearest matrix of this rank: projected on the leading eigenvectors of M M^T."""
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    leading = vectors[:, np.argsort(values)[::-1][:rank]]
    return leading @ leading.T @ matrix


def test_low_rank_terms_are_averaged_as_products():
    rng = np.random.default_rng(0)
    states = [
        {
            "U": torch.from_numpy(rng.normal(size=(4, 2))),
            "V": torch.from_numpy(rng.normal(size=(2, 9))),
        }
        for _ in range(3)
    ]
    weights = [0.5, 0.3, 0.2]
    mean = sum(w * term(state) for w, state in zip(weights, states, strict=True))
    found = blend(states, weights)
    np.testing.assert_allclose(term(found), cut(mean, 2), atol=1e-12)
    assert found["U"].shape == (4, 2) and found["V"].shape == (2, 9)
    np.testing.assert_allclose(term(blend(states[:1], [1.0])), term(states[0]), atol=1e-12)
    full = [{"D": state["V"]} for state in states]
    expected = sum(w * state["D"].numpy() for w, state in zip(weights, full, strict=True))
    np.testing.assert_allclose(blend(full, weights)["D"].numpy(), expected, atol=1e-12)
    with pytest.raises(FedPGPError, match=r"U, V, s cannot be averaged.*method.personal=low_rank"):
        blend([{**states[0], "s": torch.zeros(4, 1)}], [1.0])


@pytest.mark.parametrize("kind", ["names", "features", "histogram"])
def test_descriptions(trained, kind):
    federation, _ = trained
    rows = np.array([3, 7, 8, 20])
    labels = federation.dataset.train.labels[rows]
    if kind == "names":
        own = sorted(set(labels.tolist()))
        vectors = [sentence(federation.method.task, f"a photo of a {CLASSES[c]}.") for c in own]
        mean = np.mean([vector.double().numpy() for vector in vectors], axis=0)
    elif kind == "features":
        own = labels.tolist()
        mean = federation.inputs.features("train").numpy()[rows].mean(0)
    else:
        own, mean = labels.tolist(), np.array([(labels == c).mean() for c in range(len(CLASSES))])
    found = describe(kind, federation, rows, own)
    length = 1 if kind == "histogram" else np.linalg.norm(mean)
    np.testing.assert_allclose(found, mean / length, atol=1e-12)
    if kind != "names":
        with pytest.raises(FedPGPError, match=f"description={kind} is made of images"):
            describe(kind, federation, rows[:0], own)


@pytest.mark.parametrize(("name", "count"), [("topk", 3), ("nearest", 1)])
def test_the_nearest_clients_are_weighed_by_the_softmax_of_cosines(name, count):
    trained = trained_federation(description="features")
    way = way_of(trained, name, description="features", top_k=3, tau=0.2, budget=4)
    mine = newcomer(trained, budget=None)
    v = describe("features", trained[0], mine.rows, mine.labels)
    cosines = {}
    for client, other in trained[1].descriptions.items():
        dot = sum(a * b for a, b in zip(v, other, strict=True))
        cosines[client] = dot / math.sqrt(sum(v * v) * sum(other * other))
    nearest = sorted(cosines, key=lambda c: -cosines[c])[:count]
    powers = [math.exp(cosines[client] / 0.2) for client in nearest]
    mean = sum(
        p / sum(powers) * term(trained[1].terms[client])
        for p, client in zip(powers, nearest, strict=True)
    )
    found = way.start(mine)
    np.testing.assert_allclose(term(found.state), cut(mean, 2), atol=1e-12)
    assert set(trained[1].terms) == {0, 1, 3, 4}
    assert found.bytes_up == 16 * 8 and found.bytes_down == 2 * (4 + 32) * 8


def test_memory_adds_what_near_images_are(trained):
    federation, _ = trained
    way = way_of(trained, "memory", alpha=2.0, beta=3.0)
    mine = newcomer(trained, budget=1)
    (model,) = way.onboard([mine])
    split = federation.federated_split.clients[mine.client]
    eval_set = split.eval_sets["unseen"]
    plain = logits(way, mine, Onboarded(), eval_set).numpy()
    train, test = (federation.inputs.features(part).numpy() for part in ("train", "test"))
    expected = plain.copy()
    for i, image in enumerate(eval_set.indices):
        for row in mine.rows:
            cosine = float(test[image] @ train[row])
            label = int(federation.dataset.train.labels[row])
            expected[i, label] += 2.0 * math.exp(-3.0 * (1 - cosine))
    np.testing.assert_allclose(logits(way, mine, model, eval_set).numpy(), expected, atol=1e-10)
    assert model.state is None and (model.bytes_up, model.bytes_down) == (0, 0)
    (without,) = way.onboard([newcomer(trained, budget=0)])
    assert without == Onboarded()


def test_the_prior_is_bayes_rule_for_the_classes_it_has(trained):
    federation, _ = trained
    way = way_of(trained, "prior", others=0.1)
    mine = newcomer(trained, budget=0)
    (model,) = way.onboard([mine])
    eval_set = federation.federated_split.clients[mine.client].eval_sets["unseen"]
    plain = torch.softmax(logits(way, mine, Onboarded(), eval_set), -1).numpy()
    own = len(mine.labels)
    assert 0 < own < len(CLASSES)
    expected = plain.copy()
    for c in range(len(CLASSES)):
        expected[:, c] *= 0.9 / own if c in mine.labels else 0.1 / (len(CLASSES) - own)
    expected /= expected.sum(1, keepdims=True)
    found = torch.softmax(logits(way, mine, model, eval_set), -1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert model.state is None and (model.bytes_up, model.bytes_down) == (0, 0)
    everything = replace(mine, labels=tuple(range(len(CLASSES))))
    assert way.start(everything) == Onboarded()


def test_finetune_is_sgd_on_the_private_tensors_alone(trained):
    federation, known = trained
    way = way_of(trained, "finetune", onboard_lr=0.2)
    mine = newcomer(trained, steps=3)
    (model,) = way.onboard([mine])
    task, method = federation.method.task, federation.method
    classes = task.class_set(mine.classes)
    initial = federation.models.initial_state(mine.client)
    params = {name: tensor[None].clone().to(task.dtype) for name, tensor in initial.items()}
    p_G = {"p_G": torch.from_numpy(known.shared["p_G"])[None]}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    features, labels = federation.inputs.features("train"), federation.dataset.train.labels
    for step, places in enumerate(plan(mine, federation.training.batch_size, federation.seed)):
        rows = mine.rows[places]
        batch = Batch(
            Images(features=features[rows][None]),
            torch.from_numpy(labels[rows])[None],
            torch.full((1, len(rows)), 1 / len(rows), dtype=task.dtype),
        )
        leaves = {name: tensor.requires_grad_() for name, tensor in params.items()}
        context = StepContext(3, step, [mine.client], p_G, 0.2, federation.seed)
        loss = method.loss({**p_G, **leaves}, batch, classes, context)
        grads = torch.autograd.grad(loss.sum(), list(leaves.values()))
        for (name, tensor), grad in zip(leaves.items(), grads, strict=True):
            velocity[name] = 0.9 * velocity[name] + grad + 5e-4 * tensor.detach()
            params[name] = tensor.detach() - 0.2 * velocity[name]
    for name, tensor in params.items():
        np.testing.assert_allclose(model.state[name], tensor[0].detach(), atol=1e-12)
    (unchanged,) = way.onboard([newcomer(trained, budget=0, steps=3)])
    assert all(torch.equal(unchanged.state[name], initial[name]) for name in initial)


def test_a_newcomers_own_steps_begin_at_the_blended_term(trained):
    way, mine = way_of(trained, "topk"), newcomer(trained, steps=0)
    (begun,), (gone_on,) = way.onboard([mine]), way.onboard([replace(mine, steps=1)])
    start = way.start(mine).state
    assert all(torch.equal(begun.state[name], start[name]) for name in start)
    moved = np.abs(term(gone_on.state) - term(start)).max()
    assert 0 < moved < 0.1
    assert gone_on.bytes_down == begun.bytes_down > 0


def test_cluster_routes_to_the_most_alike_subspace(trained):
    way = way_of(trained, "cluster")
    clients = sorted(trained[1].terms)
    terms = [term(trained[1].terms[client]) for client in clients]
    mine = newcomer(trained, steps=2)
    found = way.start(mine)
    first = way_of(trained, "finetune").onboard([mine])[0].state

    def likeness(one, other):
        bases = [np.linalg.svd(each)[0][:, :2] for each in (one, other)]
        return np.square(np.cos(subspace_angles(*bases))).sum() / 2

    means = {
        c: np.mean(
            [likeness(term(first), t) for t, k in zip(terms, way.clusters, strict=True) if k == c]
        )
        for c in set(way.clusters.tolist())
    }
    chosen = max(means, key=means.get)
    members = [t for t, k in zip(terms, way.clusters, strict=True) if k == chosen]
    root = np.mean(terms, axis=0)
    leaf = np.mean([member - root for member in members], axis=0)
    np.testing.assert_allclose(term(found.state), cut(root + leaf, 2), atol=1e-12)
    assert found.bytes_up == 4 * 2 * 8
    without = way.start(newcomer(trained, budget=0))
    np.testing.assert_allclose(term(without.state), cut(root, 2), atol=1e-12)
    assert without.bytes_up == 0


def test_budgets_are_nested_and_of_every_own_class(trained):
    labels = trained[0].dataset.train.labels
    drawn = [set(newcomer(trained, budget=b).rows.tolist()) for b in (0, 1, 2, None)]
    assert not drawn[0] and drawn[0] < drawn[1] <= drawn[2] <= drawn[3]
    own = newcomer(trained).labels
    assert sorted(labels[sorted(drawn[1])].tolist()) == list(own)
    assert newcomer(trained, budget=0).labels == own


def test_every_way_is_measured_where_it_makes_a_difference(trained):
    options = OnboardingOptions(onboard=EVERY, budget=[0, 1, None], steps=[0, 2])
    assert set(ONBOARDINGS) == {*EVERY, *WRITTEN}
    before = {
        client: {n: t.clone() for n, t in s.items()} for client, s in trained[1].terms.items()
    }
    rows = list(measure(*trained, options))
    pairs = {name: [(r.budget, r.steps) for r in rows if r.way == name] for name in EVERY}
    whole = [(0, 0), (1, 0), (1, 2), (None, 0), (None, 2)]
    assert rows[0].way == "global" and pairs["global"] == [(0, 0)]
    assert pairs["prior"] == [(0, 0)]
    assert pairs["memory"] == [(0, 0), (1, 0), (None, 0)]
    assert all(pairs[name] == whole for name in ("finetune", "nearest", "topk", "cluster"))
    assert all(set(row.accuracies) == set(NEWCOMERS) for row in rows)
    zero = {row.way: row.accuracies for row in rows if (row.budget, row.steps) == (0, 0)}
    assert zero["memory"] == zero["global"]
    for client, state in before.items():
        assert all(torch.equal(trained[1].terms[client][name], t) for name, t in state.items())
    again = list(measure(*trained, options))
    assert again == rows


def test_the_global_prompt_is_what_the_evaluation_has(trained):
    federation, known = trained
    results = federation.evaluate(known.shared, NEWCOMERS, lambda client: None)
    expected = {result.client: result.metrics["personal.unseen"] for result in results}
    way = way_of(trained, "global")
    newcomers = [newcomer(trained, client=client) for client in NEWCOMERS]
    found = accuracies(way, newcomers, way.onboard(newcomers))
    assert dict(zip(NEWCOMERS, found, strict=True)) == expected
    assert cells(way, OnboardingOptions(budget=[1, 4], steps=[5])) == [(0, 0)]


def test_a_way_that_cannot_work_is_refused(trained):
    federation, known = trained
    with pytest.raises(FedPGPError, match="onboard=topk .*method.share_terms=true"):
        way_of((federation, replace(known, terms={})), "topk")
    with pytest.raises(FedPGPError, match="description=histogram .*protocol.budget=0"):
        way_of(trained, "topk", description="histogram", budget=[0, 4])
    with pytest.raises(FedPGPError, match="unknown way of protocol.onboard 'nearst'.*nearest"):
        way_of(trained, "nearst")
    with pytest.raises(FedPGPError, match="newcomer 2: .*lower protocol.onboard_lr"):
        way_of(trained, "finetune", onboard_lr=1e300).onboard([newcomer(trained, steps=3)])


def test_the_way_of_the_page_is_one(trained, monkeypatch):
    monkeypatch.setitem(ONBOARDINGS, "mean", None)
    module = types.ModuleType("mean_way")
    monkeypatch.setitem(sys.modules, "mean_way", module)
    exec(compile(block("onboarding.md", "python"), "mean_way.py", "exec"), vars(module))
    found = module.Mean(OnboardingOptions(), *trained).start(newcomer(trained)).state
    root = np.mean([term(state) for state in trained[1].terms.values()], axis=0)
    np.testing.assert_allclose(term(found), cut(root, 2), atol=1e-12)
