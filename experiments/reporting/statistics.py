"""Mean, spread and paired significance over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and sample standard deviation (n - 1), NaNs left out; the deviation of fewer
    than two values is NaN."""
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
    return t, 2 * float(stdtr(n - 1, -abs(t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for having made several comparisons (Holm 1979); NaNs
    stay and do not count."""
    order = sorted(
        (i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i]
    )
    corrected, largest = list(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
