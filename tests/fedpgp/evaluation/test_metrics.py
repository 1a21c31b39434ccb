"""Figures against hand-computed ones."""

import numpy as np
import pytest
import torch

from fedpgp.evaluation import (
    accuracy,
    calibration_error,
    client_figures,
    harmonic_mean,
    is_evaluated,
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


def test_harmonic_mean():
    assert harmonic_mean(50.0, 100.0) == pytest.approx(200 / 3)
    assert harmonic_mean(0.0, 80.0) == 0.0
    assert harmonic_mean(None, 80.0) is None


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
