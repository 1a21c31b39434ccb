"""Mean, spread and paired significance over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1), NaNs left out; the deviation of fewer than two values is NaN."""
    finite = np.asarray([value for value in values if not math.isnan(value)], dtype=np.float64)
    mean = float(finite.mean()) if len(finite) else math.nan
    return mean, float(finite.std(ddof=1)) if len(finite) > 1 else math.nan


def paired_t_test(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Student's paired t-test, two-sided: (t, p) of `first - second`; NaN for fewer than two pairs.

    Differences that are all the same have no spread: p is 1 where they are 0, else 0.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    n = len(difference)
    if n < 2:
        return math.nan, math.nan
    mean, std = difference.mean(), difference.std(ddof=1)
    if std <= 1e-12 * max(1.0, abs(mean)):
        return (0.0, 1.0) if abs(mean) <= 1e-12 else (math.copysign(math.inf, mean), 0.0)
    t = float(mean / (std / math.sqrt(n)))
    return t, 1 - _within_t(abs(t), n - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for having made several comparisons (Holm 1979); NaNs stay and do not count."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    corrected, largest = list(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _within_t(t: float, dof: int) -> float:
    """P(|T| <= t) of Student's t with a whole number of degrees of freedom (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(dof))
    cos2 = math.cos(angle) ** 2
    odd = dof % 2
    term = total = (math.cos(angle) if odd else 1.0) if dof > 1 else 0.0
    for k in range(2 + odd, dof - 1, 2):
        term *= cos2 * (k - 1) / k
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
