"""FedPGP with a term a task: loss and gradients, what a new task does, and the mixture."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fedpgp.methods import METHODS, Images
from tests.helpers.equations import classes, cosine_cross_entropy, feature, photo, prompted
from tests.helpers.gradients import check_gradients
from tests.helpers.tasks import Rounds, federation

FIRST, SECOND, THIRD = [[0, 1, 2, 3], [6, 7]], [[4, 5], [8, 9]], [[10], [11]]
PENALTY = 0.3


def lifelong(task, s, batch, k, p, global_params):
    """Cross-entropy of the recent context, FedPGP's contrastive loss (arXiv 2405.09771), and the
    penalty of cmnfriend/O-LoRA at 07117e1fc4a5, src/uie_trainer_lora.py, lines 91 to 97:
    ``torch.abs(torch.mm(A_s, A_t.T)).sum()`` over the finished tasks."""
    recent = p["p_G"] + p["P"] + p["U"] @ p["V"]
    contrast = 0.0
    for c in classes(task):
        z_G, z = feature(task, c, p["p_G"]), feature(task, c, recent)
        pull, push = (z_G @ photo(task, c) / s.tau).exp(), (z_G @ z / s.tau).exp()
        contrast = contrast - torch.log(pull / (pull + push)) / len(classes(task))
    penalty = 0.0
    for term, done in zip(p["terms"], p["done"], strict=True):
        if done:
            penalty = penalty + sum((a @ b).abs() for a in term for b in p["V"])
    ce = cosine_cross_entropy(task, batch, k, prompted(task, recent))
    return ce + s.mu * contrast + s.orthogonal * penalty


@pytest.mark.parametrize("mu", [0.7, 0])
def test_loss_and_gradients(task, batch, monkeypatch, mu):
    """With two finished tasks behind it."""
    method, task.phases = METHODS["fedpgp_lifelong"], 3
    start = method.init_personal

    def later(self, rng):
        state = start(self, rng)
        history = {"P": 0.02 * torch.from_numpy(rng.normal(size=state["P"].shape))}
        history |= {"done": torch.tensor([0.0, 1.0, 1.0]), "task": torch.zeros(1)}
        return {**state, **history}

    monkeypatch.setattr(method, "init_personal", later)
    check_gradients("fedpgp_lifelong", {"mu": mu, "orthogonal": PENALTY}, lifelong, task, batch)


@pytest.fixture(scope="module")
def after_tasks():
    """Two clients, three tasks; the second client is away in the second."""
    rounds = Rounds(federation("fedpgp_lifelong", [FIRST, SECOND, THIRD], "lr=0.1"))
    start = rounds.federation.models.initial_state(0)
    history = []
    for server_round, clients in ((1, [0, 1]), (2, [0]), (3, [0, 1])):
        rounds.play(server_round, clients)
        history.append({client: dict(state) for client, state in rounds.states.items()})
    return rounds, start, history


def means(fed, rows):
    sums = torch.zeros(6, 16).double()
    for row in rows:
        sums[fed.dataset.train.labels[row]] += fed.inputs.features("train")[row]
    return sums


def test_a_task_that_ends_leaves_its_term_and_its_class_means(after_tasks):
    rounds, _, (first, second, third) = after_tasks
    fed = rounds.federation
    one, two = (state[0]["U"] @ state[0]["V"] for state in (first, second))
    assert not first[0]["P"].any() and not first[0]["done"].any()
    assert_close(second[0]["P"], one)
    assert_close(third[0]["P"], one + two)
    assert torch.equal(third[0]["terms"][0], first[0]["V"])
    assert torch.equal(third[0]["terms"][1], second[0]["V"])
    assert third[0]["done"].tolist() == [1, 1, 0]
    assert_close(third[0]["sums"], means(fed, THIRD[0]))
    assert_close(third[0]["past.sums"], means(fed, FIRST[0] + SECOND[0]))
    assert third[0]["past.counts"].sum() == 6


def test_a_task_that_a_client_missed_leaves_nothing(after_tasks):
    rounds, _, (first, second, third) = after_tasks
    assert "task" in second[1] and second[1]["task"] == 0
    assert_close(third[1]["P"], first[1]["U"] @ first[1]["V"])
    assert third[1]["done"].tolist() == [1, 0, 0] and third[1]["task"] == 2
    assert_close(third[1]["past.sums"], means(rounds.federation, FIRST[1]))


def test_a_new_term_starts_at_nothing():
    """With a learning rate of 0 the second task's term stays where it started."""
    rounds = Rounds(federation("fedpgp_lifelong", [FIRST, SECOND], "lr=0.1"))
    rounds.play(1, [0, 1])
    still = Rounds(federation("fedpgp_lifelong", [FIRST, SECOND], "lr=0"))
    still.shared, still.states = rounds.shared, rounds.states
    before = dict(rounds.states[0])
    still.play(2, [0])
    assert not still.states[0]["U"].any()
    assert torch.equal(still.states[0]["V"], before["terms"][1])
    assert (before["terms"][1] - before["V"]).abs().max() > 1e-3


