"""Figures against hand-computed ones."""

from itertools import combinations

import numpy as np
import pytest
import torch

from fedpgp.errors import FedPGPError
from fedpgp.evaluation import (
    accuracy,
    auroc,
    balanced_accuracy,
    calibration_error,
    client_figures,
    detection_figures,
    false_positive_rate,
    harmonic_mean,
    is_evaluated,
    macro_f1,
    standard_errors,
    summarize,
)


def test_accuracy_and_calibration_error():
    logits = torch.log(
        torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]], dtype=torch.float64)
    )
    labels = torch.tensor([0, 1, 1, 0])
    assert accuracy(logits, labels) == 75.0
    # Bins of width 1/15: 0.9 -> 13, 0.6 -> 9, 0.8 -> 12, 0.55 -> 8; each holds one image.
    expected = 100 * (abs(0.9 - 1) + abs(0.6 - 0) + abs(0.8 - 1) + abs(0.55 - 1)) / 4
    assert calibration_error(logits, labels) == pytest.approx(expected)


def one_hot(answers: list[int], classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(answers), classes).double()


def test_f1_and_balanced_accuracy_by_hand():
    labels, answers = [0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 4, 0]
    logits = one_hot(answers, 6)
    # Class 0: 3 of 4 right, 4 answers; 1: 1 of 2, 2 answers; 2: 0 of 1; 4: one answer, no image.
    # 3 and 5 have neither and do not count.
    of_classes = [2 * 3 / (4 + 4), 2 * 1 / (2 + 2), 0.0, 0.0]
    assert macro_f1(logits, torch.tensor(labels)) == pytest.approx(100 * sum(of_classes) / 4)
    recalls = [3 / 4, 1 / 2, 0.0]
    balanced = balanced_accuracy(logits, torch.tensor(labels))
    assert balanced == pytest.approx(100 * sum(recalls) / 3)


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    found = []
    for c in range(4):
        hits = sum(1 for a, b in zip(labels, answers, strict=True) if a == b == c)
        precision, recall = hits / (answers == c).sum(), hits / (labels == c).sum()
        found.append(harmonic_mean(precision, recall))
    logits = one_hot(answers.tolist(), 4)
    assert macro_f1(logits, torch.from_numpy(labels)) == pytest.approx(100 * np.mean(found))


def test_auroc_counts_pairs():
    rng = np.random.default_rng(1)
    known, unknown = rng.integers(3, 9, 17) / 4, rng.integers(0, 7, 11) / 4  # with ties
    pairs = [(a > b) + (a == b) / 2 for a in known for b in unknown]
    assert auroc(known, unknown) == pytest.approx(100 * np.mean(pairs))
    assert auroc(np.array([1.0]), np.array([0.0])) == 100.0
    assert auroc(np.array([0.0]), np.array([1.0])) == 0.0


@pytest.mark.parametrize("images", [1, 19, 20, 40, 57])
def test_fpr_is_at_the_highest_threshold_that_keeps_95_percent(images):
    rng = np.random.default_rng(images)
    known, unknown = rng.normal(1, 1, images), rng.normal(0, 1, 30)
    passing = [t for t in known if (known >= t).mean() >= 0.95]
    expected = 100 * (unknown >= max(passing)).mean()
    assert false_positive_rate(known, unknown) == pytest.approx(expected)


def test_unknown_images_are_scored_by_softmax_and_by_energy():
    known = torch.tensor([[5.0, 1.0], [2.0, 0.5]], dtype=torch.float64)
    unknown = torch.tensor([[9.0, 8.5], [0.5, -3.0]], dtype=torch.float64)

    def softmax(row):
        return max(np.exp(row)) / sum(np.exp(row))

    def energy(row):
        return np.log(sum(np.exp(row)))

    found = detection_figures(known, unknown)
    for score, name in ((softmax, ""), (energy, "_energy")):
        scores = [[score(row) for row in rows.numpy()] for rows in (known, unknown)]
        pairs = [(a > b) + (a == b) / 2 for a in scores[0] for b in scores[1]]
        assert found[f"auroc{name}"] == pytest.approx(100 * np.mean(pairs))
        passed = [b >= min(scores[0]) for b in scores[1]]
        assert found[f"fpr95{name}"] == pytest.approx(100 * np.mean(passed))
    assert found["auroc"] != found["auroc_energy"]


