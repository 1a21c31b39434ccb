"""PILoRA: loss, gradients, the server's prototypes and the answers against its public code."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fedpgp.methods import METHODS, RoundContext, StepContext
from fedpgp.methods.pilora import TENSORS
from tests.helpers.equations import classes, merged_picture, real
from tests.helpers.gradients import K, check_gradients, parameters
from tests.helpers.tasks import after_two_tasks


def feature(task, pixels, tensors):
    """The feature with adapters A (L, b, W) and B (L, W, b) of the first L blocks, as long as the
    root of its length: about as a layer norm leaves DINO's."""
    x = pictured(task, pixels, tensors)
    return x * len(x) ** 0.5


def pictured(task, pixels, tensors):
    """The same, of unit norm."""
    depth = len(task.clip.model.visual.transformer.resblocks)
    padded = {n: F.pad(t, (0, 0, 0, 0, 0, depth - len(t))) for n, t in tensors.items()}
    return merged_picture(task, pixels, [(1.0, padded)])


def apart(x, prototype):
    """Ghy0501/PILoRA at 6d1c4efaca13, PILoRA-cifar/VLT.py, ``compute_distance``: the root of the
    mean square."""
    return ((x - prototype * len(x) ** 0.5) ** 2).mean().sqrt()


def pilora(phase):
    def equations(task, s, batch, k, p, global_params):
        """The same code, CPN.py, ``DCE`` and ``pl_loss``; update.py, ``update_weights``."""
        own = {name: p[name][phase] for name in TENSORS}
        total = 0.0
        for b, label, weight in real(batch, k):
            x = feature(task, batch.images.pixels[k, b], own)
            d = torch.stack([apart(x, p["c"][c]) for c in classes(task)])
            total = total + weight * (F.cross_entropy(-d, torch.tensor(label)) + 0.001 * d[label])
        for name in ("q.A", "v.A"):
            for i, A in enumerate(own[name]):
                total = total + 0.01 * torch.norm(A, p=1)
                for earlier in range(phase):
                    past = p[name][earlier, i].detach()
                    total = total + 0.5 * torch.abs(torch.mm(past, A.T)).sum()
        # Tensors of other tasks and of classes to come stand still.
        return total + 0 * sum(p[name].sum() for name in (*TENSORS, "c"))

    return equations


@pytest.mark.parametrize(("phase", "blocks"), [(0, 1), (2, 2)])
def test_loss_and_gradients(task, batch, phase, blocks):
    task.phases = 1 + phase
    options = {"rank": 2, "blocks": blocks}
    check_gradients("pilora", options, pilora(phase), task, batch, phase)


def test_class_means_are_those_of_every_step(task, batch):
    """update.py, ``label_feature_dict``: features as they are while the client trains."""
    method = METHODS["pilora"](METHODS["pilora"].Settings(rank=2), task)
    class_set = task.class_set(range(5))
    params, _ = parameters(method, batch, class_set)
    params["q.B"].zero_(), params["v.B"].zero_()
    step = StepContext(1, 0, range(K), params, 0.1, 0)
    seen = [{c: [] for c in classes(task)} for _ in range(K)]
    for scale in (0.0, 0.3):
        params["v.B"] += scale
        method.gradients(params, batch, class_set, step)
        for k in range(K):
            own = {name: params[name][k, 0] for name in TENSORS}
            for b, label, _ in real(batch, k):
                seen[k][label].append(pictured(task, batch.images.pixels[k, b], own))
    means = method.finish_client(params, step)["means"]
    for k in range(K):
        for c in classes(task):
            mean = torch.stack(seen[k][c]).mean(0) if seen[k][c] else torch.zeros(16).double()
            assert_close(means[k, c], mean.detach())


def weights_of(prototypes, means):
    """utils.py, ``compute_weight``, of one class: prototypes of all clients, means of those that
    have images of it."""
    if not means:
        return [1 / len(prototypes)] * len(prototypes)
    near = [1 / sum(np.linalg.norm(c - m) for m in means) for c in prototypes]
    scaled = [(value - min(near)) / (max(near) - min(near)) for value in near]
    powers = [np.exp(value / 0.2) for value in scaled]
    return [power / sum(powers) for power in powers]


