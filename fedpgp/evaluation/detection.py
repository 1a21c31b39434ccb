"""How well a model tells images of classes that it knows from those of others.

Figures are in percent.
"""

import numpy as np
from torch import Tensor

from fedpgp.evaluation.metrics import check_numbers


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Chance that a known image has a higher score than an unknown one, ties counting half, in
    percent; scores (n,), (m,), none of them empty.

    Example:
        >>> auroc(np.array([3.0, 2.0]), np.array([2.0, 1.0]))
        87.5
    """
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, "left") + np.searchsorted(ordered, known, "right")
    return 100.0 * float(below.mean() / (2 * len(unknown)))


def false_positive_rate(known: np.ndarray, unknown: np.ndarray) -> float:
    """Fraction of the unknown images, in percent, that pass the highest threshold which at least
    95 % of the known ones pass; scores (n,), (m,), none of them empty."""
    threshold = np.sort(known)[len(known) // 20]
    return 100.0 * float((unknown >= threshold).mean())


def detection_figures(known: Tensor, unknown: Tensor) -> dict[str, float]:
    """How well a model tells images of classes that it knows from others.

    Scores are the maximum softmax probability (Hendrycks and Gimpel, ICLR 2017) and the negative
    energy ``logsumexp(logits)`` (Liu et al., NeurIPS 2020).

    Args:
        known: logits (n, C) of images of the C classes, n > 0.
        unknown: logits (m, C) of images of other classes, m > 0.

    Returns:
        ``auroc``, ``fpr95``, ``auroc_energy``, ``fpr95_energy``.
    """
    (known_softmax, known_energy), (softmax, energy) = _scores(known), _scores(unknown)
    return {
        "auroc": auroc(known_softmax, softmax),
        "fpr95": false_positive_rate(known_softmax, softmax),
        "auroc_energy": auroc(known_energy, energy),
        "fpr95_energy": false_positive_rate(known_energy, energy),
    }


def _scores(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The logarithm of the maximum softmax, which has its order and no ties at 1, and the negative
    energy, (n,) each."""
    check_numbers(logits)
    logits = logits.cpu().double()
    energy = logits.logsumexp(-1)
    return (logits.amax(-1) - energy).numpy(), energy.numpy()
