"""Methods: one file each, which is all that a new one needs here (docs/add_a_method.md)."""

from fedpgp.methods.about import About
from fedpgp.methods.base import (
    METHODS,
    PHASE,
    Batch,
    Classifier,
    Images,
    LoadClientBatch,
    Method,
    Params,
    RoundContext,
    StepContext,
    cosine_logits,
    register,
)
from fedpgp.methods.component import method_class

__all__ = [
    "METHODS",
    "PHASE",
    "About",
    "Batch",
    "Classifier",
    "Images",
    "Method",
    "LoadClientBatch",
    "Params",
    "RoundContext",
    "StepContext",
    "cosine_logits",
    "method_class",
    "register",
]