def served(method, prototypes, means, before):
    """What the server makes of prototypes and means (S, classes, e)."""
    context = RoundContext(
        server_round=1,
        num_rounds=2,
        clients=range(len(prototypes)),
        num_clients=9,
        weights=torch.full((len(prototypes),), 1 / len(prototypes)),
        global_params=before,
        updates={"c": prototypes, "means": means},
        server_state={},
        lr=0.1,
        seed=0,
    )
    return method.update_server({"c": prototypes.mean(0), "q.A": torch.ones(1)}, context)[0]


def test_prototypes_near_the_means_of_all_clients_count_more(task):
    method = METHODS["pilora"](METHODS["pilora"].Settings(), task)
    rng = np.random.default_rng(0)
    prototypes, means = (torch.from_numpy(rng.normal(size=(4, 5, 16))) for _ in range(2))
    for clients, c in (([0, 1, 2, 3], 0), ([1, 3], 1), ([2], 2), ([], 3)):
        means[[k for k in range(4) if k not in clients], c] = 0
    prototypes[:, 4] = before_c = torch.ones(16).double() / 3  # a class that nobody learns
    before = {"c": torch.zeros(5, 16).double(), "means": torch.full((5, 16), 7.0).double()}
    before["c"][4] = before_c
    shared = served(method, prototypes, means, before)
    for c in range(4):
        own = [means[k, c].numpy() for k in range(4) if means[k, c].any()]
        weights = weights_of([prototypes[k, c].numpy() for k in range(4)], own)
        expected = sum(w * prototypes[k, c] for k, w in enumerate(weights))
        assert_close(shared["c"][c], expected)
        mean = torch.from_numpy(np.mean(own, axis=0)) if own else before["means"][c]
        assert_close(shared["means"][c], mean)
    assert torch.equal(shared["c"][4], before_c)
    assert torch.equal(shared["q.A"], torch.ones(1))


def test_one_client_alone_gives_its_prototypes(task):
    method = METHODS["pilora"](METHODS["pilora"].Settings(), task)
    prototypes, means = torch.rand(2, 1, 5, 16).double()
    before = {"c": torch.zeros(5, 16).double(), "means": torch.zeros(5, 16).double()}
    assert_close(served(method, prototypes, means, before)["c"], prototypes[0])


def test_answers_are_those_of_the_nearest_prototype_with_the_adapters_of_tasks_begun(task, batch):
    """utils.py, ``global_server``: A of tasks are added up, and B; here of all that have begun."""
    task.phases = 3
    method = METHODS["pilora"](METHODS["pilora"].Settings(rank=2), task)
    class_set = task.class_set(range(5))
    params, shared_names = parameters(method, batch, class_set, phase=1)
    shared = {name: params[name] for name in shared_names}
    for name in ("q.B", "v.B"):
        shared[name][:, 2] = 0
    shared["means"][:, :3] = 1.0  # of the others nobody has had images
    logits = method.logits(method.global_classifier(shared, class_set), batch.images, class_set)
    for k in range(K):
        summed = {name: shared[name][k, :2].sum(0) for name in TENSORS}
        for b, _, _ in real(batch, k):
            x = feature(task, batch.images.pixels[k, b], summed)
            known = [shared["c"][k, c] for c in range(3)]
            d = [apart(x, c) for c in (*known, *class_set.zero_shot[3:])]
            assert_close(logits[k, b], -torch.stack(d).detach())


@pytest.fixture(scope="module")
def after_tasks():
    return after_two_tasks("pilora")


def test_only_the_adapters_of_a_task_learn_in_it(after_tasks):
    _, kept = after_tasks
    for before, after, learns in ((0, 1, [True, False]), (1, 2, [False, True])):
        for name in ("q.B", "v.B"):
            moved = (kept[after][name] != kept[before][name]).reshape(2, -1).any(1)
            assert moved.tolist() == learns, name


def test_prototypes_of_earlier_classes_without_images_stand_still(after_tasks):
    rounds, kept = after_tasks
    learns = np.zeros(len(kept[0]["c"]), dtype=bool)
    for update in rounds.updates.values():
        learns |= update["means"].any(1)  # a client has had images of them in the second task
    moved = (kept[2]["c"] != kept[1]["c"]).any(1)
    assert learns.any() and not learns.all()
    assert moved.tolist() == learns.tolist()
    assert (kept[1]["c"] != kept[0]["c"]).any(1)[:6].all()  # in the first all are new


def test_a_client_keeps_the_classes_that_it_has_seen(after_tasks):
    rounds, _ = after_tasks
    state = rounds.states[0]
    assert state["task"].tolist() == [1]
    assert state["old"].tolist() == state["seen"].tolist() == [1] * 6
