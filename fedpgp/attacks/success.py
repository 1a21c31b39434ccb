"""How often a model answers what an attack wants it to."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedpgp.evaluation.figures import MODELS

SUCCESS = "attack"
"""The eval set of images whose answer an attack wants to choose: its accuracy is the rate of
success."""

Rates = dict[str, float | None]
"""Model -> rate of success in percent; None where there is none."""


def success_rates(rows: Sequence[Mapping]) -> Rates:
    """Return the rates of success of an evaluation, means over clients.

    Args:
        rows: one a client: flat figures ``"<model>.<figure>"``.
    """
    names = {model: f"{model}.{SUCCESS}" for model in MODELS}
    return {
        model: _mean([row[name] for row in rows if name in row]) for model, name in names.items()
    }


def mean_rates(rates: Sequence[Rates]) -> Rates:
    """Return the means of several evaluations' rates."""
    return {
        model: _mean([each[model] for each in rates if each[model] is not None]) for model in MODELS
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
