"""Local training: a client's settings, its batches, and many clients in one tensor program."""

from fedpgp.training.batches import batches, drawn_views, gather
from fedpgp.training.cohort import CohortResult, train_cohort
from fedpgp.training.settings import TrainingSettings

__all__ = [
    "CohortResult",
    "TrainingSettings",
    "batches",
    "drawn_views",
    "gather",
    "train_cohort",
]
