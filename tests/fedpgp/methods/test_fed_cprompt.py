"""Fed-CPrompt: loss and gradients against its equations, and which entries of the pool learn."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fedpgp.methods import METHODS
from tests.helpers.equations import classes, cross_entropy_of, photo, pictured, real
from tests.helpers.gradients import check_gradients
from tests.helpers.tasks import after_two_tasks

POOL, TOKENS, DEPTH = 2, 2, 2
OPTIONS = {"pool": POOL, "tokens": TOKENS, "depth": DEPTH}


def seen_with(task, batch, k, b, pool, tasks):
    """grbagwe/Fed-CPrompt at a19c98b90e28, models/vit_coda_p.py, ``CodaPrompt.forward``, lines 332
    to 341: einsum 'bd,kd->bkd' of the query and softmax(A), its cosine with K, and the sum of the
    entries."""
    q, prompts = batch.images.features[k, b], []
    for block in range(DEPTH):
        total = 0.0
        for entry in range(POOL * tasks):
            tilted = q * torch.softmax(pool["A"][block, entry], 0)
            share = F.cosine_similarity(tilted, pool["K"][block, entry], dim=0)
            total = total + share * pool["p"][block, entry]
        prompts.append(total)
    return pictured(task, batch.images.pixels[k, b], torch.stack(prompts))


def cprompt(phase):
    def equations(task, s, batch, k, p, global_params):
        """The same repository, learners/prompt.py: ``TripletLoss``, ``positive_loss`` (lines 27 to
        46), and logits of earlier classes at minus infinity (``update_model``)."""
        own = {label for _, label, _ in real(batch, k)}
        counts = [c for c in classes(task) if not p["old"][c] or c in own]
        z = {b: seen_with(task, batch, k, b, p, phase + 1) for b, _, _ in real(batch, k)}

        def logits(b):
            low = torch.tensor(-1e9).double()
            for c in classes(task):
                yield task.logit_scale * (z[b] @ photo(task, c)) if c in counts else low

        pull = push = 0.0
        for b, feature in z.items():
            sent = seen_with(task, batch, k, b, global_params, phase + 1).detach()
            pull = pull + 1e3 * ((feature - sent) ** 2).sum()
            if phase:
                last = {n: p[f"prev.{n}"] for n in "pKA"}
                before = seen_with(task, batch, k, b, last, phase)
                push = push + 10 * ((feature - before) ** 2).sum()
        c2l = torch.relu(pull - push + 1.0) if phase else pull
        return cross_entropy_of(batch, k, logits) + c2l

    return equations


@pytest.mark.parametrize("phase", [0, 1])
def test_loss_and_gradients(task, batch, monkeypatch, phase):
    method, task.phases = METHODS["fed_cprompt"], 1 + phase
    start = method.init_personal

    def later(self, rng):
        state = start(self, rng)
        for name in ("prev.p", "prev.K", "prev.A"):
            state[name] = torch.from_numpy(rng.normal(size=state[name].shape))
        old = torch.tensor([1.0, 1, 1, 0, 0]) if phase else state["old"]
        return {**state, "task": torch.full((1,), float(phase)), "old": old}

    monkeypatch.setattr(method, "init_personal", later)
    check_gradients("fed_cprompt", OPTIONS, cprompt(phase), task, batch, phase)


@pytest.fixture(scope="module")
def after_tasks():
    return after_two_tasks("fed_cprompt")


def test_only_the_entries_of_a_task_learn_in_it(after_tasks):
    _, kept = after_tasks
    for before, after, learns in ((0, 1, slice(0, 2)), (1, 2, slice(2, 4))):
        for name in "pKA":
            moved = (kept[after][name] != kept[before][name]).reshape(DEPTH, 4, -1).any((0, 2))
            expected = [False] * 4
            expected[learns] = [True] * 2
            assert moved.tolist() == expected, name
    assert [float(shared["tasks"][0]) for shared in kept] == [1, 1, 2]


def test_a_client_keeps_the_last_tasks_pool_and_the_classes_it_has_seen(after_tasks):
    rounds, kept = after_tasks
    for name in "pKA":
        assert_close(rounds.states[0][f"prev.{name}"], torch.from_numpy(kept[1][name]))
    assert rounds.states[0]["old"].tolist() == [1] * 6


def test_clients_in_different_tasks_are_answered_with_all_that_have_begun(after_tasks):
    rounds, kept = after_tasks
    fed = rounds.federation
    averaged = {n: torch.from_numpy(t) for n, t in kept[2].items()}
    for mean, tasks in ((1.0, 1), (1.25, 2), (1.75, 2), (2.0, 2)):
        shared, _ = fed.server.update(
            {**{n: t.numpy() for n, t in averaged.items()}, "tasks": torch.tensor([mean]).numpy()},
            server_round=3,
            num_rounds=9,
            global_params=kept[1],
            weights={0: 1.0, 1: 1.0},
            server_state={},
        )
        assert shared["tasks"].tolist() == [tasks]