def test_a_class_that_may_not_be_answered_does_not_change_a_score():
    logits = torch.tensor([[2.0, 1.0, 0.0], [3.0, 0.0, 9.0]], dtype=torch.float64)
    shut = logits.clone()
    shut[:, 2] = -torch.inf
    assert detection_figures(shut, shut[:1]) == detection_figures(logits[:, :2], logits[:1, :2])


def test_nan_logits_are_named():
    logits = torch.tensor([[0.0, 1.0], [torch.nan, 0.0]])
    with pytest.raises(FedPGPError, match="logits are NaN"):
        detection_figures(logits[:1], logits)


def test_harmonic_mean():
    assert harmonic_mean(50.0, 100.0) == pytest.approx(200 / 3)
    assert harmonic_mean(0.0, 80.0) == 0.0
    assert harmonic_mean(None, 80.0) is None


def test_the_standard_error_is_right_over_all_samples():
    """Its square has the variance of the sample's mean as its mean over all samples."""
    accuracies = [10.0, 35.0, 50.0, 80.0, 95.0]
    means, squares = [], []
    for drawn in combinations(accuracies, 3):
        rows = [{"id": i, "domain": None, "global.local": each} for i, each in enumerate(drawn)]
        errors = standard_errors(rows, clients=5)
        assert errors["zero_shot"] is None and errors["global"]["base"] is None
        means.append(np.mean(drawn))
        squares.append(errors["global"]["local"] ** 2)
    assert np.mean(squares) == pytest.approx(np.var(means))
    assert standard_errors(rows, clients=3)["global"]["local"] == 0
    assert standard_errors(rows[:1], clients=5)["global"] is None


def test_summary():
    rows = [
        {
            "id": i,
            "domain": "ab"[i % 2],
            "personal.local": 10.0 * i,
            "personal.base": 50.0,
            "personal.novel": 25.0,
        }
        for i in range(12)
    ]
    summary = summarize(rows)
    assert summary["global"] is None and summary["zero_shot"] is None
    personal = summary["personal"]
    assert personal["local"] == pytest.approx(55.0)
    assert personal["hm2"] == pytest.approx(2 / (1 / 50 + 1 / 25))
    assert personal["hm3"] == pytest.approx(3 / (1 / 55 + 1 / 50 + 1 / 25))
    assert personal["cm"] == pytest.approx((55.0 + personal["hm2"]) / 2)
    assert personal["worst10"] == pytest.approx(5.0)  # the worst two of twelve
    assert personal["domains"] == {"a": pytest.approx(50.0), "b": pytest.approx(60.0)}
    assert personal["std_clients"]["local"] == pytest.approx(
        np.std([10.0 * i for i in range(12)], ddof=1)
    )
    assert personal["ece"] is None


def test_a_protocol_without_novel_classes():
    rows = [{"id": 0, "domain": None, "personal.local": 40.0}]
    personal = summarize(rows)["personal"]
    assert personal["novel"] is None and personal["hm3"] is None and personal["domains"] is None
    absent = dict.fromkeys(("base", "novel", "hm3", "hm2", "unseen"))
    assert client_figures(rows[0], "personal") == {"local": 40.0, **absent}


def test_which_rounds_are_evaluated():
    def evaluated(every, selection):
        return [round for round in range(1, 9) if is_evaluated(round, 8, every, selection)]

    assert evaluated(0, "last") == [8] and evaluated(3, "last") == [3, 6, 8]
    assert evaluated(0, "last_five") == [4, 5, 6, 7, 8] and evaluated(3, "last_five") == [
        3,
        4,
        5,
        6,
        7,
        8,
    ]
    assert not is_evaluated(1, 2, 0, "validation") and is_evaluated(1, 2, 0, "last_five")
