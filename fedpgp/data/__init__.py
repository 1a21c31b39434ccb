"""Data sets (one file each, that registers itself), partitions, samples of classes, and the
cache of image features."""

from fedpgp.data.base import (
    DATASETS,
    ArraySplit,
    Dataset,
    FileSplit,
    Split,
    Subset,
    register,
)
from fedpgp.data.loading import load_dataset
from fedpgp.data.partition import partition
from fedpgp.data.partitions.base import SCHEMES
from fedpgp.data.subsets import base_novel, few_shot

__all__ = [
    "DATASETS",
    "SCHEMES",
    "ArraySplit",
    "Dataset",
    "FileSplit",
    "Split",
    "Subset",
    "base_novel",
    "few_shot",
    "load_dataset",
    "partition",
    "register",
]
