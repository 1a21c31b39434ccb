"""What a method reads of a federation's data set: images, features, augmented views and labels.

Each is loaded when it is first asked for, and once.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedpgp.data import Dataset
from fedpgp.data.joint import augmented
from fedpgp.data.lookup import (
    AugmentedViews,
    DecodedImages,
    LiveFeatures,
    MappedFeatures,
    PartialFeatures,
    SubsetLookup,
)
from fedpgp.methods import Images, Method
from fedpgp.training.settings import TrainingSettings

Lookup = Tensor | MappedFeatures | SubsetLookup | DecodedImages
"""What inputs are looked up in by index."""


class FeatureSource(Protocol):
    """Where features come from: unit norm, one row an image of the train or the test split, or of
    an augmented view; or some of the rows, all that will be asked for."""

    def __call__(self, split: str, view: int | None = None) -> np.ndarray | PartialFeatures: ...


class Inputs:
    """The inputs of one method, and the labels of its classes.

    Args:
        method: says what it reads.
        dataset: the images and their labels.
        sources: input -> where its features come from; None where the federation has none.
        training: how many augmented views of an image there are.
    """

    def __init__(
        self,
        method: Method,
        dataset: Dataset,
        sources: Mapping[str, FeatureSource | None],
        training: TrainingSettings,
    ):
        self.method, self.dataset, self.sources = method, dataset, sources
        self.training = training
        self._images: dict[tuple[str, str, int | None], Lookup] = {}
        self._labels: dict[tuple, Tensor] = {}

    def images(self, split: str) -> Images:
        """Return the method's inputs of a split (train or test); patches and pixels are
        looked up when indexed."""
        return Images(**{what: self._read(split, what) for what in self._inputs(split)})

    def _inputs(self, split: str) -> tuple[str, ...]:
        method = self.method
        return method.inputs + (method.training_inputs if split == "train" else ())

    def training_images(self) -> Images:
        """What the method trains on: the plain images, or all their augmented views
        one behind the other."""
        if self.training.views == 1:
            return self.images("train")
        size = len(self.dataset.train)
        return Images(
            **{
                what: AugmentedViews(partial(self._view, what), size)
                for what in self._inputs("train")
            }
        )

    def encode(self) -> None:
        """Computes, or finds in the cache, all image features that training and
        evaluation will ask for."""
        self.images("test")  # first: raw features give those of unit norm too
        self.features("test")
        if self.method.learns:
            for what in self._inputs("train") if self.training.views == 1 else self.method.inputs:
                self._read("train", what)
            for view in range(self.training.views or 0) if self.training.views != 1 else ():
                for what in self._inputs("train"):
                    self._view(what, view)

    def _view(self, what: str, view: int) -> Lookup | LiveFeatures:
        """One augmented view of the training split. A view that is seen once is encoded as
        it is read, not kept."""
        if self.training.views is not None and what != "pixels":
            return self._read("train", what, view)
        task = self.method.task
        split = augmented(self.dataset.train, view, task.clip.image_size)
        decoded = DecodedImages(split, task.clip.preprocess, task.device, task.dtype, keep=0)
        if what == "pixels":
            return decoded
        return LiveFeatures(decoded, partial(task.clip.features_of, what), task.dtype)

    def features(self, split: str) -> Tensor:
        """Unit-norm image features of ``train`` or ``test`` on the task's device, in its
        precision."""
        return self._read(split, "features")

    def _read(self, split: str, what: str, view: int | None = None) -> Lookup:
        if (split, what, view) not in self._images:
            task, which = self.method.task, (split,) if view is None else (split, view)
            if what == "pixels":
                images = DecodedImages(
                    getattr(self.dataset, split), task.clip.preprocess, task.device, task.dtype
                )
            else:
                found = self.sources[what](*which)
                array = found.values if isinstance(found, PartialFeatures) else found
                if what == "patches":
                    images = MappedFeatures(array, task.device, task.dtype)
                else:  # a copy: torch must not write into, nor hold open, the memory-mapped cache
                    images = torch.from_numpy(np.array(array)).to(task.device, task.dtype)
                if isinstance(found, PartialFeatures):
                    images = SubsetLookup(images, found.indices, found.size, task.device)
            self._images[split, what, view] = images
        return self._images[split, what, view]

    def labels(self, split: str, classes: Sequence[int]) -> Tensor:
        """Columns of ``classes`` for every image of a split, -1 for images of other classes."""
        key = (split, tuple(classes))
        if key not in self._labels:
            column = np.full(len(self.dataset.class_names), -1, dtype=np.int64)
            column[list(classes)] = np.arange(len(classes))
            labels = column[getattr(self.dataset, split).labels]
            self._labels[key] = torch.from_numpy(labels).to(self.method.task.device)
        return self._labels[key]
