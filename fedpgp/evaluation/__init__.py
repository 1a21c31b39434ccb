"""What is measured: the list of figures, their computation, and the scoring of clients."""

from fedpgp.evaluation.metrics import (
    accuracy,
    calibration_error,
    client_figures,
    harmonic_mean,
    is_evaluated,
    mean_accuracy,
    select,
    summarize,
)

__all__ = [
    "accuracy",
    "calibration_error",
    "client_figures",
    "harmonic_mean",
    "is_evaluated",
    "mean_accuracy",
    "select",
    "summarize",
]
