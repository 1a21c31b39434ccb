"""The protocol of tasks that come one after the other: who trains on what when, and what is
tested."""

import numpy as np
import pytest

from fedpgp.errors import FedPGPError
from fedpgp.protocols import SplitRequest, split_clients
from tests.fedpgp.test_protocols import ANIMALS, DOMAINS, WORLD, load

ROUNDS = 3


def lifelong(scheme="iid", clients=3, seed=0, data="animals", shots=None, **options):
    request = SplitRequest(WORLD[data], clients, seed, shots, {"scheme": scheme}, load)
    options = {"rounds_per_task": ROUNDS, **options}
    return split_clients(request, {"name": "lifelong", **options})


def rows_of(given, task: int) -> list[np.ndarray]:
    """What each client trains on in the last round of a task, from 0."""
    return [client.train_at(ROUNDS * (task + 1)) for client in given.clients]


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "pathological", "domain"])
def test_a_round_has_the_images_of_its_task_alone(scheme):
    given = lifelong(scheme, tasks=3 if scheme != "pathological" else 2)
    labels, seen = given.dataset.train.labels, set()
    assert len({label for task in given.tasks for label in task.classes}) == len(ANIMALS)
    for number, task in enumerate(given.tasks):
        seen |= set(task.classes)
        rows = np.concatenate(rows_of(given, number))
        assert sorted(rows) == np.flatnonzero(np.isin(labels, task.classes)).tolist()
        for server_round in range(ROUNDS * number + 1, ROUNDS * (number + 1) + 1):
            for client, last in zip(given.clients, rows_of(given, number), strict=True):
                assert client.train_at(server_round) is last
                assert client.classes_at(server_round) == tuple(sorted(seen))
                assert client.phase_at(server_round) == number
    if scheme == "domain":  # a client keeps its domain, though each task is split anew
        domains = np.array(given.dataset.train.domains)
        for client in given.clients:
            assert {client.domain} == set(domains[client.train_indices])
    assert given.phases == len(given.tasks)


def test_the_order_is_of_the_seed_or_of_the_list():
    orders = {
        tuple(task.name for task in lifelong(by="domain", seed=seed).tasks) for seed in range(8)
    }
    assert len(orders) > 1 and {frozenset(order) for order in orders} == {frozenset(DOMAINS)}
    named = lifelong(by="domain", tasks=["sketch", ["photo", "clipart"]])
    assert [task.name for task in named.tasks] == ["sketch", "photo, clipart"]
    domains = np.array(named.dataset.train.domains)
    for number, own in enumerate([{"sketch"}, {"photo", "clipart"}]):
        assert set(domains[np.concatenate(rows_of(named, number))]) == own
    classes = lifelong(tasks=[["wolf", "cat"], [1, 2]])
    assert [task.classes for task in classes.tasks] == [(0, 5), (1, 2)]
    assert classes.base_classes == (0, 1, 2, 5)


def test_all_tasks_are_tested_among_the_classes_seen_and_those_of_the_task():
    given = lifelong(tasks=3)
    labels = given.dataset.test.labels
    for client in given.clients:
        for server_round in range(ROUNDS * 3 + 1):
            now = set(client.eval_sets_at(server_round)) - {"local"}
            task = server_round // ROUNDS
            ends = server_round and server_round % ROUNDS == 0
            assert now == ({f"tasks.{task}.{s}" for s in (1, 2, 3)} if ends else set())
        for t in (1, 2, 3):
            for s in (1, 2, 3):
                eval_set = client.eval_sets[f"tasks.{t}.{s}"]
                known = {c for task in given.tasks[: max(t, s)] for c in task.classes}
                assert eval_set.classes == tuple(sorted(known))
                mine = client.test[np.isin(labels[client.test], given.tasks[s - 1].classes)]
                assert eval_set.indices.tolist() == mine.tolist()
    whole = lifelong(tasks=3, test_images="all")
    rows = np.flatnonzero(np.isin(labels, whole.tasks[1].classes))
    for client in whole.clients:
        assert client.eval_sets["tasks.1.2"].indices.tolist() == rows.tolist()
        assert client.eval_sets["local"].indices.tolist() == client.test.tolist()


def test_clients_that_arrive_staggered_switch_at_different_rounds():
    given, together = (lifelong(tasks=3, arrival=a) for a in ("staggered", "together"))
    starts = [[phase.since for phase in client.phases] for client in given.clients]
    assert len(set(map(tuple, starts))) > 1
    for begun in starts:
        for task, since in enumerate(begun, start=1):
            assert ROUNDS * task < since <= ROUNDS * (task + 1)
    for client, other in zip(given.clients, together.clients, strict=True):
        for task in range(3):  # the same images, by the end of a task
            end = ROUNDS * (task + 1)
            assert client.train_at(end).tolist() == other.train_at(end).tolist()
        assert client.train_at(1).tolist() == other.train_at(1).tolist()
    assert starts == [
        [phase.since for phase in client.phases]
        for client in lifelong(tasks=3, arrival="staggered").clients
    ]


