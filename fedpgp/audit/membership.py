"""Membership inference: was an image, or a client, in the training? (Carlini et al., "Membership
Inference Attacks From First Principles", IEEE S&P 2022, arXiv 2112.03570).

A target's score in a run that it may have been in is compared with its scores in shadow runs whose
coins are known: the ratio of two normal densities, with means of the target's own and one deviation
for all of them (the paper's section V-C, for few shadow runs).
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

FPR = 0.01
"""The rate of false alarms at which the true ones are told."""


@dataclass(frozen=True)
class Inference:
    """How well an attack tells members from others.

    Attributes:
        auc: area under the ROC curve; 0.5 is a coin.
        tpr: true positives at a false positive rate of :data:`FPR`, a fraction.
        targets: how many targets were tried, in all runs together.
    """

    auc: float
    tpr: float
    targets: int


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of the right class (the paper's equation 3), without its rounding.

    Args:
        logits: (n, C).
        labels: (n,).
    """
    right = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return right - torch.logsumexp(others, dim=1)


def likelihood_ratios(scores: np.ndarray, included: np.ndarray) -> np.ndarray:
    """Return log p(score | in) - log p(score | out), each run judged by the others.

    Args:
        scores: (runs, targets).
        included: (runs, targets), whether the target was in the run.

    Returns:
        (runs, targets); NaN where no other run has the target in, or none has it out.
    """
    runs = len(scores)
    means = {}
    for there in (True, False):
        chosen = included == there
        total, number = np.where(chosen, scores, 0.0).sum(0), chosen.sum(0)
        others = number[None] - chosen  # of the other runs
        with np.errstate(invalid="ignore", divide="ignore"):
            left = (total[None] - np.where(chosen, scores, 0.0)) / others
        means[there] = np.where(others > 0, left, np.nan)
    own = np.where(included, means[True], means[False])
    spread = scores - own
    valid = np.isfinite(spread)
    freedom = max(1, valid.sum() - 1) if runs > 1 else 1
    variance = max(float((spread[valid] ** 2).sum() / freedom), 1e-12)
    return ((scores - means[False]) ** 2 - (scores - means[True]) ** 2) / (2 * variance)


def inference(scores: np.ndarray, included: np.ndarray) -> Inference | None:
    """Return how well scores tell members from others; None where there are not both.

    Args:
        scores: any shape; NaN is left out.
        included: alike.
    """
    scores, included = np.ravel(scores), np.ravel(included).astype(bool)
    scores, included = scores[np.isfinite(scores)], included[np.isfinite(scores)]
    inside, outside = scores[included], scores[~included]
    if not len(inside) or not len(outside):
        return None
    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    area = (ranks.sum() - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside))
    # As many false alarms as FPR allows, rounded down: the next higher score is above the bar.
    bar = np.sort(outside)[::-1][int(FPR * len(outside))]
    return Inference(float(area), float(np.mean(inside > bar)), len(scores))
