"""The figures of a run over several tasks, against matrices worked out by hand."""

import pytest

from fedpgp.evaluation.lifelong import lifelong_figures, lifelong_summary, task_accuracies

#: Row: after a task; column: on a task.
MATRIX = [
    [80.0, 30.0, 20.0, 10.0],
    [70.0, 90.0, 25.0, 12.0],
    [75.0, 60.0, 88.0, 14.0],
    [50.0, 65.0, 40.0, 95.0],
]


def test_a_matrix_by_hand():
    found = lifelong_figures(MATRIX)
    assert found["last"] == pytest.approx((50 + 65 + 40 + 95) / 4)
    rows = [80, (70 + 90) / 2, (75 + 60 + 88) / 3, (50 + 65 + 40 + 95) / 4]
    assert found["average"] == pytest.approx(sum(rows) / 4)
    assert found["forgetting"] == pytest.approx(((80 - 50) + (90 - 65) + (88 - 40)) / 3)
    assert found["backward"] == pytest.approx(((50 - 80) + (65 - 90) + (40 - 88)) / 3)
    assert found["transfer"] == pytest.approx((30 + 20 + 10 + 25 + 12 + 14) / 6)
    assert found["matrix"] == MATRIX


def test_forgetting_is_measured_from_the_best_row_and_backward_from_the_tasks_own():
    """A task that became better before it became worse; and one that was best before it came."""
    found = lifelong_figures([[50.0, 99.0, 0.0], [80.0, 60.0, 0.0], [70.0, 61.0, 90.0]])
    assert found["forgetting"] == pytest.approx(((80 - 70) + (99 - 61)) / 2)
    assert found["backward"] == pytest.approx(((70 - 50) + (61 - 60)) / 2)
    better = lifelong_figures([[50.0, 0.0], [60.0, 90.0]])
    assert better["forgetting"] == -10.0 and better["backward"] == 10.0


def test_what_was_not_measured_does_not_count():
    found = lifelong_figures([[None, 20.0, 10.0], [40.0, 60.0, None], [30.0, None, 70.0]])
    assert found["last"] == 50.0 and found["average"] == pytest.approx((50 + 50) / 2)
    assert found["forgetting"] == 10.0 and found["backward"] is None
    assert found["transfer"] == 15.0


def test_one_task_that_has_ended_is_nothing_forgotten():
    found = lifelong_figures([[80.0, 30.0, 20.0]])
    assert (found["last"], found["average"], found["transfer"]) == (80.0, 80.0, 25.0)
    assert found["forgetting"] is None and found["backward"] is None


def test_clients_count_alike_on_the_tasks_that_they_have_images_of():
    rows = [
        {"id": 0, "personal.local": 50.0, "personal.tasks.2.1": 40.0, "personal.tasks.2.3": 10.0},
        {"id": 1, "personal.local": 70.0, "personal.tasks.2.1": 60.0, "global.tasks.2.1": 30.0},
    ]
    assert task_accuracies(rows) == {
        "task": 2,
        "tasks": {"global": [30.0, None, None], "personal": [50.0, None, 10.0]},
    }
    assert task_accuracies([{"id": 0, "personal.local": 50.0}]) == {}


def test_a_summary_takes_the_newest_record_of_each_task():
    records = [
        {"round": 0},
        {"round": 2, "task": 1, "tasks": {"personal": [1.0, 2.0]}},
        {"round": 2, "task": 1, "tasks": {"personal": [80.0, 20.0], "zero_shot": [60.0, 30.0]}},
        {"round": 3},
        {"round": 4, "task": 2, "tasks": {"personal": [60.0, 90.0], "zero_shot": [55.0, 30.0]}},
    ]
    found = lifelong_summary(records)
    assert found["personal"] == lifelong_figures([[80.0, 20.0], [60.0, 90.0]])
    assert found["zero_shot"]["matrix"] == [[60.0, 30.0], [55.0, 30.0]]
    assert found["global"] is None
    assert lifelong_summary(records[:1]) is None
    lost = lifelong_summary([records[-1]])  # nobody answered after task 1
    assert lost["personal"]["matrix"] == [[None, None], [60.0, 90.0]]
    assert lost["personal"]["forgetting"] is None