def test_joint_has_all_tasks_from_the_first_round_and_the_same_tests():
    given, together = (lifelong(tasks=3, arrival=a) for a in ("joint", "together"))
    for client, other in zip(given.clients, together.clients, strict=True):
        assert not client.phases and client.classes == given.base_classes
        assert client.train.tolist() == other.train_indices.tolist()
        assert client.eval_sets.keys() == other.eval_sets.keys()
        for name, eval_set in client.eval_sets.items():
            assert eval_set.indices.tolist() == other.eval_sets[name].indices.tolist()
    assert given.tasks == together.tasks and given.phases == 1


def test_data_sets_one_after_the_other():
    given = lifelong(by="dataset", tasks=["animals", "things"])
    assert [task.name for task in given.tasks] == ["animals", "things"]
    assert [task.classes for task in given.tasks] == [tuple(range(6)), tuple(range(6, 10))]
    assert given.clients[0].classes_at(ROUNDS + 1) == tuple(range(10))
    with pytest.raises(FedPGPError, match="does not name animals"):
        lifelong(by="dataset", tasks=["things", "more"])


def test_a_class_that_returns_brings_other_images():
    given = lifelong(tasks=[["cat", "dog"], ["lion"], ["cat"]])
    labels = given.dataset.train.labels
    first, _, last = (np.concatenate(rows_of(given, task)) for task in range(3))
    cats = np.flatnonzero(labels == 0)
    assert set(labels[last]) == {0} and not set(first) & set(last)
    assert sorted([*first[labels[first] == 0], *last]) == cats.tolist()
    assert abs(2 * len(last) - len(cats)) <= 1
    assert [client.classes for client in given.clients] == [(0, 1)] * 3
    assert {client.classes_at(9) for client in given.clients} == {(0, 1, 2)}
    tested = [client.eval_sets["tasks.3.1"].indices for client in given.clients]
    again = [client.eval_sets["tasks.3.3"].indices for client in given.clients]
    assert not set(np.concatenate(tested)) & set(np.concatenate(again))


def test_a_client_may_have_no_image_of_a_task():
    given = lifelong(tasks=3, clients=4, absent=0.25)
    for task in range(3):
        rows = rows_of(given, task)
        assert [len(own) > 0 for own in rows].count(False) == 1
        for client, own in zip(given.clients, rows, strict=True):
            for after in (1, 2, 3):
                assert (f"tasks.{after}.{task + 1}" in client.eval_sets) == (len(own) > 0)
    assert all(client.phase_at(9) == 2 for client in given.clients)


def test_a_client_that_leaves_neither_trains_nor_is_tested():
    given = lifelong(tasks=3, clients=4, leaving=0.5)
    gone = [client for client in given.clients if not len(client.train_at(9))]
    assert len(gone) == 2
    for client in given.clients:
        here = [task for task in (1, 2, 3) if len(client.train_at(ROUNDS * task))]
        assert here == list(range(1, len(here) + 1)) and here  # it does not come back
        after = {int(name.split(".")[1]) for name in client.eval_sets if name != "local"}
        assert after == set(here)
        for server_round in range(10):
            tested = "local" in client.eval_sets_at(server_round)
            assert tested == (server_round <= ROUNDS * len(here))
    joint = lifelong(tasks=3, clients=4, leaving=0.5, arrival="joint")
    for client, other in zip(joint.clients, given.clients, strict=True):
        assert (len(client.train_at(9)) > 0) == (len(other.train_at(9)) > 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "style"}, "by 'style'"),
        ({"arrival": "late"}, "arrival 'late'"),
        ({"tasks": 1}, "protocol.tasks=1 cannot work"),
        ({"tasks": "five"}, "protocol.tasks=.*five.* cannot work"),
        ({"tasks": [["cat"]]}, "names fewer than 2 tasks"),
        ({"tasks": 7}, "protocol.tasks=7: data set animals has 6 classes"),
        ({"tasks": 4, "by": "domain"}, "data set animals has 3 domains"),
        ({"tasks": [["cat"], ["cow"]]}, "class in protocol.tasks 'cow'"),
        ({"tasks": [["cat"], []]}, "a task without a class"),
        ({"tasks": ["photo", "oil"], "by": "domain"}, "domain in protocol.tasks 'oil'"),
        ({"arrival": "staggered", "rounds_per_task": 1}, "needs protocol.rounds_per_task=2"),
        ({"rounds_per_task": 0}, "protocol.rounds_per_task=0 cannot work"),
        ({"leaving": 1.0}, "protocol.leaving=1.0 cannot work"),
        ({"selection": "validation"}, "selection=validation cannot work with protocol lifelong"),
        ({"scheme": "natural", "clients": 2}, "task 1: partition natural has one client a site"),
    ],
)
def test_what_cannot_work_is_refused(options, said):
    with pytest.raises(FedPGPError, match=said):
        lifelong(**options)


def test_rounds_that_are_not_the_tasks_are_refused_with_the_right_number():
    given = lifelong(tasks=3)
    given.check_rounds(9)
    with pytest.raises(FedPGPError, match="rounds=8: 3 tasks of 3 rounds take rounds=9"):
        given.check_rounds(8)
