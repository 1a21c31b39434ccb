"""Several data sets as one: their classes one after the other, their images too."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from fedpgp.data.augment import AugmentedSplit
from fedpgp.data.base import Dataset, Split
from fedpgp.digests import digest


class Concat(Split):
    """Splits one after the other.

    Args:
        parts: the splits.
        offsets: what is added to each one's labels.
    """

    def __init__(self, parts: Sequence[Split], offsets: Sequence[int]):
        super().__init__(
            np.concatenate(
                [part.labels + offset for part, offset in zip(parts, offsets, strict=True)]
            )
        )
        self.parts, self.offsets = list(parts), list(offsets)
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def describe(self, i: int) -> str:
        part, row = self._find(i)
        return part.describe(row)

    @cached_property
    def fingerprint(self) -> str:
        return digest("\n".join(part.fingerprint for part in self.parts))

    @cached_property
    def signature(self) -> str:
        return digest("\n".join(part.signature for part in self.parts))

    def _open(self, i: int) -> Image.Image:
        part, row = self._find(i)
        return part._open(row)

    def _find(self, i: int) -> tuple[Split, int]:
        k = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.parts[k], int(i - self.starts[k])


def augmented(split: Split, view: int, size: int) -> Split:
    """One augmented view of a split, (size, size) pixels; of each part of a joint one by itself, so
    that an image's view is the same whatever its data set is joined with."""
    if isinstance(split, Concat):
        return Concat([augmented(part, view, size) for part in split.parts], split.offsets)
    return AugmentedSplit(split, view, size)


def appended(split: Split, part: Split) -> Concat:
    """A split with another one behind it, under the same labels; a joint one stays a flat list, of
    which each is encoded by itself."""
    parts, offsets = (
        ([*split.parts], split.offsets) if isinstance(split, Concat) else ([split], [0])
    )
    return Concat([*parts, part], [*offsets, 0])


@dataclass(frozen=True)
class Member:
    """One data set's place in the joint one: its classes' labels and its test rows."""

    classes: tuple[int, ...]
    test: np.ndarray


def join(datasets: Sequence[Dataset], labels: Sequence[str]) -> tuple[Dataset, list[Member]]:
    """The joint data set, named after the first, and each one's place in it.

    A data set without a train split has no images in the joint one's. Class names may occur twice;
    templates stay each data set's own.

    Args:
        datasets: what is joined.
        labels: what each is called where a class name alone would not do.
    """
    sizes = [len(dataset.class_names) for dataset in datasets]
    offsets = np.cumsum([0, *sizes[:-1]])

    def concat(part: str) -> tuple[Concat | None, np.ndarray]:
        present = [(getattr(d, part), offset) for d, offset in zip(datasets, offsets, strict=True)]
        lengths = [0 if split is None else len(split) for split, _ in present]
        present = [(split, offset) for split, offset in present if split is not None]
        return (Concat(*zip(*present, strict=True)) if present else None), np.cumsum([0, *lengths])

    train, _ = concat("train")
    test, starts = concat("test")
    joint = Dataset(
        datasets[0].name,
        [name for dataset in datasets for name in dataset.class_names],
        tuple(template for dataset in datasets for template in dataset.templates),
        train,
        None,
        test,
        notes=tuple(dict.fromkeys(note for dataset in datasets for note in dataset.notes)),
        sources=tuple(
            label
            for label, dataset in zip(labels, datasets, strict=True)
            for _ in dataset.class_names
        ),
    )
    members = [
        Member(tuple(range(offset, offset + size)), np.arange(start, stop))
        for offset, size, start, stop in zip(
            offsets.tolist(), sizes, starts[:-1], starts[1:], strict=True
        )
    ]
    return joint, members
