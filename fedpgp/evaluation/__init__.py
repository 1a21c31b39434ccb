"""What is measured: the list of figures, their computation, and the scoring of clients."""

from fedpgp.evaluation.detection import auroc, detection_figures, false_positive_rate
from fedpgp.evaluation.metrics import (
    accuracy,
    answer_figures,
    balanced_accuracy,
    calibration_error,
    client_figures,
    harmonic_mean,
    is_evaluated,
    macro_f1,
    mean_accuracy,
    select,
    standard_errors,
    summarize,
)

__all__ = [
    "accuracy",
    "answer_figures",
    "auroc",
    "balanced_accuracy",
    "calibration_error",
    "client_figures",
    "detection_figures",
    "false_positive_rate",
    "harmonic_mean",
    "is_evaluated",
    "macro_f1",
    "mean_accuracy",
    "select",
    "standard_errors",
    "summarize",
]
