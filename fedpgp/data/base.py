"""What a data set is: splits of labelled images, class names in label order, a
template; and the list of all."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from fedpgp.data.class_names import nfc, spoken
from fedpgp.data.images import PUBLISHED, Reading, read_image
from fedpgp.digests import digest
from fedpgp.errors import FedPGPError
from fedpgp.plain_text import written_out
from fedpgp.registry import Registry

DATA_VARIABLE = "FEDPGP_DATA"
VALIDATION_FRACTION = 0.2
"""Of the training images, where validation images are made of them."""


class Split(ABC):
    """Labelled images.

    Attributes:
        labels: (N,) int64.
        domains: N names, or None for data without domains.
        reserved: (N,) bool, the images that validation takes where the data set has no split for
            it; None leaves the choice to :func:`fedpgp.data.loading.validation_as_test`.
    """

    reserved: np.ndarray | None = None

    def __init__(self, labels: Sequence[int] | np.ndarray, domains: Sequence[str] | None = None):
        self.labels = np.asarray(labels, dtype=np.int64)
        self.domains = None if domains is None else list(domains)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> Image.Image:
        """Image ``i`` as RGB.

        Raises:
            FedPGPError: it cannot be read; the message names it.
        """
        try:
            return self._open(i)
        except Exception as error:  # each decoder fails in its own way
            raise FedPGPError(
                f"image {self.describe(i)} cannot be read ({_first_line(error)}); restore it, or "
                "leave broken images out with dataset.on_bad_image=skip"
            ) from error

    @abstractmethod
    def describe(self, i: int) -> str:
        """What a person calls image ``i``: its file."""

    @cached_property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the images and their order, or of what changes whenever they
        do: the key of caches."""

    @property
    def signature(self) -> str:
        """SHA-256 (hex) that tells whether a run still has its images: the same wherever they lie,
        and when they were copied."""
        return self.fingerprint

    @abstractmethod
    def _open(self, i: int) -> Image.Image:
        """Image ``i`` as RGB. Raises whatever its decoder does."""


class FileSplit(Split):
    """Images in files.

    Args:
        root: the folder that the paths start from.
        paths: N paths relative to ``root``.
        labels: N labels.
        domains: N domain names or None.
        reading: how they are read.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: Sequence[int],
        domains: Sequence[str] | None = None,
        reading: Reading = PUBLISHED,
    ):
        super().__init__(labels, domains)
        self.root, self.paths, self.reading = Path(root), [str(path) for path in paths], reading

    def describe(self, i: int) -> str:
        return written_out(self.root / self.paths[i])

    @cached_property
    def fingerprint(self) -> str:
        # Names, sizes and times may be another folder's too.
        digest = hashlib.sha256(
            os.fsencode(self.root.resolve()) + f"\0{self.reading.fingerprint}\n".encode()
        )
        for path in self.paths:
            try:
                status = os.stat(self.root / path)
                about = f"{status.st_size}\0{status.st_mtime_ns}"
            except OSError:  # said when the image is asked for; on_bad_image=skip leaves it out
                about = "missing"
            digest.update(os.fsencode(path) + f"\0{about}\n".encode())
        return digest.hexdigest()

    @cached_property
    def signature(self) -> str:
        """Of names and sizes; that of a file which cannot be found is none."""
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                size = os.stat(self.root / path).st_size
            except OSError:
                size = None
            digest.update(os.fsencode(f"{path}\0{size}\n"))
        return digest.hexdigest()

    def _open(self, i: int) -> Image.Image:
        return read_image(self.root / self.paths[i], self.reading)


class ArraySplit(Split):
    """Images in memory: (N, height, width, 3) uint8."""

    def __init__(
        self,
        pixels: np.ndarray,
        labels: Sequence[int] | np.ndarray,
        domains: Sequence[str] | None = None,
    ):
        super().__init__(labels, domains)
        self.pixels = pixels

    def describe(self, i: int) -> str:
        return f"number {i}"

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(str(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()

    def _open(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels[i])


class Subset(Split):
    """Some rows of another split, in the order given."""

    def __init__(self, split: Split, rows: Sequence[int] | np.ndarray):
        self.split, self.rows = split, np.asarray(rows, dtype=np.int64)
        domains = None if split.domains is None else [split.domains[row] for row in self.rows]
        super().__init__(split.labels[self.rows], domains)
        self.reserved = None if split.reserved is None else split.reserved[self.rows]

    def describe(self, i: int) -> str:
        return self.split.describe(int(self.rows[i]))

    @cached_property
    def fingerprint(self) -> str:
        return digest(self.split.fingerprint, self.rows.astype("<i8").tobytes())

    @cached_property
    def signature(self) -> str:
        return digest(self.split.signature, self.rows.astype("<i8").tobytes())

    def _open(self, i: int) -> Image.Image:
        return self.split._open(int(self.rows[i]))


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        name: as in :data:`DATASETS`.
        class_names: in label order; underscores are left for the prompt to replace.
        template: of a class's sentence, with one ``{}``; or one for each class, where
            several data sets are joined.
        train, val, test: splits, or None where the data set has none.
        superclasses: (classes,) int64, which superclass a class belongs to, or None (what the
            pachinko partition needs).
        notes: what a run should say of it: which of several splits was used, what was left out.
        sources: the data set that each class is of, where several are joined; empty for one.
    """

    name: str
    class_names: list[str]
    template: str | tuple[str, ...]
    train: Split | None
    val: Split | None
    test: Split | None
    superclasses: np.ndarray | None = None
    notes: tuple[str, ...] = field(default=())
    sources: tuple[str, ...] = field(default=())

    def __post_init__(self):
        object.__setattr__(self, "class_names", [nfc(name) for name in self.class_names])

    @property
    def templates(self) -> tuple[str, ...]:
        """The template of each class."""
        return (
            (self.template,) * len(self.class_names)
            if isinstance(self.template, str)
            else self.template
        )

    @cached_property
    def shown_names(self) -> list[str]:
        """Class names for people: one that several joined data sets have is named with its data
        set, ``dog (oxford_pets)``."""
        if not self.sources:
            return self.class_names
        pairs = list(zip(self.class_names, self.sources, strict=True))
        of = defaultdict(set)
        for name, source in pairs:
            of[spoken(name)].add(source)
        return [
            f"{name} ({source})" if len(of[spoken(name)]) > 1 else name for name, source in pairs
        ]

    def without_repeats(self, labels: Iterable[int]) -> tuple[int, ...]:
        """Labels without the classes that an earlier data set has too, with name and template: a
        variant's classes are those of the original."""
        first: dict[tuple[str, str], str] = {}
        kept = []
        for label in labels:
            source = self.sources[label] if self.sources else ""
            key = spoken(self.class_names[label]), self.templates[label]
            if first.setdefault(key, source) == source:
                kept.append(label)
        return tuple(kept)


Loader = Callable[..., Dataset]
DATASETS: Registry[Loader] = Registry("fedpgp.data.datasets")
"""Name -> loader ``(root, *, download, **its own options) -> Dataset``. A new file in this folder
needs no mention anywhere else."""

register = DATASETS.register


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds the data sets' folders: ``root``, else $FEDPGP_DATA, else
    ~/.cache/fedpgp/data."""
    return Path(root or os.environ.get(DATA_VARIABLE) or "~/.cache/fedpgp/data").expanduser()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