def test_images_are_answered_by_a_mixture(after_tasks):
    rounds, _, (*_, third) = after_tasks
    fed, state = rounds.federation, third[0]
    (classifier,) = fed.models.personal_classifier(
        rounds.shared, [0], rounds.states.get, [fed.base], server_round=3
    )
    x = fed.inputs.features("test")[:5]
    found = fed.method.logits(classifier, Images(x[None]), fed.base)[0]
    p_G, scale = torch.from_numpy(rounds.shared["p_G"]), fed.method.task.logit_scale
    encode = fed.base.encoder(4)
    long = encode((p_G + state["P"])[None])[0]
    recent = encode((p_G + state["P"] + state["U"] @ state["V"])[None])[0]
    shares = []
    for image, logits in zip(x, found, strict=True):
        near = []
        for sums in (state["past.sums"], state["sums"]):
            near.append(max(image @ F.normalize(row, dim=0) for row in sums if row.any()))
        past, now = torch.stack(near).div(fed.method.settings.gate_tau).softmax(0)
        assert_close(logits, scale * (past * (long @ image) + now * (recent @ image)))
        shares.append(float(now))
    assert max(shares) - min(shares) > 0.1


def test_one_task_is_fedpgp():
    """With its personal term started at zero."""
    kept = []
    for name in ("fedpgp_lifelong", "fedpgp"):
        options = ["lr=0.1"] if name != "fedpgp" else ["lr=0.1", "method.personal_init=zero"]
        rounds = Rounds(federation(name, [FIRST], *options))
        fed = rounds.federation
        fed.method.task.phases = 1
        rounds.play(1, [0, 1])
        rounds.play(2, [0, 1])
        (classifier,) = fed.models.personal_classifier(
            rounds.shared, [0], rounds.states.get, [fed.base], server_round=2
        )
        x = Images(fed.inputs.features("test")[None, :4])
        kept.append(
            (rounds.shared["p_G"], rounds.states, fed.method.logits(classifier, x, fed.base))
        )
    (p_G, states, logits), (others_p_G, others_states, others_logits) = kept
    assert_close(torch.from_numpy(p_G), torch.from_numpy(others_p_G))
    for client, names in ((0, "UV"), (1, "UV")):
        for name in names:
            assert_close(states[client][name], others_states[client][name])
    assert_close(logits, others_logits)


def test_a_client_without_images_yet_answers_with_the_shared_prompt():
    rounds = Rounds(federation("fedpgp_lifelong", [FIRST, SECOND], "lr=0.1"))
    fed = rounds.federation
    rounds.play(1, [0])
    (classifier,) = fed.models.personal_classifier(
        rounds.shared, [1], rounds.states.get, [fed.base], server_round=1
    )
    x = Images(fed.inputs.features("test")[None, :4])
    text = fed.models.global_classifier(rounds.shared, fed.base)
    assert_close(fed.method.logits(classifier, x, fed.base), fed.method.logits(text, x, fed.base))
