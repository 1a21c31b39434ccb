"""Scores, likelihood ratios and rates of membership inference, against loops."""

import numpy as np
import pytest
import torch

from fedpgp.audit.membership import confidence, inference, likelihood_ratios


def test_confidence_is_the_log_odds_of_the_right_class():
    logits = torch.tensor([[3.0, 1.0, -2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    p = torch.softmax(logits, 1)[[0, 1], [0, 2]]
    got = confidence(logits, torch.tensor([0, 2]))
    torch.testing.assert_close(got, torch.log(p / (1 - p)))
    sure = confidence(torch.tensor([[1e3, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert sure.item() == 1e3  # where 1 - p rounds to 0


def test_ratios_judge_each_run_by_the_others():
    rng = np.random.default_rng(0)
    scores, there = rng.normal(size=(5, 3)), rng.random((5, 3)) < 0.5
    there[:, 0] = [True, False, True, False, True]
    there[:, 2] = False  # never in: nothing to compare with
    got = likelihood_ratios(scores, there)
    spread = []
    means = np.full((5, 3, 2), np.nan)
    for run in range(5):
        for target in range(3):
            others = [r for r in range(5) if r != run]
            for side in (0, 1):
                found = [scores[r, target] for r in others if there[r, target] == bool(side)]
                if found:
                    means[run, target, side] = np.mean(found)
            own = means[run, target, int(there[run, target])]
            if not np.isnan(own):
                spread.append(scores[run, target] - own)
    variance = np.sum(np.square(spread)) / (len(spread) - 1)
    density = -((scores[..., None] - means) ** 2) / (2 * variance)
    np.testing.assert_allclose(got, density[..., 1] - density[..., 0])
    assert np.isnan(got[:, 2]).all()


def test_rates_are_those_of_all_pairs():
    rng = np.random.default_rng(1)
    scores, there = np.round(rng.normal(size=300), 1), rng.random(300) < 0.4
    scores[there] += 0.7
    found = inference(scores, there)
    inside, outside = scores[there], scores[~there]
    pairs = (inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean()
    assert found.auc == pytest.approx(pairs)
    allowed = int(0.01 * len(outside))
    bars = [b for b in np.unique(scores) if (outside > b).sum() <= allowed]
    assert found.tpr == max((inside > b).mean() for b in bars)
    assert found.targets == 300
    assert inference(scores, np.ones(300)) is None
